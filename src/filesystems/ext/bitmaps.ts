/**
 * The block bitmaps: the allocation map's claim of what is free.
 *
 *   group g:   | 1 1 1 0 0 1 … |    bit i: blocks [start + i * ratio, start + (i + 1) * ratio), 1 is in use
 *
 * With bigalloc a bit is a cluster of `ratio` blocks. A group marked BLOCK_UNINIT has no bitmap on disk; only the
 * fixed structures in it are in use. Documentation/filesystems/ext4/bitmaps.rst of Linux.
 */
import { ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import { bitmapDamage, BLOCK_UNINIT, DAMAGED, type Damage, type GroupTable, type Volume } from "./groups.ts";
import { fixedStructures, groupEnd, groupStart } from "./layout.ts";
import { readScattered } from "../reading.ts";
import type { Refused } from "../refused.ts";
import { contradiction } from "./refused.ts";
import type { Superblock } from "./superblock.ts";

/** The free blocks in bytes. With `damage: "refuse"` @throws Refused for the first damaged bitmap. */
export async function freeExtents(volume: Volume, damage: Damage): Promise<ExtentSet> {
  const { sb, groups } = volume;
  const free = new ExtentBuilder(sb.groups);
  const judge = (finding: Refused | undefined) => {
    if (finding !== undefined && damage === "refuse") throw finding;
    return finding === undefined;
  };
  const mapped: number[] = [];
  for (let group = 0; group < sb.groups; group++) {
    if ((groups.flags[group]! & (BLOCK_UNINIT | DAMAGED)) === 0) mapped.push(group);
  }
  const positions = mapped.map((group) => groups.blockBitmap[group]!);
  await readScattered(volume.device, sb.blockBytes, positions, (index, bitmap) => {
    const group = mapped[index]!;
    if (!judge(bitmapDamage(volume, group, "block", bitmap))) return;
    const runs: number[] = [];
    let count = 0;
    clearRuns(bitmap, clusters(sb, group), (start, end) => {
      runs.push(start, end);
      count += end - start;
    });
    if (!judge(countDamage(groups, group, count))) return;
    for (let i = 0; i < runs.length; i += 2) addClusters(sb, free, group, runs[i]!, runs[i + 1]!);
  });
  return free.build().union(uninitialised(volume, judge));
}

/** What is free in the groups without a bitmap: all but the fixed structures. */
function uninitialised({ sb, groups }: Volume, judge: (finding: Refused | undefined) => boolean): ExtentSet {
  const fixed = fixedStructures(sb, groups).alignOutward(sb.clusterBytes);
  const free = new ExtentBuilder();
  for (let group = 0; group < sb.groups; group++) {
    if ((groups.flags[group]! & BLOCK_UNINIT) === 0) continue;
    const all = clusters(sb, group);
    const start = groupStart(sb, group) * sb.blockBytes;
    const taken = fixed.within({ start, end: start + all * sb.clusterBytes }).bytes / sb.clusterBytes;
    if (judge(countDamage(groups, group, all - taken))) addClusters(sb, free, group, 0, all);
  }
  return free.build().subtract(fixed);
}

/** Clusters of `group`, the last of the filesystem rounded up. */
function clusters(sb: Superblock, group: number): number {
  return Math.ceil((groupEnd(sb, group) - groupStart(sb, group)) / sb.clusterBlocks);
}

/** Adds clusters `[start, end)` of a group; a last one that the end of the filesystem cuts is kept. */
function addClusters(sb: Superblock, free: ExtentBuilder, group: number, start: number, end: number): void {
  const base = groupStart(sb, group);
  const whole = Math.floor((groupEnd(sb, group) - base) / sb.clusterBlocks);
  const last = Math.min(end, whole);
  if (start >= last) return;
  free.add(
    (base + start * sb.clusterBlocks) * sb.blockBytes,
    (base + last * sb.clusterBlocks) * sb.blockBytes,
  );
}

/** The kernel stops using a group when these two differ; without checksums it is the only sign of a torn bitmap. */
function countDamage(groups: GroupTable, group: number, count: number): Refused | undefined {
  const expected = groups.freeClusters[group]!;
  if (count === expected) return undefined;
  return contradiction(`block bitmap of group ${group}: ${count} free clusters found, ${expected} expected`);
}

/** Calls `found` for every maximal run of clear bits among the first `bits`, a word at a time. */
export function clearRuns(
  bitmap: Uint8Array,
  bits: number,
  found: (start: number, end: number) => void,
): void {
  const words = new Int32Array(bitmap.buffer, bitmap.byteOffset, Math.ceil(bits / 32));
  let start = -1;
  for (let index = 0; index < words.length; index++) {
    const word = words[index]!;
    if (word === (start < 0 ? -1 : 0)) continue;
    let bit = 0;
    while (bit < 32) {
      const wanted = (start < 0 ? ~word : word) & (-1 << bit);
      if (wanted === 0) break;
      bit = 31 - Math.clz32(wanted & -wanted);
      const at = index * 32 + bit;
      if (at >= bits) break;
      if (start < 0) {
        start = at;
      } else {
        found(start, at);
        start = -1;
      }
    }
  }
  if (start >= 0) found(start, bits);
}
