/**
 * Disjoint ranges of the disk in order, each with what the guard knows of it.
 *
 *   chunk 0  | piece | piece | … at most 1024 |     a chunk is found by bisection, and a piece inside it
 *   chunk 1  | piece | piece | …              |
 *
 * Pieces never change; `rewrite` puts others in their place, and joins neighbours that are alike.
 */
import type { Extent } from "../../bytes/extents.ts";

/** Old bytes that lie in the log, in one stretch. */
export interface Block {
  /** Where in the log. */
  readonly at: number;
  readonly bytes: number;
  readonly crc: number;
  /** How many bytes of it pieces refer to. */
  live: number;
}

/** A range whose old bytes are guarded. */
export interface Piece extends Extent {
  /** When they were trimmed, zeroed or written over, in seconds. */
  readonly time: number;
  readonly flags: number;
  /** Where they lie; undefined: in the image, or nowhere, when they were zeros. */
  readonly block: Block | undefined;
  /** Of the first byte in the block. */
  readonly offset: number;
}

/** The guest was promised zeros, also if another program reads the image. */
export const PROMISED = 1;
/** The guest wants the space kept (NBD's NO_HOLE). */
export const KEEP = 2;
/** The image still holds the old bytes: reads are masked. */
export const HIDDEN = 4;
/** Its time is over: the image may be zeroed already. */
export const DOOMED = 8;
/** A plain write did it. */
export const WRITE = 16;
/** The old bytes were zeros. */
export const ZEROS = 32;

const CHUNK_PIECES = 512;

/** A range that something is known of, without old bytes. */
export function bare(start: number, end: number, time: number, flags: number): Piece {
  return { start, end, time, flags, block: undefined, offset: 0 };
}

/** What becomes of a range: of each piece, cut to the range, and of the gaps between. */
export interface Rewriting {
  readonly piece: (piece: Piece) => Piece | undefined;
  readonly gap?: (start: number, end: number) => Piece;
}

/** The part of a piece inside a range. */
export function cut(piece: Piece, { start, end }: Extent): Piece {
  if (start <= piece.start && end >= piece.end) return piece;
  const from = Math.max(start, piece.start);
  return { ...piece, start: from, end: Math.min(end, piece.end), offset: piece.offset + from - piece.start };
}

/** The two as one, where they are alike and follow each other. */
export function joinedPiece(first: Piece, second: Piece): Piece | undefined {
  const alike = first.end === second.start && first.time === second.time && first.flags === second.flags;
  if (!alike || first.block !== second.block) return undefined;
  if (first.block !== undefined && second.offset !== first.offset + first.end - first.start) return undefined;
  return { ...first, end: second.end };
}

export class PieceList {
  #chunks: Piece[][] = [];
  #count = 0;
  readonly #account: (piece: Piece, sign: 1 | -1) => void;

  /** @param account told of each piece that comes and goes */
  constructor(account: (piece: Piece, sign: 1 | -1) => void = () => {}) {
    this.#account = account;
  }

  get count(): number {
    return this.#count;
  }

  /** The pieces that touch a range, not cut. */
  *within({ start, end }: Extent): Generator<Piece> {
    let [chunk, index] = this.#seek(start);
    for (; chunk < this.#chunks.length; chunk++, index = 0) {
      const pieces = this.#chunks[chunk]!;
      for (; index < pieces.length; index++) {
        if (pieces[index]!.start >= end) return;
        yield pieces[index]!;
      }
    }
  }

  *[Symbol.iterator](): Generator<Piece> {
    for (const chunk of this.#chunks) yield* chunk;
  }

  /** The first piece that ends after `at`. */
  after(at: number): Piece | undefined {
    const [chunk, index] = this.#seek(at);
    return this.#chunks[chunk]?.[index];
  }

  touches({ start, end }: Extent): boolean {
    const first = this.after(start);
    return first !== undefined && first.start < end && start < end;
  }

  rewrite(range: Extent, { piece, gap }: Rewriting): void {
    if (range.start >= range.end) return;
    const from = this.#seek(range.start);
    const before: Piece[] = [];
    const after: Piece[] = [];
    let at = range.start;
    for (const old of this.within(range)) {
      before.push(old);
      if (old.start < range.start) after.push(cut(old, { start: old.start, end: range.start }));
      if (gap !== undefined && old.start > at) after.push(gap(at, old.start));
      const changed = piece(cut(old, range));
      if (changed !== undefined) after.push(changed);
      at = Math.min(range.end, old.end);
      if (old.end > range.end) after.push(cut(old, { start: range.end, end: old.end }));
    }
    if (gap !== undefined && at < range.end) after.push(gap(at, range.end));
    this.#replace(from, before, after);
  }

  /** @returns numbers of chunk and piece */
  #seek(at: number): [number, number] {
    const chunks = this.#chunks;
    const chunk = bisect(chunks.length, (i) => chunks[i]!.at(-1)!.end <= at);
    const pieces = chunks[chunk];
    return [chunk, pieces === undefined ? 0 : bisect(pieces.length, (i) => pieces[i]!.end <= at)];
  }

  #replace([chunk, index]: [number, number], before: readonly Piece[], after: readonly Piece[]): void {
    if (before.length === 0 && after.length === 0) return;
    for (const piece of before) this.#account(piece, -1);
    for (const piece of after) this.#account(piece, 1);
    // Behind the last piece is the end of the last chunk.
    const isBehind = chunk > 0 && chunk === this.#chunks.length;
    const first = isBehind ? chunk - 1 : chunk;
    const from = isBehind ? this.#chunks[first]!.length : index;
    let last = first;
    let end = from + before.length;
    while (last + 1 < this.#chunks.length && end > this.#chunks[last]!.length)
      end -= this.#chunks[last++]!.length;
    const old = this.#chunks[first] ?? [];
    const tail = this.#chunks[last] ?? [];
    const joined = joinedAll([old[from - 1], ...after, tail[end]]);
    const start = from > 0 ? from - 1 : from;
    const stop = Math.min(tail.length, end + 1);
    this.#count += joined.length - (before.length + (from - start) + (stop - end));
    if (first === last && joined.length <= CHUNK_PIECES) {
      old.splice(start, stop - start, ...joined);
      if (this.#chunks.length === 0) this.#chunks.push(old);
      if (old.length === 0 || old.length > 2 * CHUNK_PIECES) this.#chunks.splice(first, 1, ...chunksOf(old));
    } else {
      const pieces = [...old.slice(0, start), ...joined, ...tail.slice(stop)];
      this.#chunks.splice(first, last + 1 - first, ...chunksOf(pieces));
    }
  }
}

function joinedAll(pieces: readonly (Piece | undefined)[]): Piece[] {
  const joined: Piece[] = [];
  for (const piece of pieces) {
    if (piece === undefined) continue;
    const last = joined.at(-1);
    const both = last && joinedPiece(last, piece);
    if (both === undefined) joined.push(piece);
    else joined[joined.length - 1] = both;
  }
  return joined;
}

function chunksOf(pieces: readonly Piece[]): Piece[][] {
  if (pieces.length === 0) return [];
  if (pieces.length <= 2 * CHUNK_PIECES) return [[...pieces]];
  const chunks: Piece[][] = [];
  for (let i = 0; i < pieces.length; i += CHUNK_PIECES) chunks.push(pieces.slice(i, i + CHUNK_PIECES));
  return chunks;
}

/** The first of `count` numbers for which `isBefore` is false. */
function bisect(count: number, isBefore: (index: number) => boolean): number {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (isBefore(middle)) low = middle + 1;
    else high = middle;
  }
  return low;
}
