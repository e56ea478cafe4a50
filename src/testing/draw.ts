/**
 * Extents as a picture, so that a failing test can be seen: `.##.......` is ten equal parts of which the second and
 * third are in the set.
 */
import type { ExtentSet } from "../bytes/extents.ts";

/**
 * Draws `[0, bytes)` in cells of `cellBytes`: `#` all in the set, `.` none, `+` some.
 */
export function draw(set: ExtentSet, bytes: number, cellBytes = 1): string {
  let picture = "";
  for (let start = 0; start < bytes; start += cellBytes) {
    const cell = { start, end: Math.min(bytes, start + cellBytes) };
    picture += set.covers(cell) ? "#" : set.touches(cell) ? "+" : ".";
  }
  return picture;
}
