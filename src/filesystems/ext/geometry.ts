/**
 * Sizes and counts of an ext filesystem, each checked against all others, so that nothing later divides by zero or
 * overflows (H23).
 *
 *   block 1 KiB × 2^n → cluster (bigalloc) → group: as many clusters as a bitmap block has bits → filesystem
 *
 * Documentation/filesystems/ext4/super.rst of Linux.
 */
import { INCOMPAT, RO_COMPAT } from "./features.ts";
import { Refused } from "../refused.ts";
import { damaged } from "./refused.ts";

export interface Geometry {
  readonly blockBytes: number;
  /** Blocks per cluster: 1 without bigalloc. */
  readonly clusterBlocks: number;
  readonly clusterBytes: number;
  /** The block where group 0 starts. */
  readonly firstBlock: number;
  /** End of the filesystem as a block number. */
  readonly blocks: number;
  readonly bytes: number;
  readonly groups: number;
  readonly blocksPerGroup: number;
  readonly clustersPerGroup: number;
  readonly inodes: number;
  readonly inodesPerGroup: number;
  readonly inodeBytes: number;
  /** First inode that is not reserved. */
  readonly firstInode: number;
  readonly inodeTableBlocks: number;
  readonly descriptorBytes: number;
  readonly descriptorsPerBlock: number;
  readonly descriptorBlocks: number;
}

/** The fields of the superblock that the geometry follows from. */
interface Fields {
  readonly inodesCount: number;
  readonly blocksCountLow: number;
  readonly blocksCountHigh: number;
  readonly firstDataBlock: number;
  readonly logBlockSize: number;
  readonly logClusterSize: number;
  readonly blocksPerGroup: number;
  readonly clustersPerGroup: number;
  readonly inodesPerGroup: number;
  readonly creatorOs: number;
  readonly revision: number;
  readonly firstInode: number;
  readonly inodeSize: number;
  readonly incompat: number;
  readonly roCompat: number;
  readonly descriptorSize: number;
  readonly firstMetaGroup: number;
}

/** More groups than any disk that can be served here: 512 TiB with blocks of 4 KiB (H24). */
const GROUPS_MAX = 1 << 22;
const LOG_BLOCK_SIZE_MAX = 6;
/** 512 MiB and more a cluster would be; mke2fs ends there. */
const LOG_CLUSTER_SIZE_MAX = 20;
const GOOD_OLD_INODE_BYTES = 128;
const GOOD_OLD_FIRST_INODE = 11;
const DESCRIPTOR_SIZES = [64, 128, 256, 512, 1024];
/** Linux, FreeBSD, Lites. */
const CREATORS = [0, 3, 4];

function expect(holds: boolean, message: string): void {
  if (!holds) throw damaged(`superblock: ${message}`);
}

/** @throws Refused for what cannot be */
export function geometryOf(fields: Fields): Geometry {
  const sizes = sizesOf(fields);
  const groups = groupsOf(fields, sizes);
  const inodes = inodesOf(fields, sizes.blockBytes, groups.groups);
  const descriptors = descriptorsOf(fields, sizes.blockBytes, groups.groups);
  if (!CREATORS.includes(fields.creatorOs)) {
    throw new Refused(
      "creator-os",
      `superblock: creator ${fields.creatorOs} keeps other fields in its inodes than Linux`,
      "all of this filesystem counts as used",
    );
  }
  return { ...sizes, ...groups, ...inodes, ...descriptors };
}

function sizesOf(fields: Fields) {
  const { logBlockSize, logClusterSize } = fields;
  expect(logBlockSize <= LOG_BLOCK_SIZE_MAX, `log_block_size ${logBlockSize} found, 0 to 6 expected`);
  const blockBytes = 1024 << logBlockSize;
  const bigalloc = (fields.roCompat & RO_COMPAT.bigalloc) !== 0;
  const logRatio = bigalloc ? logClusterSize - logBlockSize : 0;
  expect(
    logRatio >= 0 && (!bigalloc || logClusterSize <= LOG_CLUSTER_SIZE_MAX),
    `log_cluster_size ${logClusterSize} found, ${logBlockSize} to ${LOG_CLUSTER_SIZE_MAX} expected`,
  );
  const clusterBlocks = 1 << logRatio;
  const firstBlock = blockBytes === 1024 && !bigalloc ? 1 : 0;
  expect(
    fields.firstDataBlock === firstBlock,
    `first_data_block ${fields.firstDataBlock} found, ${firstBlock} expected`,
  );
  return { blockBytes, clusterBlocks, clusterBytes: blockBytes * clusterBlocks, firstBlock };
}

