/**
 * The differences of two versions of a table as patches: one for each aligned 512-byte sector that changed, for a
 * sector is what a medium writes whole or not at all.
 */
import { assert } from "../error.ts";
import type { Step } from "./plan.ts";

export const SECTOR_BYTES = 512;

export type PatchStep = Extract<Step, { op: "patch" }>;

/** Steps that turn `before` into `after`, both lying at `at`, the start of a sector, in `file`. */
export function* differences(
  file: string,
  at: number,
  before: Uint8Array,
  after: Uint8Array,
): Generator<PatchStep> {
  assert(at % SECTOR_BYTES === 0 && before.length === after.length, "two versions of whole sectors");
  for (let start = 0; start < before.length; start += SECTOR_BYTES) {
    const old = before.subarray(start, start + SECTOR_BYTES);
    const changed = after.subarray(start, start + SECTOR_BYTES);
    if (Buffer.compare(old, changed) !== 0) {
      yield { file, op: "patch", at: at + start, before: old, after: changed };
    }
  }
}
