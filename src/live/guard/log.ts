/**
 * The guard's log: a header of one sector, and records that are only appended to, each at a sector's start.
 *
 *   | header | record | record | … |          record: | head 64 | entries of 40 | pad to 512 | data | pad to 512 |
 *
 *   header   magic, version, crc32c, identity, the disk's bytes; start, chain and number of the first record
 *   head     magic, kind, number, durable, counts, checksums of entries and data, chain: the checksum of the head before
 *
 * A record is a part of the log only if its head continues the chain: what an interrupted append left behind, or an
 * older log in the same place, never does. `durable` is the length of the log that is known to be on stable storage
 * when the record was made. So a reader checks the data of what was appended last alone, and knows whether a broken
 * record is where the log ended when the power went (torn: cut off), or damage in its midst (refused).
 *
 * All numbers are little-endian. Everything is bounded: these are bytes that others can damage (H24).
 */
import { crc32c } from "../../bytes/checksum.ts";
import { raw, skip, struct, u32le, u64le, viewOf } from "../../bytes/struct.ts";
import type { Extent } from "../../bytes/extents.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";

export const SECTOR_BYTES = 512;

export const LogHeader = struct({
  magic: raw(16),
  version: u32le,
  crc: u32le,
  identity: raw(8),
  diskBytes: u64le,
  start: u64le,
  chain: u32le,
  number: u64le,
});

export const RecordHead = struct({
  magic: u32le,
  kind: u32le,
  number: u64le,
  durable: u64le,
  entries: u32le,
  dataBytes: u32le,
  entriesCrc: u32le,
  dataCrc: u32le,
  chain: u32le,
  crc: u32le,
  reserved: skip(16),
});

const Entry = struct({ start: u64le, end: u64le, time: u64le, flags: u32le, word: u32le, at: u64le });

export const HEAD_BYTES = RecordHead.bytes;
export const ENTRY_BYTES = Entry.bytes;

const MAGIC = Buffer.from("ullage guard log");
const RECORD_MAGIC = 0x31524755;
const VERSION = 1;
/** Entries and data of one record. */
export const ENTRIES_MAX = 65_536;
export const DATA_BYTES_MAX = 4 * 1024 * 1024;
/** So much is appended at most between two flushes. */
export const TAIL_BYTES_MAX = 64 * 1024 * 1024;
/** Behind the end lies at most what was appended, and a state that was to begin the log anew. */
const SCAN_BYTES_MAX = 1024 * 1024 * 1024;

export const KINDS = [
  "mask",
  "save",
  "write",
  "zeros",
  "settle",
  "doom",
  "release",
  "expire",
  "stamp",
  "block",
  "top",
  "under",
] as const;
export type RecordKind = (typeof KINDS)[number];

/** What an entry means depends on the kind of its record. */
export interface LogEntry extends Extent {
  readonly time: number;
  readonly flags: number;
  /** Of a block its checksum; of what lies in one, the offset there. */
  readonly word: number;
  /** Of a block its offset in the log; of what is saved, the offset in the record's data. */
  readonly at: number;
}

export interface LogRecord {
  readonly kind: RecordKind;
  readonly entries: readonly LogEntry[];
  readonly data?: Uint8Array;
}

/** A record where it lies. */
export interface PlacedRecord {
  readonly kind: RecordKind;
  readonly entries: readonly LogEntry[];
  readonly number: number;
  readonly dataAt: number;
  readonly dataBytes: number;
  readonly dataCrc: number;
  readonly durable: number;
  /** Where the next one begins. */
  readonly end: number;
  /** What the next one continues. */
  readonly chain: number;
}

export interface Header {
  readonly identity: Uint8Array;
  readonly diskBytes: number;
  readonly start: number;
  readonly chain: number;
  readonly number: number;
}

const padded = (bytes: number): number => Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES;

export function encodeHeader(header: Header): Uint8Array {
  const sector = new Uint8Array(SECTOR_BYTES);
  LogHeader.encode({ ...header, magic: MAGIC, version: VERSION, crc: 0 }, sector);
  LogHeader.encode({ crc: crc32c(0xffffffff, sector) }, sector);
  return sector;
}

/** @returns undefined where no log was ever begun: empty, or one sector of zeros. @throws DiskError `corrupt`, `unsupported` */
export async function readHeader(file: BlockDevice): Promise<Header | undefined> {
  if (file.bytes === 0) return undefined;
  if (file.bytes < SECTOR_BYTES) throw damaged("it is shorter than its header");
  const sector = await readBytes(file, 0, SECTOR_BYTES);
  if (file.bytes === SECTOR_BYTES && sector.every((byte) => byte === 0)) return undefined;
  const { magic, version, crc, ...header } = LogHeader.decode(sector);
  if (!MAGIC.equals(magic)) throw damaged("its first sector is no header");
  LogHeader.encode({ crc: 0 }, sector);
  if (crc !== crc32c(0xffffffff, sector)) throw damaged("its header's checksum is wrong");
  if (version !== VERSION)
    throw new DiskError("unsupported", `the guard's log has version ${version}, not 1`);
  if (header.start < SECTOR_BYTES || header.start % SECTOR_BYTES !== 0)
    throw damaged(`its records begin at ${header.start}`);
  return header;
}

export function damaged(what: string): DiskError {
  return new DiskError("corrupt", `the guard's log is damaged: ${what}`, {
    code: "guard-damaged",
    hint: "restore it beside the image; or give up what it guards: ullage undo --forget",
  });
}

