/**
 * The plan that gives back what the guest no longer uses, for every format that maps blocks of equal length.
 *
 *   wholly unwanted    unmapped: the entry says what `freed` says, and the block's place in the file is punched
 *   partly unwanted    holes at the host, inside of the block
 *
 *   prepare │ entries unmapped │ freed blocks and holes punched │ packing
 *         flush              flush                            flush
 *
 * Nobody's bytes between the blocks are punched too: an interrupted run leaves its freed blocks there. No format here
 * keeps a map of what is free: who needs a block takes the end of the file, or looks for gaps when it opens the image.
 * Hence nothing is released, and no punch can come too late for a new owner (H12).
 *
 * After it a free range reads zeros or is unchanged, never the parent or stale data (H9): where a format cannot say
 * "zeros" above a parent the block stays mapped and is punched.
 */
import { ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice } from "../../device/device.ts";
import { batched } from "../../reclaim/batched.ts";
import { type Holes, holesIn, holeSteps } from "../../reclaim/holes.ts";
import { EMPTY_PLAN, type Plan, type Wish } from "../../reclaim/plan.ts";
import { requireZeros } from "../../reclaim/zeros.ts";
import { garbageOf, leaksOf, requireWhole } from "./check.ts";
import { eachPlace } from "./disk.ts";
import { type Change, entryPatches } from "./entries.ts";
import { type BlockLayout, slotAt, strideOf } from "./layout.ts";
import { planPacking } from "./pack.ts";

/**
 * Reads only.
 * @param guest the disk as the guest reads it, for ranges that must be zeros already
 * @throws DiskError `corrupt` when the table has errors (H17), `refused`
 */
export async function planBlocks(
  layout: BlockLayout,
  asked: Wish,
  guest: Pick<BlockDevice, "read">,
): Promise<Plan> {
  requireWhole(layout);
  await requireZeros(await unreachable(layout, asked), guest);
  const isFile = (await layout.file.stat()).hostBytes !== null;
  // A block device keeps its length: what only packing unmaps would leave a gap there (VDI).
  const wish = { ...asked, pack: asked.pack && isFile };
  const dropped = droppedBlocks(layout, wish, wish.pack);
  const holes = await holesFor(layout, wish, dropped, isFile);
  const pack = () => planPacking(layout, droppedBlocks(layout, wish, true));
  const packing = wish.pack ? pack() : undefined;
  const isNothing = dropped.count + holes.punched.count + holes.zeroed.count === 0 && !packing?.packBytes;
  const packableBytes = async () => (isFile ? (packing ?? pack()).packBytes : 0);
  if (isNothing) return { ...EMPTY_PLAN, packableBytes };
  return {
    unmapBytes: guestBytes(layout, dropped),
    punchBytes: holes.otherBytes,
    packBytes: packing?.packBytes ?? 0,
    punched: new Map([[layout.fileName, holes.punched]]),
    packableBytes,
    async *batches() {
      if (layout.prepare) yield* layout.prepare(wish);
      yield* batched(entryPatches(layout, () => unmapped(layout, wish, dropped)));
      yield* batched(holeSteps(layout.fileName, holes));
      if (packing) yield* packing.batches();
    },
  };
}

/** Gives back what belongs to no block, and touches nothing else. */
export async function planLeaks(layout: BlockLayout): Promise<Plan> {
  requireWhole(layout);
  const holes = await leaksOf(layout);
  return {
    ...EMPTY_PLAN,
    leakedBytes: holes.punched.bytes,
    punched: new Map([[layout.fileName, holes.punched]]),
    async *batches() {
      yield* batched(holeSteps(layout.fileName, holes));
    },
  };
}

/** What the entries of unwanted blocks become; undefined: they stay. */
function freedBy({ freed, freedByPacking }: BlockLayout, pack: boolean): number | undefined {
  return pack ? (freedByPacking ?? freed) : freed;
}

/** What nobody wants, with the part of the last block that lies behind the end of the disk. */
function unwanted({ bytes, blockBytes, table }: BlockLayout, { free, blank }: Wish): ExtentSet {
  const beyond = { start: bytes, end: table.blocks * blockBytes };
  return free.union(blank).within({ start: 0, end: bytes }).union(ExtentSet.of(beyond));
}

/** Numbers of the mapped blocks that are wholly unwanted and may be unmapped. */
function droppedBlocks(layout: BlockLayout, wish: Wish, pack: boolean): ExtentSet {
  if (freedBy(layout, pack) === undefined) return ExtentSet.EMPTY;
  const { blockBytes, table, keeps } = layout;
  const blocks = new ExtentBuilder();
  for (const { start, end } of unwanted(layout, wish).alignInward(blockBytes)) {
    table.eachMapped(start / blockBytes, end / blockBytes, (block) => {
      if (pack || !keeps?.(block)) blocks.add(block, block + 1);
    });
  }
  return blocks.build();
}

function guestBytes({ blockBytes, bytes }: BlockLayout, blocks: ExtentSet): number {
  let sum = 0;
  for (let i = 0; i < blocks.count; i++) {
    sum += Math.min(bytes, blocks.end(i) * blockBytes) - Math.min(bytes, blocks.start(i) * blockBytes);
  }
  return sum;
}

function* unmapped(layout: BlockLayout, wish: Wish, dropped: ExtentSet): Generator<Change> {
  const slot = freedBy(layout, wish.pack)!;
  for (const { start, end } of dropped) for (let block = start; block < end; block++) yield { block, slot };
}

async function holesFor(
  layout: BlockLayout,
  wish: Wish,
  dropped: ExtentSet,
  isFile: boolean,
): Promise<Holes> {
  const { blockBytes, file, table } = layout;
  const gone = new ExtentBuilder();
  for (const { start, end } of dropped) gone.add(start * blockBytes, end * blockBytes);
  const stays = (set: ExtentSet) => placesOf(layout, set.subtract(gone.build()));
  const freed = new ExtentBuilder();
  for (const { start, end } of dropped) {
    table.eachMapped(start, end, (_, slot) => {
      freed.add(slotAt(layout, slot), slotAt(layout, slot) + strideOf(layout));
    });
  }
  const candidates = {
    garbage: isFile ? garbageOf(layout, dropped) : freed.build(),
    freed: freed.build(),
    inside: stays(unwanted(layout, wish)),
    blank: stays(wish.blank),
  };
  return holesIn(file, candidates, wish);
}

/** Where the mapped part of a guest set lies in the file. */
function placesOf(layout: BlockLayout, set: ExtentSet): ExtentSet {
  const places = new ExtentBuilder(set.count);
  eachPlace(layout, set, (at, bytes) =>
    places.add(at, Math.min(at + bytes, Math.max(at, layout.file.bytes))),
  );
  return places.build();
}

/** The part of `blank` that a parent holds: nothing here makes it read as zeros. */
async function unreachable(layout: BlockLayout, { blank }: Wish): Promise<ExtentSet> {
  const { parent, bytes, blockBytes, table, held } = layout;
  if (parent === undefined || blank.count === 0) return ExtentSet.EMPTY;
  const here = new ExtentBuilder();
  const wanted = blank.within({ start: 0, end: bytes });
  for (const block of wanted.spans(blockBytes)) {
    const base = block * blockBytes;
    if (!table.isMapped(block)) {
      if (table.nextPresent(block, block + 1) === block) here.add(base, base + blockBytes);
      continue;
    }
    const part = (await held?.(block)) ?? ExtentSet.of({ start: 0, end: blockBytes });
    for (const { start, end } of part) here.add(base + start, base + end);
  }
  return wanted.subtract(here.build());
}
