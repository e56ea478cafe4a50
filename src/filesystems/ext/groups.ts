/**
 * The group descriptor table: where each group keeps its bitmaps and its inode table. 32 bytes a group, 64 or more
 * with `64bit`, whose upper half repeats the fields with their high bits.
 *
 *   0  block bitmap | inode bitmap | inode table | free blocks u16 | free inodes u16 | directories u16 | flags u16
 *   20 (snapshots) | block bitmap checksum u16 | inode bitmap checksum u16 | unused inodes u16 | checksum u16
 *   32 the high halves, in the same order
 *
 * Kept as columns, not as objects: a disk of 16 TiB has 131072 groups.
 * Documentation/filesystems/ext4/group_descr.rst of Linux.
 */
import { crc16, crc32c } from "../../bytes/checksum.ts";
import { viewOf } from "../../bytes/struct.ts";
import type { BlockDevice } from "../../device/device.ts";
import { descriptorBlock, groupEnd, groupStart } from "./layout.ts";
import { Refused } from "../refused.ts";
import { badChecksum, damaged } from "./refused.ts";
import { hasIncompat, type Superblock } from "./superblock.ts";

/** The columns of the table; positions are block numbers. */
export interface GroupTable {
  readonly blockBitmap: Float64Array;
  readonly inodeBitmap: Float64Array;
  readonly inodeTable: Float64Array;
  readonly freeClusters: Uint32Array;
  readonly freeInodes: Uint32Array;
  /** Inodes at the end of the table that were never used. */
  readonly unusedInodes: Uint32Array;
  readonly flags: Uint8Array;
  readonly blockBitmapChecksum: Uint32Array;
  readonly inodeBitmapChecksum: Uint32Array;
}

/** The inode bitmap and table were never written: all inodes are free. */
export const INODE_UNINIT = 1;
/** The block bitmap was never written: only the fixed structures are in use. */
export const BLOCK_UNINIT = 2;
/** Not on disk: the descriptor is damaged, and nothing is known about the group. */
export const DAMAGED = 4;

const CHECKSUM_AT = 0x1e;
const READ_BYTES_MAX = 1 << 20;

/** A filesystem that is understood well enough to find everything in it. */
export interface Volume {
  readonly device: BlockDevice;
  readonly sb: Superblock;
  readonly groups: GroupTable;
}

/** What becomes of a group whose descriptor or bitmap is damaged: refuse the filesystem, or count it as used. */
export type Damage = "refuse" | "count as used";

/** With `damage: "refuse"` @throws Refused for the first damaged descriptor. */
export async function readGroups(device: BlockDevice, sb: Superblock, damage: Damage): Promise<GroupTable> {
  const table: GroupTable = {
    blockBitmap: new Float64Array(sb.groups),
    inodeBitmap: new Float64Array(sb.groups),
    inodeTable: new Float64Array(sb.groups),
    freeClusters: new Uint32Array(sb.groups),
    freeInodes: new Uint32Array(sb.groups),
    unusedInodes: new Uint32Array(sb.groups),
    flags: new Uint8Array(sb.groups),
    blockBitmapChecksum: new Uint32Array(sb.groups),
    inodeBitmapChecksum: new Uint32Array(sb.groups),
  };
  const perRead = Math.max(1, Math.floor(READ_BYTES_MAX / sb.blockBytes));
  for (let index = 0; index < sb.descriptorBlocks;) {
    const at = descriptorBlock(sb, index);
    let count = 1;
    while (
      count < perRead &&
      index + count < sb.descriptorBlocks &&
      descriptorBlock(sb, index + count) === at + count
    ) {
      count++;
    }
    if (at + count > sb.blocks) throw damaged(`group descriptor block ${index} lies at ${at}, past the end`);
    const bytes = new Uint8Array(count * sb.blockBytes);
    await device.read(at * sb.blockBytes, bytes);
    const first = index * sb.descriptorsPerBlock;
    const end = Math.min(sb.groups, first + count * sb.descriptorsPerBlock);
    const view = viewOf(bytes);
    for (let group = first; group < end; group++) {
      try {
        decode(sb, table, group, bytes, view, (group - first) * sb.descriptorBytes);
      } catch (error) {
        if (!(error instanceof Refused) || damage === "refuse") throw error;
        table.flags[group] = DAMAGED;
      }
    }
    index += count;
  }
  return table;
}

