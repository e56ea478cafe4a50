/**
 * Inodes: 256 bytes to 2 KiB each.
 *
 *   | magic "IN" | mode | version | format | … | size | blocks | … | extents | … | fork offset | … | flags |
 *   | version 3 adds: checksum | … | flags2 | … | own number | UUID |
 *   | data fork … | attribute fork, from the fork offset (in units of 8 bytes) on |
 *
 * Versions 1 and 2 belong to version 4 of the filesystem, version 3 to version 5.
 * On-disk inode, "XFS Algorithms & Data Structures"; fs/xfs/libxfs/xfs_format.h of Linux.
 */
import { viewOf } from "../../bytes/struct.ts";
import { readBytes } from "../../device/device.ts";
import type { Volume } from "./headers.ts";
import { damaged, verifyChecksum } from "./refused.ts";
import { agLength, type Superblock } from "./superblock.ts";

export const TYPE = { directory: 0x4000, file: 0x8000, symlink: 0xa000 } as const;
const TYPE_MASK = 0xf000;

/** How a fork lies: nothing but a device number, in the inode, as a list of extents there, or as a tree of them. */
export const FORMAT = { device: 0, local: 1, extents: 2, tree: 3 } as const;

export const INODE_MAGIC = 0x494e;
const FLAG_REALTIME = 1;
export const FLAG2 = { reflink: 0x2, largeCounts: 0x10 } as const;
/** Where the forks begin in versions 1 and 2, and in version 3. */
export const OLD_BYTES = 100;
export const NEW_BYTES = 176;

export const INODE_AT = {
  mode: 2,
  version: 4,
  format: 5,
  oldLinks: 6,
  links: 16,
  largeExtents: 24,
  size: 56,
  blocks: 64,
  extents: 76,
  attributeExtents: 80,
  forkOffset: 82,
  attributeFormat: 83,
  flags: 90,
  generation: 92,
  nextUnlinked: 96,
  checksum: 100,
  place: 112,
  flags2: 120,
  number: 152,
  uuid: 160,
} as const;

export interface Fork {
  readonly format: number;
  /** Extents in all, as the inode counts them. */
  readonly extents: number;
  /** Where it lies in the bytes of the inode. */
  readonly start: number;
  readonly end: number;
}

export interface Inode {
  readonly number: number;
  readonly type: number;
  readonly links: number;
  readonly size: number;
  /** Blocks of both forks and of their trees. */
  readonly blocks: number;
  readonly isShareable: boolean;
  readonly data: Fork;
  readonly attributes: Fork | undefined;
  /** All of its bytes; valid as long as the buffer that it was decoded from. */
  readonly bytes: DataView;
}

/** The inode at `at` of `table`. @throws Refused when it is damaged, or not in use */
export function decodeInode(sb: Superblock, number: number, table: DataView, at: number): Inode {
  const bytes = new DataView(table.buffer, table.byteOffset + at, sb.inodeBytes);
  const version = bytes.getUint8(INODE_AT.version);
  const mode = bytes.getUint16(INODE_AT.mode);
  const isNew = version === 3;
  if (bytes.getUint16(0) !== INODE_MAGIC || isNew !== (sb.version === 5) || version < 1 || version > 3) {
    throw damaged(`inode ${number}: magic 0x${bytes.getUint16(0).toString(16)}, version ${version} found`);
  }
  if (isNew) checkStamp(sb, number, bytes);
  if (mode === 0) throw damaged(`inode ${number}: no mode found, though it is in use`);
  const flags2 = isNew ? bytes.getUint32(INODE_AT.flags2 + 4) : 0;
  const isLarge = (flags2 & FLAG2.largeCounts) !== 0;
  const { data, attributes } = forksOf(sb, number, bytes, isNew ? NEW_BYTES : OLD_BYTES, isLarge);
  const inode: Inode = {
    number,
    type: mode & TYPE_MASK,
    links: version === 1 ? bytes.getUint16(INODE_AT.oldLinks) : bytes.getUint32(INODE_AT.links),
    size: wide(number, bytes, INODE_AT.size),
    blocks: wide(number, bytes, INODE_AT.blocks),
    isShareable: (flags2 & FLAG2.reflink) !== 0,
    data,
    attributes,
    bytes,
  };
  const { format, start, end } = data;
  if (format === FORMAT.local && inode.size > end - start) {
    throw damaged(`inode ${number}: ${inode.size} bytes inside it found, room for ${end - start}`);
  }
  const isRealtime = (bytes.getUint16(INODE_AT.flags) & FLAG_REALTIME) !== 0;
  if (isRealtime && inode.type === TYPE.file && data.extents > 0) {
    throw damaged(`inode ${number}: it lies on a realtime device, and there is none`);
  }
  return inode;
}

function checkStamp(sb: Superblock, number: number, view: DataView): void {
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  verifyChecksum(() => `inode ${number}`, bytes, INODE_AT.checksum);
  const found = view.getUint32(INODE_AT.number) * 2 ** 32 + view.getUint32(INODE_AT.number + 4);
  const uuid = bytes.subarray(INODE_AT.uuid, INODE_AT.uuid + 16);
  if (found !== number || Buffer.compare(uuid, sb.metaUuid) !== 0) {
    throw damaged(`inode ${number}: it says it is inode ${found}, or of another filesystem`);
  }
}

function wide(number: number, view: DataView, at: number): number {
  const value = view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4);
  if (value > Number.MAX_SAFE_INTEGER) throw damaged(`inode ${number}: ${value} found at ${at}, too large`);
  return value;
}

function forksOf(sb: Superblock, number: number, view: DataView, start: number, isLarge: boolean) {
  const split = view.getUint8(INODE_AT.forkOffset) * 8;
  if (start + split >= sb.inodeBytes) {
    throw damaged(`inode ${number}: an attribute fork at ${split} found, inside the inode expected`);
  }
  const attributeExtents = isLarge
    ? view.getUint32(INODE_AT.extents)
    : view.getUint16(INODE_AT.attributeExtents);
  if (split === 0 && attributeExtents > 0) {
    throw damaged(`inode ${number}: ${attributeExtents} extents of attributes found, but no place for them`);
  }
  const data: Fork = {
    format: view.getUint8(INODE_AT.format),
    extents: isLarge ? wide(number, view, INODE_AT.largeExtents) : view.getUint32(INODE_AT.extents),
    start,
    end: split === 0 ? sb.inodeBytes : start + split,
  };
  const attributes: Fork = {
    format: view.getUint8(INODE_AT.attributeFormat),
    extents: attributeExtents,
    start: data.end,
    end: sb.inodeBytes,
  };
  return { data, attributes: split === 0 ? undefined : attributes };
}

/** Where an inode lies, in bytes of the volume; undefined when there is no such place. */
export function placeOf(sb: Superblock, number: number): number | undefined {
  const span = 2 ** sb.agBlockLog * sb.inodesPerBlock;
  const [ag, index] = [Math.floor(number / span), number % span];
  const block = Math.floor(index / sb.inodesPerBlock);
  if (ag >= sb.agCount || block < sb.headerBlocks || block >= agLength(sb, ag)) return undefined;
  return (ag * sb.agBlocks + block) * sb.blockBytes + (index % sb.inodesPerBlock) * sb.inodeBytes;
}

/** @throws Refused when it is damaged, or not in use */
export async function readInode({ device, sb }: Volume, number: number): Promise<Inode> {
  const at = placeOf(sb, number);
  if (at === undefined) throw damaged(`inode ${number}: the filesystem has no such inode`);
  return decodeInode(sb, number, viewOf(await readBytes(device, at, sb.inodeBytes)), 0);
}
