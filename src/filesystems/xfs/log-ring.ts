/**
 * The ring of sectors that the log is, and the records in it.
 *
 *   record:  | header: magic 0xfeedbabe, cycle, version, length, own place u64, tail u64, checksum, previous,
 *              operations, 64 words, format, UUID, size | further headers: cycle, 64 words | data … |
 *
 * Sectors are of 512 bytes whatever the disk's are. The first word of each sector of data is the cycle; what was there
 * is kept in the headers, one for each 32 KiB of `size`. A place is a cycle and a sector, 32 bits each.
 * Journaling_log.asciidoc of "XFS Algorithms & Data Structures"; fs/xfs/libxfs/xfs_log_format.h of Linux.
 */
import { crc32c } from "../../bytes/checksum.ts";
import { viewOf } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";

export const SECTOR_BYTES = 512;
const RECORD_MAGIC = 0xfeedbabe;
/** Data of so many bytes is described by one header sector. */
const HEADER_COVERS_BYTES = 32768;
const HEADER_COVERS_SECTORS = HEADER_COVERS_BYTES / SECTOR_BYTES;
const RECORD_BYTES_MAX = 256 * 1024;
/** With its headers. */
export const RECORD_SECTORS_MAX = RECORD_BYTES_MAX / SECTOR_BYTES + 16;
/** All records that may be on their way to the disk at once: torn ones lie no farther before the head. */
export const IN_FLIGHT_RECORDS = 8;
export const IN_FLIGHT_SECTORS = (IN_FLIGHT_RECORDS * RECORD_BYTES_MAX) / SECTOR_BYTES;
const CHECKSUM_AT = 32;
const WORDS_AT = 44;
const FURTHER_WORDS_AT = 4;
/** Of a record's first header, as 64-bit and as 32-bit kernels count them, and of its further ones. */
export const HEADER_BYTES = [328, 324];
const FURTHER_HEADER_BYTES = 260;

/** What the header of a record says. */
export interface RecordHeader {
  readonly cycle: number;
  readonly version: number;
  /** Of its data. */
  readonly bytes: number;
  /** Where it lies, and where the oldest record lies that is still needed. */
  readonly place: bigint;
  readonly tail: bigint;
  readonly checksum: number;
  readonly operations: number;
  readonly format: number;
  readonly uuid: Uint8Array;
  /** Header sectors, and those of its data with them. */
  readonly headers: number;
  readonly sectors: number;
}

/** The header at `at`; undefined where there is none, or it has no or too much data. */
export function decodeHeader(bytes: Uint8Array, at: number, isVersion2: boolean): RecordHeader | undefined {
  const view = viewOf(bytes);
  if (view.getUint32(at) !== RECORD_MAGIC) return undefined;
  const version = view.getUint32(at + 8);
  const dataBytes = view.getUint32(at + 12);
  const coversBytes = isVersion2 ? view.getUint32(at + 320) : 0;
  const headers = Math.max(1, Math.ceil(coversBytes / HEADER_COVERS_BYTES));
  const sectors = headers + Math.ceil(dataBytes / SECTOR_BYTES);
  if (version !== (isVersion2 ? 2 : 1) || dataBytes === 0 || sectors > RECORD_SECTORS_MAX) return undefined;
  return {
    cycle: view.getUint32(at + 4),
    version,
    bytes: dataBytes,
    place: view.getBigUint64(at + 16),
    tail: view.getBigUint64(at + 24),
    checksum: view.getUint32(at + CHECKSUM_AT, true),
    operations: view.getUint32(at + 40),
    format: view.getUint32(at + 300),
    uuid: bytes.slice(at + 304, at + 320),
    headers,
    sectors,
  };
}

export const isHeader = (bytes: Uint8Array, at: number) => viewOf(bytes).getUint32(at) === RECORD_MAGIC;

export class LogRing {
  readonly sectors: number;
  readonly #device: BlockDevice;
  readonly #start: number;

