/**
 * The log: a ring of records, in sectors of 512 bytes whatever the disk's are. Only whether it is empty matters.
 *
 *   | cycle n … record | unmount record | head → cycle n - 1, or 0: never written … |
 *
 *   record:  | header: magic 0xfeedbabe, cycle, version, length, …, previous, operations, … | data … |
 *   data:    the first word of each sector is the cycle                   operation: | id | length | client | flags |
 *
 * Where the cycle changes is the head: the ring was written last there. The log is empty when the record that ends at
 * the head has a single operation, with the flag that an unmount leaves. The kernel looks for it in the same way, so
 * that what is empty here is not replayed there. Journaling_log.asciidoc of "XFS Algorithms & Data Structures";
 * fs/xfs/xfs_log_recover.c of Linux.
 */
import { crc32c } from "../../bytes/checksum.ts";
import { viewOf } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { Refused } from "../refused.ts";
import { hasVersion } from "./features.ts";
import { damaged } from "./refused.ts";
import { blockAt, type Superblock } from "./superblock.ts";

const SECTOR_BYTES = 512;
const RECORD_MAGIC = 0xfeedbabe;
/** Data of so many bytes is described by one header sector. */
const HEADER_COVERS_BYTES = 32768;
const RECORD_BYTES_MAX = 256 * 1024;
/** With its headers. */
const RECORD_SECTORS_MAX = RECORD_BYTES_MAX / SECTOR_BYTES + 16;
/** All records that may be on their way to the disk at once: torn ones lie no farther before the head. */
const IN_FLIGHT_SECTORS = (8 * RECORD_BYTES_MAX) / SECTOR_BYTES;
const CHECKSUM_AT = 32;
/** Of a record's first header, as 64-bit and as 32-bit kernels count them, and of its further ones. */
const HEADER_BYTES = [328, 324];
const FURTHER_HEADER_BYTES = 260;
const UNMOUNT_FLAG = 0x20;
const OPERATION_FLAGS_AT = 9;

/** The blocks of the log, counted through all AGs. @throws Refused when it lies on another device, or nowhere */
export function logExtent(sb: Superblock): { readonly start: number; readonly end: number } {
  if (sb.logStart === 0) {
    throw new Refused(
      "journal-missing",
      "superblock: the log lies on a device of its own, so that nobody can tell here whether it is empty",
      "all of this filesystem counts as used",
    );
  }
  const start = blockAt(sb, sb.logStart, sb.logBlocks);
  if (start < 0 || sb.logBlocks === 0) {
    throw damaged(`superblock: a log of ${sb.logBlocks} blocks at ${sb.logStart} found`);
  }
  return { start, end: start + sb.logBlocks };
}

/** @throws Refused `journal-dirty` unless the last thing written to the log was that of an unmount */
export async function checkLog(device: BlockDevice, sb: Superblock): Promise<void> {
  const { start, end } = logExtent(sb);
  const log = new Log(device, start * sb.blockBytes, ((end - start) * sb.blockBytes) / SECTOR_BYTES);
  await log.checkEmpty(hasVersion(sb, "logv2"));
}

function dirty(message: string): Refused {
  return new Refused(
    "journal-dirty",
    `${message}: the guest was not shut down cleanly`,
    "boot the guest and shut it down cleanly, or mount and unmount the filesystem in it",
  );
}

interface LogRecord {
  /** Sectors from its start to the place before which it was looked for. */
  readonly distance: number;
  readonly sectors: number;
  readonly operations: number;
  /** Of its first operation. */
  readonly flags: number;
}

class Log {
  readonly #device: BlockDevice;
  readonly #start: number;
  readonly #sectors: number;

  constructor(device: BlockDevice, start: number, sectors: number) {
    this.#device = device;
    this.#start = start;
    this.#sectors = sectors;
  }

