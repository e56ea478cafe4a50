/**
 * Sets the checksums of a mutated ext filesystem anew, as its maker would: superblock, group descriptors, bitmaps,
 * inodes, extent nodes and directory blocks. What is too broken to be found is left alone.
 */
import { crc16, crc32c } from "../../src/bytes/checksum.ts";
import { viewOf } from "../../src/bytes/struct.ts";
import { SUPERBLOCK_AT, SuperblockLayout } from "../../src/filesystems/ext/superblock.ts";

const INCOMPAT_64BIT = 0x80;
const INCOMPAT_SEED = 0x2000;
const RO_COMPAT_GDT = 0x10;
const RO_COMPAT_METADATA = 0x400;
const FLAG_EXTENTS = 0x80000;
const EXTENT_MAGIC = 0xf30a;
const DESCRIPTOR_CHECKSUM_AT = 0x1e;
const ZEROS = new Uint8Array(4);

interface Geometry {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly blockBytes: number;
  readonly seed: number;
  readonly inodeBytes: number;
  readonly inodesPerGroup: number;
  readonly clustersPerGroup: number;
  readonly wide: boolean;
}

export function fixChecksums(bytes: Uint8Array): void {
  const sb = SuperblockLayout.decode(bytes, SUPERBLOCK_AT);
  const blockBytes = 1024 << (sb.logBlockSize & 7);
  const metadata = (sb.roCompat & RO_COMPAT_METADATA) !== 0;
  const wide = (sb.incompat & INCOMPAT_64BIT) !== 0;
  const descriptorBytes = wide ? sb.descriptorSize : 32;
  const geometry: Geometry = {
    bytes,
    view: viewOf(bytes),
    blockBytes,
    seed: (sb.incompat & INCOMPAT_SEED) !== 0 ? sb.checksumSeed : crc32c(0xffffffff, sb.uuid),
    inodeBytes: sb.revision === 0 ? 128 : sb.inodeSize,
    inodesPerGroup: sb.inodesPerGroup,
    clustersPerGroup: sb.clustersPerGroup,
    wide,
  };
  if (sb.blocksPerGroup > 0 && descriptorBytes >= 32 && descriptorBytes <= blockBytes) {
    const groups = Math.min(64, Math.ceil(sb.blocksCountLow / sb.blocksPerGroup));
    const table = (Math.floor(SUPERBLOCK_AT / blockBytes) + 1) * blockBytes;
    for (let group = 0; group < groups; group++) {
      const at = table + group * descriptorBytes;
      if (at + descriptorBytes > bytes.length) break;
      if (metadata) fixGroup(geometry, group, at);
      if (metadata || (sb.roCompat & RO_COMPAT_GDT) !== 0) {
        fixDescriptor(geometry, group, at, descriptorBytes, metadata ? undefined : sb.uuid);
      }
    }
  }
  if (metadata) {
    const checksum = crc32c(0xffffffff, bytes, SUPERBLOCK_AT, SUPERBLOCK_AT + SuperblockLayout.at.checksum);
    SuperblockLayout.encode({ checksum }, bytes, SUPERBLOCK_AT);
  }
}

function fixDescriptor(
  { bytes, view, seed }: Geometry,
  group: number,
  at: number,
  descriptorBytes: number,
  uuid: Uint8Array | undefined,
): void {
  const number = new Uint8Array(4);
  viewOf(number).setUint32(0, group, true);
  const [field, end] = [at + DESCRIPTOR_CHECKSUM_AT, at + descriptorBytes];
  let crc: number;
  if (uuid !== undefined) {
    crc = crc16(crc16(crc16(0xffff, uuid), number), bytes, at, field);
    crc = crc16(crc, bytes, field + 2, end);
  } else {
    crc = crc32c(crc32c(crc32c(seed, number), bytes, at, field), ZEROS, 0, 2);
    crc = crc32c(crc, bytes, field + 2, end) & 0xffff;
  }
  view.setUint16(field, crc, true);
}

/** The bitmaps of a group, and its inodes with what they lead to. */
function fixGroup(geometry: Geometry, group: number, at: number): void {
  const { bytes, view, blockBytes, seed, inodesPerGroup, clustersPerGroup, inodeBytes, wide } = geometry;
  for (const [place, low, high, bits] of [
    [0, 0x18, 0x38, clustersPerGroup],
    [4, 0x1a, 0x3a, inodesPerGroup],
  ] as const) {
    const bitmap = view.getUint32(at + place, true) * blockBytes;
    if (bits > blockBytes * 8 || bitmap + blockBytes > bytes.length) continue;
    const crc = crc32c(seed, bytes, bitmap, bitmap + bits / 8);
    view.setUint16(at + low, crc & 0xffff, true);
    if (wide) view.setUint16(at + high, crc >>> 16, true);
  }
  if (inodeBytes < 128 || inodeBytes > blockBytes) return;
  const table = view.getUint32(at + 8, true) * blockBytes;
  for (let index = 0; index < Math.min(inodesPerGroup, 4096); index++) {
    const inode = table + index * inodeBytes;
    if (inode + inodeBytes > bytes.length) return;
    if (bytes.subarray(inode, inode + inodeBytes).every((byte) => byte === 0)) continue;
    fixInode(geometry, group * inodesPerGroup + index + 1, inode);
  }
}

function fixInode({ bytes, view, blockBytes, seed, inodeBytes }: Geometry, number: number, at: number): void {
  const salt = new Uint8Array(8);
  viewOf(salt).setUint32(0, number, true);
  viewOf(salt).setUint32(4, view.getUint32(at + 0x64, true), true);
  const own = crc32c(seed, salt);
  const hasHigh = inodeBytes > 128 && view.getUint16(at + 0x80, true) >= 4;
  view.setUint16(at + 0x7c, 0, true);
  if (hasHigh) view.setUint16(at + 0x82, 0, true);
  const crc = crc32c(own, bytes, at, at + inodeBytes);
  view.setUint16(at + 0x7c, crc & 0xffff, true);
  if (hasHigh) view.setUint16(at + 0x82, crc >>> 16, true);
  if ((view.getUint32(at + 0x20, true) & FLAG_EXTENTS) !== 0) fixNode(at + 0x28, 5);

  function fixNode(node: number, levels: number): void {
    if (view.getUint16(node, true) !== EXTENT_MAGIC || levels === 0) return;
    const room = Math.floor((bytes.length - node) / 12) - 1;
    const entries = Math.min(view.getUint16(node + 2, true), room, 84);
    const depth = view.getUint16(node + 6, true);
    for (let entry = node + 12; entry < node + 12 + entries * 12; entry += 12) {
      const block = view.getUint32(entry + (depth > 0 ? 4 : 8), true) * blockBytes;
      if (block + blockBytes > bytes.length) continue;
      if (depth > 0) {
        const max = view.getUint16(block + 4, true);
        fixNode(block, levels - 1);
        const tail = block + 12 * (max + 1);
        if (tail + 4 <= block + blockBytes) view.setUint32(tail, crc32c(own, bytes, block, tail), true);
      } else {
        fixDirectoryBlock(block);
      }
    }
  }

  /** A leaf ends with a record of 12 bytes whose type is 0xde. */
  function fixDirectoryBlock(block: number): void {
    const tail = block + blockBytes - 12;
    if (view.getUint32(tail, true) !== 0 || view.getUint32(tail + 4, true) !== 0xde00000c) return;
    view.setUint32(tail + 8, crc32c(own, bytes, block, tail), true);
  }
}
