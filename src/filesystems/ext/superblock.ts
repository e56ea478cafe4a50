/**
 * The superblock of ext2, ext3 and ext4: 1024 bytes at byte 1024, and what follows from it.
 *
 *   | boot 1024 | superblock | group descriptors … |  group 0  |  group 1  | … |
 *
 * Everything is little-endian. Documentation/filesystems/ext4/super.rst of Linux.
 */
import { crc32c } from "../../bytes/checksum.ts";
import { raw, skip, struct, u16le, u32le, u32leArray, u8, uuidText } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { COMPAT, INCOMPAT, RO_COMPAT } from "./features.ts";
import { geometryOf, type Geometry } from "./geometry.ts";
import { Refused } from "../refused.ts";
import { badChecksum, damaged } from "./refused.ts";

export const SUPERBLOCK_AT = 1024;
export const MAGIC = 0xef53;

export const SuperblockLayout = struct({
  inodesCount: u32le,
  blocksCountLow: u32le,
  reservedBlocksLow: u32le,
  freeBlocksLow: u32le,
  freeInodes: u32le,
  firstDataBlock: u32le,
  logBlockSize: u32le,
  logClusterSize: u32le,
  blocksPerGroup: u32le,
  clustersPerGroup: u32le,
  inodesPerGroup: u32le,
  mountTime: u32le,
  writeTime: u32le,
  mounts: u16le,
  mountsMax: u16le,
  magic: u16le,
  state: u16le,
  errors: u16le,
  minorRevision: u16le,
  lastCheck: u32le,
  checkInterval: u32le,
  creatorOs: u32le,
  revision: u32le,
  reservedUid: u16le,
  reservedGid: u16le,
  firstInode: u32le,
  inodeSize: u16le,
  blockGroup: u16le,
  compat: u32le,
  incompat: u32le,
  roCompat: u32le,
  uuid: raw(16),
  volumeName: raw(16),
  lastMounted: skip(64),
  algorithms: u32le,
  preallocBlocks: u8,
  preallocDirBlocks: u8,
  reservedGdtBlocks: u16le,
  journalUuid: raw(16),
  journalInode: u32le,
  journalDevice: u32le,
  lastOrphan: u32le,
  hashSeed: skip(16),
  hashVersion: u8,
  journalBackupType: u8,
  descriptorSize: u16le,
  mountOptions: u32le,
  firstMetaGroup: u32le,
  makeTime: u32le,
  journalBlocks: skip(68),
  blocksCountHigh: u32le,
  reservedBlocksHigh: u32le,
  freeBlocksHigh: u32le,
  minExtraInodeSize: u16le,
  wantExtraInodeSize: u16le,
  flags: u32le,
  raidStride: u16le,
  mmpInterval: u16le,
  mmpBlockLow: u32le,
  mmpBlockHigh: u32le,
  raidStripeWidth: u32le,
  logGroupsPerFlex: u8,
  checksumType: u8,
  encryptionLevel: u8,
  pad: u8,
  statistics: skip(200),
  usrQuotaInode: u32le,
  grpQuotaInode: u32le,
  overheadBlocks: u32le,
  backupGroups: u32leArray(2),
  encryption: skip(20),
  lostFoundInode: u32le,
  prjQuotaInode: u32le,
  checksumSeed: u32le,
  timesHigh: skip(8),
  encoding: u16le,
  encodingFlags: u16le,
  orphanFileInode: u32le,
  reserved: skip(376),
  checksum: u32le,
});

/** The fields of the disk that decide something. */
export interface Superblock extends Geometry {
  readonly label: Uint8Array;
  readonly uuidBytes: Uint8Array;
  readonly uuid: string;
  readonly state: number;
  readonly compat: number;
  readonly incompat: number;
  readonly roCompat: number;
  /** Of the external journal; zeros when it is inside. */
  readonly journalUuid: Uint8Array;
  readonly journalInode: number;
  readonly journalDevice: number;
  readonly lastOrphan: number;
  readonly usrQuotaInode: number;
  readonly grpQuotaInode: number;
  readonly prjQuotaInode: number;
  readonly orphanFileInode: number;
  readonly mmpBlock: number;

