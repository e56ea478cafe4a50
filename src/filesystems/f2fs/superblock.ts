/**
 * The superblock of F2FS, at byte 1024 of blocks 0 and 1, and the areas that follow from it.
 *
 *   | superblocks | checkpoint, 2 packs | SIT, 2 copies | NAT, 2 copies | SSA | main area, in segments of 2 MiB |
 *
 * Everything is little-endian, blocks have 4096 bytes. Documentation/filesystems/f2fs.rst and include/linux/f2fs_fs.h of
 * Linux.
 */
import { crc32 } from "../../bytes/checksum.ts";
import { raw, skip, struct, u16le, u32le, u64le } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { Refused } from "../refused.ts";
import { badChecksum, damaged, unknown } from "./refused.ts";

export const MAGIC = 0xf2f52010;
export const BLOCK_BYTES = 4096;
export const SEGMENT_BLOCKS = 512;
export const SUPERBLOCK_AT = 1024;
const LOG_BLOCK = 12;
const LOG_SEGMENT = 9;
const CP_SEGMENTS = 2;
/** 16 TiB, as many as block addresses of 32 bits reach. */
const SEGMENTS_MAX = 1 << 23;

export const SuperblockLayout = struct({
  magic: u32le,
  major: u16le,
  minor: u16le,
  logSector: u32le,
  logSectors: u32le,
  logBlock: u32le,
  logSegment: u32le,
  segmentsPerSection: u32le,
  sectionsPerZone: u32le,
  checksumOffset: u32le,
  blocks: u64le,
  sections: u32le,
  segments: u32le,
  cpSegments: u32le,
  sitSegments: u32le,
  natSegments: u32le,
  ssaSegments: u32le,
  mainSegments: u32le,
  firstSegment: u32le,
  cp: u32le,
  sit: u32le,
  nat: u32le,
  ssa: u32le,
  main: u32le,
  root: u32le,
  nodeInode: u32le,
  metaInode: u32le,
  uuid: raw(16),
  volumeName: raw(1024),
  extensions: skip(4 + 64 * 8),
  payload: u32le,
  versions: skip(512),
  features: u32le,
  encryption: skip(17),
  devices: raw(8 * 68),
  quotaInodes: skip(12),
  hotExtensions: skip(1),
  encoding: skip(4),
  stopReason: skip(32),
  errors: raw(16),
  reserved: skip(258),
  checksum: u32le,
});

export type Superblock = ReturnType<typeof SuperblockLayout.decode>;

export const FEATURE = {
  encrypt: 0x1,
  zoned: 0x2,
  extraAttributes: 0x8,
  projectQuota: 0x10,
  inodeChecksum: 0x20,
  flexibleInlineAttributes: 0x40,
  quotaInodes: 0x80,
  creationTime: 0x100,
  lostFound: 0x200,
  verity: 0x400,
  superblockChecksum: 0x800,
  casefold: 0x1000,
  compression: 0x2000,
} as const;

const KNOWN = Object.values(FEATURE).reduce((all: number, bit) => all | bit, 0) & ~FEATURE.zoned;

export const hasFeature = ({ features }: Superblock, feature: keyof typeof FEATURE): boolean =>
  (features & FEATURE[feature]) !== 0;

/** The CRC-32 of F2FS: without inversions, from a seed that is the magic number where there is no other. */
export function checksumOf(bytes: Uint8Array, seed: number = MAGIC): number {
  return ~crc32(bytes, ~seed >>> 0) >>> 0;
}

/** @throws Refused for a volume that is not vouched for */
export async function readSuperblock(device: BlockDevice): Promise<Superblock> {
  const bytes = await readBytes(device, SUPERBLOCK_AT, SuperblockLayout.bytes);
  const sb = SuperblockLayout.decode(bytes);
  if (sb.magic !== MAGIC)
    throw damaged(`superblock: magic 0x${sb.magic.toString(16)} found, 0xf2f52010 expected`);
  if (hasFeature(sb, "superblockChecksum")) {
    const at = SuperblockLayout.at.checksum;
    if (sb.checksumOffset !== at)
      throw damaged(`superblock: checksum at ${sb.checksumOffset} found, ${at} expected`);
    const expected = checksumOf(bytes.subarray(0, at));
    if (sb.checksum !== expected) throw badChecksum("superblock", sb.checksum, expected);
  }
  checkFeatures(sb);
  checkGeometry(sb, device);
  return sb;
}

function checkFeatures(sb: Superblock): void {
  if (hasFeature(sb, "zoned")) throw unknown("a volume for zoned devices");
  const left = sb.features & ~KNOWN;
  if (left !== 0) throw unknown(`superblock: features 0x${(left >>> 0).toString(16)} are not known`);
  if (sb.devices[0] !== 0) throw unknown("a volume of several devices");
  if (sb.errors.some((byte) => byte !== 0)) {
    throw new Refused(
      "error-state",
      "superblock: the guest has noticed errors",
      "run fsck.f2fs in the guest",
    );
  }
}

function checkGeometry(sb: Superblock, device: BlockDevice): void {
  if (sb.logBlock !== LOG_BLOCK || sb.logSegment !== LOG_SEGMENT) {
    throw unknown(
      `superblock: blocks of 2^${sb.logBlock} bytes and segments of 2^${sb.logSegment} blocks found`,
    );
  }
  if (sb.blocks * BLOCK_BYTES > device.bytes) {
    throw new Refused(
      "truncated",
      `the volume has ${sb.blocks} blocks, the disk ends at ${device.bytes} bytes`,
      "the image is cut short: restore its whole length",
    );
  }
  const areas = [
    [sb.cp, sb.cpSegments],
    [sb.sit, sb.sitSegments],
    [sb.nat, sb.natSegments],
    [sb.ssa, sb.ssaSegments],
    [sb.main, sb.mainSegments],
  ] as const;
  let next = sb.firstSegment;
  for (const [start, segments] of areas) {
    if (start !== next || segments > SEGMENTS_MAX) {
      throw damaged(`superblock: an area of ${segments} segments at ${start} found, ${next} expected`);
    }
    next = start + segments * SEGMENT_BLOCKS;
  }
  const isEven =
    sb.sitSegments % 2 === 0 && sb.natSegments % 2 === 0 && sb.sitSegments > 0 && sb.natSegments > 0;
  if (sb.cpSegments !== CP_SEGMENTS || !isEven || next > sb.blocks || sb.payload >= SEGMENT_BLOCKS / 2) {
    throw damaged(
      `superblock: areas up to ${next} of ${sb.blocks} blocks, checkpoint of ${sb.cpSegments} segments`,
    );
  }
}
