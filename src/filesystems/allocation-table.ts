/**
 * The file allocation table of FAT12, FAT16, FAT32 and exFAT: one entry for each cluster, which names the next one of
 * its file.
 *
 *   entry   |  0  |  1  |  2  |  3  |  4  |  5  | …        clusters are counted from 2
 *           | media, state | 3 | END |  0  | BAD |
 *
 * An entry has 12, 16, 28 (of 32) or 32 bits; the numbers from `…f7` on have a meaning, and are the same here for all
 * widths. The table is read in pages of as many entries, of which some stay in memory.
 */
import { readBytes, type BlockDevice } from "../device/device.ts";
import { viewOf } from "../bytes/struct.ts";
import { pipelined } from "./reading.ts";
import { findings, Refused } from "./refused.ts";

export type EntryBits = 12 | 16 | 28 | 32;

export const FREE = 0;
export const BAD = 0xfffffff7;
export const END = 0xffffffff;

/** The first two entries belong to no cluster. */
export const FIRST_CLUSTER = 2;

const PAGE_ENTRIES = 1 << 15;
/** 128 MiB: the whole table of all volumes up to 32 million clusters. */
const PAGES_MAX = 1024;
/** How many times a table that does not fit may be read over, since its chains lead to and fro (H24). */
const READINGS_MAX = 16;

export interface TablePlace {
  readonly at: number;
  readonly clusters: number;
  readonly bits: EntryBits;
}

export class AllocationTable {
  /** How many clusters there are; their numbers end below `FIRST_CLUSTER + clusters`. */
  readonly clusters: number;
  readonly #device: BlockDevice;
  readonly #at: number;
  readonly #bits: EntryBits;
  /** In the order in which they were loaded. */
  readonly #pages = new Map<number, Uint32Array>();
  readonly #pageCount: number;
  #current: Uint32Array = new Uint32Array(0);
  #currentNumber = -1;
  #loads = 0;

  constructor(device: BlockDevice, { at, clusters, bits }: TablePlace) {
    this.#device = device;
    this.#at = at;
    this.#bits = bits;
    this.clusters = clusters;
    this.#pageCount = Math.ceil((clusters + FIRST_CLUSTER) / PAGE_ENTRIES);
  }

  /** Whether there is such a cluster. */
  holds(cluster: number): boolean {
    return cluster >= FIRST_CLUSTER && cluster < FIRST_CLUSTER + this.clusters;
  }

  /** What stands for `cluster`; undefined where its page must be loaded first. */
  entry(cluster: number): number | undefined {
    const number = Math.floor(cluster / PAGE_ENTRIES);
    if (number !== this.#currentNumber) {
      const page = this.#pages.get(number);
      if (page === undefined) return undefined;
      this.#current = page;
      this.#currentNumber = number;
    }
    return this.#current[cluster % PAGE_ENTRIES]!;
  }

  /** @throws Refused when the table was read too often */
  async load(cluster: number): Promise<void> {
    const number = Math.floor(cluster / PAGE_ENTRIES);
    if (++this.#loads > this.#pageCount * READINGS_MAX) {
      throw new Refused(
        "too-scattered",
        `the chains of ${this.clusters} clusters lead to and fro through the allocation table`,
        "defragment the volume in the guest",
      );
    }
    const page = await this.#readPage(number);
    if (this.#pages.size === PAGES_MAX) this.#pages.delete(this.#pages.keys().next().value!);
    this.#pages.set(number, page);
  }

  /**
   * Calls `found` for every maximal run of clusters `[start, end)` that are free.
   * @throws Refused, with `hint`, when any entry leads nowhere: whoever wrote that may have written more
   */
  async freeRuns(hint: string, found: (start: number, end: number) => void): Promise<void> {
    function* pages(read: (number: number) => Promise<Uint32Array>, count: number) {
      for (let number = 0; number < count; number++) yield read(number);
    }
    let at = 0;
    let start = -1;
    await pipelined(
      pages((number) => this.#readPage(number), this.#pageCount),
      (page) => {
        for (let index = at === 0 ? FIRST_CLUSTER : 0; index < page.length; index++) {
          const entry = page[index]!;
          if (entry !== FREE && entry < BAD && !this.holds(entry)) {
            throw findings(hint).damaged(`cluster ${at + index} is followed by ${entry} of ${this.clusters}`);
          }
          if ((entry === FREE) === start >= 0) continue;
          if (start >= 0) found(start, at + index);
          start = start >= 0 ? -1 : at + index;
        }
        at += page.length;
      },
    );
    if (start >= 0) found(start, at);
  }

  async #readPage(number: number): Promise<Uint32Array> {
    const first = number * PAGE_ENTRIES;
    const count = Math.min(PAGE_ENTRIES, this.clusters + FIRST_CLUSTER - first);
    const storedBits = this.#bits === 28 ? 32 : this.#bits;
    const bytes = await readBytes(
      this.#device,
      this.#at + (first * storedBits) / 8,
      Math.ceil((count * storedBits) / 8),
    );
    return decode(bytes, count, this.#bits);
  }
}

/** The entries, with what is behind the largest number of a cluster moved to the end of 32 bits. */
function decode(bytes: Uint8Array, count: number, bits: EntryBits): Uint32Array {
  const entries = new Uint32Array(count);
  const view = viewOf(bytes);
  if (bits === 12) {
    for (let i = 0; i < count; i++) {
      const at = (i * 3) >> 1;
      const low = bytes[at]!;
      const high = bytes[at + 1]!;
      entries[i] = (i & 1) === 0 ? low | ((high & 0x0f) << 8) : (low >> 4) | (high << 4);
    }
  } else if (bits === 16) {
    for (let i = 0; i < count; i++) entries[i] = view.getUint16(i * 2, true);
  } else {
    const mask = bits === 28 ? 0x0fffffff : -1;
    for (let i = 0; i < count; i++) entries[i] = view.getUint32(i * 4, true) & mask;
  }
  // Of exFAT only the very last number is an end; what lies before it is no cluster either.
  if (bits === 32) return entries;
  const bad = 2 ** bits - 9;
  for (let i = 0; i < count; i++) {
    const entry = entries[i]!;
    if (entry >= bad) entries[i] = entry === bad ? BAD : END;
  }
  return entries;
}
