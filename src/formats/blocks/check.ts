/**
 * What must hold of any table of blocks, and what of the file belongs to nobody.
 *
 *   error   a block outside the file, over a structure, or over another block
 *   leak    room for a whole block that the host has allocated and nothing refers to; `--repair leaks` punches it
 */
import { ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import { DiskError } from "../../error.ts";
import type { Wish } from "../../reclaim/plan.ts";
import { type Holes, holesIn, NO_HOLES } from "../../reclaim/holes.ts";
import type { Finding } from "../format.ts";
import { type BlockLayout, slotAt, strideOf } from "./layout.ts";

/** Findings told one by one; the rest are added up (H24). */
const TOLD_MAX = 100;

/** Errors of the table. @returns how many there are, and the first of them */
export function tableErrors(layout: BlockLayout): { count: number; told: readonly string[] } {
  const { table, file, tailBytes, blocksStartBytes, fixed } = layout;
  const stride = strideOf(layout);
  const end = file.bytes - tailBytes;
  const told: string[] = [];
  let count = 0;
  const add = (message: string) => {
    if (count++ < TOLD_MAX) told.push(message);
  };
  table.eachMapped(0, table.blocks, (block, slot) => {
    const at = slotAt(layout, slot);
    const where = `block ${block} at ${at}`;
    // The last block may be cut short, but not by a tail: its holes would be punched out of that.
    if (at >= end || (tailBytes > 0 && at + stride > end)) add(`${where}: the blocks end at ${end}`);
    else if (at < blocksStartBytes) add(`${where}: blocks begin at ${blocksStartBytes}`);
    else if (fixed.touches({ start: at, end: at + stride })) {
      add(`${where}: it lies over ${layout.structureAt(at) ?? "a structure"}`);
    }
  });
  const slots = slotsOf(layout);
  for (let i = 1; i < slots.length; i++) {
    const [before, at] = [slotAt(layout, slots[i - 1]!), slotAt(layout, slots[i]!)];
    if (at < before + stride) add(`two blocks of ${stride} bytes lie at ${before} and ${at}`);
  }
  return { count, told };
}

/** The slots of all mapped blocks but those numbered in `dropped`, ascending. */
export function slotsOf({ table }: BlockLayout, dropped = ExtentSet.EMPTY): Uint32Array {
  let count = 0;
  table.eachMapped(0, table.blocks, () => count++);
  const slots = new Uint32Array(count);
  let used = 0;
  let isAscending = true;
  table.eachMapped(0, table.blocks, (block, slot) => {
    if (dropped.has(block)) return;
    if (used > 0 && slot < slots[used - 1]!) isAscending = false;
    slots[used++] = slot;
  });
  const found = slots.subarray(0, used);
  return isAscending ? found : found.sort();
}

/** @throws DiskError `corrupt` when the table has errors: nothing may be written then (H17) */
export function requireWhole(layout: BlockLayout): void {
  const { told } = tableErrors(layout);
  if (told[0] === undefined) return;
  throw new DiskError("corrupt", told[0], { hint: "restore the image from a copy, or convert it" });
}

/** File ranges between the blocks that neither a block nor a structure holds; without what `dropped` blocks held. */
export function garbageOf(layout: BlockLayout, dropped = ExtentSet.EMPTY): ExtentSet {
  const { blocksStartBytes, file, tailBytes, fixed } = layout;
  const end = Math.max(blocksStartBytes, file.bytes - tailBytes);
  return ExtentSet.of({ start: blocksStartBytes, end }).subtract(fixed).subtract(liveBlocks(layout, dropped));
}

/** File ranges of all mapped blocks but those numbered in `dropped`. */
export function liveBlocks(layout: BlockLayout, dropped: ExtentSet): ExtentSet {
  const places = new ExtentBuilder();
  const stride = strideOf(layout);
  layout.table.eachMapped(0, layout.table.blocks, (block, slot) => {
    if (dropped.has(block)) return;
    const at = slotAt(layout, slot);
    places.add(at, at + stride);
  });
  return places.build();
}

/** Slots that fit into `gaps`, ascending, none over another. */
export function* roomsIn(layout: BlockLayout, gaps: ExtentSet): Generator<number> {
  const { baseBytes, unitBytes } = layout;
  const stride = strideOf(layout);
  for (let i = 0; i < gaps.count; i++) {
    let slot = Math.max(0, Math.ceil((gaps.start(i) - baseBytes) / unitBytes));
    for (; slotAt(layout, slot) + stride <= gaps.end(i); slot += Math.ceil(stride / unitBytes)) yield slot;
  }
}

/** Host space that nothing refers to. */
export async function leaksOf(layout: BlockLayout): Promise<Holes> {
  const { blockBytes, hostBytes } = await layout.file.stat();
  // Behind the last block of an image on a block device lies whatever was there before.
  if (hostBytes === null) return NO_HOLES;
  const wish: Pick<Wish, "punch" | "minHoleBytes" | "hostBlockBytes"> = {
    punch: true,
    minHoleBytes: 0,
    hostBlockBytes: blockBytes,
  };
  const none = ExtentSet.EMPTY;
  const garbage = garbageOf(layout).atLeast(strideOf(layout));
  return holesIn(layout.file, { garbage, freed: none, inside: none, blank: none }, wish);
}

export async function* checkBlocks(layout: BlockLayout): AsyncGenerator<Finding> {
  const { count, told } = tableErrors(layout);
  for (const message of told) yield { kind: "error", isMendable: false, count: 1, message };
  if (count > told.length) {
    const message = `${count - told.length} more errors`;
    yield { kind: "error", isMendable: false, count: count - told.length, message };
  }
  // Where blocks overlap, what belongs to nobody is not known either.
  if (count > 0) return;
  const stride = strideOf(layout);
  const { punched } = await leaksOf(layout);
  const leaked = punched.atLeast(stride);
  for (let i = 0; i < leaked.count && i < TOLD_MAX; i++) {
    const [start, end] = [leaked.start(i), leaked.end(i)];
    const message = `${end - start} bytes at ${start} belong to no block`;
    yield { kind: "leak", isMendable: false, count: Math.floor((end - start) / stride), message };
  }
  if (leaked.count > TOLD_MAX) {
    let rest = 0;
    for (let i = TOLD_MAX; i < leaked.count; i++)
      rest += Math.floor((leaked.end(i) - leaked.start(i)) / stride);
    yield { kind: "leak", isMendable: false, count: rest, message: `${rest} more places for blocks` };
  }
}
