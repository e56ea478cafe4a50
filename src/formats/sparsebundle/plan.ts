/**
 * What a sparse bundle gives back: holes in its bands; or, when packing, the ends of its bands.
 *
 *   band       |####....##......|       # kept, . free
 *   punched    |####    ##      |       as long as before
 *   packed     |####....##|             nothing kept: a file of no bytes, which is removed when the bundle is closed
 *
 * What lies behind the end of a band's file, and a band without a file, read as zeros: so any subset of the steps is
 * harmless, and nothing has an order.
 */
import { ExtentSet } from "../../bytes/extents.ts";
import { batched } from "../../reclaim/batched.ts";
import { holesIn, holeSteps, type Holes } from "../../reclaim/holes.ts";
import type { Plan, Step, Wish } from "../../reclaim/plan.ts";
import type { Band } from "./band.ts";

/** A band's file, and the range of the disk that it holds. */
export interface Placed {
  readonly name: string;
  readonly file: Band;
  readonly start: number;
  readonly end: number;
}

interface Change {
  readonly name: string;
  readonly holes: Holes;
  /** The new length; undefined: as it is. */
  readonly cutTo: number | undefined;
}

export async function planBands(bands: readonly Placed[], wish: Wish): Promise<Plan> {
  const changes: Change[] = [];
  let packBytes = 0;
  for (const band of bands) {
    const change = await changeOf(band, wish);
    if (change.cutTo !== undefined) packBytes += band.file.bytes - change.cutTo;
    changes.push(change);
  }
  const punched = new Map(changes.map(({ name, holes }) => [name, holes.punched]));
  return {
    unmapBytes: 0,
    punchBytes: changes.reduce((sum, { holes }) => sum + holes.punched.bytes, 0),
    packBytes,
    punched,
    packableBytes: async () => bands.reduce((sum, band) => sum + band.file.bytes - keptEnd(band, wish), 0),
    batches: () => batched(stepsOf(changes)),
  };
}

async function changeOf(band: Placed, wish: Wish): Promise<Change> {
  const { name, file } = band;
  const end = wish.pack ? keptEnd(band, wish) : file.bytes;
  const inFile = (set: ExtentSet) =>
    set.within({ start: band.start, end: band.end }).shift(-band.start).within({ start: 0, end });
  const blank = inFile(wish.blank);
  const inside = wish.pack ? blank : inFile(wish.free).union(blank);
  const none = ExtentSet.EMPTY;
  const holes = await holesIn(
    file,
    { garbage: none, freed: none, inside, blank },
    { ...wish, punch: wish.punch && !wish.pack },
  );
  return { name, holes, cutTo: end < file.bytes ? end : undefined };
}

/** Length of the band's file up to its last byte that is wanted. */
function keptEnd({ file, start, end }: Placed, { free, blank }: Wish): number {
  const whole = { start, end: Math.min(end, start + file.bytes) };
  const kept = ExtentSet.of(whole).subtract(free.union(blank));
  return kept.count === 0 ? 0 : kept.end(kept.count - 1) - start;
}

function* stepsOf(changes: readonly Change[]): Generator<Step> {
  for (const { name, holes, cutTo } of changes) {
    yield* holeSteps(name, holes);
    if (cutTo !== undefined) yield { file: name, op: "truncate", bytes: cutTo };
  }
}
