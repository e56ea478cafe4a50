/**
 * The superblock and its copies, 4096 bytes each.
 *
 *   64 KiB     64 MiB     256 GiB         the last two where the device is long enough
 *   | magic, geometry, roots | features | this device | label | system chunks | four older sets of roots |
 *
 * The first copy counts, as it does for the kernel. The others, and the older roots in each, are what somebody may go
 * back to (H4). `ctree` in Documentation/dev/On-disk-format.rst of btrfs-progs.
 */
import {
  ascii,
  bits64le,
  raw,
  skip,
  struct,
  u16le,
  u32le,
  u64le,
  u8,
  viewOf,
  type Decoded,
} from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { unlessDamaged } from "../refused.ts";
import { checksumOf, type Checksum } from "./checksums.ts";
import { TREE } from "./keys.ts";
import { badChecksum, damaged } from "./refused.ts";

const KiB = 1024;
export const SUPERBLOCK_AT = 64 * KiB;
export const COPIES_AT = [SUPERBLOCK_AT, 64 * KiB * KiB, 256 * KiB * KiB * KiB] as const;
export const MAGIC = "_BHRfS_M";
const CHECKSUM_BYTES = 32;
const BACKUPS = 4;
export const LEVELS = 8;

export const SuperblockLayout = struct({
  checksum: skip(CHECKSUM_BYTES),
  fsid: raw(16),
  at: u64le,
  flags: bits64le,
  magic: ascii(8),
  generation: u64le,
  root: u64le,
  chunkRoot: u64le,
  logRoot: u64le,
  logRootTransaction: skip(8),
  totalBytes: u64le,
  usedBytes: u64le,
  rootDirectory: skip(8),
  devices: u64le,
  sectorBytes: u32le,
  nodeBytes: u32le,
  leafBytes: skip(4),
  stripeBytes: skip(4),
  systemChunksBytes: u32le,
  chunkRootGeneration: u64le,
  compat: bits64le,
  compatRo: bits64le,
  incompat: bits64le,
  checksumType: u16le,
  rootLevel: u8,
  chunkRootLevel: u8,
  logRootLevel: u8,
  deviceId: u64le,
  deviceBytes: u64le,
  deviceRest: skip(50),
  deviceUuid: raw(16),
  deviceFsid: raw(16),
  label: raw(256),
  cacheGeneration: skip(8),
  uuidTreeGeneration: skip(8),
  metadataUuid: raw(16),
  reserved: skip(224),
  systemChunks: raw(2048),
  backups: raw(BACKUPS * 168),
  padding: skip(565),
});

const BackupLayout = struct({
  root: u64le,
  rootGeneration: u64le,
  chunkRoot: u64le,
  chunkRootGeneration: u64le,
  extentRoot: u64le,
  extentRootGeneration: u64le,
  fileRoot: u64le,
  fileRootGeneration: u64le,
  deviceRoot: u64le,
  deviceRootGeneration: u64le,
  checksumRoot: u64le,
  checksumRootGeneration: u64le,
  sizes: skip(24),
  unused: skip(32),
  rootLevel: u8,
  chunkRootLevel: u8,
  extentRootLevel: u8,
  fileRootLevel: u8,
  deviceRootLevel: u8,
  checksumRootLevel: u8,
  padding: skip(10),
});

/** Where a tree of trees and its tree of chunks begin. */
export interface Roots {
  readonly root: number;
  readonly generation: number;
  readonly rootLevel: number;
  readonly chunkRoot: number;
  readonly chunkRootGeneration: number;
  readonly chunkRootLevel: number;
}

export type Superblock = Readonly<Decoded<typeof SuperblockLayout.fields>> & {
  /** What the nodes carry as their filesystem's UUID. */
  readonly nodeFsid: Uint8Array;
  readonly checksumKind: Checksum;
};

const INCOMPAT_METADATA_UUID = 1n << 10n;

