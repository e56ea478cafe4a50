/**
 * Paths, in both directions: from a path down to its inode, and from an inode up to its path.
 *
 *   down   root → entry → entry → …           names are compared byte by byte, or without the case of ASCII (ascii-ci)
 *   up     a directory: `..`, and its name there; anything else: the tree is searched once, as far as needed
 *
 * Symlinks are not followed. Names that cannot be shown (not UTF-8, controls: H25) are escaped, and are found again in
 * that form.
 */
import { shownName } from "../../bytes/text.ts";
import { LISTED_MAX } from "../filesystem.ts";
import { ENTRY_TYPE, readDirectory } from "./directory.ts";
import { hasVersion } from "./features.ts";
import type { Volume } from "./headers.ts";
import { readInode, TYPE, type Inode } from "./inode.ts";

/** How many names the search for paths may remember; beyond, files have no path. */
const REMEMBERED_MAX = 1 << 21;
const DEPTH_MAX = 1024;

export class Paths {
  readonly #volume: Volume;
  /** A directory of each inode that was met, and the directories that are still to be searched. */
  readonly #parents = new Map<number, number>();
  readonly #unsearched: number[];

  constructor(volume: Volume) {
    this.#volume = volume;
    this.#unsearched = [volume.sb.rootInode];
  }

  /** The inode at `path`. @throws Refused when a directory on the way is damaged */
  async lookUp(path: string): Promise<Inode | undefined> {
    let inode = await readInode(this.#volume, this.#volume.sb.rootInode);
    for (const name of path.split("/").filter((part) => part !== "" && part !== ".")) {
      if (inode.type !== TYPE.directory) return undefined;
      let found: number | undefined;
      await readDirectory(this.#volume, inode, (number, bytes) => {
        if (found === undefined && this.#isNamed(bytes, name)) found = number;
      });
      if (found === undefined) return undefined;
      inode = await readInode(this.#volume, found);
    }
    return inode;
  }

  /** A path of `inode`; undefined when no directory names it. @throws Refused when a directory is damaged */
  async pathOf(inode: Inode): Promise<string | undefined> {
    const names: string[] = [];
    let child = inode.number;
    let parent =
      inode.type === TYPE.directory ? await this.#parentOf(inode) : await this.#search(inode.number);
    for (let depth = 0; depth < DEPTH_MAX && parent !== undefined; depth++) {
      if (child === this.#volume.sb.rootInode) return `/${names.join("/")}`;
      const directory = await readInode(this.#volume, parent);
      if (directory.type !== TYPE.directory) return undefined;
      let name: string | undefined;
      await readDirectory(this.#volume, directory, (number, bytes) => {
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
  async entriesOf(directory: Inode): Promise<{ readonly name: string; readonly inode: number }[]> {
    const entries: { name: string; inode: number }[] = [];
    await readDirectory(this.#volume, directory, (inode, name) => {
      if (!isDots(name) && entries.length < LISTED_MAX) entries.push({ name: shownName(name), inode });
    });
    return entries;
  }

  async #parentOf(directory: Inode): Promise<number | undefined> {
    let parent: number | undefined;
    await readDirectory(this.#volume, directory, (number, name) => {
      if (isDots(name) && name.length === 2) parent ??= number;
    });
    return parent;
  }

  /** Searches on through the tree until the directory of `inode` is known. */
  async #search(inode: number): Promise<number | undefined> {
    while (!this.#parents.has(inode)) {
      const next = this.#unsearched.pop();
      if (next === undefined || this.#parents.size > REMEMBERED_MAX) return undefined;
      const directory = await readInode(this.#volume, next);
      if (directory.type !== TYPE.directory) continue;
      await readDirectory(this.#volume, directory, (number, name, type) => {
        if (isDots(name) || this.#parents.has(number)) return;
        this.#parents.set(number, next);
        if (type === ENTRY_TYPE.directory || type === ENTRY_TYPE.unknown) this.#unsearched.push(number);
      });
    }
    return this.#parents.get(inode);
  }

  #isNamed(bytes: Uint8Array, name: string): boolean {
    if (Buffer.from(name).equals(bytes) || shownName(bytes) === name) return true;
    return hasVersion(this.#volume.sb, "ascii-ci") && lowered(bytes).equals(lowered(Buffer.from(name)));
  }
}

const DOT = 0x2e;

/** `.` or `..` */
function isDots(name: Uint8Array): boolean {
  return name.length <= 2 && name.every((byte) => byte === DOT);
}

function lowered(name: Uint8Array): Buffer {
  return Buffer.from(name.map((byte) => (byte >= 0x41 && byte <= 0x5a ? byte + 0x20 : byte)));
}