/** What `encodeRecord` continues. */
export interface Tail {
  readonly number: number;
  readonly chain: number;
  readonly durable: number;
  readonly identity: Uint8Array;
}

export interface EncodedRecord {
  readonly bytes: Uint8Array;
  /** The chain after it. */
  readonly chain: number;
  /** Of its data in `bytes`. */
  readonly dataAt: number;
  readonly dataCrc: number;
}

export function encodeRecord({ kind, entries, data }: LogRecord, tail: Tail): EncodedRecord {
  const dataAt = padded(HEAD_BYTES + entries.length * ENTRY_BYTES);
  const bytes = new Uint8Array(dataAt + padded(data?.length ?? 0));
  for (const [i, entry] of entries.entries()) {
    Entry.encode(entry, bytes, HEAD_BYTES + i * ENTRY_BYTES);
  }
  if (data !== undefined) bytes.set(data, dataAt);
  const { identity, ...place } = tail;
  const dataCrc = data === undefined ? 0 : crc32c(0, data);
  const head = {
    magic: RECORD_MAGIC,
    kind: KINDS.indexOf(kind),
    ...place,
    entries: entries.length,
    dataBytes: data?.length ?? 0,
    entriesCrc: crc32c(0, bytes, HEAD_BYTES, HEAD_BYTES + entries.length * ENTRY_BYTES),
    dataCrc,
  };
  RecordHead.encode(head, bytes);
  const crc = crcOf(bytes.subarray(0, HEAD_BYTES), tail.chain, identity);
  RecordHead.encode({ crc }, bytes);
  return { bytes, chain: crc, dataAt, dataCrc };
}

/** Nobody but the log's maker can make a record: a guest may write what looks like one, and it is saved as data here. */
function crcOf(head: Uint8Array, chain: number, identity: Uint8Array): number {
  return crc32c(crc32c(chain, identity), head);
}

/** The head of which `sector` begins; undefined where there is none. */
function headOf(sector: Uint8Array, identity: Uint8Array) {
  const view = viewOf(sector);
  if (view.getUint32(0, true) !== RECORD_MAGIC) return undefined;
  const blank = sector.slice(0, HEAD_BYTES);
  RecordHead.encode({ crc: 0 }, blank);
  const chain = view.getUint32(RecordHead.at.chain, true);
  if (view.getUint32(RecordHead.at.crc, true) !== crcOf(blank, chain, identity)) return undefined;
  return RecordHead.decode(sector);
}

const WINDOW_BYTES = 1024 * 1024;

/** Reads forward in large pieces. */
class Window {
  readonly #file: BlockDevice;
  readonly #end: number;
  #at = 0;
  #bytes: Uint8Array = new Uint8Array(0);

  constructor(file: BlockDevice) {
    this.#file = file;
    this.#end = Math.floor(file.bytes / SECTOR_BYTES) * SECTOR_BYTES;
  }

  /** @returns undefined behind the end */
  async take(at: number, bytes: number): Promise<Uint8Array | undefined> {
    if (at + bytes > this.#end) return undefined;
    if (at < this.#at || at + bytes > this.#at + this.#bytes.length) {
      this.#at = at;
      this.#bytes = await readBytes(this.#file, at, Math.min(this.#end - at, Math.max(bytes, WINDOW_BYTES)));
    }
    return this.#bytes.subarray(at - this.#at, at - this.#at + bytes);
  }
}

/** The records from the header on, until one does not continue the chain. */
export async function* recordsOf(file: BlockDevice, header: Header): AsyncGenerator<PlacedRecord> {
  const window = new Window(file);
  let { start: at, chain, number } = header;
  for (;;) {
    const sector = await window.take(at, SECTOR_BYTES);
    const head = sector && headOf(sector, header.identity);
    if (head === undefined || head.chain !== chain || head.number !== number) return;
    const kind = KINDS[head.kind];
    if (kind === undefined || head.entries > ENTRIES_MAX || head.dataBytes > DATA_BYTES_MAX) return;
    const entriesEnd = HEAD_BYTES + head.entries * ENTRY_BYTES;
    const dataAt = at + padded(entriesEnd);
    const end = dataAt + padded(head.dataBytes);
    const bytes = end <= file.bytes ? await window.take(at, padded(entriesEnd)) : undefined;
    if (bytes === undefined || crc32c(0, bytes, HEAD_BYTES, entriesEnd) !== head.entriesCrc) return;
    chain = head.crc;
    const { dataBytes, dataCrc, durable } = head;
    const entries = decodeEntries(bytes, head.entries);
    yield { kind, entries, number, dataAt, dataBytes, dataCrc, durable, end, chain };
    number++;
    at = end;
  }
}

/** @throws DiskError `unsupported` for a number past 2^53 */
function decodeEntries(bytes: Uint8Array, count: number): LogEntry[] {
  const entries: LogEntry[] = [];
  for (let i = 0; i < count; i++) {
    entries.push(Entry.decode(bytes, HEAD_BYTES + i * ENTRY_BYTES));
  }
  return entries;
}

/** Whether something behind `end` shows that the log went on, and was durable further than that. */
export async function goesOnBehind(file: BlockDevice, { identity }: Header, end: number): Promise<boolean> {
  if (file.bytes - end > SCAN_BYTES_MAX) return true;
  const window = new Window(file);
  for (let at = end; at + SECTOR_BYTES <= file.bytes; at += SECTOR_BYTES) {
    const sector = await window.take(at, SECTOR_BYTES);
    if (sector === undefined) return false;
    const head = headOf(sector, identity);
    if (head !== undefined && head.durable > end) return true;
  }
  return false;
}
