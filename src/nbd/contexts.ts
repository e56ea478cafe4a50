/**
 * What BLOCK_STATUS says of a device, out of its map.
 *
 *   run                 base:allocation    qemu:allocation-depth
 *   data, compressed    0                  1 + depth
 *   zero, with a place  ZERO               1 + depth
 *   zero, without       HOLE, ZERO         1 + depth
 *   hole                HOLE, ZERO         0
 *
 * Neighbours with the same flags are one descriptor. An answer is as long as its limits allow: the client asks on (H28).
 */
import type { Extent } from "../bytes/extents.ts";
import type { BlockDevice, Run } from "../device/device.ts";
import { assert } from "../error.ts";
import type { MetaContext, StatusDescriptor } from "./export.ts";
import { STATE } from "./protocol.ts";

/** One answer looks at so many batches of a map, whatever is in them, */
const BATCHES_MAX = 64;
/** and at so much of the disk: only who has 64-bit headers can ask for more than 4 GiB. */
const SPAN_BYTES_MAX = 256 * 2 ** 30;

/** Where space is allocated, and what reads as zeros for certain. */
export function allocation(device: BlockDevice): MetaContext {
  return { name: "base:allocation", status: (range, max) => statusOf(device, range, max, allocationFlags) };
}

/** From which image of the chain the bytes come: 1 for this one, 2 for its backing image, 0 for none. */
export function allocationDepth(device: BlockDevice): MetaContext {
  return { name: "qemu:allocation-depth", status: (range, max) => statusOf(device, range, max, depthOf) };
}

function allocationFlags({ kind, place }: Run): number {
  if (kind === "hole") return STATE.HOLE | STATE.ZERO;
  if (kind === "zero") return place === undefined ? STATE.HOLE | STATE.ZERO : STATE.ZERO;
  return 0;
}

function depthOf({ kind, depth }: Run): number {
  return kind === "hole" ? 0 : depth + 1;
}

async function statusOf(
  device: BlockDevice,
  range: Extent,
  max: number,
  flagsOf: (run: Run) => number,
): Promise<readonly StatusDescriptor[]> {
  const found: { bytes: number; flags: number }[] = [];
  let batches = 0;
  const end = Math.min(range.end, range.start + SPAN_BYTES_MAX);
  for await (const runs of device.map({ start: range.start, end })) {
    for (const run of runs) {
      const flags = flagsOf(run);
      const bytes = run.end - run.start;
      const last = found.at(-1);
      if (last?.flags === flags) last.bytes += bytes;
      else if (found.length < max) found.push({ bytes, flags });
      else return found;
    }
    if (++batches >= BATCHES_MAX && found.length > 0) break;
  }
  assert(found.length > 0, "a map has no gaps");
  return found;
}
