/**
 * The superblock of XFS: the first sector of the volume, and what follows from it.
 *
 *   | AG 0: superblock, AGF, AGI, AGFL, … | AG 1: the same | … |      an AG is an allocation group
 *
 * Everything is big-endian but the checksums. A block is addressed by the number of its AG in the high bits and its
 * block in the AG in the low `agblklog` bits; an inode likewise. Here blocks are counted through, without gaps.
 * Allocation_groups.asciidoc of "XFS Algorithms & Data Structures"; fs/xfs/libxfs/xfs_format.h of Linux.
 */
import { raw, skip, struct, u16be, u32be, u32le, u64be, u8 } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { Refused } from "../refused.ts";
import { hasIncompat } from "./features.ts";
import { damaged, verifyChecksum } from "./refused.ts";

export const MAGIC = "XFSB";
const VERSION_MASK = 0xf;
const SECTOR_BYTES_MAX = 32768;
const AG_BLOCKS_MIN = 64;
const AG_BYTES_MAX = 2 ** 40;
const MOREBITS = 0x8000;

export const SuperblockLayout = struct({
  magic: raw(4),
  blockBytes: u32be,
  dataBlocks: u64be,
  realtimeBlocks: u64be,
  realtimeExtents: u64be,
  uuid: raw(16),
  logStart: u64be,
  rootInode: u64be,
  realtimeBitmapInode: raw(8),
  realtimeSummaryInode: raw(8),
  realtimeExtentBlocks: u32be,
  agBlocks: u32be,
  agCount: u32be,
  realtimeBitmapBlocks: u32be,
  logBlocks: u32be,
  versionnum: u16be,
  sectorBytes: u16be,
  inodeBytes: u16be,
  inodesPerBlock: u16be,
  label: raw(12),
  blockLog: u8,
  sectorLog: u8,
  inodeLog: u8,
  inodesPerBlockLog: u8,
  agBlockLog: u8,
  realtimeExtentLog: u8,
  inProgress: u8,
  inodePercentMax: u8,
  inodeCount: u64be,
  freeInodes: u64be,
  freeBlocks: u64be,
  freeRealtimeExtents: u64be,
  userQuotaInode: raw(8),
  groupQuotaInode: raw(8),
  quotaFlags: u16be,
  flags: u8,
  sharedVersion: u8,
  inodeAlignment: u32be,
  unit: u32be,
  width: u32be,
  directoryBlockLog: u8,
  logSectorLog: u8,
  logSectorBytes: u16be,
  logUnit: u32be,
  features2: u32be,
  badFeatures2: u32be,
  compat: u32be,
  roCompat: u32be,
  incompat: u32be,
  logIncompat: u32be,
  checksum: u32le,
  sparseAlignment: u32be,
  projectQuotaInode: raw(8),
  lsn: skip(8),
  metaUuid: raw(16),
});

/** The fields of the disk that decide something. */
export interface Superblock {
  readonly version: 4 | 5;
  readonly label: Uint8Array;
  readonly uuid: Uint8Array;
  /** What metadata blocks are stamped with; `uuid` unless that was changed afterwards. */
  readonly metaUuid: Uint8Array;
  readonly versionnum: number;
  readonly features2: number;
  readonly compat: number;
  readonly roCompat: number;
  readonly incompat: number;
  readonly logIncompat: number;

  readonly blockBytes: number;
  readonly sectorBytes: number;
  readonly blocks: number;
  readonly bytes: number;
  readonly agBlocks: number;
  readonly agCount: number;
  readonly agBlockLog: number;
  /** Blocks at the start of each AG that hold its four headers. */
  readonly headerBlocks: number;
  readonly inodeBytes: number;
  readonly inodesPerBlock: number;
  readonly directoryBlocks: number;

  readonly rootInode: number;
  /** Inodes of the filesystem's own; undefined where there is none. */
  readonly quotaInodes: { readonly [kind in "user" | "group" | "project"]: number | undefined };
  readonly realtimeInodes: { readonly [kind in "bitmap" | "summary"]: number | undefined };
  readonly realtimeBlocks: number;
  readonly freeBlocks: number;
  readonly isInProgress: boolean;
  /** The address of the log as it lies on disk; 0 when it is on a device of its own. */
  readonly logStart: number;
  readonly logBlocks: number;
}

/** @throws Refused when it is no superblock of version 4 or 5, or damaged */
export async function readSuperblock(device: BlockDevice): Promise<Superblock> {
  const first = await readBytes(device, 0, Math.min(device.bytes, SECTOR_BYTES_MAX));
  const raw = SuperblockLayout.decode(first);
  const version = raw.versionnum & VERSION_MASK;
  if (Buffer.from(raw.magic).toString("latin1") !== MAGIC) throw damaged("superblock: not the magic XFSB");
  if (version !== 4 && version !== 5) {
    throw new Refused(
      "feature-unsupported",
      `superblock: version ${version} found, 4 or 5 expected`,
      "all of this filesystem counts as used",
    );
  }
  checkGeometry(raw);
  if (version === 5) {
    if (raw.sectorBytes > first.length) throw damaged("superblock: the device is shorter than a sector");
    verifyChecksum(() => "superblock", first, SuperblockLayout.at.checksum, 0, raw.sectorBytes);
  }
  return decoded(raw, version);
}

