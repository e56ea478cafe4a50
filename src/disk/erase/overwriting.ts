/**
 * Writing over what remains, and looking at it afterwards.
 */
import { createHash } from "node:crypto";
import { ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice, HostFile, ReadableFile } from "../../device/device.ts";
import { overwrite, type Pattern, patternOf } from "../../live/pattern.ts";
import type { Plan } from "../../reclaim/plan.ts";

/** In file bytes, by the names of an image's files. */
export type Places = ReadonlyMap<string, ExtentSet>;

/** Writes the pattern over all `places`, and flushes. @param onDone may throw, to stop */
export async function overwriteAll(
  files: ReadonlyMap<string, HostFile>,
  places: Places,
  pattern: Pattern,
  onDone: (doneBytes: number) => void,
): Promise<void> {
  let doneBytes = 0;
  for (const [name, set] of places) {
    const file = files.get(name)!;
    await overwrite(set, pattern, async (at, from) => {
      onDone(doneBytes);
      await file.write(at, from);
      doneBytes += from.length;
    });
    if (set.count > 0) await file.flush();
  }
}

/** When the plan is carried out: a piece of a host block is never punched, and gets zeros instead. */
export async function zeroLeft(
  files: ReadonlyMap<string, HostFile>,
  places: Places,
  plan: Plan,
): Promise<void> {
  const punched = (name: string) => plan.punched.get(name) ?? ExtentSet.EMPTY;
  const left = new Map(Array.from(places, ([name, set]) => [name, set.subtract(punched(name))]));
  await overwriteAll(files, left, patternOf("zeros"), () => {});
}

/** A digest of where the device holds `places`; undefined where the host does not tell of all of it. */
export async function digestOfPlaces(
  files: ReadonlyMap<string, ReadableFile>,
  places: Places,
): Promise<string | undefined> {
  const hash = createHash("sha256");
  for (const [name, set] of places) {
    const file = files.get(name)!;
    if (set.count === 0) continue;
    if (file.physical === undefined) return undefined;
    let last = { start: 0, end: 0, physical: 0 };
    for await (const batch of file.physical({ start: set.start(0), end: set.end(set.count - 1) })) {
      for (const extent of batch) {
        for (const { start, end } of set.within(extent)) {
          if (extent.physical === undefined) return undefined;
          const physical = extent.physical + start - extent.start;
          // The host may tell of one extent in two parts, and of two in one.
          if (start === last.end && physical === last.physical + last.end - last.start) last.end = end;
          else {
            hash.update(`${name} ${last.start} ${last.end} ${last.physical}\n`);
            last = { start, end, physical };
          }
        }
      }
    }
    hash.update(`${name} ${last.start} ${last.end} ${last.physical}\n`);
  }
  return hash.digest("hex");
}

const CHUNK_BYTES = 1024 * 1024;

/** @returns where the first chunk begins that holds anything but zeros */
export async function firstNonZero(device: BlockDevice, set: ExtentSet): Promise<number | undefined> {
  const zeros = Buffer.alloc(CHUNK_BYTES);
  const chunk = Buffer.alloc(CHUNK_BYTES);
  for (const { start, end } of set) {
    for (let at = start; at < end; at += CHUNK_BYTES) {
      const part = chunk.subarray(0, Math.min(CHUNK_BYTES, end - at));
      await device.read(at, part);
      if (!part.equals(zeros.subarray(0, part.length))) return at;
    }
  }
  return undefined;
}
