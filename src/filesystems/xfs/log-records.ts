/**
 * Which records of a log that is not empty count: from the tail, which the last whole record names, to the head.
 *
 *   | … | tail: record | record | … | last record | head | rest: torn or older |
 *
 * Where writes that were on their way together did not all arrive, the head is before the first that is missing or
 * torn, as for the kernel. Damage farther back, or anything else that does not fit, is refused: the kernel would stop
 * elsewhere, or not mount. fs/xfs/xfs_log_recover.c of Linux.
 */
import { Refused } from "../refused.ts";
import { hasVersion } from "./features.ts";
import {
  cycleOf,
  decodeHeader,
  hasChecksum,
  IN_FLIGHT_RECORDS,
  IN_FLIGHT_SECTORS,
  isHeader,
  RECORD_SECTORS_MAX,
  SECTOR_BYTES,
  unpack,
  type LogRing,
  type RecordHeader,
} from "./log-ring.ts";
import type { Superblock } from "./superblock.ts";

const LITTLE_ENDIAN = 1;

export interface LogRecord {
  readonly place: bigint;
  readonly operations: number;
  readonly data: Uint8Array;
}

/** A sector of the ring, as seen from one end of what counts. */
interface Found {
  readonly sector: number;
  readonly header: RecordHeader;
}

export const corrupt = (message: string) =>
  new Refused("journal-corrupt", `log: ${message}`, "boot the guest, or run xfs_repair on it there");
export const unknown = (message: string) =>
  new Refused("journal-unknown", `log: ${message}`, "boot the guest and shut it down cleanly");

export class LogRecords {
  readonly #ring: LogRing;
  readonly #sb: Superblock;
  readonly #isVersion2: boolean;
  /** Sectors of the first record and behind the last one. */
  #tail = 0;
  #head = 0;
  #tailCycle = 0;

  constructor(ring: LogRing, sb: Superblock) {
    this.#ring = ring;
    this.#sb = sb;
    this.#isVersion2 = hasVersion(sb, "logv2");
  }

  /** Finds the two ends, and checks all between them. @throws Refused */
  async open(): Promise<void> {
    const written = await this.#writtenHead();
    await this.#setHead(written);
    const torn = await this.#firstBad();
    if (torn === undefined) return;
    if (torn === this.#tail || !(await this.#wasInFlight(torn, written))) {
      throw corrupt(`no whole record at sector ${torn} found`);
    }
    await this.#setHead(torn);
    const second = await this.#firstBad();
    if (second !== undefined) throw corrupt(`no whole record at sector ${second} found either`);
  }

  /** The records in order. */
  async *[Symbol.asyncIterator](): AsyncGenerator<LogRecord> {
    for (let sector = this.#tail, left = this.#distance(sector); left > 0;) {
      const found = await this.#headerAt(sector);
      // A running guest may have written over it since it was checked.
      if (found === undefined || found.sectors > left)
        throw corrupt(`the record at sector ${sector} is gone`);
      const record = await this.#ring.read(sector, found.sectors);
      yield { place: found.place, operations: found.operations, data: unpack(record, found) };
      left -= found.sectors;
      sector = this.#ring.step(sector, found.sectors);
    }
  }

