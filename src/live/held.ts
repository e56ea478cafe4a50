/**
 * What the host really holds for a range of a disk, and for whom.
 *
 *   disk   |####|####|....|zzzz|====|      its map: data, holes, zeros with a place, compressed
 *   file   |##..|####|....|####|====|      the host's map of the places
 *   held    own. own       own  compressed
 */
import type { Extent } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";

/** In bytes of the disk, ascending. What is not listed is held nowhere. */
export interface Held extends Extent {
  /** `shared`: a snapshot, a reflink or a backing image has the same bytes; `compressed`: has no place of its own. */
  readonly kind: "own" | "shared" | "compressed";
}

export async function* heldOn(disk: BlockDevice, range: Extent): AsyncGenerator<Held> {
  for await (const runs of disk.map(range)) {
    for (const { start, end, kind, place, shared, depth } of runs) {
      if (kind === "hole" || (kind === "zero" && place === undefined)) continue;
      if (depth > 0 || shared) yield { start, end, kind: "shared" };
      else if (place === undefined) yield { start, end, kind: "compressed" };
      else yield* heldAt({ start, end }, place.file, place.at);
    }
  }
}

/** Allocated and never written counts as well: the host may have put old blocks there. */
async function* heldAt(range: Extent, file: BlockDevice, at: number): AsyncGenerator<Held> {
  const shift = range.start - at;
  const inFile = { start: at, end: Math.min(range.end - shift, Math.max(at, file.bytes)) };
  for await (const runs of file.map(inFile)) {
    for (const { start, end, kind, shared } of runs) {
      if (kind === "hole") continue;
      yield { start: start + shift, end: end + shift, kind: shared ? "shared" : "own" };
    }
  }
}