type Raw = ReturnType<typeof SuperblockLayout.decode>;

function decoded(raw: Raw, version: 4 | 5): Superblock {
  const isNew = version === 5;
  const isDetailed = (raw.versionnum & MOREBITS) !== 0;
  const sb = {
    ...raw,
    version,
    metaUuid: raw.uuid,
    // Some old kernels put it behind a padding; the kernel takes both together.
    features2: isDetailed ? (raw.features2 | raw.badFeatures2) >>> 0 : 0,
    compat: isNew ? raw.compat : 0,
    roCompat: isNew ? raw.roCompat : 0,
    incompat: isNew ? raw.incompat : 0,
    logIncompat: isNew ? raw.logIncompat : 0,
    blocks: raw.dataBlocks,
    bytes: raw.dataBlocks * raw.blockBytes,
    headerBlocks: Math.ceil((4 * raw.sectorBytes) / raw.blockBytes),
    directoryBlocks: 1 << raw.directoryBlockLog,
    quotaInodes: {
      user: inodeNumber(raw.userQuotaInode),
      group: inodeNumber(raw.groupQuotaInode),
      project: isNew ? inodeNumber(raw.projectQuotaInode) : undefined,
    },
    realtimeInodes: {
      bitmap: inodeNumber(raw.realtimeBitmapInode),
      summary: inodeNumber(raw.realtimeSummaryInode),
    },
    isInProgress: raw.inProgress !== 0,
  };
  if (hasIncompat(sb, "meta-uuid")) sb.metaUuid = raw.metaUuid;
  return sb;
}

/** Both 0 and all ones mean that there is none. */
function inodeNumber(bytes: Uint8Array): number | undefined {
  const number = Buffer.from(bytes).readBigUInt64BE();
  return number === 0n || number > BigInt(Number.MAX_SAFE_INTEGER) ? undefined : Number(number);
}

/** The numbers must agree with each other, and stay where arithmetic on them is exact. */
function checkGeometry(raw: Raw): void {
  const isPower = (value: number, log: number, low: number, high: number) =>
    value >= low && value <= high && value === 2 ** log;
  const fits: Readonly<Record<string, boolean>> = {
    "block size": isPower(raw.blockBytes, raw.blockLog, 512, 65536),
    "sector size": isPower(raw.sectorBytes, raw.sectorLog, 512, SECTOR_BYTES_MAX),
    "sector size below the block size": raw.sectorBytes <= raw.blockBytes,
    "inode size": isPower(raw.inodeBytes, raw.inodeLog, 256, 2048),
    "inodes in a block":
      raw.inodesPerBlock >= 2 &&
      raw.inodesPerBlock * raw.inodeBytes === raw.blockBytes &&
      raw.inodesPerBlock === 2 ** raw.inodesPerBlockLog,
    "directory block size": raw.blockBytes * 2 ** raw.directoryBlockLog <= 65536,
    "blocks of an AG": raw.agBlocks >= AG_BLOCKS_MIN && raw.agBlocks * raw.blockBytes <= AG_BYTES_MAX,
    "bits of a block number": raw.agBlockLog === Math.ceil(Math.log2(raw.agBlocks)),
    "bytes of the filesystem": raw.dataBlocks * raw.blockBytes <= Number.MAX_SAFE_INTEGER,
    "count of AGs": raw.agCount >= 1 && raw.agCount === Math.ceil(raw.dataBlocks / raw.agBlocks),
    "blocks of the last AG": raw.dataBlocks - (raw.agCount - 1) * raw.agBlocks >= AG_BLOCKS_MIN,
  };
  for (const [what, isFit] of Object.entries(fits)) {
    if (!isFit) throw damaged(`superblock: the ${what} cannot be: ${JSON.stringify(shown(raw))}`);
  }
}

function shown({ blockBytes, sectorBytes, inodeBytes, dataBlocks, agBlocks, agCount, agBlockLog }: Raw) {
  return { blockBytes, sectorBytes, inodeBytes, dataBlocks, agBlocks, agCount, agBlockLog };
}

/** Blocks of an AG; the last one may be shorter. */
export function agLength(sb: Superblock, ag: number): number {
  return Math.min(sb.agBlocks, sb.blocks - ag * sb.agBlocks);
}

/**
 * The number of the block that the disk calls `address`, counted through all AGs. @returns -1 unless all of `count`
 * blocks from there lie in one AG
 */
export function blockAt(sb: Superblock, address: number, count: number): number {
  const span = 2 ** sb.agBlockLog;
  const ag = Math.floor(address / span);
  const block = address % span;
  if (ag >= sb.agCount || block + count > agLength(sb, ag)) return -1;
  return ag * sb.agBlocks + block;
}

/** The number by which an inode is known, of one that is the `index`-th of its AG. */
export function inodeAt(sb: Superblock, ag: number, index: number): number {
  return ag * 2 ** sb.agBlockLog * sb.inodesPerBlock + index;
}
