/**
 * The guest's disk over a table of blocks, read-only.
 *
 *   read ─→ pieces ─→ mapped: the file, in one piece while blocks follow each other
 *                     ZERO: fill
 *                     ABSENT, or a part that the block does not hold: the parent as far as it reaches, then zeros
 */
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice, Place, ReadableFile, Run } from "../../device/device.ts";
import { readBeyond, readPadded } from "../../device/padded.ts";
import { joined, parentRuns } from "../../device/runs.ts";
import { DiskError } from "../../error.ts";
import { type BlockLayout, payloadAt } from "./layout.ts";
import { ABSENT, SLOTS_MAX, ZERO } from "./table.ts";

/** A range that one thing backs: a file offset, or nothing. */
interface Piece extends Extent {
  readonly kind: "data" | "zero" | "parent";
  /** File offset of `data`. */
  readonly at: number;
}

/** A map yields so many runs at a time. */
const BATCH_RUNS = 1024;

export class BlockDisk implements BlockDevice {
  readonly layout: BlockLayout;

  constructor(layout: BlockLayout) {
    this.layout = layout;
  }

  get bytes(): number {
    return this.layout.bytes;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    const { file, parent } = this.layout;
    for (const whole of this.#pieces({ start: at, end: at + into.length })) {
      for (const { start, end, kind, at: place } of await this.#held(whole)) {
        const target = into.subarray(start - at, end - at);
        if (kind === "data") await readPadded(file, place, target);
        else if (kind === "zero") target.fill(0);
        else await readBeyond(parent, start, target);
      }
    }
  }

  map(range: Extent): AsyncGenerator<readonly Run[]> {
    return joined(this.#runs(range));
  }

  locate(at: number, bytes: number, _access: "read" | "write"): Place | undefined {
    return placeOf(this.layout, at, bytes);
  }

  async *#runs(range: Extent): AsyncGenerator<readonly Run[]> {
    const { file, parent } = this.layout;
    let runs: Run[] = [];
    for (const whole of this.#pieces(range)) {
      for (const piece of await this.#held(whole)) {
        const { start, end, kind } = piece;
        if (kind === "parent") {
          if (runs.length > 0) yield runs;
          runs = [];
          yield* parentRuns(parent, { start, end });
          continue;
        }
        // The file may be cut short inside its last block: what is missing reads as zeros.
        const inside = kind === "zero" ? start : Math.min(end, start + Math.max(0, file.bytes - piece.at));
        if (inside > start) {
          const place = { file, at: piece.at, bytes: inside - start };
          runs.push({ start, end: inside, kind: "data", place, shared: false, depth: 0 });
        }
        if (inside < end) runs.push({ start: inside, end, kind: "zero", shared: false, depth: 0 });
      }
      if (runs.length < BATCH_RUNS) continue;
      yield runs;
      runs = [];
    }
    if (runs.length > 0) yield runs;
  }

  /** What the table says of `range`; blocks of one kind that follow each other in the file too are one piece. */
  *#pieces({ start, end }: Extent): Generator<Piece> {
    const { blockBytes, table, headBytes, held } = this.layout;
    const isJoinable = headBytes === 0 && held === undefined;
    for (let at = start; at < end;) {
      const first = Math.floor(at / blockBytes);
      const last = Math.ceil(end / blockBytes);
      const slot = table.get(first);
      let stop = first + 1;
      if (slot === ABSENT) stop = table.nextPresent(stop, last);
      else if (slot === ZERO) while (stop < last && table.get(stop) === ZERO) stop++;
      else if (isJoinable) {
        const place = this.#placeOf(slot);
        while (stop < last && this.#follows(stop, place + (stop - first) * blockBytes)) stop++;
      }
      const until = Math.min(end, stop * blockBytes);
      if (slot === ABSENT) yield { start: at, end: until, kind: "parent", at: -1 };
      else if (slot === ZERO) yield { start: at, end: until, kind: "zero", at: -1 };
      else yield { start: at, end: until, kind: "data", at: this.#placeOf(slot) + at - first * blockBytes };
      at = until;
    }
  }

  #follows(block: number, place: number): boolean {
    const slot = this.layout.table.get(block);
    return slot < ZERO && payloadAt(this.layout, slot) === place;
  }

  /** @throws DiskError `corrupt` where the table leads out of the file */
  #placeOf(slot: number): number {
    const { file } = this.layout;
    const at = payloadAt(this.layout, slot);
    if (at < file.bytes) return at;
    throw new DiskError("corrupt", `a block lies at ${at}, behind the end of the file at ${file.bytes}`, {
      code: "outside-file",
      hint: "the file may have been cut; restore it from a copy",
    });
  }

  /** A piece of one block that is held in part, divided. */
  async #held(piece: Piece): Promise<readonly Piece[]> {
    const { held, blockBytes } = this.layout;
    if (piece.kind !== "data" || held === undefined) return [piece];
    const block = Math.floor(piece.start / blockBytes);
    const here = await held(block);
    if (here === undefined) return [piece];
    const base = block * blockBytes;
    const inside = { start: piece.start - base, end: piece.end - base };
    const pieces: Piece[] = [];
    const parentUpTo = (end: number, from: number) => {
      if (from < end) pieces.push({ start: base + from, end: base + end, kind: "parent", at: -1 });
    };
    let at = inside.start;
    for (const { start, end } of here.within(inside)) {
      parentUpTo(start, at);
      pieces.push({
        start: base + start,
        end: base + end,
        kind: "data",
        at: piece.at + start - inside.start,
      });
      at = end;
    }
    parentUpTo(inside.end, at);
    return pieces;
  }

  /** The files belong to whoever opened them. */
  async [Symbol.asyncDispose](): Promise<void> {}
}

/** The place of the first part of a range, where it is mapped and held entirely. Called for each small read and write. */
export function placeOf<F extends ReadableFile>(
  layout: BlockLayout<F>,
  at: number,
  bytes: number,
): (Place & { readonly file: F }) | undefined {
  const { file, table, held, blockBytes, headBytes } = layout;
  if (held !== undefined) return undefined;
  let block = Math.floor(at / blockBytes);
  const slot = table.get(block);
  if (slot >= SLOTS_MAX) return undefined;
  const start = payloadAt(layout, slot) + at - block * blockBytes;
  let reach = (block + 1) * blockBytes - at;
  while (reach < bytes && headBytes === 0) {
    const next = table.get(++block);
    if (next >= SLOTS_MAX || payloadAt(layout, next) !== start + reach) break;
    reach += blockBytes;
  }
  const found = Math.min(bytes, reach, file.bytes - start);
  return found > 0 ? { file, at: start, bytes: found } : undefined;
}

/** Guest ranges of mapped blocks as ranges of the file: ascending in the guest, told one by one. */
export function eachPlace(
  layout: BlockLayout,
  set: ExtentSet,
  visit: (at: number, bytes: number, guest: number) => void,
): void {
  const { blockBytes, table } = layout;
  for (let i = 0; i < set.count; i++) {
    const [start, end] = [set.start(i), set.end(i)];
    table.eachMapped(Math.floor(start / blockBytes), Math.ceil(end / blockBytes), (block, slot) => {
      const from = Math.max(start, block * blockBytes);
      const to = Math.min(end, (block + 1) * blockBytes);
      visit(payloadAt(layout, slot) + from - block * blockBytes, to - from, from);
    });
  }
}
