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

/** In bytes of the host's disk; on a block device, which has no such figure, the bytes that will be discarded. */
export async function predict(
  plan: Plan,
  image: Image,
  files: ReadonlyMap<string, FileAllocation>,
): Promise<number> {
  const moved = plan.packBytes > 0 ? await moves(plan, files) : new Map<string, Moves>();
  let bytes = 0;
  for (const [name, file] of image.files) {
    const { blockBytes } = await file.stat();
    const { allocated, shared } = files.get(name)!;
    const { written, targets, truncatedTo } = moved.get(name) ?? unmoved();
    const end = Math.ceil(file.bytes / blockBytes) * blockBytes;
    const cut = truncatedTo < end ? ExtentSet.of({ start: truncatedTo, end }) : ExtentSet.EMPTY;
    const filled = written.build().alignOutward(blockBytes).subtract(cut);
    const punched = plan.punched.get(name) ?? ExtentSet.EMPTY;
    const given = punched.union(targets.build()).union(cut).alignInward(blockBytes);
    const owned = allocated.alignOutward(blockBytes).subtract(shared);
    bytes += given.subtract(filled).intersect(owned).bytes - filled.subtract(allocated).bytes;
  }
  return bytes;
}

/** What packing does to a file. */
interface Moves {
  /** Where something is copied to; what is a hole at its source becomes one there. */
  readonly targets: ExtentBuilder;
  /** The part of them that gets data. */
  readonly written: ExtentBuilder;
  truncatedTo: number;
}

function unmoved(): Moves {
  return { targets: new ExtentBuilder(), written: new ExtentBuilder(), truncatedTo: Infinity };
}

async function moves(
  plan: Plan,
  allocations: ReadonlyMap<string, FileAllocation>,
): Promise<Map<string, Moves>> {
  const files = new Map<string, Moves>();
  for await (const batch of plan.batches()) {
    for (const step of batch) {
      if (step.op !== "copy" && step.op !== "truncate") continue;
      let file = files.get(step.file);
      if (!file) files.set(step.file, (file = unmoved()));
      if (step.op === "copy") {
        file.targets.add(step.to, step.to + step.from.end - step.from.start);
        for (const { start, end } of allocations.get(step.file)!.allocated.within(step.from)) {
          file.written.add(start - step.from.start + step.to, end - step.from.start + step.to);
        }
      }
      if (step.op === "truncate") file.truncatedTo = Math.min(file.truncatedTo, step.bytes);
    }
  }
  return files;
}
