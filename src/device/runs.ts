/**
 * Maps of layered devices: runs of a parent seen through its child, and neighbours joined.
 */
import type { Extent } from "../bytes/extents.ts";
import type { BlockDevice, Run } from "./device.ts";

/** What backs a range that is the parent's; behind the parent's end, and without one, a hole. */
export async function* parentRuns(
  parent: BlockDevice | undefined,
  range: Extent,
): AsyncGenerator<readonly Run[]> {
  const end = Math.min(range.end, parent?.bytes ?? 0);
  if (range.start < end) {
    for await (const batch of parent!.map({ start: range.start, end })) {
      yield batch.map((run) => ({ ...run, depth: run.depth + 1 }));
    }
  }
  const start = Math.max(range.start, end);
  if (start < range.end) yield [{ start, end: range.end, kind: "hole", shared: false, depth: 0 }];
}

/** The two runs as one, where they are alike and follow each other in the file too. */
function joinedRun(first: Run, second: Run): Run | undefined {
  if (first.kind !== second.kind || first.shared !== second.shared || first.depth !== second.depth)
    return undefined;
  if (first.kind === "compressed") return undefined;
  const { place } = first;
  if (place === undefined) return second.place === undefined ? { ...first, end: second.end } : undefined;
  if (second.place?.file !== place.file || second.place.at !== place.at + place.bytes) return undefined;
  return { ...first, end: second.end, place: { ...place, bytes: place.bytes + second.place.bytes } };
}

/** The same runs, where they are alike and follow each other as one. */
export async function* joined(batches: AsyncIterable<readonly Run[]>): AsyncGenerator<readonly Run[]> {
  let last: Run | undefined;
  for await (const batch of batches) {
    const merged: Run[] = [];
    for (const run of batch) {
      const both = last && joinedRun(last, run);
      if (last !== undefined && both === undefined) merged.push(last);
      last = both ?? run;
    }
    if (merged.length > 0) yield merged;
  }
  if (last !== undefined) yield [last];
}
