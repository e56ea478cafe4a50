/**
 * What must hold of an image after anything that was done to it: a reclaim, a crash, a failure.
 *
 *   kept    reads as before, every byte
 *   free    every sector reads as before or as zeros, never anything else (H9)
 *   blank   the same, and zeros once the run is complete
 */
import assert from "node:assert/strict";
import { ExtentSet } from "../../bytes/extents.ts";
import { readBytes } from "../../device/device.ts";
import type { Image } from "../../formats/format.ts";
import type { Random } from "../seeds.ts";

const SECTOR_BYTES = 512;
const ZEROS = Buffer.alloc(SECTOR_BYTES);

export interface Expectation {
  /** What the guest read before. */
  readonly content: Uint8Array;
  readonly free: ExtentSet;
  readonly blank: ExtentSet;
}

/** Errors and leaks, counted as `check` counts. */
export async function tally(
  image: Image,
): Promise<{ errors: number; leaks: number; first: string | undefined }> {
  let errors = 0;
  let leaks = 0;
  let first: string | undefined;
  for await (const { kind, count, message } of image.check()) {
    first ??= message;
    if (kind === "error") errors += count;
    else leaks += count;
  }
  return { errors, leaks, first };
}

/** Asserts that the image has no errors and reads as it must; `complete`: nothing was interrupted. */
export async function judge(
  image: Image,
  { content, free, blank }: Expectation,
  label: string,
  complete: boolean,
): Promise<void> {
  const { errors, leaks, first } = await tally(image);
  assert.equal(errors, 0, `${label}: ${first}`);
  if (complete) assert.equal(leaks, 0, `${label}: ${first}`);
  assert.equal(image.bytes, content.length, `${label}: the disk keeps its length`);
  const now = Buffer.from(await readBytes(image, 0, image.bytes));
  const given = free.union(blank);
  for (const { start, end } of ExtentSet.of({ start: 0, end: content.length }).subtract(given)) {
    if (now.compare(content, start, end, start, end) !== 0) {
      assert.fail(`${label}: a kept byte changed at ${firstDifference(now, content, start, end)}`);
    }
  }
  for (const { start, end } of given) {
    for (let at = start; at < end; at = Math.min(end, at - (at % SECTOR_BYTES) + SECTOR_BYTES)) {
      const stop = Math.min(end, at - (at % SECTOR_BYTES) + SECTOR_BYTES);
      const isZero = now.compare(ZEROS, 0, stop - at, at, stop) === 0;
      if (!isZero && now.compare(content, at, stop, at, stop) !== 0) {
        assert.fail(`${label}: freed sector at ${at} reads neither zeros nor what it was (H9)`);
      }
      if (complete && !isZero && blank.touches({ start: at, end: stop })) {
        assert.fail(`${label}: blank sector at ${at} does not read zeros`);
      }
    }
  }
}

function firstDifference(a: Uint8Array, b: Uint8Array, start: number, end: number): number {
  let at = start;
  while (at < end && a[at] === b[at]) at++;
  return at;
}

/** A set of sectors, of runs of all sizes and at all alignments; about one part in `oneIn` of the disk. */
export function someSectors(random: Random, bytes: number, oneIn = 2): ExtentSet {
  const extents = [];
  let at = 0;
  while (at < bytes) {
    const sectors = random.pick([1, 3, 8, 16, 40, 128, 300]);
    const end = Math.min(bytes, at + sectors * SECTOR_BYTES);
    if (random.oneIn(oneIn)) extents.push({ start: at, end });
    at = end;
  }
  return ExtentSet.from(extents);
}
