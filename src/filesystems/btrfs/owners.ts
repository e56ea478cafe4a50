/**
 * Who owns bytes, as a number: below zero what belongs to the filesystem, else an inode of a subvolume.
 *
 *   -1, -2, …    reserved, older roots                 -16 - n    nodes of tree n
 *   n × 2^40 + inode                                   a file of tree n
 *
 * n is the place of a tree's id in a list, which grows as trees are met.
 */
import { treeName } from "./keys.ts";

export const RESERVED = -1;
export const OLDER = -2;
const FIRST_TREE = -16;
const INODES = 2 ** 40;

export class Owners {
  readonly #trees: bigint[] = [];
  readonly #places = new Map<bigint, number>();

  ofNodes(tree: bigint): number {
    return FIRST_TREE - this.#place(tree);
  }

  /** A file, or its tree where the number of its inode is out of bounds. */
  ofFile(tree: bigint, inode: number): number {
    return inode > 0 && inode < INODES ? this.#place(tree) * INODES + inode : this.ofNodes(tree);
  }

  /** The tree and inode of a file. */
  fileOf(owner: number): { readonly tree: bigint; readonly inode: number } | undefined {
    const tree = this.#trees[Math.floor(owner / INODES)];
    return owner <= 0 || tree === undefined ? undefined : { tree, inode: owner % INODES };
  }

  /** What an owner below zero is called. */
  nameOf(owner: number): string {
    if (owner === RESERVED) return "reserved for boot loaders and superblocks";
    if (owner === OLDER) return "needed by an older generation";
    const tree = this.#trees[FIRST_TREE - owner];
    return tree === undefined ? `owner ${owner}` : treeName(tree);
  }

  #place(tree: bigint): number {
    let place = this.#places.get(tree);
    if (place === undefined) {
      place = this.#trees.push(tree) - 1;
      this.#places.set(tree, place);
    }
    return place;
  }
}
