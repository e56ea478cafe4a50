/**
 * Single changes of an image, as a live server makes them: zeros of every kind, trims piece by piece, writes in place.
 */
import assert from "node:assert/strict";
import type { Extent } from "../../bytes/extents.ts";
import { type HostFile, readBytes, type Zeroing } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { WritableImage } from "../../formats/format.ts";
import type { Random } from "../seeds.ts";
import { mustEqual } from "./reading.ts";

const KINDS: readonly Zeroing[] = [{}, { keep: true }, { keep: false }];

/** Zeros of some kind; false: it would have been slow, and nothing was done. */
export async function zeroed(
  image: WritableImage,
  range: Extent,
  random: Random,
  label: string,
): Promise<boolean> {
  const how = random.pick(KINDS);
  if (random.oneIn(2)) {
    await image.zero(range, how);
    return true;
  }
  const before = await readBytes(image, range.start, range.end - range.start);
  try {
    await image.zero(range, { ...how, fast: true });
    return true;
  } catch (error) {
    if (!(error instanceof DiskError && error.kind === "unsupported")) throw error;
    const now = await readBytes(image, range.start, range.end - range.start);
    mustEqual(now, before, range.start, `${label}: zeros refused as slow`);
    return false;
  }
}

/** The block of the table around `at`, in pieces that the host can punch: when the last one goes, its entry may. */
export function inPieces(image: WritableImage, at: number, random: Random, unit = 4096): Extent[] {
  const base = at - (at % image.grainBytes);
  const end = Math.min(image.bytes, base + image.grainBytes);
  const pieces: Extent[] = [];
  for (let start = base; start < end;) {
    const stop = Math.min(end, start + random.between(1, 1 + Math.ceil(image.grainBytes / 3 / unit)) * unit);
    pieces.push({ start, end: stop });
    start = stop;
  }
  return random.oneIn(2) ? pieces.reverse() : pieces;
}

/** Writes the first part of `data` where it lies, where the image lets that be done; returns how much. */
export async function writeInPlace(
  image: WritableImage,
  at: number,
  data: Uint8Array,
  label: string,
): Promise<number> {
  const place = image.locate?.(at, data.length, "write");
  if (place === undefined) return 0;
  assert.ok(place.bytes > 0 && place.bytes <= data.length, `${label}: a place of ${place.bytes} bytes`);
  // The write is done when the call returns, as `tryWrite` does it.
  await (place.file as HostFile).write(place.at, data.subarray(0, place.bytes));
  return place.bytes;
}
