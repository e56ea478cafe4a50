/**
 * The state of a guard, read from its log: whole records in their order, as far as the log goes.
 *
 * The data of records behind what is known to be durable are checked, and the log ends before the first that is torn.
 * Where a later record shows that the log had gone on, it is damaged, and nothing of it is believed: without its masks
 * a guest would see what it has zeroed.
 */
import { crc32c } from "../../bytes/checksum.ts";
import type { BlockDevice } from "../../device/device.ts";
import { readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { damaged, goesOnBehind, type Header, type PlacedRecord, readHeader, recordsOf } from "./log.ts";
import { type Block, DOOMED, HIDDEN, KEEP, type Piece, PROMISED, WRITE, ZEROS } from "./pieces.ts";
import { parseStamp, type Stamp } from "./stamp.ts";
import { GuardState, zerosAt } from "./state.ts";

/** Pieces that a guard may hold; with 100 bytes each this bounds its memory (H24). */
export const PIECES_MAX = 4_000_000;

export interface Replayed {
  readonly header: Header;
  readonly state: GuardState;
  /** Undefined: none was written yet. */
  readonly stamp: Stamp | undefined;
  /** Where the log ends, and what the next record continues. */
  readonly end: number;
  readonly number: number;
  readonly chain: number;
  readonly durable: number;
}

/** @returns undefined where no log was begun. @throws DiskError `corrupt`, `unsupported`, `io` */
export async function replay(file: BlockDevice): Promise<Replayed | undefined> {
  const header = await readHeader(file);
  if (header === undefined) return undefined;
  let durable = header.start;
  for await (const record of recordsOf(file, header)) durable = Math.max(durable, record.durable);
  const replayer = new Replayer(header);
  let tail = { end: header.start, number: header.number, chain: header.chain };
  for await (const record of recordsOf(file, header)) {
    const { dataAt, dataBytes, dataCrc } = record;
    let data: Uint8Array | undefined;
    if (record.kind === "stamp" || record.end > durable) {
      data = await readBytes(file, dataAt, dataBytes);
      if (dataBytes > 0 && crc32c(0, data) !== dataCrc) break;
    }
    replayer.apply(record, data);
    tail = { end: record.end, number: record.number + 1, chain: record.chain };
  }
  if (tail.end < durable || (await goesOnBehind(file, header, tail.end)))
    throw damaged(`a record at ${tail.end} is broken, and it is not the last one`);
  return { header, state: replayer.state, stamp: replayer.stamp, ...tail, durable };
}

class Replayer {
  readonly state = new GuardState();
  stamp: Stamp | undefined;
  readonly #diskBytes: number;
  /** Those of a log that was begun anew, by their place. */
  readonly #blocks = new Map<number, Block>();

  constructor({ diskBytes }: Header) {
    this.#diskBytes = diskBytes;
  }

  apply(record: PlacedRecord, data: Uint8Array | undefined): void {
    const { kind, entries } = record;
    if (kind === "stamp") this.stamp = parseStamp(data!);
    else if (kind === "save") this.#save(record);
    else if (kind === "block") {
      for (const { at, end, word } of entries) this.#blocks.set(at, { at, bytes: end, crc: word, live: 0 });
    } else for (const entry of entries) this.#applyRange(kind, entry);
    if (this.state.count > PIECES_MAX)
      throw new DiskError("unsupported", `the guard's log holds more than ${PIECES_MAX} pieces`);
  }

  #save({ entries, dataAt, dataBytes, dataCrc }: PlacedRecord): void {
    const block: Block = { at: dataAt, bytes: dataBytes, crc: dataCrc, live: 0 };
    for (const entry of entries) {
      const { start, end, time, flags, at } = entry;
      this.#mustLieInside(entry);
      if (at + end - start > dataBytes) throw damaged(`a record saves ${end - start} bytes, and holds less`);
      if (flags & WRITE) this.state.cover({ start, end, time, flags: WRITE, block, offset: at });
      else this.state.save({ start, end }, block, at);
    }
  }

  #applyRange(
    kind: Exclude<PlacedRecord["kind"], "stamp" | "save" | "block">,
    entry: PlacedRecord["entries"][number],
  ): void {
    this.#mustLieInside(entry);
    const { start, end, time, flags } = entry;
    const range = { start, end };
    const { state } = this;
    if (kind === "mask") state.mask(range, time, flags);
    else if (kind === "write") state.write(range);
    else if (kind === "zeros") state.cover(zerosAt(range, time));
    else if (kind === "settle") state.settle(range);
    else if (kind === "doom") state.doom(range);
    else if (kind === "release") state.release(range, flags === 0 ? Infinity : time);
    else if (kind === "expire") state.expireUnder(time);
    else if (kind === "top")
      state.tops.rewrite(range, { piece: (piece) => piece, gap: () => this.#piece(kind, entry) });
    else state.cover(this.#piece(kind, entry));
  }

  #piece(
    kind: "top" | "under",
    { start, end, time, flags, at, word: offset }: PlacedRecord["entries"][number],
  ): Piece {
    const block = at === 0 ? undefined : this.#blocks.get(at);
    if (at !== 0 && (block === undefined || offset + end - start > block.bytes))
      throw damaged(`a piece at ${start} lies in no block`);
    const isTop = kind === "top";
    const known = isTop ? PROMISED | KEEP | HIDDEN | DOOMED : PROMISED | KEEP | WRITE | ZEROS;
    // Old bytes lie in the log, or in the image, or were zeros.
    const isSomewhere = isTop
      ? block !== undefined || flags & HIDDEN
      : ((flags & ZEROS) === 0) === (block !== undefined);
    if ((flags & ~known) !== 0 || !isSomewhere) throw damaged(`a piece at ${start} makes no sense`);
    return { start, end, time, flags, block, offset };
  }

  #mustLieInside({ start, end }: { readonly start: number; readonly end: number }): void {
    if (start >= end || end > this.#diskBytes)
      throw damaged(`a record speaks of ${start}-${end} on a disk of ${this.#diskBytes} bytes`);
  }
}
