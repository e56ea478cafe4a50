/**
 * Proof after the deed: what the guest uses still reads the same, and still lies where it lay.
 */
import { createHash } from "node:crypto";
import type { ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import { DiskError } from "../error.ts";
import type { Progress } from "./results.ts";

const SLICE_BYTES = 1 << 20;

/** SHA-256 over the bytes of `ranges`, in order. @throws DiskError `interrupted`, `io` */
export async function contentHash(
  device: BlockDevice,
  ranges: ExtentSet,
  options: {
    readonly phase: Progress["phase"];
    readonly signal?: AbortSignal | undefined;
    readonly onProgress?: ((progress: Progress) => void) | undefined;
  },
): Promise<string> {
  const hash = createHash("sha256");
  const buffer = new Uint8Array(SLICE_BYTES);
  let doneBytes = 0;
  for (const { start, end } of ranges) {
    for (let at = start; at < end; at += SLICE_BYTES) {
      if (options.signal?.aborted)
        throw new DiskError("interrupted", "interrupted while hashing; nothing was changed");
      const part = buffer.subarray(0, Math.min(SLICE_BYTES, end - at));
      await device.read(at, part);
      hash.update(part);
      doneBytes += part.length;
      options.onProgress?.({ phase: options.phase, doneBytes, totalBytes: ranges.bytes });
    }
  }
  return hash.digest("hex");
}

/**
 * SHA-256 over how `ranges` are mapped: kinds, and with `places` where in the files they lie. Equal before and after a
 * punch; a pack moves places and keeps kinds. Holes and zeros count as one kind.
 */
export async function mapHash(device: BlockDevice, ranges: ExtentSet, places: boolean): Promise<string> {
  const hash = createHash("sha256");
  let pending: { kind: string; start: number; end: number; at: number } | undefined;
  const flush = () => {
    if (pending) hash.update(`${pending.kind} ${pending.start} ${pending.end} ${pending.at}\n`);
  };
  for await (const batch of device.map({ start: 0, end: device.bytes })) {
    for (const run of batch) {
      const part = ranges.within(run);
      for (let i = 0; i < part.count; i++) {
        const start = part.start(i);
        const kind = run.kind === "hole" ? "zero" : run.kind;
        const at = places && run.place && kind !== "zero" ? run.place.at + start - run.start : -1;
        if (pending && pending.kind === kind && pending.end === start && follows(pending, at)) {
          pending.end = part.end(i);
          continue;
        }
        flush();
        pending = { kind, start, end: part.end(i), at };
      }
    }
  }
  flush();
  return hash.digest("hex");
}

function follows(before: { start: number; end: number; at: number }, at: number): boolean {
  return before.at === -1 ? at === -1 : before.at + before.end - before.start === at;
}
