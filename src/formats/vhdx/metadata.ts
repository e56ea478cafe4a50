/**
 * The metadata region: a table of items, and the items anywhere behind it.
 *
 *   | "metadata", count | item, offset, length, flags | item, … |     64 KiB | block size | disk size | locator | …
 *
 * Specification: [MS-VHDX] 2.6.
 */
import type { Extent } from "../../bytes/extents.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { parseLocator, type ParentLocator } from "./locator.ts";
import {
  corrupt,
  FileFlag,
  FileParameters,
  Item,
  METADATA_TABLE_BYTES,
  MetadataFlag,
  MetadataTableEntry,
  MetadataTableHeader,
  MIB,
  SectorSize,
  TABLE_ENTRIES_MAX,
  VirtualDiskId,
  VirtualDiskSize,
} from "./structures.ts";

export interface Metadata {
  readonly blockBytes: number;
  /** A fixed disk: every block has its room in the file, and keeps it. */
  readonly leaveBlocksAllocated: boolean;
  readonly virtualBytes: number;
  readonly virtualDiskId: string;
  readonly logicalSectorBytes: number;
  readonly physicalSectorBytes: number;
  /** Set for a differencing disk. */
  readonly parent: ParentLocator | undefined;
}

/** Payload blocks have 1 to 256 MiB (2.6.2.1). */
const BLOCK_BYTES_MAX = 256 * MIB;
/** 64 TiB (2.6.2.2). */
export const VIRTUAL_BYTES_MAX = 64 * 2 ** 40;

/** @throws DiskError `corrupt`; `unsupported` for an item that must be understood */
export async function readMetadata(file: BlockDevice, region: Extent): Promise<Metadata> {
  const items = await readItems(file, region);
  const item = (id: string, name: string, bytes: number): Uint8Array => {
    const found = items.get(id);
    if (found && found.length >= bytes) return found;
    throw corrupt(name, region.start, found ? `${found.length} bytes` : "no such item", `${bytes} bytes`);
  };
  const { blockSize, flags } = FileParameters.decode(
    item(Item.fileParameters, "File Parameters", FileParameters.bytes),
  );
  const { virtualDiskSize } = VirtualDiskSize.decode(
    item(Item.virtualDiskSize, "Virtual Disk Size", VirtualDiskSize.bytes),
  );
  const sectorBytes = (id: string, name: string): number => {
    const { sectorSize } = SectorSize.decode(item(id, name, SectorSize.bytes));
    if (sectorSize !== 512 && sectorSize !== 4096)
      throw corrupt(name, region.start, sectorSize, "512 or 4096");
    return sectorSize;
  };
  const logicalSectorBytes = sectorBytes(Item.logicalSectorSize, "Logical Sector Size");
  if (blockSize < MIB || blockSize > BLOCK_BYTES_MAX || (blockSize & (blockSize - 1)) !== 0) {
    throw corrupt("BlockSize", region.start, blockSize, "a power of two from 1 MiB to 256 MiB");
  }
  if (virtualDiskSize > VIRTUAL_BYTES_MAX || virtualDiskSize % logicalSectorBytes !== 0) {
    throw corrupt("Virtual Disk Size", region.start, virtualDiskSize, "whole sectors, at most 64 TiB");
  }
  const hasParent = (flags & FileFlag.hasParent) !== 0;
  const locator = items.get(Item.parentLocator);
  if (hasParent && !locator)
    throw corrupt("Parent Locator", region.start, "no such item", "one: HasParent is set");
  return {
    blockBytes: blockSize,
    leaveBlocksAllocated: !hasParent && (flags & FileFlag.leaveBlocksAllocated) !== 0,
    virtualBytes: virtualDiskSize,
    virtualDiskId: VirtualDiskId.decode(item(Item.virtualDiskId, "Virtual Disk ID", VirtualDiskId.bytes))
      .virtualDiskId,
    logicalSectorBytes,
    physicalSectorBytes: sectorBytes(Item.physicalSectorSize, "Physical Sector Size"),
    parent: hasParent ? parseLocator(locator!, region.start) : undefined,
  };
}

const KNOWN: ReadonlySet<string> = new Set(Object.values(Item));

/** The system's items by their GUIDs. */
async function readItems(file: BlockDevice, region: Extent): Promise<ReadonlyMap<string, Uint8Array>> {
  if (region.end - region.start < MIB)
    throw corrupt("metadata region", region.start, "0 bytes", "1 MiB or more");
  const table = await readBytes(file, region.start, METADATA_TABLE_BYTES);
  const { signature, entryCount } = MetadataTableHeader.decode(table);
  if (signature !== "metadata")
    throw corrupt("metadata table", region.start, "another signature", "metadata");
  if (entryCount > TABLE_ENTRIES_MAX) {
    throw corrupt("EntryCount of metadata table", region.start, entryCount, `at most ${TABLE_ENTRIES_MAX}`);
  }
  const seen = new Set<string>();
  const items = new Map<string, Uint8Array>();
  for (let i = 0; i < entryCount; i++) {
    const at = MetadataTableHeader.bytes + i * MetadataTableEntry.bytes;
    const { itemId, offset, length, flags } = MetadataTableEntry.decode(table, at);
    const isUser = (flags & MetadataFlag.isUser) !== 0;
    const isKnown = !isUser && KNOWN.has(itemId);
    if (!isKnown && (flags & MetadataFlag.isRequired) !== 0) {
      throw new DiskError("unsupported", `metadata item ${itemId} is required and not known`);
    }
    const key = `${itemId} ${isUser}`;
    if (seen.has(key))
      throw corrupt("metadata table", region.start + at, `${itemId} twice`, "each item once");
    seen.add(key);
    if (!isKnown) continue;
    if (
      length > MIB ||
      (length > 0 && offset < METADATA_TABLE_BYTES) ||
      offset + length > region.end - region.start
    ) {
      throw corrupt(
        `metadata item ${itemId}`,
        region.start + at,
        `${offset}+${length}`,
        "a place in its region",
      );
    }
    items.set(itemId, await readBytes(file, region.start + offset, length));
  }
  return items;
}
