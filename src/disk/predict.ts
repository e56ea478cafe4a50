/**
 * What a plan will return on this host: the promise that is compared with the result after every run.
 *
 * Counted are whole host blocks that are allocated and unshared now and lie in a punch or behind a truncation, less
 * what copies into holes will allocate. Not counted is the host's own metadata.
 */
import { ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import type { Image } from "../formats/format.ts";
import type { Plan } from "../reclaim/plan.ts";
import type { FileAllocation } from "./allocation.ts";

interface Tally {
  readonly punched: ExtentBuilder;
  readonly written: ExtentBuilder;
  truncatedTo: number;
}

/** In bytes of the host's disk; on a block device, which has no such figure, the bytes that will be discarded. */
export async function predict(
  plan: Plan,
  image: Image,
  files: ReadonlyMap<string, FileAllocation>,
): Promise<number> {
  const tallies = new Map<string, Tally>();
  for await (const batch of plan.batches()) {
    for (const step of batch) {
      let tally = tallies.get(step.file);
      if (!tally) {
        tally = { punched: new ExtentBuilder(), written: new ExtentBuilder(), truncatedTo: Infinity };
        tallies.set(step.file, tally);
      }
      if (step.op === "punch") tally.punched.add(step.range.start, step.range.end);
      else if (step.op === "copy") tally.written.add(step.to, step.to + step.from.end - step.from.start);
      else if (step.op === "truncate") tally.truncatedTo = Math.min(tally.truncatedTo, step.bytes);
    }
  }
  let bytes = 0;
  for (const [name, tally] of tallies) {
    const file = image.files.get(name)!;
    const { blockBytes } = await file.stat();
    const { allocated, shared } = files.get(name)!;
    const end = Math.max(file.bytes, Math.ceil(file.bytes / blockBytes) * blockBytes);
    const cut = tally.truncatedTo < end ? ExtentSet.of({ start: tally.truncatedTo, end }) : ExtentSet.EMPTY;
    const written = tally.written.build().alignOutward(blockBytes).subtract(cut);
    const given = tally.punched.build().union(cut).alignInward(blockBytes).subtract(written);
    bytes += given.intersect(allocated.alignOutward(blockBytes).subtract(shared)).bytes;
    bytes -= written.subtract(allocated).bytes;
  }
  return bytes;
}
