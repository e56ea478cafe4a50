/**
 * Inodes: 128 bytes in the first revision, a power of two from then on.
 *
 *   0    mode u16 | uid | size low u32 | times … | 26 links u16 | blocks low u32 | flags u32 | …
 *   40   60 bytes: block map, extent root, the text of a short symlink, a device number, or inline data
 *   100  generation u32 | xattr block low u32 | size high u32 | … | 118 xattr block high u16 | 124 checksum low u16
 *   128  length of what follows u16 | checksum high u16 | … | extended attributes
 *
 * Documentation/filesystems/ext4/inodes.rst of Linux.
 */
import { crc32c } from "../../bytes/checksum.ts";
import { viewOf } from "../../bytes/struct.ts";
import { readBytes } from "../../device/device.ts";
import { DAMAGED, type Volume } from "./groups.ts";
import { badChecksum, damaged } from "./refused.ts";
import { hasIncompat, type Superblock } from "./superblock.ts";

export const LINKS_AT = 0x1a;
export const MAP_AT = 0x28;
export const MAP_BYTES = 60;
const CHECKSUM_LOW_AT = 0x7c;
const EXTRA_AT = 0x80;
const CHECKSUM_HIGH_AT = 0x82;

export const FLAG = {
  encrypted: 0x800,
  hugeFile: 0x40000,
  extents: 0x80000,
  verity: 0x100000,
  eaInode: 0x200000,
  inlineData: 0x10000000,
  casefold: 0x40000000,
} as const;

export const TYPE = {
  fifo: 0x1000,
  characterDevice: 0x2000,
  directory: 0x4000,
  blockDevice: 0x6000,
  file: 0x8000,
  symlink: 0xa000,
  socket: 0xc000,
} as const;

/** Inodes with a number of their own. */
export const INODE = { badBlocks: 1, root: 2, bootLoader: 5, resize: 7 } as const;

export interface Inode {
  readonly number: number;
  /** One of `TYPE`, or 0 in a reserved inode that was never used. */
  readonly type: number;
  readonly flags: number;
  readonly links: number;
  readonly size: number;
  /** What the inode counts, in units of 512 bytes (of blocks with the flag hugeFile). */
  readonly sectors: number;
  /** Block of extended attributes; 0: none. */
  readonly xattrBlock: number;
  /** The 60 bytes of the block map. */
  readonly map: Uint8Array;
  /** The whole inode where it holds inline data, which goes on in its attributes; else empty. */
  readonly whole: Uint8Array;
  /** Where the checksums of its extent and directory blocks start from. */
  readonly seed: number;
}

const NOTHING = new Uint8Array(0);

/** Decodes the inode at `at` in `table`. @throws Refused when its checksum does not match */
export function decodeInode(sb: Superblock, number: number, table: DataView, at: number): Inode {
  const u16 = (field: number) => table.getUint16(at + field, true);
  const u32 = (field: number) => table.getUint32(at + field, true);
  const seed = sb.checksums ? inodeSeed(sb, number, u32(0x64)) : 0;
  if (sb.checksums) verify(sb, number, table, at, seed);
  const copy = (from: number, bytes: number) =>
    new Uint8Array(table.buffer, table.byteOffset + from, bytes).slice();
  const flags = u32(0x20);
  return {
    number,
    type: u16(0) & 0xf000,
    flags,
    links: u16(LINKS_AT),
    size: u32(4) + u32(0x6c) * 2 ** 32,
    sectors: u32(0x1c) + u16(0x74) * 2 ** 32,
    xattrBlock: u32(0x68) + (hasIncompat(sb, "64bit") ? u16(0x76) * 2 ** 32 : 0),
    map: copy(at + MAP_AT, MAP_BYTES),
    whole: (flags & FLAG.inlineData) === 0 ? NOTHING : copy(at, sb.inodeBytes),
    seed,
  };
}

const salt = new Uint8Array(8);
const saltView = viewOf(salt);

function inodeSeed(sb: Superblock, number: number, generation: number): number {
  saltView.setUint32(0, number, true);
  saltView.setUint32(4, generation, true);
  return crc32c(sb.seed, salt);
}

