/**
 * Patches: small changes inside 512-byte sectors, carried out with few reads and writes.
 *
 *   patches   ..x.x......xx.     sectors    |   |x x|   |   | x |x  |   |
 *   one read  [              ]   one write      [   ]       [       ]
 *
 * Every sector that is patched is written whole, because a whole aligned sector is what a medium writes or does not
 * (docs/ARCHITECTURE.md). Sectors that are not patched are not written.
 */
import type { HostFile } from "../device/device.ts";
import { assert, DiskError } from "../error.ts";

export interface Patch {
  readonly at: number;
  readonly before: Uint8Array;
  readonly after: Uint8Array;
}

const SECTOR_BYTES = 512;
/** Patches at most so far apart share a read. */
const GAP_BYTES_MAX = 64 * 1024;
const READ_BYTES_MAX = 1024 * 1024;

/**
 * Checks and applies `patches`, in any order.
 * @param pause called between two writes
 * @throws DiskError `busy` when a place does not hold its `before`; the group it belongs to is not written then
 */
export async function applyPatches(
  name: string,
  file: HostFile,
  patches: readonly Patch[],
  pause: () => Promise<void>,
): Promise<void> {
  const ascending = patches.toSorted((a, b) => a.at - b.at);
  for (let first = 0; first < ascending.length;) {
    const last = groupEnd(ascending, first);
    await applyGroup(name, file, ascending.slice(first, last));
    await pause();
    first = last;
  }
}

/** The end of the run of patches from `first` that one read serves. */
function groupEnd(patches: readonly Patch[], first: number): number {
  const start = sectorStart(patches[first]!.at);
  let last = first + 1;
  for (; last < patches.length; last++) {
    const { at } = patches[last]!;
    if (
      at - patches[last - 1]!.at > GAP_BYTES_MAX ||
      sectorStart(at) + SECTOR_BYTES - start > READ_BYTES_MAX
    ) {
      break;
    }
  }
  return last;
}

async function applyGroup(name: string, file: HostFile, patches: readonly Patch[]): Promise<void> {
  const start = sectorStart(patches[0]!.at);
  const end = Math.min(sectorStart(patches.at(-1)!.at) + SECTOR_BYTES, file.bytes);
  const bytes = Buffer.alloc(Math.max(0, end - start));
  await file.read(start, bytes);
  for (const patch of patches) applyOne(name, bytes, start, patch);
  for (let first = 0; first < patches.length;) {
    let last = first;
    let stop = sectorStart(patches[first]!.at);
    const from = stop;
    while (last < patches.length && sectorStart(patches[last]!.at) <= stop) {
      stop = sectorStart(patches[last]!.at) + SECTOR_BYTES;
      last++;
    }
    await file.write(from, bytes.subarray(from - start, Math.min(stop, end) - start));
    first = last;
  }
}

function applyOne(name: string, bytes: Buffer, start: number, { at, before, after }: Patch): void {
  assert(before.length === after.length, "a patch keeps its length");
  assert(at + after.length <= sectorStart(at) + SECTOR_BYTES, `the patch at ${at} lies in one sector`);
  const found = bytes.subarray(at - start, at - start + before.length);
  if (!found.equals(before)) {
    throw new DiskError(
      "busy",
      `${name || "image"}: bytes at ${at} are ${found.toString("hex") || "missing"}, ` +
        `expected ${Buffer.from(before).toString("hex")}: someone else changed them`,
      { code: "changed", hint: "Make sure that nothing else uses the image, then run again." },
    );
  }
  bytes.set(after, at - start);
}

function sectorStart(at: number): number {
  return at - (at % SECTOR_BYTES);
}
