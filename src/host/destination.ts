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
  rmdirSync,
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
  /** Folders with what was replaced. */
  readonly #aside: string[] = [];
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

  /** Where the files of the image go that the user did not name. */
  parts(): string[] {
    return this.#partNames().map((name) => join(this.directory, name));
  }

  #partNames(): string[] {
    return readdirSync(this.#folder).filter((name) => name !== basename(this.draft));
  }

  /** Moves what was made into place. @throws DiskError `usage` where something has come to lie there meanwhile */
  publish(): void {
    const last = basename(this.draft);
    const parts = this.#partNames();
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
    for (const aside of this.#aside) rmSync(aside, { recursive: true, force: true });
  }

  /**
   * A folder gives way to nothing by rename(2): it is put aside, and removed when the new one is there to stay. Not in
   * the hidden folder: a crash in between would leave both images where the next `sweep` removes them.
   */
  #replace(from: string, to: string): void {
    const isFolder = (path: string) => lstatSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
    if (!existsSync(to) || (!isFolder(from) && !isFolder(to))) return renameSync(from, to);
    const folder = mkdtempSync(`${to}.replaced-`);
    const aside = join(folder, basename(to));
    try {
      renameSync(to, aside);
      syncDirectory(folder);
      try {
        renameSync(from, to);
      } catch (error) {
        renameSync(aside, to);
        throw error;
      }
    } catch (error) {
      if (!existsSync(aside)) rmdirSync(folder);
      throw error;
    }
    this.#aside.push(folder);
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
  /** Of itself, and of all that lies below it. */
  identities(): readonly string[];
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
  const identity = identityAt(path) ?? "";
  if (stats.isFile()) return { kind: "file", identity, identities: () => [identity] };
  return { kind: "folder", identity, identities: () => [identity, ...identitiesBelow(path)] };
}

function identitiesBelow(folder: string): string[] {
  try {
    const entries = readdirSync(folder, { recursive: true, withFileTypes: true });
    return entries.map(({ parentPath, name }) => identityAt(join(parentPath, name)) ?? "");
  } catch (error) {
    throw hostError(error, `${folder}: list`);
  }
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
