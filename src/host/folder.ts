/**
 * A folder that is one image: its files are plain ones, really below it (H22).
 *
 *   disk.sparsebundle/Info.plist, disk.sparsebundle/bands/1f     allowed
 *   a link, `..`, an absolute name, a device, a FIFO             refused, also where the folder itself was reached by a link
 */
import { mkdirSync, opendirSync, realpathSync, unlinkSync } from "node:fs";
import { join, sep } from "node:path";
import type { HostFile, ReadableFile } from "../device/device.ts";
import type { Folder, Source } from "../device/source.ts";
import { DiskError } from "../error.ts";
import { codeOf, hostError } from "./failure.ts";
import { refusal } from "./policy.ts";

/** More than a bundle of 8 TiB has bands, at the usual 8 MiB each. */
const NAMES_MAX = 1_000_000;

/** What the folder needs of the sources of single files. */
export interface FileAccess {
  /** The existing file that `name` means, held to the policy of the folder. */
  refer(name: string): Promise<Required<Pick<Source, "open" | "openWritable">>>;
  /** The file at a path whose directory was found to be below the folder. */
  make(path: string, name: string): Promise<HostFile>;
}

export class HostFolder implements Folder {
  readonly #path: string;
  readonly #files: FileAccess;

  constructor(path: string, files: FileAccess) {
    this.#path = path;
    this.#files = files;
  }

  async list(under: string): Promise<readonly string[]> {
    const names: string[] = [];
    try {
      const directory = under === "" ? realpathSync.native(this.#path) : this.#realBelow(under);
      const entries = opendirSync(directory);
      try {
        for (let entry = entries.readSync(); entry !== null; entry = entries.readSync()) {
          if (!entry.isFile()) {
            // Passed over, a band that is a link would read as zeros.
            if (under !== "") throw refusal(`${under}/${entry.name}`, "it is no plain file", undefined);
            continue;
          }
          if (names.push(entry.name) > NAMES_MAX) throw this.#tooMany(under);
        }
      } finally {
        entries.closeSync();
      }
    } catch (error) {
      if (codeOf(error) === "ENOENT") return [];
      throw hostError(error, `${this.#path}: list ${under}`);
    }
    return names.sort();
  }

  file(name: string): Source {
    return {
      name: join(this.#path, name),
      open: async (): Promise<ReadableFile> => (await this.#files.refer(plain(name))).open(),
      openWritable: async (): Promise<HostFile> => (await this.#files.refer(plain(name))).openWritable(),
      create: async (): Promise<HostFile> => this.#files.make(this.#place(name), join(this.#path, name)),
      refer: async (other) => this.file(other),
    };
  }

  async remove(name: string): Promise<void> {
    const place = this.#place(name);
    attempt(`${this.#path}: remove ${name}`, () => unlinkSync(place));
  }

  make(under: readonly string[]): void {
    attempt(`${this.#path}: make`, () => {
      mkdirSync(this.#path);
      for (const name of under) mkdirSync(join(this.#path, plain(name)));
    });
  }

  /** The path of a file that need not exist; its directory does, below the folder and by no link. */
  #place(name: string): string {
    const parts = plain(name).split("/");
    const last = parts.pop()!;
    return join(
      attempt(`${this.#path}: ${name}`, () => this.#realBelow(parts.join("/"))),
      last,
    );
  }

  #realBelow(under: string): string {
    const home = realpathSync.native(this.#path);
    if (under === "") return home;
    const directory = join(home, plain(under));
    if (realpathSync.native(directory) === directory) return directory;
    throw refusal(under, "a link is on the way to it", undefined);
  }

  #tooMany(under: string): DiskError {
    return new DiskError("unsupported", `${this.#path}: ${under} holds more than ${NAMES_MAX} files`);
  }
}

/** @throws DiskError `refused` for a name that is not plainly one of the folder's own */
function plain(name: string): string {
  const parts = name.split("/");
  const isPlain = parts.every((part) => part !== "" && part !== "." && part !== ".." && !part.includes(sep));
  if (isPlain && !/[\\\0:]/.test(name)) return name;
  throw refusal(name, "it is no plain name inside the image's folder", undefined);
}

function attempt<T>(doing: string, call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw hostError(error, doing);
  }
}
