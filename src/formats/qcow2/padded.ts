/**
 * Reading past the end of a file, as QEMU does it: the last cluster of an image may be cut short.
 */
import type { BlockDevice } from "../../device/device.ts";

/** Fills `into` from offset `at`; what lies past the end reads as zeros. */
export async function readPadded(file: BlockDevice, at: number, into: Uint8Array): Promise<void> {
  const inside = Math.max(0, Math.min(into.length, file.bytes - at));
  if (inside > 0) await file.read(at, into.subarray(0, inside));
  into.fill(0, inside);
}