/** Room for the largest inode, with its checksums blanked out. */
const blanked = new Uint8Array(65536);
const blankedView = viewOf(blanked);

function verify(sb: Superblock, number: number, table: DataView, at: number, seed: number): void {
  blanked.set(new Uint8Array(table.buffer, table.byteOffset + at, sb.inodeBytes));
  let found = table.getUint16(at + CHECKSUM_LOW_AT, true);
  blankedView.setUint16(CHECKSUM_LOW_AT, 0);
  const hasHigh = sb.inodeBytes > EXTRA_AT && blankedView.getUint16(EXTRA_AT, true) >= 4;
  if (hasHigh) {
    found += table.getUint16(at + CHECKSUM_HIGH_AT, true) * 2 ** 16;
    blankedView.setUint16(CHECKSUM_HIGH_AT, 0);
  }
  const crc = crc32c(seed, blanked, 0, sb.inodeBytes);
  const expected = hasHigh ? crc : crc & 0xffff;
  if (found === expected) return;
  // A reserved inode that was never written has no checksum either.
  if (found === 0 && blanked.subarray(0, sb.inodeBytes).every((byte) => byte === 0)) return;
  throw badChecksum(`inode ${number}`, found, expected);
}

/** Where inode `number` lies, in bytes. @throws Refused when there is no such inode */
export function inodeAt({ sb, groups }: Volume, number: number): number {
  if (number < 1 || number > sb.inodes) {
    throw damaged(`inode ${number} does not exist: there are ${sb.inodes}`);
  }
  const group = Math.floor((number - 1) / sb.inodesPerGroup);
  const index = (number - 1) % sb.inodesPerGroup;
  if ((groups.flags[group]! & DAMAGED) !== 0) throw damaged(`inode ${number}: group ${group} is damaged`);
  return groups.inodeTable[group]! * sb.blockBytes + index * sb.inodeBytes;
}

/** Reads one inode. @throws Refused when there is no such inode, or it is damaged */
export async function readInode(volume: Volume, number: number): Promise<Inode> {
  const bytes = await readBytes(volume.device, inodeAt(volume, number), volume.sb.inodeBytes);
  return decodeInode(volume.sb, number, viewOf(bytes), 0);
}

/** How an inode's blocks are found. */
export function mapKind(sb: Superblock, inode: Inode): "none" | "extents" | "blocks" {
  const { type, flags } = inode;
  const inline = (flags & FLAG.inlineData) !== 0;
  const extents = (flags & FLAG.extents) !== 0;
  if (inline && extents) throw damaged(`inode ${inode.number}: both inline data and extents`);
  if (inline) {
    if (!hasIncompat(sb, "inline_data"))
      throw damaged(`inode ${inode.number}: inline data without the feature`);
    return "none";
  }
  if (type === TYPE.file || type === TYPE.directory || type === TYPE.symlink) {
    if (extents) {
      if (!hasIncompat(sb, "extent")) throw damaged(`inode ${inode.number}: extents without the feature`);
      return "extents";
    }
    return type === TYPE.symlink && isShort(sb, inode) ? "none" : "blocks";
  }
  if (type === 0) {
    // The bad blocks and the boot loader inode have no mode. Others without one are leftovers: looked at, to be sure.
    if (inode.links > 0 && inode.number >= sb.firstInode) {
      throw damaged(`inode ${inode.number}: in use, but it has no file type`);
    }
    return extents ? "extents" : "blocks";
  }
  if (!(Object.values(TYPE) as number[]).includes(type)) {
    throw damaged(`inode ${inode.number}: file type 0x${type.toString(16)} is unknown`);
  }
  return "none";
}

/**
 * Whether the text of a symlink lies where its block map would, as the kernel judges it: when nothing but its attribute
 * block is counted. With `ea_inode` it may count the blocks of its values as well, and the length decides.
 */
function isShort(sb: Superblock, { size, sectors, xattrBlock }: Inode): boolean {
  if (hasIncompat(sb, "ea_inode")) return size > 0 && size < MAP_BYTES;
  return sectors === (xattrBlock === 0 ? 0 : sb.clusterBytes / 512);
}
