/**
 * Numbers of blocks as bits: a disk of 64 TiB has 2^26 blocks, a `Set` ends at 2^24, and an image may name them all (H24).
 */

/** Pages that hold nothing take no room. */
const PAGE_BITS = 32_768;

export class BlockSet {
  #size = 0;
  readonly #pages: (Uint8Array | undefined)[] = [];

  get size(): number {
    return this.#size;
  }

  has(block: number): boolean {
    const page = this.#pages[Math.floor(block / PAGE_BITS)];
    return page !== undefined && (page[(block % PAGE_BITS) >>> 3]! & (1 << (block & 7))) !== 0;
  }

  add(block: number): void {
    if (this.has(block)) return;
    const page = (this.#pages[Math.floor(block / PAGE_BITS)] ??= new Uint8Array(PAGE_BITS / 8));
    page[(block % PAGE_BITS) >>> 3]! |= 1 << (block & 7);
    this.#size++;
  }

  delete(block: number): void {
    if (!this.has(block)) return;
    this.#pages[Math.floor(block / PAGE_BITS)]![(block % PAGE_BITS) >>> 3]! &= ~(1 << (block & 7));
    this.#size--;
  }

  /** Ascending. */
  *[Symbol.iterator](): Generator<number> {
    for (const [number, page] of this.#pages.entries()) {
      if (page === undefined) continue;
      for (let bit = 0; bit < PAGE_BITS; bit++) {
        if (page[bit >>> 3] === 0) bit |= 7;
        else if ((page[bit >>> 3]! & (1 << (bit & 7))) !== 0) yield number * PAGE_BITS + bit;
      }
    }
  }
}
