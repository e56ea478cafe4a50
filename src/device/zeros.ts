/**
 * Whether bytes are zeros, by looking at them: what a host says of holes is no proof (H8).
 */
import type { Extent } from "../bytes/extents.ts";
import type { BlockDevice } from "./device.ts";

const PIECE_BYTES = 256 * 1024;
const ZEROS = Buffer.alloc(PIECE_BYTES);

export async function readsZeros(device: BlockDevice, { start, end }: Extent): Promise<boolean> {
  const into = Buffer.allocUnsafe(Math.max(0, Math.min(PIECE_BYTES, end - start)));
  for (let at = start; at < end; at += into.length) {
    const piece = into.subarray(0, Math.min(into.length, end - at));
    await device.read(at, piece);
    if (ZEROS.compare(piece, 0, piece.length, 0, piece.length) !== 0) return false;
  }
  return true;
}
