/**
 * Where the fixed structures of every block group lie.
 *
 *   group with a backup:   | superblock | group descriptors | reserved descriptors | bitmaps, inode table, data … |
 *   first, second, last of a meta group (meta_bg):  | (superblock) | one descriptor block | … |
 *   any other group:       | bitmaps, inode table, data … |           flex_bg: those of its whole flex group, or none
 *
 * Documentation/filesystems/ext4/blockgroup.rst of Linux.
 */
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import { DAMAGED, type GroupTable } from "./groups.ts";
import { damaged } from "./refused.ts";
import { hasCompat, hasIncompat, hasRoCompat, type Superblock } from "./superblock.ts";

/** Blocks `[start, end)`. */
export interface BlockRange {
  readonly start: number;
  readonly end: number;
}

export function groupStart(sb: Superblock, group: number): number {
  return sb.firstBlock + group * sb.blocksPerGroup;
}

export function groupEnd(sb: Superblock, group: number): number {
  return Math.min(sb.blocks, groupStart(sb, group) + sb.blocksPerGroup);
}

/** Whether `group` starts with a copy of the superblock. */
export function hasSuperblock(sb: Superblock, group: number): boolean {
  if (group === 0) return true;
  if (hasCompat(sb, "sparse_super2")) return sb.backupGroups.includes(group);
  if (group === 1 || !hasRoCompat(sb, "sparse_super")) return true;
  return [3, 5, 7].some((base) => isPower(group, base));
}

function isPower(value: number, base: number): boolean {
  let power = base;
  while (power < value) power *= base;
  return power === value;
}

/** The block of the superblock copy at the start of `group`: behind the boot block when blocks are that small. */
function firstUsableBlock(sb: Superblock, group: number): number {
  return Math.max(groupStart(sb, group), sb.blockBytes === 1024 ? 1 : 0);
}

/** Whether the descriptors of `group` lie in its meta group and not behind the superblock. */
function usesMetaGroups(sb: Superblock, descriptorBlock: number): boolean {
  return hasIncompat(sb, "meta_bg") && descriptorBlock >= sb.firstMetaGroup;
}

/** Where block `index` of the group descriptor table lies: the copy that counts. */
export function descriptorBlock(sb: Superblock, index: number): number {
  if (!usesMetaGroups(sb, index)) return firstUsableBlock(sb, 0) + 1 + index;
  const group = index * sb.descriptorsPerBlock;
  return firstUsableBlock(sb, group) + (hasSuperblock(sb, group) ? 1 : 0);
}

export interface GroupHead {
  readonly superblock: BlockRange;
  readonly descriptors: BlockRange;
  readonly reservedDescriptors: BlockRange;
}

const NONE: BlockRange = { start: 0, end: 0 };

/** The superblock and descriptor copies at the start of `group`. */
export function groupHead(sb: Superblock, group: number): GroupHead {
  const start = firstUsableBlock(sb, group);
  const withSuperblock = hasSuperblock(sb, group);
  const superblock = withSuperblock ? { start, end: start + 1 } : NONE;
  const next = withSuperblock ? start + 1 : start;
  const metaGroup = Math.floor(group / sb.descriptorsPerBlock);
  if (usesMetaGroups(sb, metaGroup)) {
    const place = group % sb.descriptorsPerBlock;
    const holds = place === 0 || place === 1 || place === sb.descriptorsPerBlock - 1;
    return {
      superblock,
      descriptors: holds ? { start: next, end: next + 1 } : NONE,
      reservedDescriptors: NONE,
    };
  }
  if (!withSuperblock) return { superblock, descriptors: NONE, reservedDescriptors: NONE };
  const metaBg = hasIncompat(sb, "meta_bg");
  const end = next + (metaBg ? sb.firstMetaGroup : sb.descriptorBlocks);
  return {
    superblock,
    descriptors: { start: next, end },
    reservedDescriptors: metaBg ? NONE : { start: end, end: end + sb.reservedGdtBlocks },
  };
}

/** What a fixed structure is: part of its owner number. */
export const STRUCTURES = [
  "boot block",
  "superblock",
  "group descriptors",
  "reserved group descriptors",
  "block bitmap",
  "inode bitmap",
  "inode table",
  "multi-mount protection block",
] as const;
export type Structure = (typeof STRUCTURES)[number];

export type VisitStructure = (structure: Structure, group: number, start: number, end: number) => void;

/** Visits every fixed structure of the filesystem, in blocks; within a structure by ascending group. */
export function visitStructures(sb: Superblock, groups: GroupTable, visit: VisitStructure): void {
  if (sb.blockBytes === 1024) visit("boot block", 0, 0, 1);
  for (let group = 0; group < sb.groups; group++) {
    const head = groupHead(sb, group);
    const cut = groupEnd(sb, group);
    if (head.superblock.end > 0) visit("superblock", group, head.superblock.start, head.superblock.end);
    for (const [structure, range] of [
      ["group descriptors", head.descriptors],
      ["reserved group descriptors", head.reservedDescriptors],
    ] as const) {
      if (range.start < Math.min(range.end, cut))
        visit(structure, group, range.start, Math.min(range.end, cut));
    }
  }
  for (const [structure, at, blocks] of [
    ["block bitmap", groups.blockBitmap, 1],
    ["inode bitmap", groups.inodeBitmap, 1],
    ["inode table", groups.inodeTable, sb.inodeTableBlocks],
  ] as const) {
    for (let group = 0; group < sb.groups; group++) {
      if ((groups.flags[group]! & DAMAGED) === 0) visit(structure, group, at[group]!, at[group]! + blocks);
    }
  }
  if (hasIncompat(sb, "mmp")) visit("multi-mount protection block", 0, sb.mmpBlock, sb.mmpBlock + 1);
}

/**
 * The bytes of all fixed structures.
 * @throws Refused when two of them overlap
 */
export function fixedStructures(sb: Superblock, groups: GroupTable): ExtentSet {
  const builders = new Map<Structure, ExtentBuilder>();
  let bytes = 0;
  visitStructures(sb, groups, (structure, _group, start, end) => {
    let builder = builders.get(structure);
    if (builder === undefined) builders.set(structure, (builder = new ExtentBuilder()));
    builder.add(start * sb.blockBytes, end * sb.blockBytes);
    bytes += (end - start) * sb.blockBytes;
  });
  const all = [...builders.values()].map((builder) => builder.build()).reduce((sum, set) => sum.union(set));
  if (all.bytes !== bytes) {
    throw damaged(`group descriptors: ${bytes - all.bytes} bytes of metadata belong to two structures`);
  }
  return all;
}