  readonly reservedGdtBlocks: number;
  readonly firstMetaGroup: number;
  readonly backupGroups: readonly number[];
  /** Seed of every checksum of metadata_csum. */
  readonly seed: number;
  /** How group descriptors are checked: decides too whether their uninit flags count. */
  readonly groupChecksum: "none" | "crc16" | "crc32c";
  /** `metadata_csum`: everything has a checksum. */
  readonly checksums: boolean;
}

export const STATE_VALID = 1;
export const STATE_ERROR = 2;

export function hasCompat(sb: Superblock, feature: keyof typeof COMPAT): boolean {
  return (sb.compat & COMPAT[feature]) !== 0;
}
export function hasIncompat(sb: Superblock, feature: keyof typeof INCOMPAT): boolean {
  return (sb.incompat & INCOMPAT[feature]) !== 0;
}
export function hasRoCompat(sb: Superblock, feature: keyof typeof RO_COMPAT): boolean {
  return (sb.roCompat & RO_COMPAT[feature]) !== 0;
}

/**
 * Reads the primary superblock. Backups are not tried: a filesystem whose primary is damaged needs e2fsck first.
 * @throws Refused for damage; whether the features are understood and the state is clean is not judged here
 */
export async function readSuperblock(device: BlockDevice): Promise<Superblock> {
  const bytes = await readBytes(device, SUPERBLOCK_AT, SuperblockLayout.bytes);
  const fields = SuperblockLayout.decode(bytes);
  if (fields.magic !== MAGIC) {
    throw damaged(`superblock: magic 0x${fields.magic.toString(16)} found, 0xef53 expected`);
  }
  const { revision, compat, incompat, roCompat } = fields;
  if (revision > 1) throw damaged(`superblock: revision ${revision} found, at most 1 expected`);
  if (revision === 0 && (compat | incompat | roCompat) !== 0) {
    throw damaged("superblock: features found, none expected in revision 0");
  }
  const checksums = (roCompat & RO_COMPAT.metadata_csum) !== 0;
  if (checksums) verifyChecksum(bytes, fields.checksum, fields.checksumType);

  if ((incompat & INCOMPAT.journal_dev) !== 0) {
    throw new Refused(
      "journal-device",
      "this is the external journal of another filesystem",
      "name the disk that holds the filesystem too",
    );
  }
  return {
    label: fields.volumeName,
    uuidBytes: fields.uuid,
    uuid: uuidText(fields.uuid),
    state: fields.state,
    compat,
    incompat,
    roCompat,
    journalUuid: fields.journalUuid,
    journalInode: fields.journalInode,
    journalDevice: fields.journalDevice,
    lastOrphan: fields.lastOrphan,
    usrQuotaInode: fields.usrQuotaInode,
    grpQuotaInode: fields.grpQuotaInode,
    prjQuotaInode: fields.prjQuotaInode,
    orphanFileInode: fields.orphanFileInode,
    mmpBlock: fields.mmpBlockLow + fields.mmpBlockHigh * 2 ** 32,
    ...geometryOf(fields),
    reservedGdtBlocks: fields.reservedGdtBlocks,
    firstMetaGroup: fields.firstMetaGroup,
    backupGroups: fields.backupGroups,
    seed:
      (incompat & INCOMPAT.metadata_csum_seed) !== 0 ? fields.checksumSeed : crc32c(0xffffffff, fields.uuid),
    groupChecksum: checksums ? "crc32c" : (roCompat & RO_COMPAT.uninit_bg) !== 0 ? "crc16" : "none",
    checksums,
  };
}

/** The UUID in the superblock of a device, even of a journal device; undefined when it has none. */
export async function readSuperblockUuid(device: BlockDevice): Promise<Uint8Array | undefined> {
  if (device.bytes < SUPERBLOCK_AT + SuperblockLayout.bytes) return undefined;
  const fields = SuperblockLayout.decode(await readBytes(device, SUPERBLOCK_AT, SuperblockLayout.bytes));
  return fields.magic === MAGIC ? fields.uuid : undefined;
}

function verifyChecksum(bytes: Uint8Array, found: number, type: number): void {
  if (type !== 1) throw damaged(`superblock: checksum type ${type} found, 1 (crc32c) expected`);
  const expected = crc32c(0xffffffff, bytes, 0, SuperblockLayout.at.checksum);
  if (found !== expected) throw badChecksum("superblock", found, expected);
}