/** @throws Refused, DiskError `unsupported` */
export async function readSuperblock(device: BlockDevice): Promise<Superblock> {
  const sb = await readCopy(device, SUPERBLOCK_AT);
  const { sectorBytes, nodeBytes } = sb;
  const isPower = (value: number) => value >= 2 * KiB && value <= 64 * KiB && (value & (value - 1)) === 0;
  if (!isPower(sectorBytes) || !isPower(nodeBytes) || nodeBytes < sectorBytes) {
    throw damaged(`superblock: sectors of ${sectorBytes} and nodes of ${nodeBytes} bytes found`);
  }
  if (sb.systemChunksBytes > sb.systemChunks.length) {
    throw damaged(`superblock: ${sb.systemChunksBytes} bytes of system chunks found, at most 2048 expected`);
  }
  if (!Buffer.from(sb.deviceFsid).equals(sb.nodeFsid)) {
    throw damaged("superblock: its device belongs to another filesystem");
  }
  return sb;
}

/** The copies behind the first that are whole and of the same filesystem. */
export async function readCopies(device: BlockDevice, primary: Superblock): Promise<Superblock[]> {
  const copies: Superblock[] = [];
  for (const at of COPIES_AT.slice(1)) {
    if (at + SuperblockLayout.bytes > device.bytes) continue;
    const copy = await unlessDamaged(readCopy(device, at));
    if (copy !== undefined && Buffer.from(copy.fsid).equals(primary.fsid)) copies.push(copy);
  }
  return copies;
}

interface Backup extends Roots {
  /** Of the extent tree, the first file tree, the device tree and the checksum tree. */
  readonly others: readonly {
    readonly tree: bigint;
    readonly at: number;
    readonly generation: number;
    readonly level: number;
  }[];
}

/**
 * The older sets of roots that a superblock keeps. A set may be of two generations: then its tree of trees leads to
 * other roots than those that stand beside it.
 */
export function backupRoots(sb: Superblock): Backup[] {
  const view = viewOf(sb.backups);
  const backups: Backup[] = [];
  for (let at = 0; at < sb.backups.length; at += BackupLayout.bytes) {
    // A number past 2^53 leads nowhere: such a backup cannot be read, and is none.
    const words = BackupLayout.at.sizes / 8;
    const highs = Array.from({ length: words }, (_, word) => view.getUint32(at + word * 8 + 4, true));
    if (highs.some((high) => high >= 1 << 21)) continue;
    const backup = BackupLayout.decode(sb.backups, at);
    if (backup.root === 0) continue;
    const other = (tree: bigint, name: "extentRoot" | "fileRoot" | "deviceRoot" | "checksumRoot") => ({
      tree,
      at: backup[name],
      generation: backup[`${name}Generation`],
      level: backup[`${name}Level`],
    });
    backups.push({
      ...backup,
      generation: backup.rootGeneration,
      others: [
        other(TREE.extent, "extentRoot"),
        other(TREE.filesystem, "fileRoot"),
        other(TREE.device, "deviceRoot"),
        other(TREE.checksum, "checksumRoot"),
      ],
    });
  }
  return backups;
}

async function readCopy(device: BlockDevice, at: number): Promise<Superblock> {
  const bytes = await readBytes(device, at, SuperblockLayout.bytes);
  const sb = SuperblockLayout.decode(bytes);
  if (sb.magic !== MAGIC) throw damaged(`superblock at ${at}: no magic ${MAGIC}`);
  const checksumKind = checksumOf(sb.checksumType);
  if (!checksumKind.matches(bytes)) throw badChecksum(`superblock at ${at}`);
  if (sb.at !== at) throw damaged(`superblock at ${at}: it says that it lies at ${sb.at}`);
  if (sb.rootLevel >= LEVELS || sb.chunkRootLevel >= LEVELS || sb.logRootLevel >= LEVELS) {
    throw damaged(`superblock at ${at}: a root at level ${Math.max(sb.rootLevel, sb.chunkRootLevel)}`);
  }
  const nodeFsid = (sb.incompat & INCOMPAT_METADATA_UUID) === 0n ? sb.fsid : sb.metadataUuid;
  return { ...sb, nodeFsid, checksumKind };
}
