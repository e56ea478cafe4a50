/**
 * Who claims which cluster: a block that two owners claim is damage, since freeing or writing one hurts the other.
 * e2fsck calls such blocks multiply claimed.
 *
 * Allowed to meet: the files that share a block of extended attributes (its owner claims it once), and, with
 * bigalloc, two runs of one file in the same cluster of the file.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import { contradiction, damaged } from "./refused.ts";
import type { Superblock } from "./superblock.ts";

export class Claims {
  readonly #sb: Superblock;
  readonly #claimed = new SparseBitmap();
  /** Clusters that a run covers only in part, and whose they are. */
  readonly #partial = new Map<number, number>();

  constructor(sb: Superblock) {
    this.#sb = sb;
  }

  /** Blocks of the filesystem's own structures: known not to overlap, but they share clusters. */
  addFixed(start: number, end: number): void {
    this.#claimed.setRange(this.#clusterOf(start), this.#clusterOf(end - 1) + 1);
  }

  /** Whether all of the blocks have an owner already. */
  covers(start: number, blocks: number): boolean {
    const end = this.#clusterOf(start + blocks - 1) + 1;
    return this.#claimed.nextClear(this.#clusterOf(start), end) === end;
  }

  /** A block of attributes or of a map. @throws Refused when it belongs to somebody else */
  addBlock(owner: number, block: number): void {
    this.#add(owner, this.#clusterOf(block), this.#clusterOf(block) + 1);
  }

  /** Blocks of a file. @throws Refused when any of them belongs to somebody else */
  addRun(owner: number, logical: number, start: number, blocks: number): void {
    const ratio = this.#sb.clusterBlocks;
    const stop = start + blocks;
    let first = this.#clusterOf(start);
    let end = this.#clusterOf(stop - 1) + 1;
    if (ratio === 1) return this.#add(owner, first, end);
    if ((start - logical) % ratio !== 0) {
      throw damaged(`inode ${owner}: file block ${logical} lies at ${start}, not at its place in a cluster`);
    }
    const cutsFirst = start % ratio !== 0;
    const cutsLast = stop % ratio !== 0;
    if (cutsFirst && this.#partial.get(first) === owner) first++;
    if (cutsLast && first < end && this.#partial.get(end - 1) === owner) end--;
    this.#add(owner, first, end);
    if (cutsFirst) this.#partial.set(this.#clusterOf(start), owner);
    if (cutsLast) this.#partial.set(this.#clusterOf(stop - 1), owner);
  }

  #add(owner: number, first: number, end: number): void {
    const taken = this.#claimed.nextSet(first, end);
    if (taken < end) {
      throw contradiction(
        `block ${taken * this.#sb.clusterBlocks} of inode ${owner} belongs to another owner too`,
      );
    }
    this.#claimed.setRange(first, end);
  }

  #clusterOf(block: number): number {
    return Math.floor(block / this.#sb.clusterBlocks);
  }
}