function decode(
  sb: Superblock,
  table: GroupTable,
  group: number,
  bytes: Uint8Array,
  view: DataView,
  at: number,
): void {
  const found = view.getUint16(at + CHECKSUM_AT, true);
  const expected = checksum(sb, group, bytes, at);
  if (expected !== undefined && found !== expected)
    throw badChecksum(`group descriptor ${group}`, found, expected);

  const wide = sb.descriptorBytes >= 64;
  const u32 = (low: number, high: number) =>
    view.getUint32(at + low, true) + (wide ? view.getUint32(at + high, true) * 2 ** 32 : 0);
  const u16 = (low: number, high: number) =>
    view.getUint16(at + low, true) + (wide ? view.getUint16(at + high, true) * 2 ** 16 : 0);
  table.blockBitmap[group] = position(sb, group, "block bitmap", u32(0, 0x20), 1);
  table.inodeBitmap[group] = position(sb, group, "inode bitmap", u32(4, 0x24), 1);
  table.inodeTable[group] = position(sb, group, "inode table", u32(8, 0x28), sb.inodeTableBlocks);
  table.freeClusters[group] = u16(0xc, 0x2c);
  table.freeInodes[group] = u16(0xe, 0x2e);
  table.blockBitmapChecksum[group] = u16(0x18, 0x38);
  table.inodeBitmapChecksum[group] = u16(0x1a, 0x3a);
  if (sb.groupChecksum === "none") return;
  table.flags[group] = view.getUint16(at + 0x12, true) & (INODE_UNINIT | BLOCK_UNINIT);
  const unused = u16(0x1c, 0x32);
  if (unused > sb.inodesPerGroup) {
    throw damaged(`group ${group}: ${unused} unused inodes found, at most ${sb.inodesPerGroup} expected`);
  }
  table.unusedInodes[group] = unused;
}

/** What a descriptor's checksum speaks about: its number, then the descriptor. */
const numbered = new Uint8Array(4 + 1024);
const numberedView = viewOf(numbered);

/** The checksum that descriptor `group` should have; undefined where the filesystem keeps none. */
function checksum(sb: Superblock, group: number, bytes: Uint8Array, at: number): number | undefined {
  if (sb.groupChecksum === "none") return undefined;
  const end = 4 + sb.descriptorBytes;
  const field = 4 + CHECKSUM_AT;
  numberedView.setUint32(0, group, true);
  numbered.set(bytes.subarray(at, at + sb.descriptorBytes), 4);
  if (sb.groupChecksum === "crc16") {
    const crc = crc16(crc16(0xffff, sb.uuidBytes), numbered, 0, field);
    return crc16(crc, numbered, field + 2, end);
  }
  numberedView.setUint16(field, 0);
  return crc32c(sb.seed, numbered, 0, end) & 0xffff;
}

/** Checks that a structure lies inside the filesystem, and inside its group unless `flex_bg` lets it wander. */
function position(sb: Superblock, group: number, structure: string, block: number, count: number): number {
  const flexible = hasIncompat(sb, "flex_bg");
  const start = flexible ? sb.firstBlock : groupStart(sb, group);
  const end = flexible ? sb.blocks : groupEnd(sb, group);
  if (block < start || block + count > end) {
    throw damaged(
      `${structure} of group ${group}: block ${block} found, ${start} to ${end - count} expected`,
    );
  }
  return block;
}

/** Checks a bitmap against the descriptor. @returns what is wrong with it */
export function bitmapDamage(
  { sb, groups }: Volume,
  group: number,
  kind: "block" | "inode",
  bitmap: Uint8Array,
): Refused | undefined {
  if (!sb.checksums) return undefined;
  const bits = kind === "block" ? sb.clustersPerGroup : sb.inodesPerGroup;
  const found = (kind === "block" ? groups.blockBitmapChecksum : groups.inodeBitmapChecksum)[group]!;
  const whole = crc32c(sb.seed, bitmap, 0, bits / 8);
  const expected = sb.descriptorBytes >= 64 ? whole : whole & 0xffff;
  return found === expected ? undefined : badChecksum(`${kind} bitmap of group ${group}`, found, expected);
}
