/**
 * The log: a ring of entries, each a set of 4 KiB sectors of the file to write or to clear. Where the header names a
 * LogGuid, the newest whole sequence of entries must be replayed before anything else of the file is believed.
 *
 *   ring    | entry 8 | torn | … old … | entry 5 | entry 6 | entry 7 |     entry 8 is the head: its Tail leads to 5
 *   entry   | header, descriptors | 4 KiB of data | 4 KiB | …
 *
 * An entry counts when its signature, checksum, LogGuid and all sequence numbers in it are right. Specification:
 * [MS-VHDX] 2.3.
 */
import { viewOf } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes, type WritableDevice } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { Header } from "./header.ts";
import {
  checksumOf,
  corrupt,
  DataDescriptor,
  DataSector,
  LOG_SECTOR_BYTES,
  LogEntryHeader,
  MIB,
  REGION_TABLES_AT,
  ZeroDescriptor,
} from "./structures.ts";

/** Hyper-V and QEMU make logs of 1 MiB. */
const LOG_BYTES_MAX = 64 * MIB;
/** So many bytes may a log clear: sector bitmaps have 1 MiB each. */
const CLEARED_BYTES_MAX = 1024 * MIB;
/** Far behind the end of any file: a disk of 64 TiB with all its tables. */
const FILE_BYTES_MAX = BigInt(128 * 2 ** 40);

/** One update of the file. */
export interface Update {
  readonly at: number;
  readonly bytes: number;
  /** Undefined: zeros. */
  readonly data: Uint8Array | undefined;
}

/** What a replay does to the file. */
export interface Replay {
  readonly updates: readonly Update[];
  /** Length of the file afterwards; it never gets shorter. */
  readonly fileBytes: number;
}

interface Entry {
  /** Offset in the log. */
  readonly at: number;
  readonly bytes: number;
  readonly tail: number;
  readonly sequence: bigint;
  readonly flushedFileOffset: bigint;
  readonly lastFileOffset: bigint;
  readonly updates: readonly LoggedUpdate[];
}

interface LoggedUpdate {
  readonly at: bigint;
  readonly bytes: bigint;
  readonly data: Uint8Array | undefined;
}

/** @throws DiskError `corrupt` when the log cannot be replayed, `unsupported` when it is too large */
export async function readReplay(file: BlockDevice, header: Header): Promise<Replay> {
  const { logOffset, logLength } = header;
  if (logLength > LOG_BYTES_MAX) {
    throw new DiskError("unsupported", `a log of ${logLength} bytes waits, supported are ${LOG_BYTES_MAX}`, {
      hint: "attach the disk once where it was written",
    });
  }
  if (logLength === 0 || logOffset + logLength > file.bytes) {
    throw corrupt("log", logOffset, `${logLength} bytes`, `a log inside of the file of ${file.bytes} bytes`);
  }
  const sequence = activeSequence(new Log(await readBytes(file, logOffset, logLength), header.logGuid));
  const head = sequence?.at(-1);
  if (!sequence || !head) throw corrupt("log", logOffset, "no whole sequence of entries", "one to replay");
  if (BigInt(file.bytes) < head.flushedFileOffset) {
    throw corrupt(
      "file",
      file.bytes,
      "its end",
      `${head.flushedFileOffset} bytes: FlushedFileOffset of the log`,
    );
  }
  return replayOf(sequence, head, header, file.bytes);
}

function replayOf(sequence: readonly Entry[], head: Entry, header: Header, fileBytes: number): Replay {
  const updates: Update[] = [];
  let end = head.lastFileOffset;
  let cleared = 0n;
  for (const update of sequence.flatMap((entry) => entry.updates)) {
    const stop = update.at + update.bytes;
    if (stop > end) end = stop;
    if (!update.data) cleared += update.bytes;
    if (end > FILE_BYTES_MAX) break;
    if (cleared > CLEARED_BYTES_MAX) {
      throw new DiskError("unsupported", `the log clears more than ${CLEARED_BYTES_MAX} bytes`);
    }
    const [at, bytes] = [Number(update.at), Number(update.bytes)];
    const isOverLog = at < header.logOffset + header.logLength && at + bytes > header.logOffset;
    if (at < REGION_TABLES_AT[0] || isOverLog) {
      throw corrupt(
        "log descriptor",
        header.logOffset,
        `an update at ${at}`,
        "one outside of headers and log",
      );
    }
    updates.push({ at, bytes, data: update.data });
  }
  if (end > FILE_BYTES_MAX)
    throw corrupt("log", header.logOffset, `a file of ${end} bytes`, `${FILE_BYTES_MAX} at most`);
  return { updates, fileBytes: Math.max(fileBytes, Number(end)) };
}

/** Carries out the updates on a device that is long enough for them. */
export async function applyReplay(device: WritableDevice, { updates }: Replay): Promise<void> {
  for (const { at, bytes, data } of updates) {
    if (data) await device.write(at, data);
    else await device.zero({ start: at, end: at + bytes });
  }
}

/** The entries from tail to head of the newest sequence that is whole (2.3.3). */
function activeSequence(log: Log): readonly Entry[] | undefined {
  let active: readonly Entry[] | undefined;
  for (let at = 0; ;) {
    const found = sequenceAt(log, at);
    const head = found.at(-1);
    const first = head ? found.findIndex((entry) => entry.at === head.tail) : -1;
    if (head && first >= 0 && (!active || head.sequence > active.at(-1)!.sequence))
      active = found.slice(first);
    // Without its tail no part of this row is whole either: they all have the same head.
    const next = head ? log.behind(head) : (at + LOG_SECTOR_BYTES) % log.bytes;
    // Back at the start, or around: the whole ring has been looked at (CVE-2014-0148 is what happens otherwise).
    if (next <= at) return active;
    at = next;
  }
}

