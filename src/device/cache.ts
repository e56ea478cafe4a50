/**
 * A read cache of a fixed size, for the small scattered reads of metadata.
 *
 *   read 3 blocks:   | hit | miss | miss |      one read below for the two misses
 *
 * The least recently used block goes first. A read that follows the one before fetches some blocks ahead; a read
 * larger than a quarter of the cache passes by it. The device below must not change meanwhile.
 */
import type { Extent } from "../bytes/extents.ts";
import { assert } from "../error.ts";
import type { BlockDevice, Place, Run } from "./device.ts";

export interface CacheOptions {
  /** Default 16 KiB. */
  readonly blockBytes?: number;
  /** Default 1024 blocks. */
  readonly blocks?: number;
  /** How many blocks a sequential read fetches ahead. Default 15. */
  readonly aheadBlocks?: number;
}

export function cache(device: BlockDevice, options: CacheOptions = {}): BlockDevice {
  return new Cache(device, options);
}

class Cache implements BlockDevice {
  readonly bytes: number;
  readonly #device: BlockDevice;
  readonly #blockBytes: number;
  readonly #blocksMax: number;
  readonly #aheadBlocks: number;
  /** In the order of their last use. */
  readonly #blocks = new Map<number, Uint8Array>();
  #expected = -1;

  constructor(
    device: BlockDevice,
    { blockBytes = 16 * 1024, blocks = 1024, aheadBlocks = 15 }: CacheOptions,
  ) {
    assert(blocks > 4 * (aheadBlocks + 1), "a read with what is ahead fits into a quarter of the cache");
    this.#device = device;
    this.bytes = device.bytes;
    this.#blockBytes = blockBytes;
    this.#blocksMax = blocks;
    this.#aheadBlocks = aheadBlocks;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    if (into.length > (this.#blocksMax * this.#blockBytes) / 4) return this.#device.read(at, into);
    assert(at >= 0 && at + into.length <= this.bytes, `${at}+${into.length} lies in ${this.bytes} bytes`);
    const end = Math.ceil((at + into.length) / this.#blockBytes);
    const first = Math.floor(at / this.#blockBytes);
    const ahead = first === this.#expected || first === this.#expected - 1 ? this.#aheadBlocks : 0;
    this.#expected = end;
    for (let block = first; block < end;) {
      const held = this.#touch(block);
      if (held) {
        this.#copyOut(block++, held, at, into);
        continue;
      }
      const stop = this.#endOfMisses(block, end, ahead);
      for (const fetched of await this.#fetch(block, stop)) {
        if (block < end) this.#copyOut(block, fetched, at, into);
        block++;
      }
    }
  }

  map(range: Extent): AsyncIterable<readonly Run[]> {
    return this.#device.map(range);
  }

  locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    return this.#device.locate?.(at, bytes, access);
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#blocks.clear();
    return Promise.resolve();
  }

  #touch(block: number): Uint8Array | undefined {
    const held = this.#blocks.get(block);
    if (held) {
      this.#blocks.delete(block);
      this.#blocks.set(block, held);
    }
    return held;
  }

  /** Where the misses from `block` end; those that reach the end of the read go on ahead. */
  #endOfMisses(block: number, end: number, ahead: number): number {
    let stop = block + 1;
    while (stop < end && !this.#blocks.has(stop)) stop++;
    if (stop < end) return stop;
    const last = Math.min(stop + ahead, Math.ceil(this.bytes / this.#blockBytes));
    while (stop < last && !this.#blocks.has(stop)) stop++;
    return stop;
  }

  async #fetch(block: number, stop: number): Promise<Uint8Array[]> {
    const at = block * this.#blockBytes;
    const bytes = new Uint8Array(Math.min(stop * this.#blockBytes, this.bytes) - at);
    await this.#device.read(at, bytes);
    const fetched: Uint8Array[] = [];
    for (let i = 0; i < stop - block; i++) {
      // A copy each: a view would keep all that was fetched with it alive.
      const one = bytes.slice(i * this.#blockBytes, (i + 1) * this.#blockBytes);
      this.#blocks.delete(block + i);
      this.#blocks.set(block + i, one);
      fetched.push(one);
    }
    for (const oldest of this.#blocks.keys()) {
      if (this.#blocks.size <= this.#blocksMax) break;
      this.#blocks.delete(oldest);
    }
    return fetched;
  }

  #copyOut(block: number, held: Uint8Array, at: number, into: Uint8Array): void {
    const base = block * this.#blockBytes;
    const start = Math.max(at, base);
    const end = Math.min(at + into.length, base + held.length);
    into.set(held.subarray(start - base, end - base), start - at);
  }
}
