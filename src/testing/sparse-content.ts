/**
 * The bytes of a simulated file: sparse, so that 16 TiB fit, and copied on write, so that thousands of crash states
 * are cheap.
 *
 *   pages:  Map(page number → 256 blocks, each | absent: hole | UNWRITTEN: allocated zeros | bytes |)
 *
 * `fork` shares all pages with the original; a page belongs to the content whose token it holds, and whoever does not
 * own it copies it before writing. A block is shared until its page's owner wrote it.
 */
import type { Extent } from "../bytes/extents.ts";

const PAGE_BLOCKS = 256;

/** A block that is allocated but was never written: fallocate's work (H8). */
const UNWRITTEN = new Uint8Array(0);

interface Page {
  readonly owner: object;
  readonly blocks: (Uint8Array | undefined)[];
  /** 1 where the bytes are this page's own and may be changed. */
  readonly own: Uint8Array;
}

export type BlockKind = "hole" | "unwritten" | "data";

export class SparseContent {
  readonly blockBytes: number;
  #pages = new Map<number, Page>();
  #token: object = {};
  #allocated = 0;

  constructor(blockBytes: number) {
    this.blockBytes = blockBytes;
  }

  /** How many blocks are allocated. */
  get allocatedBlocks(): number {
    return this.#allocated;
  }

  /** A second content that begins with the same bytes; changes of either are not seen by the other. */
  fork(): SparseContent {
    const copy = new SparseContent(this.blockBytes);
    copy.#pages = new Map(this.#pages);
    copy.#allocated = this.#allocated;
    this.#token = {};
    return copy;
  }

  kind(block: number): BlockKind {
    const bytes = this.#block(block);
    return bytes === undefined ? "hole" : bytes === UNWRITTEN ? "unwritten" : "data";
  }

  read(at: number, into: Uint8Array): void {
    for (const { block, start, end, offset } of this.#parts(at, into.length)) {
      const bytes = this.#block(block);
      const target = into.subarray(offset, offset + end - start);
      if (bytes === undefined || bytes === UNWRITTEN) target.fill(0);
      else target.set(bytes.subarray(start, end));
    }
  }

  write(at: number, from: Uint8Array): void {
    for (const { block, start, end, offset } of this.#parts(at, from.length)) {
      this.#writable(block).set(from.subarray(offset, offset + end - start), start);
    }
  }

  /** How many blocks `write` would have to allocate. */
  missing(at: number, bytes: number): number {
    let missing = 0;
    for (const { block } of this.#parts(at, bytes)) if (this.#block(block) === undefined) missing++;
    return missing;
  }

  /** Zeros over `range`; holes stay holes and blocks stay allocated. */
  zero(range: Extent): void {
    this.#forget(range, UNWRITTEN);
  }

  /** Whole blocks of `range` become holes; the rest of it zeros. */
  punch(range: Extent): void {
    this.#forget(range, undefined);
  }

  /** Allocates the blocks that touch `range` without writing them. */
  preallocate(range: Extent): void {
    for (const { block } of this.#parts(range.start, range.end - range.start)) {
      if (this.#block(block) === undefined) this.#set(block, UNWRITTEN);
    }
  }

  /** Numbers of the allocated blocks in `[first, end)`, ascending. */
  *allocatedIn(first: number, end: number): Generator<number> {
    for (const index of this.#pageNumbers(first, end)) {
      const blocks = this.#pages.get(index)!.blocks;
      const base = index * PAGE_BLOCKS;
      const last = Math.min(end - base, PAGE_BLOCKS);
      for (let i = Math.max(0, first - base); i < last; i++) if (blocks[i] !== undefined) yield base + i;
    }
  }

  #forget(range: Extent, whole: Uint8Array | undefined): void {
    const firstBlock = Math.floor(range.start / this.blockBytes);
    const endBlock = Math.ceil(range.end / this.blockBytes);
    for (const block of this.allocatedIn(firstBlock, endBlock)) {
      const base = block * this.blockBytes;
      const start = Math.max(range.start - base, 0);
      const end = Math.min(range.end - base, this.blockBytes);
      if (start === 0 && end === this.blockBytes) this.#set(block, whole);
      else if (this.#block(block) !== UNWRITTEN) this.#writable(block).fill(0, start, end);
    }
  }

  #pageNumbers(first: number, end: number): number[] {
    const from = Math.floor(first / PAGE_BLOCKS);
    const to = Math.ceil(end / PAGE_BLOCKS);
    const numbers: number[] = [];
    if (to - from <= this.#pages.size) {
      for (let index = from; index < to; index++) if (this.#pages.has(index)) numbers.push(index);
      return numbers;
    }
    for (const index of this.#pages.keys()) if (index >= from && index < to) numbers.push(index);
    return numbers.sort((a, b) => a - b);
  }

  *#parts(
    at: number,
    bytes: number,
  ): Generator<{ block: number; start: number; end: number; offset: number }> {
    for (let offset = 0; offset < bytes;) {
      const block = Math.floor((at + offset) / this.blockBytes);
      const start = at + offset - block * this.blockBytes;
      const end = Math.min(this.blockBytes, start + bytes - offset);
      yield { block, start, end, offset };
      offset += end - start;
    }
  }

  #block(block: number): Uint8Array | undefined {
    return this.#pages.get(Math.floor(block / PAGE_BLOCKS))?.blocks[block % PAGE_BLOCKS];
  }

  #ownPage(index: number): Page {
    const page = this.#pages.get(index);
    if (page?.owner === this.#token) return page;
    const copy: Page = {
      owner: this.#token,
      blocks: page ? [...page.blocks] : Array<Uint8Array | undefined>(PAGE_BLOCKS).fill(undefined),
      own: new Uint8Array(PAGE_BLOCKS),
    };
    this.#pages.set(index, copy);
    return copy;
  }

  #set(block: number, bytes: Uint8Array | undefined): void {
    const page = this.#ownPage(Math.floor(block / PAGE_BLOCKS));
    const i = block % PAGE_BLOCKS;
    this.#allocated += Number(bytes !== undefined) - Number(page.blocks[i] !== undefined);
    page.blocks[i] = bytes;
    page.own[i] = 0;
  }

  #writable(block: number): Uint8Array {
    const page = this.#ownPage(Math.floor(block / PAGE_BLOCKS));
    const i = block % PAGE_BLOCKS;
    const bytes = page.blocks[i];
    if (bytes !== undefined && page.own[i] === 1) return bytes;
    const copy = new Uint8Array(this.blockBytes);
    if (bytes !== undefined) copy.set(bytes);
    else this.#allocated++;
    page.blocks[i] = copy;
    page.own[i] = 1;
    return copy;
  }
}