function groupsOf(fields: Fields, { blockBytes, clusterBlocks, firstBlock }: ReturnType<typeof sizesOf>) {
  const is64bit = (fields.incompat & INCOMPAT["64bit"]) !== 0;
  const blocks = fields.blocksCountLow + (is64bit ? fields.blocksCountHigh * 2 ** 32 : 0);
  const bytes = blocks * blockBytes;
  expect(blocks > firstBlock && bytes <= Number.MAX_SAFE_INTEGER, `blocks_count ${blocks} is impossible`);
  const { blocksPerGroup } = fields;
  const bigalloc = (fields.roCompat & RO_COMPAT.bigalloc) !== 0;
  const clustersPerGroup = bigalloc ? fields.clustersPerGroup : blocksPerGroup;
  expect(
    clustersPerGroup > 0 && clustersPerGroup <= blockBytes * 8 && clustersPerGroup % 8 === 0,
    `${clustersPerGroup} clusters per group found, a multiple of 8 up to ${blockBytes * 8} expected`,
  );
  expect(
    blocksPerGroup === clustersPerGroup * clusterBlocks,
    `blocks_per_group ${blocksPerGroup} found, ${clustersPerGroup * clusterBlocks} expected`,
  );
  const groups = Math.ceil((blocks - firstBlock) / blocksPerGroup);
  expect(groups <= GROUPS_MAX, `${groups} groups found, at most ${GROUPS_MAX} are supported`);
  return { blocks, bytes, blocksPerGroup, clustersPerGroup, groups };
}

function inodesOf(fields: Fields, blockBytes: number, groups: number) {
  const { inodesPerGroup } = fields;
  const isOld = fields.revision === 0;
  const inodeBytes = isOld ? GOOD_OLD_INODE_BYTES : fields.inodeSize;
  expect(
    inodeBytes >= GOOD_OLD_INODE_BYTES && inodeBytes <= blockBytes && Number.isInteger(Math.log2(inodeBytes)),
    `inode_size ${inodeBytes} found, a power of two from 128 to ${blockBytes} expected`,
  );
  const inodesPerBlock = blockBytes / inodeBytes;
  expect(
    inodesPerGroup >= inodesPerBlock && inodesPerGroup <= blockBytes * 8 && inodesPerGroup % 8 === 0,
    `inodes_per_group ${inodesPerGroup} is impossible`,
  );
  const inodes = inodesPerGroup * groups;
  expect(fields.inodesCount === inodes, `inodes_count ${fields.inodesCount} found, ${inodes} expected`);
  const firstInode = isOld ? GOOD_OLD_FIRST_INODE : fields.firstInode;
  expect(firstInode >= GOOD_OLD_FIRST_INODE && firstInode <= inodes, `first_ino ${firstInode} is impossible`);
  const inodeTableBlocks = Math.ceil(inodesPerGroup / inodesPerBlock);
  return { inodes, inodesPerGroup, inodeBytes, firstInode, inodeTableBlocks };
}

function descriptorsOf(fields: Fields, blockBytes: number, groups: number) {
  const is64bit = (fields.incompat & INCOMPAT["64bit"]) !== 0;
  const descriptorBytes = is64bit ? fields.descriptorSize : 32;
  expect(
    !is64bit || DESCRIPTOR_SIZES.includes(descriptorBytes),
    `desc_size ${descriptorBytes} found, a power of two from 64 to 1024 expected`,
  );
  const descriptorsPerBlock = blockBytes / descriptorBytes;
  const descriptorBlocks = Math.ceil(groups / descriptorsPerBlock);
  const metaBg = (fields.incompat & INCOMPAT.meta_bg) !== 0;
  expect(
    !metaBg || fields.firstMetaGroup <= descriptorBlocks,
    `first_meta_bg ${fields.firstMetaGroup} found, at most ${descriptorBlocks} expected`,
  );
  return { descriptorBytes, descriptorsPerBlock, descriptorBlocks };
}
