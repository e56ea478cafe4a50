/**
 * Packing: blocks of the tail move into the gaps before it, and the file is cut.
 *
 *   before   |structures|a| |b| | |c|d| |e|tail|      gaps: freed just before, or nobody's
 *   after    |structures|a|e|b|d|c|tail|
 *
 *   each round:  copy → repoint → counts, tail → cut      a flush at every arrow (H15)
 *
 * A gap belongs to nobody on stable storage before anything is copied into it, and a table of blocks has no counts to
 * claim it with: until the entry is repointed the copy is garbage, afterwards its source is. Rounds take the tail
 * first, so that little space is needed beside the file. A block that is partly free moves whole.
 */
import type { ExtentSet } from "../../bytes/extents.ts";
import { batched } from "../../reclaim/batched.ts";
import type { Step } from "../../reclaim/plan.ts";
import { garbageOf, roomsIn, slotsOf } from "./check.ts";
import { type Change, entryPatches } from "./entries.ts";
import { type BlockLayout, type BlocksEnd, slotAt, strideOf } from "./layout.ts";

const ROUND_BYTES_MAX = 256 * 2 ** 20;
const ROUND_MOVES_MAX = 16384;
/** What a larger file would still gain comes with the next run. */
const MOVES_MAX = 4 * 2 ** 20;

export interface Packing {
  /** By how much the file gets shorter. */
  readonly packBytes: number;
  batches(): AsyncIterable<readonly Step[]>;
}

/** Blocks to move, from the tail on; number `i` of every array belongs to one of them. */
interface Moves {
  readonly blocks: readonly number[];
  readonly targets: readonly number[];
  /** One more than the highest slot of the blocks that stay. */
  readonly stayingSlots: number;
}

/** Plans for the image as it will be when the blocks numbered in `dropped` are unmapped. */
export function planPacking(layout: BlockLayout, dropped: ExtentSet): Packing {
  const moves = chooseMoves(layout, dropped);
  const { file, tailBytes } = layout;
  const end = endAfter(layout, moves, moves.blocks.length);
  return {
    packBytes: Math.max(0, file.bytes - tailBytes - end.bytes),
    batches: () => rounds(layout, moves, end),
  };
}

/** The table may be as long as the format allows: beside its slots only what moves is kept in memory (H24). */
function chooseMoves(layout: BlockLayout, dropped: ExtentSet): Moves {
  const { table } = layout;
  const slots = slotsOf(layout, dropped);
  const targets: number[] = [];
  let staying = slots.length;
  for (const slot of roomsIn(layout, garbageOf(layout, dropped))) {
    if (staying === 0 || slots[staying - 1]! <= slot || targets.length === MOVES_MAX) break;
    targets.push(slot);
    staying--;
  }
  const lowest = slots[staying] ?? Infinity;
  const moving: { readonly block: number; readonly slot: number }[] = [];
  table.eachMapped(0, table.blocks, (block, slot) => {
    if (slot >= lowest && !dropped.has(block)) moving.push({ block, slot });
  });
  moving.sort((a, b) => b.slot - a.slot);
  const stayingSlots = staying === 0 ? 0 : slots[staying - 1]! + 1;
  return { blocks: moving.map(({ block }) => block), targets, stayingSlots };
}

/** Where the blocks end when the first `count` moves are done. */
function endAfter(layout: BlockLayout, { blocks, targets, stayingSlots }: Moves, count: number): BlocksEnd {
  const { table, fixed, blocksStartBytes, endAlignBytes, file, tailBytes } = layout;
  let slots = stayingSlots;
  for (let i = 0; i < count; i++) slots = Math.max(slots, targets[i]! + 1);
  // Moves go from the tail on: the next one is the highest that is left.
  if (count < blocks.length) slots = Math.max(slots, table.get(blocks[count]!) + 1);
  const behindBlocks = slots === 0 ? 0 : slotAt(layout, slots - 1) + strideOf(layout);
  const behindFixed = fixed.count === 0 ? 0 : fixed.end(fixed.count - 1);
  const bytes = Math.max(behindBlocks, behindFixed, blocksStartBytes);
  const aligned = Math.ceil(bytes / endAlignBytes) * endAlignBytes;
  const now = file.bytes - tailBytes;
  // The tail is copied, and must not overlap itself.
  return { bytes: aligned + tailBytes > now ? now : aligned, slots };
}

async function* rounds(layout: BlockLayout, moves: Moves, last: BlocksEnd): AsyncGenerator<readonly Step[]> {
  const stride = strideOf(layout);
  const step = Math.min(ROUND_MOVES_MAX, Math.max(1, Math.floor(ROUND_BYTES_MAX / stride)));
  let length = layout.file.bytes;
  let before: BlocksEnd | undefined;
  for (let first = 0; ; first += step) {
    const count = Math.min(moves.blocks.length, first + step);
    yield* round(layout, moves, first, count);
    const end = count === moves.blocks.length ? last : endAfter(layout, moves, count);
    yield* cut(layout, end, before, length);
    length = Math.min(length, end.bytes + layout.tailBytes);
    before = end;
    if (count === moves.blocks.length) return;
  }
}

async function* round(
  layout: BlockLayout,
  { blocks, targets }: Moves,
  first: number,
  end: number,
): AsyncGenerator<readonly Step[]> {
  if (first === end) return;
  const { fileName, table } = layout;
  const stride = strideOf(layout);
  const copies: Step[] = [];
  const changes: Change[] = [];
  for (let i = first; i < end; i++) {
    const start = slotAt(layout, table.get(blocks[i]!));
    const to = slotAt(layout, targets[i]!);
    // The last block of a file may be cut short; the rest of it reads as zeros, there and here.
    const held = Math.min(stride, layout.file.bytes - start);
    copies.push({ file: fileName, op: "copy", from: { start, end: start + held }, to });
    if (held < stride) {
      copies.push({ file: fileName, op: "zero", range: { start: to + held, end: to + stride } });
    }
    changes.push({ block: blocks[i]!, slot: targets[i]! });
  }
  yield copies;
  changes.sort((a, b) => a.block - b.block);
  yield* batched(entryPatches(layout, () => changes));
}

/** @param length of the file before this cut */
function* cut(
  layout: BlockLayout,
  end: BlocksEnd,
  before: BlocksEnd | undefined,
  length: number,
): Generator<readonly Step[]> {
  const { fileName: file, tailBytes } = layout;
  if (end.bytes + tailBytes >= length) return;
  const steps: Step[] = [...(layout.ending?.(end, before) ?? [])];
  if (tailBytes > 0) {
    steps.push({ file, op: "copy", from: { start: length - tailBytes, end: length }, to: end.bytes });
  }
  if (steps.length > 0) yield steps;
  yield [{ file, op: "truncate", bytes: end.bytes + tailBytes }];
}
