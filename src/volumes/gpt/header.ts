/**
 * One copy of a GUID partition table: a header of one sector and an array of entries, each with a CRC-32.
 *
 *   primary   | LBA 0: protective MBR | LBA 1: header | LBA 2…: entries |
 *   backup                                            | entries | last LBA: header |
 *
 * Specification: UEFI 2.10, section 5.3.
 */
import { crc32 } from "../../bytes/checksum.ts";
import type { Extent } from "../../bytes/extents.ts";
import { ascii, raw, skip, struct, u32le, u64le, uuidText } from "../../bytes/struct.ts";
import { printable } from "../../bytes/text.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { Region } from "../table.ts";

const SIGNATURE = "EFI PART";
/** 32 entries a KiB of 128 bytes each: far more than any tool writes. */
const ENTRIES_BYTES_MAX = 1024 * 1024;
const ENTRY_BYTES_MAX = 4096;

export const Header = struct({
  signature: ascii(8),
  revision: u32le,
  headerBytes: u32le,
  headerCrc: u32le,
  reserved: skip(4),
  ownLba: u64le,
  alternateLba: u64le,
  firstUsableLba: u64le,
  lastUsableLba: u64le,
  diskGuid: raw(16),
  entriesLba: u64le,
  entryCount: u32le,
  entryBytes: u32le,
  entriesCrc: u32le,
});

export const Entry = struct({
  typeGuid: raw(16),
  guid: raw(16),
  firstLba: u64le,
  lastLba: u64le,
  attributes: skip(8),
  name: raw(72),
});

export interface Copy {
  readonly alternateLba: number;
  /** What partitions may use, in bytes. */
  readonly usable: Extent;
  readonly entries: readonly GptEntry[];
  /** Where this copy lies. */
  readonly regions: readonly Region[];
  /** Equal for copies that say the same. */
  readonly content: string;
}

export interface GptEntry extends Extent {
  /** From 1, as in device names. */
  readonly number: number;
  readonly typeGuid: string;
  readonly label: string;
}

/** Whether a header begins at byte `at`, valid or not. */
export async function hasSignature(disk: BlockDevice, at: number): Promise<boolean> {
  if (at < 0 || at + SIGNATURE.length > disk.bytes) return false;
  return Buffer.from(await readBytes(disk, at, SIGNATURE.length)).toString("latin1") === SIGNATURE;
}

/** @throws DiskError `corrupt` or `unsupported` when the copy with its header at `lba` is not valid */
export async function readCopy(
  disk: BlockDevice,
  sectorBytes: number,
  lba: number,
  which: string,
): Promise<Copy> {
  const at = lba * sectorBytes;
  if (at < 0 || at + sectorBytes > disk.bytes)
    throw invalid(`${which} GPT header at ${at} is behind the disk`);
  const sector = await readBytes(disk, at, sectorBytes);
  const header = decodeHeader(sector, lba, `${which} GPT header at ${at}`);
  const entriesBytes = header.entryCount * header.entryBytes;
  const entriesAt = header.entriesLba * sectorBytes;
  const what = `${which} GPT entries at ${entriesAt}`;
  if (entriesAt + entriesBytes > disk.bytes) throw invalid(`${what} reach behind the disk`);
  const array = await readBytes(disk, entriesAt, entriesBytes);
  const found = crc32(array);
  if (found !== header.entriesCrc)
    throw invalid(`${what} have CRC ${hex(found)}, expected ${hex(header.entriesCrc)}`);
  return {
    alternateLba: header.alternateLba,
    usable: { start: header.firstUsableLba * sectorBytes, end: (header.lastUsableLba + 1) * sectorBytes },
    entries: decodeEntries(array, header.entryBytes, sectorBytes),
    regions: [
      { name: `${which} GPT header`, start: at, end: at + sectorBytes },
      {
        name: `${which} GPT entries`,
        start: entriesAt,
        end: Math.ceil((entriesAt + entriesBytes) / sectorBytes) * sectorBytes,
      },
    ],
    content: contentOf(header),
  };
}

