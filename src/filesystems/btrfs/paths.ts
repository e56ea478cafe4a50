/**
 * Paths, in both directions. They begin in the first file tree; a subvolume is a directory on the way.
 *
 *   down   directory → hash of the name → inode, or subvolume, whose first directory is inode 256
 *   up     inode → its reference → directory → … → inode 256 → reference of the subvolume → directory → …
 *
 * Names that cannot be shown are escaped (H25), and are found again in that form. Symlinks are not followed.
 */
import { shownName } from "../../bytes/text.ts";
import { LISTED_MAX } from "../filesystem.ts";
import {
  entriesOf,
  inodeOf,
  nameHash,
  REFERENCE,
  referenceOf,
  REFERENCES,
  type Entry,
  type Inode,
} from "./inodes.ts";
import { isSubvolume, KEY, TREE } from "./keys.ts";
import type { Lookup } from "./lookup.ts";

const ROOT_INODE = 256n;
const DEPTH_MAX = 1024;
const DEFAULT = Buffer.from("default");

/** A file, directory or anything else that has an inode. */
export interface Place {
  readonly tree: bigint;
  readonly inode: bigint;
}

export class Paths {
  readonly #lookup: Lookup;

  constructor(lookup: Lookup) {
    this.#lookup = lookup;
  }

  /** @throws Refused when a tree on the way is damaged */
  async lookUp(path: string): Promise<Place | undefined> {
    const first = { tree: TREE.filesystem, inode: ROOT_INODE };
    const found = await this.#down(first, path);
    if (found !== undefined) return found;
    // What the guest mounts when it is not told otherwise.
    const preset = await this.#named({ tree: TREE.root, inode: TREE.rootDirectory }, DEFAULT);
    return preset === undefined || preset.tree === TREE.filesystem ? undefined : this.#down(preset, path);
  }

  async #down(start: Place, path: string): Promise<Place | undefined> {
    let place: Place | undefined = start;
    for (const name of path.split("/").filter((part) => part !== "" && part !== ".")) {
      place = await this.#entry(place, name);
      if (place === undefined) return undefined;
    }
    return place;
  }

  async #entry(directory: Place, name: string): Promise<Place | undefined> {
    const found = await this.#named(directory, Buffer.from(name));
    if (found !== undefined || !name.includes("\\")) return found;
    for await (const entry of this.entries(directory)) {
      if (shownName(entry.name) === name) return placeOf(directory, entry);
    }
    return undefined;
  }

  async #named(directory: Place, name: Uint8Array): Promise<Place | undefined> {
    const item = await this.#lookup.item(directory.tree, directory.inode, KEY.directoryItem, nameHash(name));
    if (item === undefined) return undefined;
    for (const entry of entriesOf(item)) {
      if (Buffer.from(entry.name).equals(name)) return placeOf(directory, entry);
    }
    return undefined;
  }

  /** What a directory holds, at most `LISTED_MAX`. @throws Refused */
  async *entries(directory: Place): AsyncGenerator<Entry> {
    let count = 0;
    for await (const item of this.#lookup.items(directory.tree, directory.inode, KEY.directoryIndex)) {
      for (const entry of entriesOf(item)) {
        if (count++ === LISTED_MAX) return;
        yield entry;
      }
    }
  }

  /** @throws Refused */
  async inode({ tree, inode }: Place): Promise<Inode | undefined> {
    const item = await this.#lookup.item(tree, inode, KEY.inode, 0n);
    return item === undefined ? undefined : inodeOf(item);
  }

  /** A path; undefined where no directory names it. @throws Refused */
  async pathOf(place: Place): Promise<string | undefined> {
    const names: string[] = [];
    let at: Place | undefined = place;
    for (let depth = 0; depth < DEPTH_MAX && at !== undefined; depth++) {
      if (at.tree === TREE.filesystem && at.inode === ROOT_INODE) return `/${names.join("/")}`;
      const parent = await this.#parentOf(at);
      if (parent !== undefined) names.unshift(shownName(parent.name));
      at = parent;
    }
    return undefined;
  }

  async #parentOf({ tree, inode }: Place): Promise<(Place & { readonly name: Uint8Array }) | undefined> {
    if (inode === ROOT_INODE) {
      const item = await this.#lookup.item(TREE.root, tree, KEY.rootBackReference);
      if (item === undefined) return undefined;
      const { directory, name } = referenceOf(item, REFERENCES);
      return { tree: item.key.offset, inode: directory, name };
    }
    const one = await this.#lookup.item(tree, inode, KEY.inodeReference);
    const item = one ?? (await this.#lookup.item(tree, inode, KEY.inodeReferences));
    if (item === undefined) return undefined;
    const { directory, name } = referenceOf(item, one === undefined ? REFERENCES : REFERENCE);
    return { tree, inode: directory, name };
  }
}

/** What an entry of `directory` names. */
export function placeOf({ tree }: Place, { target }: Entry): Place | undefined {
  if (target.type === KEY.inode) return { tree, inode: target.id };
  return target.type === KEY.root && isSubvolume(target.id)
    ? { tree: target.id, inode: ROOT_INODE }
    : undefined;
}
