/**
 * What the guard holds, as its log tells it. The log is replayed through the very functions that change it while the
 * disk is served, so that both are the same by construction.
 *
 *   tops    at most one piece a byte: nothing was written there since. The image holds the old bytes, and reads are
 *           masked (HIDDEN), or the log does; or both.
 *   under   pieces that were written over since, in that order; their old bytes lie in the log.
 *
 *   mask     data → top in the image                 trimmed or zeroed
 *   save     top: also in the log                    before the image is written over
 *   write    top → under                             written over
 *   settle   hidden top in the log → bare            the image really holds zeros there
 *   doom     its time is over: no longer offered     before the image is zeroed
 *   release  gone
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import {
  bare,
  type Block,
  cut,
  DOOMED,
  HIDDEN,
  joinedPiece,
  KEEP,
  type Piece,
  PieceList,
  PROMISED,
  WRITE,
  ZEROS,
} from "./pieces.ts";

export class GuardState {
  readonly tops: PieceList;
  /** In the order in which they were written over. */
  under: Piece[] = [];
  /** Bytes of tops that reads are masked at. */
  hiddenBytes = 0;
  /** Of these, bytes that the guest was promised to be zeros. */
  promisedBytes = 0;
  /** Nothing is older; in seconds. */
  oldest = Infinity;
  /** Bytes that are guarded in all: of tops and of what lies under them. Zeros take no room. */
  bytes = 0;
  /** Blocks of the log that nothing refers to any more. */
  #dead: Block[] = [];

  constructor() {
    this.tops = new PieceList((piece, sign) => this.#account(piece, sign));
  }

  get count(): number {
    return this.tops.count + this.under.length;
  }

  get isEmpty(): boolean {
    return this.count === 0;
  }

  /** Guards what is there, where nothing is guarded yet; what is, is promised what is asked for now. */
  mask(range: Extent, time: number, flags: number): void {
    this.tops.rewrite(range, {
      piece: (piece) => ({ ...piece, flags: piece.flags | (flags & (PROMISED | KEEP)) }),
      gap: (start, end) => bare(start, end, time, (flags & (PROMISED | KEEP)) | HIDDEN),
    });
  }

  /** The old bytes of the tops in a range lie in a block too, from `offset` on. */
  save(range: Extent, block: Block, offset: number): void {
    this.tops.rewrite(range, {
      piece: (piece) =>
        piece.block !== undefined ? piece : { ...piece, block, offset: offset + piece.start - range.start },
    });
  }

  /** A range is written over; what no block holds is lost: its time was over. */
  write(range: Extent): void {
    const covered: Piece[] = [];
    this.tops.rewrite(range, {
      piece: (piece) => {
        if (piece.block !== undefined && (piece.flags & DOOMED) === 0) covered.push(piece);
        return undefined;
      },
    });
    for (const piece of covered) this.cover({ ...piece, flags: piece.flags & ~HIDDEN });
  }

  /** Something that is written over lies in the log, or was zeros. */
  cover(piece: Piece): void {
    this.#account(piece, 1);
    const last = this.under.at(-1);
    const both = last && joinedPiece(last, piece);
    if (both === undefined) this.under.push(piece);
    else this.under[this.under.length - 1] = both;
  }

  settle(range: Extent): void {
    this.tops.rewrite(range, {
      piece: (piece) => (piece.block === undefined ? piece : { ...piece, flags: piece.flags & ~HIDDEN }),
    });
  }

  doom(range: Extent): void {
    this.tops.rewrite(range, { piece: (piece) => ({ ...piece, flags: piece.flags | DOOMED }) });
  }

  /** @param since what lies under the tops goes too, as far as it happened then or later */
  release(range: Extent, since = Infinity): void {
    this.tops.rewrite(range, { piece: () => undefined });
    if (since === Infinity) return;
    this.#keepUnder((piece) => {
      if (piece.time < since || piece.start >= range.end || piece.end <= range.start) return [piece];
      return [
        { start: piece.start, end: Math.max(piece.start, range.start) },
        { start: Math.min(piece.end, range.end), end: piece.end },
      ].flatMap((rest) => (rest.start < rest.end ? [cut(piece, rest)] : []));
    });
  }

  /** What lies under the tops, up to that second. */
  expireUnder(time: number): void {
    this.#keepUnder((piece) => (piece.time <= time ? [] : [piece]));
  }

  /** Looks anew what is the oldest, after something was let go. */
  findOldest(): void {
    this.oldest = Infinity;
    for (const { time } of this.tops) this.oldest = Math.min(this.oldest, time);
    for (const { time } of this.under) this.oldest = Math.min(this.oldest, time);
  }

  #keepUnder(keep: (piece: Piece) => readonly Piece[]): void {
    const kept: Piece[] = [];
    for (const piece of this.under) {
      const rest = keep(piece);
      if (rest.length === 1 && rest[0] === piece) {
        kept.push(piece);
        continue;
      }
      for (const part of rest) this.#account(part, 1);
      kept.push(...rest);
      this.#account(piece, -1);
    }
    this.under = kept;
  }

  /** Ranges whose reads are masked. */
  hidden(): ExtentSet {
    const out = new ExtentBuilder(this.tops.count);
    for (const { start, end, flags } of this.tops) if (flags & HIDDEN) out.add(start, end);
    return out.build();
  }

  /** What no piece refers to any more; each block once. */
  takeDead(): readonly Block[] {
    const dead = this.#dead.filter(({ live }) => live === 0);
    this.#dead = [];
    return dead;
  }

  #account(piece: Piece, sign: 1 | -1): void {
    const bytes = sign * (piece.end - piece.start);
    if ((piece.flags & ZEROS) === 0) this.bytes += bytes;
    if (piece.flags & HIDDEN) this.hiddenBytes += bytes;
    if (piece.flags & HIDDEN && piece.flags & PROMISED) this.promisedBytes += bytes;
    if (sign > 0 && piece.time < this.oldest) this.oldest = piece.time;
    if (piece.block === undefined) return;
    piece.block.live += bytes;
    if (piece.block.live === 0) this.#dead.push(piece.block);
  }
}

/** What happened to a piece, for people. */
export function causeOf({ flags }: Piece): "trim" | "zero" | "write" {
  if (flags & WRITE) return "write";
  return flags & PROMISED ? "zero" : "trim";
}

/** Old bytes that were zeros: nothing of them is kept. */
export function zerosAt({ start, end }: Extent, time: number): Piece {
  return bare(start, end, time, WRITE | ZEROS);
}
