/**
 * A flat extent: the guest's bytes as they are, from some sector of a file on. To free is to punch.
 */
import { ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import type { ReadableFile } from "../../device/device.ts";
import { slice } from "../../device/slice.ts";
import { batched } from "../../reclaim/batched.ts";
import { EMPTY_PLAN, type Plan, type Step, type Wish } from "../../reclaim/plan.ts";
import { mustLieInside } from "./corrupt.ts";
import { NO_TABLES, type Part } from "./part.ts";

export interface FlatPlace<F extends ReadableFile> {
  readonly file: F;
  readonly fileName: string;
  readonly type: string;
  /** Where the extent begins in the file. */
  readonly at: number;
  readonly bytes: number;
}

export interface FlatExtent<F extends ReadableFile> extends Part {
  readonly fileName: string;
  readonly place: FlatPlace<F>;
}

/** @throws DiskError `corrupt` where the file is too short */
export async function openFlat<F extends ReadableFile>(place: FlatPlace<F>): Promise<FlatExtent<F>> {
  const { file, fileName, type, at, bytes } = place;
  mustLieInside(file, `flat extent "${fileName}"`, at, bytes);
  return {
    ...NO_TABLES,
    type,
    fileName,
    place,
    device: slice(file, { start: at, end: at + bytes }),
    grainBytes: (await file.stat()).blockBytes,
    refusal: undefined,
    plan: (wish) => planFlat(place, wish),
  };
}

async function planFlat<F extends ReadableFile>(
  { file, fileName, at, bytes }: FlatPlace<F>,
  wish: Wish,
): Promise<Plan> {
  const inFile = (set: ExtentSet) => set.within({ start: 0, end: bytes }).shift(at);
  const blank = inFile(wish.blank);
  if (wish.pack || !wish.punch) return stepsOf(fileName, ExtentSet.EMPTY, blank);
  const { hostBlockBytes, minHoleBytes } = wish;
  const holes = new ExtentBuilder();
  const owned = new ExtentBuilder();
  for await (const runs of file.map({ start: at, end: at + bytes })) {
    for (const { start, end, kind, shared } of runs) {
      if (kind === "hole") holes.add(start, end);
      else if (!shared) owned.add(start, end);
    }
  }
  const free = inFile(wish.free).alignInward(hostBlockBytes);
  const large = free.union(holes.build()).atLeast(minHoleBytes);
  const worth = free.intersect(large).intersect(owned.build()).alignInward(hostBlockBytes);
  const blankBlocks = blank.alignInward(hostBlockBytes);
  return stepsOf(fileName, worth.union(blankBlocks), blank.subtract(blankBlocks));
}

function stepsOf(file: string, punches: ExtentSet, zeros: ExtentSet): Plan {
  return {
    ...EMPTY_PLAN,
    punchBytes: punches.bytes,
    punched: new Map([[file, punches]]),
    async *batches() {
      yield* batched(steps("zero", file, zeros));
      yield* batched(steps("punch", file, punches));
    },
  };
}

function* steps(op: "zero" | "punch", file: string, ranges: ExtentSet): Generator<Step> {
  for (const range of ranges) yield { file, op, range };
}
