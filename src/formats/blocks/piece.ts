/**
 * A piece of a block, given back as the host's blocks allow.
 *
 *   host's blocks   |   |   |   |   |   |
 *   block             |###########|          where the format lets blocks begin anywhere
 *   piece                 |###|              the host's block at an edge goes when all of it is zeros by then
 */
import type { Extent } from "../../bytes/extents.ts";
import type { HostFile } from "../../device/device.ts";
import { readsZeros } from "../../device/zeros.ts";

/**
 * @param piece of the file, at least `unit` bytes long
 * @param block that it is a part of
 * @param unit length of a block of the host
 */
export async function discardPiece(
  file: HostFile,
  piece: Extent,
  block: Extent,
  unit: number,
): Promise<void> {
  await file.discard(piece);
  // Where blocks are the host's, so are sensible pieces of them.
  if (block.start % unit === 0) return;
  const first = Math.floor(piece.start / unit) * unit;
  const last = Math.floor((piece.end - 1) / unit) * unit;
  for (const start of new Set([first, last]))
    await discardEdge(file, piece, block, { start, end: start + unit });
}

async function discardEdge(file: HostFile, piece: Extent, block: Extent, host: Extent): Promise<void> {
  const before = { start: Math.max(host.start, block.start), end: Math.max(piece.start, host.start) };
  const behind = { start: Math.min(piece.end, host.end), end: Math.min(host.end, block.end) };
  if (before.start >= before.end && behind.start >= behind.end && isInside(host, block)) return;
  const restIsZeros = (await readsZeros(file, before)) && (await readsZeros(file, behind));
  if (restIsZeros && isInside(host, block)) return file.discard(host);
  await file.zero({ start: Math.max(piece.start, host.start), end: Math.min(piece.end, host.end) });
}

function isInside(inner: Extent, outer: Extent): boolean {
  return inner.start >= outer.start && inner.end <= outer.end;
}
