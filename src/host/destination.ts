/**
 * Where a new image is to lie: it is made in a hidden folder beside, and moved into place when it is whole.
 *
 *   dir/.ullage-4711-a1b2c3/copy.qcow2   while it is written
 *   dir/copy.qcow2                       link(2), which replaces nothing; with `replace` rename(2)
 *
 * So there is the old file or the new one, never a part of one. What a crash leaves in such a folder is removed by the
 * next one that works in the same directory. An image of several files is moved part by part, the one that the user
 * named last.
 */
import {
  closeSync,
  existsSync,
  fsyncSync,
  linkSync,
  lstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  unlinkSync,
} from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { DiskError } from "../error.ts";
import { codeOf, hostError } from "./failure.ts";
import { inUse } from "./inuse.ts";
import { identityAt } from "./medium.ts";

const FOLDER = /^\.ullage-(\d+)-\w{6}$/;

export class Destination implements Disposable {
  /** As the user gave it. */
  readonly path: string;
  /** The real directory of the new image. */
  readonly directory: string;
  /** Where the image is to be made: the same file name, in the hidden folder. */
  readonly draft: string;
  readonly #replaces: boolean;
  readonly #folder: string;
  readonly #leave = (): void => rmSync(this.#folder, { recursive: true, force: true });

  constructor(path: string, { replaces }: { readonly replaces: boolean }) {
    this.path = path;
    this.#replaces = replaces;
    try {
      this.directory = realpathSync.native(dirname(resolve(path)));
      this.#folder = mkdtempSync(join(this.directory, `.ullage-${process.pid}-`));
    } catch (error) {
      throw hostError(error, `${path}: create`);
    }
    this.draft = join(this.#folder, basename(resolve(path)));
    process.once("exit", this.#leave);
  }

  /** Moves what was made into place. @throws DiskError `usage` where something has come to lie there meanwhile */
  publish(): void {
    const last = basename(this.draft);
    const parts = readdirSync(this.#folder).filter((name) => name !== last);
    const moved: string[] = [];
    try {
      for (const name of [...parts, last]) {
        const place = join(this.directory, name);
        syncFolders(join(this.#folder, name));
        if (this.#replaces) this.#replace(join(this.#folder, name), place);
        else moveWhereNothingIs(join(this.#folder, name), place);
        moved.push(place);
      }
    } catch (error) {
      // What replaced something cannot be taken back: the old one is gone.
      if (!this.#replaces) for (const place of moved) rmSync(place, { recursive: true, force: true });
      throw hostError(error, `${this.path}: move into place`);
    }
    syncDirectory(this.directory);
  }

  /** A folder gives way to nothing by rename(2): it is put aside, and goes with the hidden folder. */
  #replace(from: string, to: string): void {
    const isFolder = (path: string) => lstatSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
    if (!existsSync(to) || (!isFolder(from) && !isFolder(to))) return renameSync(from, to);
    const aside = `${from}.replaced`;
    renameSync(to, aside);
    try {
      renameSync(from, to);
    } catch (error) {
      renameSync(aside, to);
      throw error;
    }
  }

  [Symbol.dispose](): void {
    process.off("exit", this.#leave);
    this.#leave();
  }
}

/** link(2) fails where a file is; folders, and filesystems without links, need another way that replaces nothing. */
function moveWhereNothingIs(from: string, to: string): void {
  if (lstatSync(from).isDirectory()) {
    // rename(2) of a folder replaces nothing but an empty folder.
    if (lstatSync(to, { throwIfNoEntry: false }) !== undefined) throw exists(to);
    return renameSync(from, to);
  }
  try {
    linkSync(from, to);
  } catch (error) {
    if (!NO_LINKS.has(codeOf(error) ?? "")) throw codeOf(error) === "EEXIST" ? exists(to) : error;
    closeSync(openSync(to, "wx"));
    return renameSync(from, to);
  }
  unlinkSync(from);
}

const NO_LINKS = new Set(["EPERM", "ENOTSUP", "EMLINK", "ENOSYS", "EOPNOTSUPP"]);

function exists(path: string): DiskError {
  return new DiskError("usage", `${path}: it exists already`, {
    code: "exists",
    hint: "--force replaces it, once the new one is whole",
  });
}

function syncDirectory(path: string): void {
  if (process.platform === "win32") return;
  const fd = openSync(path, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** The names of an image's files, where it is a folder. */
function syncFolders(path: string): void {
  if (!lstatSync(path).isDirectory()) return;
  for (const entry of readdirSync(path, { withFileTypes: true })) {
    if (entry.isDirectory()) syncFolders(join(path, entry.name));
  }
  syncDirectory(path);
}

/** What lies where a new image is to be; undefined: nothing. */
export interface Occupant {
  readonly kind: "file" | "folder";
  readonly identity: string;
}

/**
 * @param replaces whether something may be there already
 * @throws DiskError `usage` where it must not be, or could not be replaced, `busy` where somebody uses it
 */
export async function occupantOf(
  path: string,
  { replaces }: { readonly replaces: boolean },
): Promise<Occupant | undefined> {
  const stats = lstatSync(path, { throwIfNoEntry: false });
  if (stats === undefined) return undefined;
  if (!replaces) throw exists(path);
  if (!stats.isFile() && !stats.isDirectory()) {
    const what = stats.isSymbolicLink() ? "a symbolic link" : "no regular file";
    throw new DiskError("usage", `${path}: it is ${what}, which is not replaced`, {
      hint: "name a file that does not exist",
    });
  }
  if (stats.isFile() && (await inUse(path))) {
    throw new DiskError("busy", `${path}: another process uses it`, {
      code: "locked",
      hint: "end that process, or name another file",
    });
  }
  return { kind: stats.isFile() ? "file" : "folder", identity: identityAt(path) ?? "" };
}

/** Removes what processes that are gone have left in the directory of `path`. */
export async function sweep(path: string): Promise<void> {
  const directory = dirname(resolve(path));
  let entries;
  try {
    entries = readdirSync(directory, { withFileTypes: true });
  } catch {
    return;
  }
  for (const entry of entries) {
    const pid = FOLDER.exec(entry.name)?.[1];
    if (pid === undefined || !entry.isDirectory() || isAlive(Number(pid))) continue;
    const folder = join(directory, entry.name);
    // A process of another machine or container has its files locked.
    if (!(await isLocked(folder))) rmSync(folder, { recursive: true, force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return codeOf(error) !== "ESRCH";
  }
}

async function isLocked(folder: string): Promise<boolean> {
  try {
    for (const name of readdirSync(folder)) if (await inUse(join(folder, name))) return true;
    return false;
  } catch {
    return true;
  }
}