  /** @param start in bytes of the device */
  constructor(device: BlockDevice, start: number, sectors: number) {
    this.#device = device;
    this.#start = start;
    this.sectors = sectors;
  }

  /** `count` sectors from `first`, round the ring. */
  async read(first: number, count: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(count * SECTOR_BYTES);
    const straight = Math.min(count, this.sectors - first);
    const [end, rest] = [bytes.subarray(0, straight * SECTOR_BYTES), bytes.subarray(straight * SECTOR_BYTES)];
    await this.#device.read(this.#start + first * SECTOR_BYTES, end);
    if (rest.length > 0) await this.#device.read(this.#start, rest);
    return bytes;
  }

  /** `count` sectors that end at `head`. */
  async readBefore(head: number, count: number): Promise<Uint8Array> {
    return this.read(this.step(head, -count), count);
  }

  /** The sector that lies `count` behind `sector`. */
  step(sector: number, count: number): number {
    return (((sector + count) % this.sectors) + this.sectors) % this.sectors;
  }

  async cycleAt(sector: number): Promise<number> {
    return cycleOf(await readBytes(this.#device, this.#start + sector * SECTOR_BYTES, SECTOR_BYTES), 0);
  }

  /** The first sector of a cycle which the last sector has and sector 0 has not. */
  async firstOf(cycle: number): Promise<number> {
    let low = 0;
    let high = this.sectors - 1;
    while (high - low > 1) {
      const middle = Math.floor((low + high) / 2);
      if ((await this.cycleAt(middle)) === cycle) high = middle;
      else low = middle;
    }
    return high;
  }
}

/** Whether the checksum of a record is right; tools leave it at zero. 32-bit kernels make their headers shorter. */
export function hasChecksum(record: Uint8Array, { checksum, headers, bytes }: RecordHeader): boolean {
  return HEADER_BYTES.some((headerBytes) => recordChecksum(record, headers, bytes, headerBytes) === checksum);
}

export function recordChecksum(
  record: Uint8Array,
  headers: number,
  dataBytes: number,
  headerBytes: number,
): number {
  let crc = crc32c(0xffffffff, record, 0, CHECKSUM_AT);
  crc = crc32c(crc32c(crc, new Uint8Array(4)), record, CHECKSUM_AT + 4, headerBytes);
  for (let index = 1; index < Math.min(headers, Math.ceil(dataBytes / HEADER_COVERS_BYTES)); index++) {
    crc = crc32c(crc, record, index * SECTOR_BYTES, index * SECTOR_BYTES + FURTHER_HEADER_BYTES);
  }
  const data = headers * SECTOR_BYTES;
  return ~crc32c(crc, record, data, data + dataBytes) >>> 0;
}

/** The data of a whole record, each sector's first word put back where the cycle is. */
export function unpack(record: Uint8Array, { headers, bytes }: RecordHeader): Uint8Array {
  const data = record.subarray(headers * SECTOR_BYTES);
  const [words, view] = [viewOf(record), viewOf(data)];
  for (let sector = 0; sector * SECTOR_BYTES < bytes; sector++) {
    const header = Math.floor(sector / HEADER_COVERS_SECTORS);
    if (header >= headers) break;
    const at = header * SECTOR_BYTES + (header === 0 ? WORDS_AT : FURTHER_WORDS_AT);
    view.setUint32(sector * SECTOR_BYTES, words.getUint32(at + (sector % HEADER_COVERS_SECTORS) * 4));
  }
  return data.subarray(0, bytes);
}

/** The cycle in which a sector was written: its first word, or behind the magic of a header. */
export function cycleOf(sectors: Uint8Array, index: number): number {
  const view = viewOf(sectors);
  const word = view.getUint32(index * SECTOR_BYTES);
  return word === RECORD_MAGIC ? view.getUint32(index * SECTOR_BYTES + 4) : word;
}