  /** The head by the cycles alone: where they change, or before the first sector that did not arrive. */
  async #writtenHead(): Promise<number> {
    const ring = this.#ring;
    const [first, last] = [await ring.cycleAt(0), await ring.cycleAt(ring.sectors - 1)];
    if (first === 0) throw corrupt("it was never written");
    if (first !== last && first !== last + 1) throw corrupt(`cycles ${first} and ${last} at its ends found`);
    const change = first === last ? 0 : await ring.firstOf(last);
    const window = Math.min(IN_FLIGHT_SECTORS, ring.sectors);
    const before = await ring.readBefore(change, window);
    for (let index = 0; index < window; index++) {
      const sector = ring.step(change, index - window);
      const [cycle, expected] = [cycleOf(before, index), sector < change ? first : last];
      if (cycle === expected) continue;
      if (cycle === expected - 1) return sector;
      throw corrupt(`cycle ${cycle} at sector ${sector} found, ${expected} expected`);
    }
    return change;
  }

  /** Takes what ends at `head`, or before a last record that is not whole; the last whole one names the tail. */
  async #setHead(head: number): Promise<void> {
    let last = await this.#headerBefore(head);
    let end = head;
    if (last.header.sectors !== this.#span(last.sector, end)) {
      end = last.sector;
      last = await this.#headerBefore(end);
    }
    if (last.header.sectors !== this.#span(last.sector, end))
      throw corrupt(`no record ends at sector ${end}`);
    const tail = Number(last.header.tail & 0xffffffffn);
    const cycle = Number(last.header.tail >> 32n);
    const isBefore =
      cycle === last.header.cycle
        ? tail <= last.sector
        : cycle === last.header.cycle - 1 && tail > last.sector;
    if (!isBefore || tail >= this.#ring.sectors)
      throw corrupt(`a tail at sector ${tail} of cycle ${cycle} found`);
    [this.#tail, this.#tailCycle, this.#head] = [tail, cycle, end];
  }

  async #headerBefore(head: number): Promise<Found> {
    const window = Math.min(RECORD_SECTORS_MAX, this.#ring.sectors);
    const bytes = await this.#ring.readBefore(head, window);
    let index = window - 1;
    while (index >= 0 && !isHeader(bytes, index * SECTOR_BYTES)) index--;
    const header = index < 0 ? undefined : decodeHeader(bytes, index * SECTOR_BYTES, this.#isVersion2);
    if (header === undefined) throw corrupt(`no record before sector ${head} found`);
    return { sector: this.#ring.step(head, index - window), header };
  }

  /** The sector between tail and head where no whole record begins; undefined when all is well. */
  async #firstBad(): Promise<number | undefined> {
    let sector = this.#tail;
    let headers: number | undefined;
    for (let left = this.#distance(sector); left > 0;) {
      const header = await this.#headerAt(sector);
      if (header === undefined || header.sectors > left) return sector;
      const record = await this.#ring.read(sector, header.sectors);
      // Version 4 is older than the checksums.
      const isWithout = header.checksum === 0 && this.#sb.version === 4;
      if (header.checksum === 0 && !isWithout)
        throw corrupt(`a record without checksum at sector ${sector} found`);
      if (!isWithout && !hasChecksum(record, header)) return sector;
      this.#checkOwner({ sector, header }, (headers ??= header.headers));
      left -= header.sectors;
      sector = this.#ring.step(sector, header.sectors);
    }
    return undefined;
  }

  async #headerAt(sector: number): Promise<RecordHeader | undefined> {
    return decodeHeader(await this.#ring.read(sector, 1), 0, this.#isVersion2);
  }

  /** @throws Refused for a whole record that another filesystem, another machine or another round left there */
  #checkOwner({ sector, header }: Found, headers: number): void {
    if (header.format !== LITTLE_ENDIAN)
      throw unknown(`records of the format ${header.format} found, 1 expected`);
    const cycle = sector >= this.#tail ? this.#tailCycle : this.#tailCycle + 1;
    const isOwn = Buffer.compare(header.uuid, this.#sb.uuid) === 0;
    if (!isOwn || header.place !== (BigInt(cycle) << 32n) + BigInt(sector) || header.cycle !== cycle) {
      throw corrupt(
        `the record at sector ${sector} says it lies at ${header.place}, or in another filesystem`,
      );
    }
    // The kernel takes the first one's for all.
    if (header.headers !== headers)
      throw corrupt(`records of ${header.headers} and ${headers} headers found`);
  }

  /** Whether what begins at `sector` may have been on its way when that before `head` was written. */
  async #wasInFlight(sector: number, head: number): Promise<boolean> {
    const span = this.#span(sector, head);
    if (span > IN_FLIGHT_SECTORS) return false;
    const bytes = await this.#ring.read(sector, span);
    let records = 0;
    for (let index = 0; index < span; index++) if (isHeader(bytes, index * SECTOR_BYTES)) records++;
    return records <= IN_FLIGHT_RECORDS;
  }

  /** Sectors from one to the other, the whole ring where they are the same. */
  #span(from: number, to: number): number {
    const span = this.#ring.step(to, -from);
    return span === 0 ? this.#ring.sectors : span;
  }

  #distance(sector: number): number {
    return this.#span(sector, this.#head);
  }
}