/** The entries that follow each other from `at` on. */
function sequenceAt(log: Log, at: number): readonly Entry[] {
  const sequence: Entry[] = [];
  for (let next = at; ;) {
    const entry = log.entry(next);
    const last = sequence.at(-1);
    if (!entry || (last && entry.sequence !== last.sequence + 1n)) return sequence;
    sequence.push(entry);
    next = log.behind(entry);
  }
}

/** A log in memory. Each place is parsed once, however many sequences lead over it. */
class Log {
  readonly bytes: number;
  readonly #ring: Uint8Array;
  readonly #guid: string;
  readonly #entries = new Map<number, Entry | undefined>();
  /** Entries cannot overlap but by forgery: so many bytes are parsed at most. */
  #workBytes: number;

  constructor(ring: Uint8Array, guid: string) {
    this.#ring = ring;
    this.#guid = guid;
    this.bytes = ring.length;
    this.#workBytes = ring.length * 4;
  }

  /** The valid entry at `at`. */
  entry(at: number): Entry | undefined {
    if (!this.#entries.has(at)) this.#entries.set(at, this.#parse(at));
    return this.#entries.get(at);
  }

  /** Where the entry after this one begins. */
  behind({ at, bytes }: Entry): number {
    return (at + bytes) % this.bytes;
  }

  #parse(at: number): Entry | undefined {
    const header = LogEntryHeader.decode(this.#ring, at);
    const { entryLength, tail, sequenceNumber: sequence, descriptorCount } = header;
    if (header.signature !== "loge" || header.logGuid !== this.#guid || sequence === 0n) return undefined;
    if (entryLength === 0 || entryLength % LOG_SECTOR_BYTES !== 0 || entryLength > this.bytes)
      return undefined;
    if (tail % LOG_SECTOR_BYTES !== 0 || tail >= this.bytes) return undefined;
    this.#workBytes -= entryLength;
    if (this.#workBytes < 0) throw corrupt("log", at, "entries that lie over each other", "entries in a row");
    const bytes = this.#bytesAt(at, entryLength);
    const updates = updatesOf(bytes, descriptorCount, sequence);
    if (!updates || header.checksum !== checksumOf(bytes)) return undefined;
    const { flushedFileOffset, lastFileOffset } = header;
    return { at, bytes: entryLength, tail, sequence, flushedFileOffset, lastFileOffset, updates };
  }

  #bytesAt(at: number, bytes: number): Uint8Array {
    const end = at + bytes;
    if (end <= this.bytes) return this.#ring.subarray(at, end);
    const around = new Uint8Array(bytes);
    around.set(this.#ring.subarray(at));
    around.set(this.#ring.subarray(0, end - this.bytes), this.bytes - at);
    return around;
  }
}

/** The updates of an entry; undefined where anything in it does not belong to it. */
function updatesOf(entry: Uint8Array, count: number, sequence: bigint): readonly LoggedUpdate[] | undefined {
  const descriptorsEnd = LogEntryHeader.bytes + count * ZeroDescriptor.bytes;
  let sector = Math.ceil(descriptorsEnd / LOG_SECTOR_BYTES) * LOG_SECTOR_BYTES;
  if (sector > entry.length) return undefined;
  const updates: LoggedUpdate[] = [];
  const isAligned = (value: bigint) => value % BigInt(LOG_SECTOR_BYTES) === 0n;
  for (let at = LogEntryHeader.bytes; at < descriptorsEnd; at += ZeroDescriptor.bytes) {
    const zero = ZeroDescriptor.decode(entry, at);
    if (zero.sequenceNumber !== sequence || !isAligned(zero.fileOffset)) return undefined;
    if (zero.signature === "zero") {
      if (!isAligned(zero.zeroLength)) return undefined;
      updates.push({ at: zero.fileOffset, bytes: zero.zeroLength, data: undefined });
    } else if (zero.signature === "desc") {
      const data = sectorOf(entry, sector, sequence);
      if (!data) return undefined;
      const { leadingBytes, trailingBytes } = DataDescriptor.decode(entry, at);
      data.set(leadingBytes, 0);
      data.set(trailingBytes, LOG_SECTOR_BYTES - trailingBytes.length);
      updates.push({ at: zero.fileOffset, bytes: BigInt(LOG_SECTOR_BYTES), data });
      sector += LOG_SECTOR_BYTES;
    } else return undefined;
  }
  return updates;
}

/** A copy of the data sector at `at` of an entry, when it is the entry's own. */
function sectorOf(entry: Uint8Array, at: number, sequence: bigint): Uint8Array | undefined {
  if (at + LOG_SECTOR_BYTES > entry.length) return undefined;
  const view = viewOf(entry);
  const high = view.getUint32(at + DataSector.at.sequenceHigh, true);
  const low = view.getUint32(at + DataSector.at.sequenceLow, true);
  const isOurs = ((BigInt(high) << 32n) | BigInt(low)) === sequence;
  const signature = Buffer.from(entry.subarray(at, at + 4)).toString("latin1");
  return isOurs && signature === "data" ? entry.slice(at, at + LOG_SECTOR_BYTES) : undefined;
}
