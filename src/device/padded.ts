/**
 * Reading past the end: the last cluster of a file may be cut short, and a parent may be shorter than its child.
 */
import type { BlockDevice } from "./device.ts";

/** Fills `into` from offset `at`; what lies past the end reads as zeros. */
export async function readPadded(file: BlockDevice, at: number, into: Uint8Array): Promise<void> {
  const inside = Math.max(0, Math.min(into.length, file.bytes - at));
  if (inside > 0) await file.read(at, into.subarray(0, inside));
  into.fill(0, inside);
}

/** Fills `into` with what a child without content of its own reads: the parent's bytes as far as it reaches, then zeros. */
export async function readBeyond(
  parent: BlockDevice | undefined,
  at: number,
  into: Uint8Array,
): Promise<void> {
  if (parent === undefined) into.fill(0);
  else await readPadded(parent, at, into);
}
