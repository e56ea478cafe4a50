/**
 * The structures of a VHDX file, by the names of the specification. All numbers are little-endian; GUIDs lie with
 * their first three parts little-endian and are kept as lower-case text.
 *
 *   0        64 KiB    128 KiB   192 KiB         256 KiB         1 MiB
 *   | file id | header 1 | header 2 | region table 1 | region table 2 | log, BAT, metadata, blocks: in any order …
 *
 * Specification: [MS-VHDX] 2.2 (headers, region table), 2.3 (log), 2.6 (metadata).
 */
import { crc32c } from "../../bytes/checksum.ts";
import {
  ascii,
  bits64le,
  type Field,
  raw,
  skip,
  struct,
  u16le,
  u32le,
  u64le,
  uuidText,
  viewOf,
} from "../../bytes/struct.ts";
import { DiskError } from "../../error.ts";

export const MIB = 1024 * 1024;

/** Turns the first three parts of a GUID around, both ways. */
function swapped(bytes: Uint8Array): Uint8Array {
  const order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
  return Uint8Array.from(order, (from) => bytes[from]!);
}

const guid: Field<string> = {
  bytes: 16,
  read: (view, at) => uuidText(swapped(new Uint8Array(view.buffer, view.byteOffset + at, 16))),
  write(view, at, value) {
    const bytes = Uint8Array.from(Buffer.from(value.replaceAll("-", ""), "hex"));
    new Uint8Array(view.buffer, view.byteOffset + at, 16).set(swapped(bytes));
  },
};

export const NO_GUID = "00000000-0000-0000-0000-000000000000";

export const SIGNATURE = "vhdxfile";
export const FileTypeIdentifier = struct({ signature: ascii(8), creator: raw(512) });

export const HEADER_BYTES = 4096;
/** File offsets of the two headers. */
export const HEADERS_AT = [64 * 1024, 128 * 1024] as const;
export const HeaderStruct = struct({
  signature: ascii(4),
  checksum: u32le,
  sequenceNumber: bits64le,
  fileWriteGuid: guid,
  dataWriteGuid: guid,
  logGuid: guid,
  logVersion: u16le,
  version: u16le,
  logLength: u32le,
  logOffset: u64le,
});

export const REGION_TABLE_BYTES = 64 * 1024;
/** File offsets of the two copies of the region table. */
export const REGION_TABLES_AT = [192 * 1024, 256 * 1024] as const;
export const RegionTableHeader = struct({
  signature: ascii(4),
  checksum: u32le,
  entryCount: u32le,
  reserved: skip(4),
});
export const RegionTableEntry = struct({ guid, fileOffset: u64le, length: u32le, required: u32le });

/** Tables of regions and of metadata have room for no more (2.2.3.1, 2.6.1.1). */
export const TABLE_ENTRIES_MAX = 2047;

export const Region = {
  bat: "2dc27766-f623-4200-9d64-115e9bfd4a08",
  metadata: "8b7ca206-4790-4b9a-b8fe-575f050f886e",
} as const;

export const LOG_SECTOR_BYTES = 4096;
export const LogEntryHeader = struct({
  signature: ascii(4),
  checksum: u32le,
  entryLength: u32le,
  tail: u32le,
  sequenceNumber: bits64le,
  descriptorCount: u32le,
  reserved: skip(4),
  logGuid: guid,
  flushedFileOffset: bits64le,
  lastFileOffset: bits64le,
});
export const ZeroDescriptor = struct({
  signature: ascii(4),
  reserved: skip(4),
  zeroLength: bits64le,
  fileOffset: bits64le,
  sequenceNumber: bits64le,
});
export const DataDescriptor = struct({
  signature: ascii(4),
  trailingBytes: raw(4),
  leadingBytes: raw(8),
  fileOffset: bits64le,
  sequenceNumber: bits64le,
});
export const DataSector = struct({
  signature: ascii(4),
  sequenceHigh: u32le,
  data: raw(4084),
  sequenceLow: u32le,
});

export const METADATA_TABLE_BYTES = 64 * 1024;
export const MetadataTableHeader = struct({
  signature: ascii(8),
  reserved: skip(2),
  entryCount: u16le,
  reserved2: skip(20),
});
export const MetadataTableEntry = struct({
  itemId: guid,
  offset: u32le,
  length: u32le,
  flags: u32le,
  reserved2: skip(4),
});
export const MetadataFlag = { isUser: 1, isVirtualDisk: 2, isRequired: 4 } as const;

export const Item = {
  fileParameters: "caa16737-fa36-4d43-b3b6-33f0aa44e76b",
  virtualDiskSize: "2fa54224-cd1b-4876-b211-5dbed83bf4b8",
  virtualDiskId: "beca12ab-b2e6-4523-93ef-c309e000c746",
  logicalSectorSize: "8141bf1d-a96f-4709-ba47-f233a8faab5f",
  physicalSectorSize: "cda348c7-445d-4471-9cc9-e9885251c556",
  parentLocator: "a8d35f2d-b30b-454d-abf7-d3d84834ab0c",
} as const;

export const FileParameters = struct({ blockSize: u32le, flags: u32le });
export const FileFlag = { leaveBlocksAllocated: 1, hasParent: 2 } as const;
export const VirtualDiskSize = struct({ virtualDiskSize: u64le });
export const VirtualDiskId = struct({ virtualDiskId: guid });
export const SectorSize = struct({ sectorSize: u32le });

export const LOCATOR_TYPE = "b04aefb7-d19e-4a81-b789-25b8e9445913";
export const ParentLocatorHeader = struct({ locatorType: guid, reserved: skip(2), keyValueCount: u16le });
export const ParentLocatorEntry = struct({
  keyOffset: u32le,
  valueOffset: u32le,
  keyLength: u16le,
  valueLength: u16le,
});

/** CRC-32C of a structure whose checksum is at byte 4 and counts as zero. */
export function checksumOf(bytes: Uint8Array, start = 0, end = bytes.length): number {
  const head = crc32c(0xffffffff, bytes, start, start + 4);
  return ~crc32c(crc32c(head, new Uint8Array(4)), bytes, start + 8, end) >>> 0;
}

/** Writes the checksum of a structure that is otherwise complete. */
export function seal(bytes: Uint8Array): void {
  viewOf(bytes).setUint32(4, checksumOf(bytes), true);
}

export function corrupt(structure: string, at: number, found: unknown, expected: string): DiskError {
  return new DiskError("corrupt", `${structure} at ${at}: found ${String(found)}, expected ${expected}`, {
    hint: "the file is damaged or was cut; restore it from a copy",
  });
}
