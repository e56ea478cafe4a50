/**
 * The container superblock: geometry, features, where the checkpoints and the roots are.
 *
 *   block 0          a copy, for finding the checkpoint descriptor area only
 *   descriptor area  a ring: | maps | superblock | maps | maps | superblock | …    the highest valid one counts
 *
 * "Container" of the Apple File System Reference.
 */
import { bits64le, raw, skip, struct, u32le, u64le, uuidText, viewOf } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { Refused } from "../refused.ts";
import { looseU64, type Area } from "./objects.ts";
import { damaged, unfinished, unknown } from "./refused.ts";

export const MAGIC = 0x4253584e;
const VOLUMES_MAX = 100;
const BLOCK_BYTES_MIN = 4096;
const BLOCK_BYTES_MAX = 65536;

export const SuperblockLayout = struct({
  header: skip(16),
  transaction: u64le,
  type: u32le,
  subtype: u32le,
  magic: u32le,
  blockBytes: u32le,
  blocks: u64le,
  features: bits64le,
  roCompat: bits64le,
  incompat: bits64le,
  uuid: raw(16),
  nextObject: skip(8),
  nextTransaction: skip(8),
  descriptorBlocks: u32le,
  dataBlocks: u32le,
  descriptorBase: bits64le,
  dataBase: bits64le,
  descriptorNext: u32le,
  dataNext: u32le,
  descriptorIndex: u32le,
  descriptorLength: u32le,
  dataIndex: u32le,
  dataLength: u32le,
  spaceManager: u64le,
  objectMap: u64le,
  reaper: u64le,
  testType: u32le,
  volumesMax: u32le,
  volumes: raw(VOLUMES_MAX * 8),
  counters: skip(32 * 8),
  blockedOutStart: u64le,
  blockedOutBlocks: u64le,
  evictMappingTree: u64le,
  flags: bits64le,
  jumpstart: u64le,
  fusionUuid: raw(16),
  keybagStart: u64le,
  keybagBlocks: u64le,
  ephemeralInfo: skip(32),
  testObject: bits64le,
  fusionMiddleTree: bits64le,
  fusionCache: bits64le,
  fusionCacheStart: bits64le,
  fusionCacheBlocks: bits64le,
  newestMountedVersion: skip(8),
  mediaKeybagStart: u64le,
  mediaKeybagBlocks: u64le,
});

export type Superblock = ReturnType<typeof SuperblockLayout.decode>;

/** What is vouched for; every other bit refuses. */
const FEATURES = { defrag: 0x1n, lowCapacityFusion: 0x2n };
const INCOMPAT = { version1: 0x1n, version2: 0x2n, fusion: 0x100n };
const FLAGS_KNOWN = 0x7n;

/** Block 0, which is believed only about where to look. @throws Refused */
export async function readFirstSuperblock(device: BlockDevice): Promise<{ bytes: Uint8Array; area: Area }> {
  const start = SuperblockLayout.decode(await readBytes(device, 0, BLOCK_BYTES_MIN));
  const { magic, blockBytes } = start;
  if (magic !== MAGIC) throw damaged(`block 0: magic 0x${magic.toString(16)} found, "NXSB" expected`);
  const isPower = (blockBytes & (blockBytes - 1)) === 0;
  if (blockBytes < BLOCK_BYTES_MIN || blockBytes > BLOCK_BYTES_MAX || !isPower || blockBytes > device.bytes) {
    throw damaged(`block 0: blocks of ${blockBytes} bytes found, a power of two from 4096 to 65536 expected`);
  }
  const bytes = await readBytes(device, 0, blockBytes);
  return { bytes, area: { device, blockBytes, blocks: Math.floor(device.bytes / blockBytes) } };
}

/** @throws Refused for a container that is not vouched for */
export function checkContainer(sb: Superblock, area: Area): void {
  if (sb.blockBytes !== area.blockBytes) {
    throw damaged(`superblock: blocks of ${sb.blockBytes} bytes found, ${area.blockBytes} expected`);
  }
  if (sb.blocks > area.blocks) {
    throw new Refused(
      "truncated",
      `the container has ${sb.blocks} blocks, the disk has room for ${area.blocks}`,
      "the image is cut short: restore its whole length",
    );
  }
  if ((sb.incompat & INCOMPAT.fusion) !== 0n || sb.fusionUuid.some((byte) => byte !== 0)) {
    throw unknown("this is one of the two disks of a Fusion drive");
  }
  if ((sb.incompat & INCOMPAT.version1) !== 0n) throw unknown("container of version 1, of the beta of 2016");
  if ((sb.incompat & INCOMPAT.version2) === 0n) throw damaged("superblock: no version found, 2 expected");
  refuseUnknownBits("features", sb.features, FEATURES.defrag | FEATURES.lowCapacityFusion);
  refuseUnknownBits("read-only compatible features", sb.roCompat, 0n);
  refuseUnknownBits("incompatible features", sb.incompat, INCOMPAT.version2);
  refuseUnknownBits("flags", sb.flags, FLAGS_KNOWN);
  if (sb.testType !== 0 || sb.testObject !== 0n) throw unknown("superblock: a test object found");
  if ((sb.fusionMiddleTree | sb.fusionCache | sb.fusionCacheBlocks) !== 0n) {
    throw unknown("superblock: structures of a Fusion drive found");
  }
  if (sb.evictMappingTree !== 0) throw unfinished("resizing", "the container is being made smaller");
  if (sb.volumesMax > VOLUMES_MAX) {
    throw damaged(`superblock: ${sb.volumesMax} volumes found, at most ${VOLUMES_MAX} expected`);
  }
}

export function refuseUnknownBits(what: string, found: bigint, known: bigint): void {
  const left = found & ~known;
  if (left !== 0n) throw unknown(`${what}: 0x${left.toString(16)} is not known`);
}

/** Ids of the volume superblocks, in the order of the container. */
export function volumeIds(sb: Superblock): number[] {
  const view = viewOf(sb.volumes);
  return Array.from({ length: sb.volumesMax }, (_, index) => looseU64(view, index * 8)).filter(
    (id) => id > 0,
  );
}

export const uuidOf = (sb: Superblock): string => uuidText(sb.uuid);
