/**
 * A disk as its guest sees it: what the guard masks reads as zeros, and has no place.
 */
import type { Extent } from "../../bytes/extents.ts";
import type { BlockDevice, Run } from "../../device/device.ts";
import { cut, HIDDEN, type PieceList } from "./pieces.ts";

export async function readMasked(
  below: BlockDevice,
  tops: PieceList,
  at: number,
  into: Uint8Array,
): Promise<void> {
  const range = { start: at, end: at + into.length };
  const masks = [...masksIn(tops, range)];
  if (masks.length === 0) return await below.read(at, into);
  let done = at;
  for (const { start, end } of [...masks, { start: range.end, end: range.end }]) {
    if (done < start) await below.read(done, into.subarray(done - at, start - at));
    into.fill(0, start - at, end - at);
    done = end;
  }
}

export async function* maskedRuns(
  batches: AsyncIterable<readonly Run[]>,
  tops: PieceList,
): AsyncGenerator<readonly Run[]> {
  for await (const runs of batches) yield runs.flatMap((run) => [...parts(run, tops)]);
}

function* parts(run: Run, tops: PieceList): Generator<Run> {
  let done = run.start;
  for (const { start, end } of masksIn(tops, run)) {
    if (done < start) yield partOf(run, done, start);
    yield { start, end, kind: "zero", shared: false, depth: 0 };
    done = end;
  }
  if (done < run.end) yield done === run.start ? run : partOf(run, done, run.end);
}

function partOf({ place, ...run }: Run, start: number, end: number): Run {
  const at = place && { ...place, at: place.at + start - run.start, bytes: end - start };
  return { ...run, start, end, ...(at && { place: at }) };
}

/** Cut to the range. */
function* masksIn(tops: PieceList, range: Extent): Generator<Extent> {
  for (const piece of tops.within(range)) if (piece.flags & HIDDEN) yield cut(piece, range);
}