  /** @throws Refused when anything was written after an unmount, or did not arrive */
  async checkEmpty(isVersion2: boolean): Promise<void> {
    const [first, last] = [await this.#cycleAt(0), await this.#cycleAt(this.#sectors - 1)];
    if (first === 0) throw dirty("log: it was never written");
    const change = first === last ? 0 : await this.#firstOf(last);
    let head = change;
    let record = await this.#recordBefore(head, isVersion2);
    if (record !== undefined && record.distance > record.sectors) {
      // A record that is not whole does not count. xfs_repair and xfs_admin leave one when they clear the log.
      await this.#checkCycles(change, record.distance, (cycle) => cycle !== last);
      head = (change - record.distance + this.#sectors) % this.#sectors;
      record = await this.#recordBefore(head, isVersion2);
    }
    if (record === undefined || record.sectors !== record.distance) {
      throw dirty(`log: no whole record ends at sector ${head}`);
    }
    const window = Math.min(IN_FLIGHT_SECTORS, this.#sectors);
    await this.#checkCycles(head, window, (cycle, sector) => cycle === (sector < change ? first : last));
    if (record.operations !== 1 || (record.flags & UNMOUNT_FLAG) === 0) {
      throw dirty(`log: the record that ends at sector ${head} is not that of an unmount`);
    }
  }

  /** @throws Refused for the first of the `count` sectors before `head` whose cycle does not fit */
  async #checkCycles(
    head: number,
    count: number,
    fits: (cycle: number, sector: number) => boolean,
  ): Promise<void> {
    const before = await this.#sectorsBefore(head, count);
    for (let index = 0; index < count; index++) {
      const sector = (head - count + index + this.#sectors) % this.#sectors;
      const cycle = cycleOf(before, index);
      if (fits(cycle, sector)) continue;
      throw dirty(`log: cycle ${cycle} at sector ${sector} found, another expected`);
    }
  }

  /** The first sector of a cycle which the last sector has and sector 0 has not. */
  async #firstOf(cycle: number): Promise<number> {
    let low = 0;
    let high = this.#sectors - 1;
    while (high - low > 1) {
      const middle = Math.floor((low + high) / 2);
      if ((await this.#cycleAt(middle)) === cycle) high = middle;
      else low = middle;
    }
    return high;
  }

  /** The last record that begins before `head`; undefined where there is none. */
  async #recordBefore(head: number, isVersion2: boolean): Promise<LogRecord | undefined> {
    const window = Math.min(RECORD_SECTORS_MAX, this.#sectors);
    const bytes = await this.#sectorsBefore(head, window);
    const view = viewOf(bytes);
    let index = window - 1;
    while (index >= 0 && view.getUint32(index * SECTOR_BYTES) !== RECORD_MAGIC) index--;
    if (index < 0) return undefined;
    const at = index * SECTOR_BYTES;
    const version = view.getUint32(at + 8);
    const dataBytes = view.getUint32(at + 12);
    const operations = view.getUint32(at + 40);
    const coversBytes = isVersion2 ? view.getUint32(at + 320) : 0;
    const headers = Math.max(1, Math.ceil(coversBytes / HEADER_COVERS_BYTES));
    const sectors = headers + Math.ceil(dataBytes / SECTOR_BYTES);
    const distance = window - index;
    if (version !== (isVersion2 ? 2 : 1) || dataBytes === 0 || sectors > distance) return undefined;
    if (!isWhole(bytes.subarray(at, at + sectors * SECTOR_BYTES), headers, dataBytes)) return undefined;
    const flags = view.getUint8(at + headers * SECTOR_BYTES + OPERATION_FLAGS_AT);
    return { distance, sectors, operations, flags };
  }

  /** `count` sectors that end at `head`, round the ring. */
  async #sectorsBefore(head: number, count: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(count * SECTOR_BYTES);
    const wrapped = Math.max(0, count - head);
    const [end, rest] = [bytes.subarray(0, wrapped * SECTOR_BYTES), bytes.subarray(wrapped * SECTOR_BYTES)];
    await this.#device.read(this.#start + (this.#sectors - wrapped) * SECTOR_BYTES, end);
    await this.#device.read(this.#start + (head - count + wrapped) * SECTOR_BYTES, rest);
    return bytes;
  }

  async #cycleAt(sector: number): Promise<number> {
    return cycleOf(await readBytes(this.#device, this.#start + sector * SECTOR_BYTES, SECTOR_BYTES), 0);
  }
}

/** Whether the checksum of a record is right. Tools leave it at zero; 32-bit kernels make their headers shorter. */
function isWhole(record: Uint8Array, headers: number, dataBytes: number): boolean {
  const found = viewOf(record).getUint32(CHECKSUM_AT, true);
  return found === 0 || HEADER_BYTES.some((bytes) => checksumOf(record, headers, dataBytes, bytes) === found);
}

function checksumOf(record: Uint8Array, headers: number, dataBytes: number, headerBytes: number): number {
  let crc = crc32c(0xffffffff, record, 0, CHECKSUM_AT);
  crc = crc32c(crc32c(crc, new Uint8Array(4)), record, CHECKSUM_AT + 4, headerBytes);
  for (let index = 1; index < Math.min(headers, Math.ceil(dataBytes / HEADER_COVERS_BYTES)); index++) {
    crc = crc32c(crc, record, index * SECTOR_BYTES, index * SECTOR_BYTES + FURTHER_HEADER_BYTES);
  }
  const data = headers * SECTOR_BYTES;
  return ~crc32c(crc, record, data, data + dataBytes) >>> 0;
}

/** The cycle in which a sector was written: its first word, or behind the magic of a header. */
function cycleOf(sectors: Uint8Array, index: number): number {
  const view = viewOf(sectors);
  const word = view.getUint32(index * SECTOR_BYTES);
  return word === RECORD_MAGIC ? view.getUint32(index * SECTOR_BYTES + 4) : word;
}
