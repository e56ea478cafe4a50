/**
 * Copies a range inside a file. What is a hole stays a hole, so that packing gives back what punching gave back.
 */
import type { Extent } from "../bytes/extents.ts";
import type { HostFile } from "../device/device.ts";
import { assert, DiskError } from "../error.ts";

const CHUNK_BYTES = 1024 * 1024;

/** @param pause called between two chunks */
export async function copyRange(
  file: HostFile,
  from: Extent,
  to: number,
  pause: () => Promise<void>,
): Promise<void> {
  const by = to - from.start;
  assert(Math.abs(by) >= from.end - from.start, "a copy does not overlap its source");
  const buffer = Buffer.alloc(Math.min(CHUNK_BYTES, from.end - from.start));
  const zeros = Buffer.alloc(buffer.length);
  for await (const runs of file.map(from)) {
    for (const { start, end, kind } of runs) {
      for (let at = start; at < end; at += buffer.length) {
        const chunk = buffer.subarray(0, Math.min(buffer.length, end - at));
        await file.read(at, chunk);
        // The map says where holes are worth while; only the bytes prove that they are zeros (H8).
        const isEmpty = kind !== "data" && chunk.equals(zeros.subarray(0, chunk.length));
        if (isEmpty) await punchOrZero(file, { start: at + by, end: at + by + chunk.length });
        else await file.write(at + by, chunk);
        await pause();
      }
    }
  }
}

async function punchOrZero(file: HostFile, range: Extent): Promise<void> {
  try {
    await file.punch(range);
  } catch (error) {
    if (!(error instanceof DiskError && error.kind === "unsupported")) throw error;
    await file.zero(range);
  }
}