function decodeHeader(sector: Uint8Array, lba: number, what: string) {
  const header = Header.decode(sector);
  if (header.signature !== SIGNATURE) throw invalid(`${what} has no signature "${SIGNATURE}"`);
  if (header.revision >>> 16 !== 1) {
    throw new DiskError("unsupported", `${what} has revision ${hex(header.revision)}, expected 1.0`);
  }
  if (header.headerBytes < Header.bytes || header.headerBytes > sector.length) {
    throw invalid(
      `${what} is ${header.headerBytes} bytes long, expected ${Header.bytes} to ${sector.length}`,
    );
  }
  const covered = sector.slice(0, header.headerBytes);
  covered.fill(0, Header.at.headerCrc, Header.at.headerCrc + 4);
  const found = crc32(covered);
  if (found !== header.headerCrc)
    throw invalid(`${what} has CRC ${hex(found)}, expected ${hex(header.headerCrc)}`);
  if (header.ownLba !== lba) throw invalid(`${what} says it is at LBA ${header.ownLba}, expected ${lba}`);
  if (header.firstUsableLba > header.lastUsableLba + 1) {
    throw invalid(`${what} has usable LBAs ${header.firstUsableLba} to ${header.lastUsableLba}`);
  }
  const { entryBytes, entryCount } = header;
  const isPowerOfTwo = (entryBytes & (entryBytes - 1)) === 0;
  if (entryBytes < Entry.bytes || entryBytes > ENTRY_BYTES_MAX || !isPowerOfTwo) {
    throw invalid(`${what} has entries of ${entryBytes} bytes, expected 128, 256, …, ${ENTRY_BYTES_MAX}`);
  }
  if (entryCount === 0 || entryCount * entryBytes > ENTRIES_BYTES_MAX) {
    throw new DiskError("unsupported", `${what} has ${entryCount} entries of ${entryBytes} bytes`);
  }
  return header;
}

function decodeEntries(array: Uint8Array, entryBytes: number, sectorBytes: number): GptEntry[] {
  const entries: GptEntry[] = [];
  for (let at = 0; at < array.length; at += entryBytes) {
    if (array.subarray(at, at + 16).every((byte) => byte === 0)) continue;
    const number = at / entryBytes + 1;
    const { typeGuid, firstLba, lastLba, name } = Entry.decode(array, at);
    if (firstLba > lastLba)
      throw invalid(`GPT partition ${number} begins at LBA ${firstLba} and ends at ${lastLba}`);
    entries.push({
      number,
      typeGuid: guidText(typeGuid),
      label: labelText(name),
      start: firstLba * sectorBytes,
      end: (lastLba + 1) * sectorBytes,
    });
  }
  return entries;
}

function contentOf(header: ReturnType<typeof decodeHeader>): string {
  const { diskGuid, firstUsableLba, lastUsableLba, entryCount, entryBytes, entriesCrc } = header;
  return [guidText(diskGuid), firstUsableLba, lastUsableLba, entryCount, entryBytes, entriesCrc].join();
}

/** A GUID in text: its first three fields lie little-endian on disk, the other two as they are. */
export function guidText(bytes: Uint8Array): string {
  const [b0, b1, b2, b3, b4, b5, b6, b7, ...rest] = bytes;
  return uuidText(Uint8Array.of(b3!, b2!, b1!, b0!, b5!, b4!, b7!, b6!, ...rest));
}

/** UTF-16, little-endian, up to the first NUL. */
function labelText(name: Uint8Array): string {
  const text = Buffer.from(name).toString("utf16le");
  const end = text.indexOf("\0");
  return printable(end < 0 ? text : text.slice(0, end));
}

function hex(value: number): string {
  return `0x${value.toString(16).padStart(8, "0")}`;
}

function invalid(message: string): DiskError {
  return new DiskError("corrupt", message);
}
