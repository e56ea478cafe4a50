/**
 * The writing end of the guard's log: records are appended, and are durable with the next flush.
 *
 * A log that is mostly dead is begun anew inside the same file: the state is written once more behind its end, the
 * header is pointed there (one sector, so before or after), and what lies before is given back to the host, but for
 * the blocks that still hold old bytes. Where nothing is guarded any more the file is cut to its header.
 */
import { randomBytes } from "node:crypto";
import { assert, DiskError } from "../../error.ts";
import { type Extent, ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import type { HostFile } from "../../device/device.ts";
import {
  encodeHeader,
  encodeRecord,
  ENTRIES_MAX,
  ENTRY_BYTES,
  type Header,
  type LogEntry,
  type LogRecord,
  SECTOR_BYTES,
  TAIL_BYTES_MAX,
} from "./log.ts";
import type { Block, Piece } from "./pieces.ts";
import type { Replayed } from "./replay.ts";
import type { GuardState } from "./state.ts";

export class Journal {
  readonly #file: HostFile;
  #identity: Uint8Array;
  readonly #diskBytes: number;
  #end: number;
  #number: number;
  #chain: number;
  #durable: number;
  /** Bytes of records since its beginning, without data. */
  #recordBytes = 0;
  #isBroken = false;

  private constructor(
    file: HostFile,
    { header, end, number, chain, durable }: Omit<Replayed, "state" | "stamp">,
  ) {
    this.#file = file;
    this.#identity = header.identity;
    this.#diskBytes = header.diskBytes;
    this.#end = end;
    this.#number = number;
    this.#chain = chain;
    this.#durable = durable;
  }

  /** A new log: nothing stands in the file but its header. */
  static async begin(file: HostFile, diskBytes: number): Promise<Journal> {
    const start = SECTOR_BYTES;
    const header: Header = { identity: randomBytes(8), diskBytes, start, chain: 0, number: 0 };
    await file.truncate(0);
    await file.write(0, encodeHeader(header));
    await file.flush();
    return new Journal(file, { header, end: start, number: 0, chain: 0, durable: start });
  }

  /** Goes on with a log; what a crash left behind its end is cut off. */
  static async resume(file: HostFile, replayed: Replayed): Promise<Journal> {
    if (file.bytes > replayed.end) await file.truncate(replayed.end);
    await file.flush();
    const journal = new Journal(file, { ...replayed, durable: replayed.end });
    journal.#recordBytes = replayed.end - replayed.header.start;
    return journal;
  }

  /** @returns for each record where its data lie */
  async append(records: readonly LogRecord[]): Promise<readonly Block[]> {
    if (this.#isBroken)
      throw new DiskError("io", "the guard's log could not be begun anew: no more is recorded");
    const blocks: Block[] = [];
    const parts: Uint8Array[] = [];
    let [at, number, chain] = [this.#end, this.#number, this.#chain];
    for (const record of records) {
      assert(record.entries.length <= ENTRIES_MAX, "entries of one record");
      const tail = { number, chain, durable: this.#durable, identity: this.#identity };
      const encoded = encodeRecord(record, tail);
      const { bytes, dataAt, dataCrc } = encoded;
      blocks.push({ at: at + dataAt, bytes: record.data?.length ?? 0, crc: dataCrc, live: 0 });
      parts.push(bytes);
      at += bytes.length;
      number++;
      chain = encoded.chain;
    }
    const bytes = parts.length === 1 ? parts[0]! : Buffer.concat(parts);
    if (bytes.length > 0) await this.#file.write(this.#end, bytes);
    for (const { data } of records) this.#recordBytes -= data?.length ?? 0;
    this.#recordBytes += bytes.length;
    this.#end = at;
    this.#number = number;
    this.#chain = chain;
    if (this.#end - this.#durable > TAIL_BYTES_MAX) await this.flush();
    return blocks;
  }

  async flush(): Promise<void> {
    const end = this.#end;
    if (end === this.#durable) return;
    await this.#file.flush();
    this.#durable = end;
  }

  /** Whether the log should be begun anew: records that are dead take more than `slackBytes`, and than those that live. */
  isLong(state: GuardState, slackBytes: number): boolean {
    return this.#recordBytes > slackBytes + 4 * state.count * ENTRY_BYTES;
  }

  /**
   * Begins the log anew with `records`, which make the whole state, and are durable but for what stands in them. They belong
   * to no log until the header says so: with an identity of their own they continue nothing.
   */
  async restart(records: readonly LogRecord[], live: ExtentSet): Promise<void> {
    const start = this.#end;
    const before = [this.#identity, this.#number, this.#chain, this.#recordBytes] as const;
    const header = { identity: randomBytes(8), diskBytes: this.#diskBytes, start, chain: 0, number: 0 };
    [this.#identity, this.#number, this.#chain, this.#recordBytes] = [header.identity, 0, 0, 0];
    try {
      for (let i = 0; i < records.length; i += 16) await this.append(records.slice(i, i + 16));
      await this.flush();
    } catch (error) {
      this.#end = start;
      this.#durable = Math.min(this.#durable, start);
      [this.#identity, this.#number, this.#chain, this.#recordBytes] = before;
      throw error;
    }
    // Which of the two a failure here leaves, nobody knows.
    this.#isBroken = true;
    await this.#file.write(0, encodeHeader(header));
    await this.#file.flush();
    this.#isBroken = false;
    const old = ExtentSet.of({ start: SECTOR_BYTES, end: start }).subtract(live);
    await this.#giveBack(old);
  }

  /** Gives back what lies in the blocks; the records that say so are durable. */
  async drop(blocks: readonly Block[]): Promise<void> {
    await this.#giveBack(ExtentSet.from(blocks.map(({ at, bytes }) => ({ start: at, end: at + bytes }))));
  }

  async #giveBack(ranges: ExtentSet): Promise<void> {
    for (const range of ranges) await this.#file.discard(range);
  }

  async close(): Promise<void> {
    await this.#file[Symbol.asyncDispose]();
  }
}

/** The state as records that make it again. */
export function recordsOf(state: GuardState): LogRecord[] {
  const blocks = new Set<Block>();
  for (const { block } of piecesOf(state)) if (block !== undefined) blocks.add(block);
  return [
    ...inRecords("block", [...blocks].map(entryOfBlock)),
    ...inRecords("top", Array.from(state.tops, entryOf)),
    ...inRecords("under", state.under.map(entryOf)),
  ];
}

function* piecesOf(state: GuardState): Generator<Piece> {
  yield* state.tops;
  yield* state.under;
}

/** What of the log the state's pieces lie in. */
export function liveIn(state: GuardState): ExtentSet {
  const live = new ExtentBuilder();
  for (const { block } of piecesOf(state))
    if (block !== undefined) live.add(block.at, block.at + block.bytes);
  return live.build();
}

function entryOf({ start, end, time, flags, block, offset }: Piece): LogEntry {
  return { start, end, time, flags, word: offset, at: block?.at ?? 0 };
}

function entryOfBlock({ at, bytes, crc }: Block): LogEntry {
  return { start: 0, end: bytes, time: 0, flags: 0, word: crc, at };
}

export function inRecords(kind: LogRecord["kind"], entries: readonly LogEntry[]): LogRecord[] {
  const records: LogRecord[] = [];
  for (let i = 0; i < entries.length; i += ENTRIES_MAX)
    records.push({ kind, entries: entries.slice(i, i + ENTRIES_MAX) });
  return records;
}

/** An entry that speaks of a range alone. */
export function entryAt({ start, end }: Extent, time = 0, flags = 0): LogEntry {
  return { start, end, time, flags, word: 0, at: 0 };
}
