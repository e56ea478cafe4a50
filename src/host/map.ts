/**
 * From the host's extents to the runs of a device: gapless, ascending.
 *
 *   allocated            data
 *   allocated, unwritten zero, with its place: reads as zeros and still takes up the host's space
 *   not listed           hole
 *
 * A hole is what the host *says*; that it reads as zeros is to be read, not believed (H8).
 */
import type { Extent } from "../bytes/extents.ts";
import type { BlockDevice, PhysicalExtent, Run } from "../device/device.ts";
import type { Medium } from "./medium.ts";
import type { ExtentBatch } from "./platform.ts";
import { turn } from "./turns.ts";

/** What a batch tells about `range` of `file`, up to `batch.end`; without a batch everything is data. */
export function runsOf(file: BlockDevice, range: Extent, batch: ExtentBatch | undefined): Run[] {
  const allocated = (start: number, end: number, kind: "data" | "zero", shared: boolean): Run => {
    return { start, end, kind, place: { file, at: start, bytes: end - start }, shared, depth: 0 };
  };
  if (batch === undefined) return [allocated(range.start, range.end, "data", false)];
  const runs: Run[] = [];
  let at = range.start;
  for (const { start, end, unwritten, shared } of batch.extents) {
    if (start > at) runs.push({ start: at, end: start, kind: "hole", shared: false, depth: 0 });
    runs.push(allocated(start, end, unwritten ? "zero" : "data", shared));
    at = end;
  }
  if (at < batch.end) runs.push({ start: at, end: batch.end, kind: "hole", shared: false, depth: 0 });
  return runs;
}

/** Where the device below holds what is allocated of `range`; a block device is its own place. */
export async function* physicalExtents(
  { kind }: Medium,
  range: Extent,
  ask: (rest: Extent) => ExtentBatch | undefined,
): AsyncGenerator<readonly PhysicalExtent[]> {
  if (kind === "device") return yield [{ ...range, physical: range.start }];
  for (let at = range.start; at < range.end;) {
    const rest = { start: at, end: range.end };
    const batch = ask(rest);
    if (batch === undefined) return yield [{ ...rest, physical: undefined }];
    yield batch.extents.map(({ start, end, physical }) => ({ start, end, physical }));
    at = batch.end;
    await turn();
  }
}
