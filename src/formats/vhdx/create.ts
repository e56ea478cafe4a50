/**
 * Makes a new image.
 *
 *   | header section | log | BAT | metadata | blocks of a fixed disk |
 *   0                1 MiB                                              everything in whole MiB
 *
 * Options are those of `qemu-img create -o`: `subformat` (dynamic, fixed), `block_size`, `log_size`, `backing_file`,
 * `backing_fmt`; and `logical_sector_size`, which QEMU lacks. Specification: [MS-VHDX] 2.1.
 */
import { parseBytes } from "../../bytes/sizes.ts";
import { randomUUID } from "node:crypto";
import { viewOf } from "../../bytes/struct.ts";
import { printable } from "../../bytes/text.ts";
import type { HostFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { CreateOptions, Image } from "../format.ts";
import { BAT_ENTRY_BYTES, entryOf, PayloadState, shapeOf, writeEntry } from "./bat.ts";
import { encodeHeader } from "./header.ts";
import { encodeLocator } from "./locator.ts";
import { VIRTUAL_BYTES_MAX } from "./metadata.ts";
import {
  FileFlag,
  FileParameters,
  FileTypeIdentifier,
  HEADERS_AT,
  Item,
  METADATA_TABLE_BYTES,
  MetadataFlag,
  MetadataTableEntry,
  MetadataTableHeader,
  MIB,
  NO_GUID,
  Region,
  REGION_TABLE_BYTES,
  REGION_TABLES_AT,
  RegionTableEntry,
  RegionTableHeader,
  seal,
  SectorSize,
  SIGNATURE,
  VirtualDiskId,
  VirtualDiskSize,
} from "./structures.ts";

/** What `-o` asked for, understood. */
export interface VhdxOptions {
  readonly virtualBytes: number;
  readonly isFixed: boolean;
  readonly blockBytes: number;
  readonly logBytes: number;
  readonly logicalSectorBytes: number;
  readonly backing: string | undefined;
}

const BLOCK_MIB_MAX = 256;
const LOG_MIB_MAX = 64;
/** The creator that a new file names; nothing reads it. */
const CREATOR = "ullage";

/** @throws DiskError `usage` naming the option */
export function parseOptions({ virtualBytes, options }: CreateOptions): VhdxOptions {
  const left = new Map(Object.entries(options));
  const take = (name: string): string | undefined => {
    const value = left.get(name);
    left.delete(name);
    return value;
  };
  const subformat = take("subformat") ?? "dynamic";
  if (subformat !== "dynamic" && subformat !== "fixed")
    throw wrong("subformat", subformat, "dynamic or fixed");
  const sector = take("logical_sector_size") ?? "512";
  if (sector !== "512" && sector !== "4096") throw wrong("logical_sector_size", sector, "512 or 4096");
  const logicalSectorBytes = Number(sector);
  const size = Math.ceil(virtualBytes / logicalSectorBytes) * logicalSectorBytes;
  if (size > VIRTUAL_BYTES_MAX) throw wrong("size", String(virtualBytes), "at most 64 TiB");
  const blockMib = mibOf("block_size", take("block_size"), defaultBlockMib(size));
  if (blockMib > BLOCK_MIB_MAX || (blockMib & (blockMib - 1)) !== 0) {
    throw wrong("block_size", `${blockMib}M`, `a power of two up to ${BLOCK_MIB_MAX}M`);
  }
  const logMib = mibOf("log_size", take("log_size"), 1);
  if (logMib > LOG_MIB_MAX) throw wrong("log_size", `${logMib}M`, `at most ${LOG_MIB_MAX}M`);
  const backing = take("backing_file");
  const format = take("backing_fmt") ?? "vhdx";
  if (format !== "vhdx") throw wrong("backing_fmt", format, "vhdx");
  if (backing !== undefined && subformat === "fixed")
    throw wrong("subformat", subformat, "dynamic, above a parent");
  for (const name of left.keys()) throw new DiskError("usage", `vhdx has no option "${printable(name)}"`);
  return {
    virtualBytes: size,
    isFixed: subformat === "fixed",
    blockBytes: blockMib * MIB,
    logBytes: logMib * MIB,
    logicalSectorBytes,
    backing,
  };
}

function wrong(name: string, value: string, expected: string): DiskError {
  return new DiskError("usage", `${name} "${printable(value)}": expected ${expected}`);
}

/** As QEMU chooses: larger disks have larger blocks. */
function defaultBlockMib(virtualBytes: number): number {
  const gib = virtualBytes / 2 ** 30;
  return gib > 32 * 1024 ? 64 : gib > 100 ? 32 : gib > 1 ? 16 : 8;
}

/** A number of whole MiB, more than none. */
function mibOf(name: string, value: string | undefined, otherwise: number): number {
  if (value === undefined) return otherwise;
  const mib = (parseBytes(value) ?? 0) / MIB;
  if (Number.isInteger(mib) && mib > 0) return mib;
  throw wrong(name, value, "whole MiB, as bytes or with k or M");
}

/** @param parent opened, where one was asked for */
export async function writeNewImage(
  file: HostFile,
  options: VhdxOptions,
  parent: Image | undefined,
): Promise<void> {
  const shape = shapeOf({ ...options, hasParent: parent !== undefined });
  const bat = {
    start: MIB + options.logBytes,
    bytes: wholeMib(Math.max(1, shape.entries) * BAT_ENTRY_BYTES),
  };
  const metadataAt = bat.start + bat.bytes;
  const dataAt = metadataAt + MIB;
  const blockBytes = options.isFixed ? shape.blocks * options.blockBytes : 0;
  await file.truncate(dataAt + blockBytes);
  if (options.isFixed) await writeFixedBat(file, bat.start, dataAt, options);
  await file.write(metadataAt, metadataOf(options, parent));
  const regions = regionTableOf(bat, metadataAt);
  for (const at of REGION_TABLES_AT) await file.write(at, regions);
  const header = {
    signature: "head",
    checksum: 0,
    fileWriteGuid: randomUUID(),
    dataWriteGuid: randomUUID(),
    logGuid: NO_GUID,
    logVersion: 0,
    version: 1,
    logLength: options.logBytes,
    logOffset: MIB,
  };
  for (const [i, at] of HEADERS_AT.entries()) {
    await file.write(at, encodeHeader({ ...header, sequenceNumber: BigInt(i + 1) }));
  }
  await file.flush();
  // Only now it is an image.
  const identifier = new Uint8Array(FileTypeIdentifier.bytes);
  const creator = new Uint8Array(512);
  creator.set(Buffer.from(CREATOR, "utf16le"));
  FileTypeIdentifier.encode({ signature: SIGNATURE, creator }, identifier);
  await file.write(0, identifier);
  await file.flush();
}

function wholeMib(bytes: number): number {
  return Math.ceil(bytes / MIB) * MIB;
}

/** Every block is present from the beginning, one after the other. */
async function writeFixedBat(
  file: HostFile,
  at: number,
  dataAt: number,
  options: VhdxOptions,
): Promise<void> {
  const shape = shapeOf({ ...options, hasParent: false });
  const blockMib = options.blockBytes / MIB;
  for (let block = 0; block < shape.blocks;) {
    const first = entryOf(shape, block);
    const part = new Uint8Array(MIB);
    const view = viewOf(part);
    let end = 0;
    for (; block < shape.blocks; block++) {
      const offset = (entryOf(shape, block) - first) * BAT_ENTRY_BYTES;
      if (offset >= MIB) break;
      writeEntry(view, offset, PayloadState.fullyPresent, dataAt / MIB + block * blockMib);
      end = offset + BAT_ENTRY_BYTES;
    }
    await file.write(at + first * BAT_ENTRY_BYTES, part.subarray(0, end));
  }
}

function regionTableOf(
  bat: { readonly start: number; readonly bytes: number },
  metadataAt: number,
): Uint8Array {
  const table = new Uint8Array(REGION_TABLE_BYTES);
  RegionTableHeader.encode({ signature: "regi", entryCount: 2 }, table);
  const entries = [
    { guid: Region.bat, fileOffset: bat.start, length: bat.bytes, required: 1 },
    { guid: Region.metadata, fileOffset: metadataAt, length: MIB, required: 1 },
  ];
  for (const [i, entry] of entries.entries()) {
    RegionTableEntry.encode(entry, table, RegionTableHeader.bytes + i * RegionTableEntry.bytes);
  }
  seal(table);
  return table;
}

function metadataOf(options: VhdxOptions, parent: Image | undefined): Uint8Array {
  const { isVirtualDisk, isRequired } = MetadataFlag;
  const { isFixed, blockBytes, virtualBytes, logicalSectorBytes } = options;
  const flags = (isFixed ? FileFlag.leaveBlocksAllocated : 0) | (parent ? FileFlag.hasParent : 0);
  const items: [string, number, Uint8Array][] = [
    [Item.fileParameters, isRequired, encoded(FileParameters, { blockSize: blockBytes, flags })],
    [
      Item.virtualDiskSize,
      isVirtualDisk | isRequired,
      encoded(VirtualDiskSize, { virtualDiskSize: virtualBytes }),
    ],
    [
      Item.virtualDiskId,
      isVirtualDisk | isRequired,
      encoded(VirtualDiskId, { virtualDiskId: diskIdOf(parent) }),
    ],
    [
      Item.logicalSectorSize,
      isVirtualDisk | isRequired,
      encoded(SectorSize, { sectorSize: logicalSectorBytes }),
    ],
    [Item.physicalSectorSize, isVirtualDisk | isRequired, encoded(SectorSize, { sectorSize: 4096 })],
  ];
  if (parent)
    items.push([Item.parentLocator, isRequired, encodeLocator(options.backing!, parent.identifiers![0]!)]);
  const region = new Uint8Array(
    METADATA_TABLE_BYTES + items.reduce((sum, [, , bytes]) => sum + bytes.length, 0),
  );
  MetadataTableHeader.encode({ signature: "metadata", entryCount: items.length }, region);
  let offset = METADATA_TABLE_BYTES;
  for (const [i, [itemId, itemFlags, bytes]] of items.entries()) {
    const at = MetadataTableHeader.bytes + i * MetadataTableEntry.bytes;
    MetadataTableEntry.encode({ itemId, offset, length: bytes.length, flags: itemFlags }, region, at);
    region.set(bytes, offset);
    offset += bytes.length;
  }
  return region;
}

/** A child is the same disk as its parent: items of the virtual disk are copied (2.6.1.2). */
function diskIdOf(parent: Image | undefined): string {
  const id = parent?.details["virtualDiskId"];
  return typeof id === "string" ? id : randomUUID();
}

function encoded<V>(
  shape: { readonly bytes: number; encode(values: V, into: Uint8Array): void },
  values: V,
): Uint8Array {
  const bytes = new Uint8Array(shape.bytes);
  shape.encode(values, bytes);
  return bytes;
}
