/**
 * A set of small whole numbers (block numbers), as bits: for what a walk reaches, in any order and with repeats.
 *
 *   directory:  Map(number >>> 22 → 1024 slots)      slot: 0 no bit set, -1 every bit set, else a page
 *   page:       4096 bits, 128 words of a slab
 *
 * Only pages that are partly set take room: the metadata of a sparse 16 TiB disk costs some megabytes, and a full
 * disk next to nothing. At the end: how the bitmaps of others, which are words without pages, are taken apart.
 */

const PAGE_BITS = 4096;
const PAGE_WORDS = PAGE_BITS / 32;
const DIRECTORY_PAGES = 1024;
const SLAB_PAGES = 256;

const EMPTY = 0;
const FULL = -1;

export class SparseBitmap {
  readonly #directories = new Map<number, Int32Array>();
  readonly #slabs: Int32Array[] = [];
  /** How many bits of each page are set, by page. */
  readonly #counts: number[] = [];
  readonly #spare: number[] = [];
  #count = 0;

  /** How many numbers are in the set. */
  get count(): number {
    return this.#count;
  }

  /** Bytes of memory held by pages and directories. */
  get memoryBytes(): number {
    return this.#slabs.length * SLAB_PAGES * PAGE_WORDS * 4 + this.#directories.size * DIRECTORY_PAGES * 4;
  }

  has(at: number): boolean {
    const slot = this.#slot(Math.floor(at / PAGE_BITS));
    if (slot <= EMPTY) return slot === FULL;
    const bit = at % PAGE_BITS;
    return ((this.#slab(slot)[wordOf(slot) + (bit >>> 5)]! >>> (bit & 31)) & 1) === 1;
  }

  /** Adds every number in `[start, end)`. */
  setRange(start: number, end: number): void {
    for (let at = start; at < end;) {
      const page = Math.floor(at / PAGE_BITS);
      const base = page * PAGE_BITS;
      const stop = Math.min(end, base + PAGE_BITS);
      this.#setInPage(page, at - base, stop - base);
      at = stop;
    }
  }

  /** The smallest number of the set in `[from, end)`, or `end`. */
  nextSet(from: number, end: number): number {
    return this.#next(from, end, EMPTY, 0);
  }

  /** The smallest number in `[from, end)` that is not in the set, or `end`. */
  nextClear(from: number, end: number): number {
    return this.#next(from, end, FULL, -1);
  }

  /** @param boring the slot of pages to skip; @param flip turns what is looked for into set bits */
  #next(from: number, end: number, boring: number, flip: number): number {
    for (let at = from; at < end;) {
      const page = Math.floor(at / PAGE_BITS);
      const directory = this.#directories.get(Math.floor(page / DIRECTORY_PAGES));
      if (directory === undefined) {
        if (boring !== EMPTY) return at;
        at = (Math.floor(page / DIRECTORY_PAGES) + 1) * DIRECTORY_PAGES * PAGE_BITS;
        continue;
      }
      const slot = directory[page % DIRECTORY_PAGES]!;
      const base = page * PAGE_BITS;
      if (slot !== boring) {
        if (slot <= EMPTY) return at;
        const bit = this.#nextInPage(slot, at - base, flip);
        if (bit < PAGE_BITS) return Math.min(end, base + bit);
      }
      at = base + PAGE_BITS;
    }
    return end;
  }

  #nextInPage(slot: number, from: number, flip: number): number {
    const words = this.#slab(slot);
    const base = wordOf(slot);
    let word = from >>> 5;
    let bits = (words[base + word]! ^ flip) & (-1 << (from & 31));
    while (bits === 0) {
      if (++word === PAGE_WORDS) return PAGE_BITS;
      bits = words[base + word]! ^ flip;
    }
    return word * 32 + 31 - Math.clz32(bits & -bits);
  }

  #setInPage(page: number, start: number, end: number): void {
    const directory = this.#directoryFor(page);
    const index = page % DIRECTORY_PAGES;
    let slot = directory[index]!;
    if (slot === FULL) return;
    if (end - start === PAGE_BITS) {
      this.#count += PAGE_BITS - (slot === EMPTY ? 0 : this.#counts[slot]!);
      this.#release(slot);
      directory[index] = FULL;
      return;
    }
    if (slot === EMPTY) directory[index] = slot = this.#newPage();
    const added = setBits(this.#slab(slot), wordOf(slot), start, end);
    this.#count += added;
    this.#counts[slot]! += added;
    if (this.#counts[slot] === PAGE_BITS) {
      this.#release(slot);
      directory[index] = FULL;
    }
  }

  #directoryFor(page: number): Int32Array {
    const number = Math.floor(page / DIRECTORY_PAGES);
    let directory = this.#directories.get(number);
    if (directory === undefined) {
      directory = new Int32Array(DIRECTORY_PAGES);
      this.#directories.set(number, directory);
    }
    return directory;
  }

  #slot(page: number): number {
    return this.#directories.get(Math.floor(page / DIRECTORY_PAGES))?.[page % DIRECTORY_PAGES] ?? EMPTY;
  }

  #slab(slot: number): Int32Array {
    return this.#slabs[Math.floor(slot / SLAB_PAGES)]!;
  }

  #newPage(): number {
    if (this.#spare.length === 0) {
      const first = this.#slabs.length * SLAB_PAGES;
      this.#slabs.push(new Int32Array(SLAB_PAGES * PAGE_WORDS));
      for (let slot = first + SLAB_PAGES - 1; slot >= first; slot--) if (slot > EMPTY) this.#spare.push(slot);
    }
    const slot = this.#spare.pop()!;
    this.#counts[slot] = 0;
    return slot;
  }

  #release(slot: number): void {
    if (slot === EMPTY) return;
    this.#slab(slot).fill(0, wordOf(slot), wordOf(slot) + PAGE_WORDS);
    this.#spare.push(slot);
  }
}

/** Where a page's words begin in its slab. */
function wordOf(slot: number): number {
  return (slot % SLAB_PAGES) * PAGE_WORDS;
}

/** Sets bits `[start, end)` of the page at `base`; returns how many were clear before. */
function setBits(words: Int32Array, base: number, start: number, end: number): number {
  let added = 0;
  const last = (end - 1) >>> 5;
  for (let word = start >>> 5; word <= last; word++) {
    let mask = -1;
    if (word === start >>> 5) mask &= -1 << (start & 31);
    if (word === last) mask &= -1 >>> (31 - ((end - 1) & 31));
    const fresh = mask & ~words[base + word]!;
    words[base + word]! |= mask;
    added += ones(fresh);
  }
  return added;
}

/** How many bits of a word are set. */
function ones(word: number): number {
  let bits = word - ((word >>> 1) & 0x55555555);
  bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
  return Math.imul((bits + (bits >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** Calls `found` for every maximal run of clear bits among the first `bits`; the lowest bit of a word comes first. */
export function clearRuns(
  words: Int32Array,
  bits: number,
  found: (start: number, end: number) => void,
): void {
  let start = -1;
  for (let index = 0; index * 32 < bits; index++) {
    const word = words[index]!;
    if (word === (start < 0 ? -1 : 0)) continue;
    for (let bit = 0; bit < 32;) {
      const wanted = (start < 0 ? ~word : word) & (-1 << bit);
      if (wanted === 0) break;
      bit = 31 - Math.clz32(wanted & -wanted);
      const at = index * 32 + bit;
      if (at >= bits) break;
      if (start >= 0) found(start, at);
      start = start < 0 ? at : -1;
    }
  }
  if (start >= 0) found(start, bits);
}
