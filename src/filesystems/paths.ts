/**
 * Paths of filesystems whose directories lead to inodes, in both directions: from a path down to its inode, and from an
 * inode up to its path.
 *
 *   down   root → entry → entry → …
 *   up     a directory: `..`, and its name there; anything else: the tree is searched once, as far as needed
 *
 * Symlinks are not followed. Names that cannot be shown (encrypted, not UTF-8, controls: H25) are escaped, and are
 * found again in that form.
 */
import { shownName } from "../bytes/text.ts";
import { LISTED_MAX } from "./filesystem.ts";

/** What an entry may say of the inode that it leads to: anything else is no directory. */
export const ENTRY_TYPE = { unknown: 0, directory: 2 } as const;

/** @param type as `ENTRY_TYPE` has them */
export type VisitEntry = (inode: number, name: Uint8Array, type: number) => void;

/** The directories of a filesystem. What is damaged throws `Refused`. */
export interface Directories<I extends { readonly number: number }> {
  readonly root: number;
  inode(number: number): Promise<I>;
  isDirectory(inode: I): boolean;
  /** Visits all entries, `..` among them. */
  visit(directory: I, visit: VisitEntry): Promise<void>;
  /** Whether names differ only in what the filesystem does not distinguish. Without: they never do. */
  isSame?(a: Uint8Array, b: Uint8Array): boolean;
}

/** How many names the search for paths may remember; beyond, files have no path. */
const REMEMBERED_MAX = 1 << 21;
const DEPTH_MAX = 1024;

export class Paths<I extends { readonly number: number }> {
  readonly #directories: Directories<I>;
  /** A directory of each inode that was met, and the directories that are still to be searched. */
  readonly #parents = new Map<number, number>();
  readonly #unsearched: number[];

  constructor(directories: Directories<I>) {
    this.#directories = directories;
    this.#unsearched = [directories.root];
  }

  /** The inode at `path`. @throws Refused when a directory on the way is damaged */
  async lookUp(path: string): Promise<I | undefined> {
    let inode = await this.#directories.inode(this.#directories.root);
    for (const name of path.split("/").filter((part) => part !== "" && part !== ".")) {
      if (!this.#directories.isDirectory(inode)) return undefined;
      let found: number | undefined;
      await this.#directories.visit(inode, (number, bytes) => {
        if (found === undefined && this.#isNamed(bytes, name)) found = number;
      });
      if (found === undefined) return undefined;
      inode = await this.#directories.inode(found);
    }
    return inode;
  }

  /** A path of `inode`; undefined when no directory names it. @throws Refused when a directory is damaged */
  async pathOf(inode: I): Promise<string | undefined> {
    const names: string[] = [];
    let child = inode.number;
    let parent = this.#directories.isDirectory(inode)
      ? await this.#parentOf(inode)
      : await this.#search(inode.number);
    for (let depth = 0; depth < DEPTH_MAX && parent !== undefined; depth++) {
      if (child === this.#directories.root) return `/${names.join("/")}`;
      const directory = await this.#directories.inode(parent);
      if (!this.#directories.isDirectory(directory)) return undefined;
      let name: string | undefined;
      await this.#directories.visit(directory, (number, bytes) => {
        if (number === child && !isDots(bytes)) name ??= shownName(bytes);
      });
      if (name === undefined) return undefined;
      names.unshift(name);
      child = parent;
      parent = await this.#parentOf(directory);
    }
    return undefined;
  }

  /** What `directory` holds, without `.` and `..`. @throws Refused when it is damaged */
  async entriesOf(directory: I): Promise<{ readonly name: string; readonly inode: number }[]> {
    const entries: { name: string; inode: number }[] = [];
    await this.#directories.visit(directory, (inode, name) => {
      if (!isDots(name) && entries.length < LISTED_MAX) entries.push({ name: shownName(name), inode });
    });
    return entries;
  }

  async #parentOf(directory: I): Promise<number | undefined> {
    let parent: number | undefined;
    await this.#directories.visit(directory, (number, name) => {
      if (isDots(name) && name.length === 2) parent ??= number;
    });
    return parent;
  }

  /** Searches on through the tree until the directory of `inode` is known. */
  async #search(inode: number): Promise<number | undefined> {
    while (!this.#parents.has(inode)) {
      const next = this.#unsearched.pop();
      if (next === undefined || this.#parents.size > REMEMBERED_MAX) return undefined;
      const directory = await this.#directories.inode(next);
      if (!this.#directories.isDirectory(directory)) continue;
      await this.#directories.visit(directory, (number, name, type) => {
        if (isDots(name) || this.#parents.has(number)) return;
        this.#parents.set(number, next);
        if (type === ENTRY_TYPE.directory || type === ENTRY_TYPE.unknown) this.#unsearched.push(number);
      });
    }
    return this.#parents.get(inode);
  }

  #isNamed(bytes: Uint8Array, name: string): boolean {
    const wanted = Buffer.from(name);
    const isSame = wanted.equals(bytes) || shownName(bytes) === name;
    return isSame || (this.#directories.isSame?.(bytes, wanted) ?? false);
  }
}

const DOT = 0x2e;

/** `.` or `..` */
function isDots(name: Uint8Array): boolean {
  return name.length <= 2 && name.every((byte) => byte === DOT);
}
