/**
 * The mapping table of an image that maps blocks of equal length, in memory: for each block of the guest's disk the
 * slot of the file that holds it.
 *
 *   block   0   1   2        3      4
 *   slot    7   3   ABSENT   ZERO   8         slot 8 lies at base + 8 units of the file
 *
 * Pages of 4096 entries that hold nothing take no room: a sparse 64 TiB disk costs what is written on it.
 */

/** Nothing was ever written here: the parent's bytes, or zeros. */
export const ABSENT = 0xffff_ffff;
/** Reads as zeros, whatever a parent holds. */
export const ZERO = 0xffff_fffe;
/** Slots are smaller. */
export const SLOTS_MAX = ZERO;

const PAGE_ENTRIES = 4096;

export class BlockTable {
  /** Length in blocks. */
  readonly blocks: number;
  readonly #pages: (Uint32Array | undefined)[] = [];

  constructor(blocks: number) {
    this.blocks = blocks;
  }

  /** The slot of `block`, `ABSENT` or `ZERO`. */
  get(block: number): number {
    const page = this.#pages[Math.floor(block / PAGE_ENTRIES)];
    return page === undefined ? ABSENT : page[block % PAGE_ENTRIES]!;
  }

  /** Whether the block has a slot. */
  isMapped(block: number): boolean {
    return this.get(block) < SLOTS_MAX;
  }

  set(block: number, slot: number): void {
    const number = Math.floor(block / PAGE_ENTRIES);
    let page = this.#pages[number];
    if (page === undefined) {
      if (slot === ABSENT) return;
      this.#pages[number] = page = new Uint32Array(PAGE_ENTRIES).fill(ABSENT);
    }
    page[block % PAGE_ENTRIES] = slot;
  }

  /** The first block of `[from, end)` that is not `ABSENT`, or `end`. */
  nextPresent(from: number, end: number): number {
    for (let block = from; block < end;) {
      const page = this.#pages[Math.floor(block / PAGE_ENTRIES)];
      const stop = Math.min(end, (Math.floor(block / PAGE_ENTRIES) + 1) * PAGE_ENTRIES);
      if (page !== undefined) {
        for (; block < stop; block++) if (page[block % PAGE_ENTRIES] !== ABSENT) return block;
      }
      block = stop;
    }
    return end;
  }

  /** Calls `visit` for every block of `[from, end)` that has a slot, in ascending order. */
  eachMapped(from: number, end: number, visit: (block: number, slot: number) => void): void {
    for (let block = this.nextPresent(from, end); block < end; block = this.nextPresent(block, end)) {
      const page = this.#pages[Math.floor(block / PAGE_ENTRIES)]!;
      const stop = Math.min(end, (Math.floor(block / PAGE_ENTRIES) + 1) * PAGE_ENTRIES);
      for (; block < stop; block++) {
        const slot = page[block % PAGE_ENTRIES]!;
        if (slot < SLOTS_MAX) visit(block, slot);
      }
    }
  }
}
