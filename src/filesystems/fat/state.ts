/**
 * Whether a FAT filesystem may be believed: it was left clean, and all copies of its allocation table agree.
 *
 *   FAT[0]   0x…ff8: the media byte        FAT[1]   | clean | no errors | 1 1 1 … |     FAT16: bits 15, 14; FAT32: 27, 26
 *
 * Windows keeps these bits, Linux keeps bit 0 of the state in the boot sector, and reads both; FAT12 has the latter
 * only.
 */
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { FIRST_CLUSTER } from "../allocation-table.ts";
import { pipelined } from "../reading.ts";
import { Refused } from "../refused.ts";
import { contradiction, damaged } from "./damage.ts";
import type { Geometry } from "./boot-sector.ts";

const STATE_DIRTY = 1;
const STATE_ERRORS = 2;

/** @throws Refused */
export async function checkState(device: BlockDevice, geometry: Geometry): Promise<void> {
  const { bits, bytes, state } = geometry;
  if (bytes > device.bytes) {
    throw new Refused(
      "truncated",
      `the filesystem has ${bytes} bytes, the device only ${device.bytes}`,
      "the image or the partition was cut: restore its size",
    );
  }
  const stored = await readBytes(device, geometry.fatAt, 8);
  if (stored[0] !== geometry.media) {
    throw damaged(
      `allocation table: media 0x${stored[0]!.toString(16)} found, 0x${geometry.media.toString(16)} expected`,
    );
  }
  const flags = bits === 12 ? 3 : bits === 16 ? stored[3]! >> 6 : (stored[7]! >> 2) & 3;
  if ((state & STATE_DIRTY) !== 0 || (flags & 2) === 0) {
    throw new Refused(
      "not-clean",
      `the volume is marked dirty (boot sector: 0x${state.toString(16)}, table: ${flags >> 1}): it was not unmounted`,
      "boot the guest and shut it down cleanly, or run chkdsk or fsck.fat",
    );
  }
  if ((state & STATE_ERRORS) !== 0 || (flags & 1) === 0) {
    throw new Refused(
      "error-state",
      `the volume is marked as having had errors (boot sector: 0x${state.toString(16)}, table: ${flags & 1})`,
      "run chkdsk or fsck.fat on it in the guest, then try again",
    );
  }
}

const COMPARED_BYTES = 1 << 20;

/** @throws Refused when a copy of the allocation table is not like the first */
export async function compareCopies(device: BlockDevice, geometry: Geometry): Promise<void> {
  const { fatAt, fatBytes, fats, clusters, bits } = geometry;
  // What a table has room for beyond its clusters means nothing, and may be most of a hostile disk (H24).
  const usedBytes = Math.ceil(((clusters + FIRST_CLUSTER) * (bits === 28 ? 32 : bits)) / 8);
  function* pairs() {
    for (let copy = 1; copy < fats; copy++) {
      for (let at = 0; at < usedBytes; at += COMPARED_BYTES) {
        yield pair(copy, at, Math.min(COMPARED_BYTES, usedBytes - at));
      }
    }
  }
  async function pair(copy: number, at: number, bytes: number) {
    const [first, second] = await Promise.all([
      readBytes(device, fatAt + at, bytes),
      readBytes(device, fatAt + copy * fatBytes + at, bytes),
    ]);
    return { copy, at, first, second };
  }
  await pipelined(pairs(), ({ copy, at, first, second }) => {
    if (Buffer.compare(first, second) === 0) return;
    const difference = first.findIndex((byte, index) => byte !== second[index]);
    throw contradiction(
      `copies 1 and ${copy + 1} of the allocation table differ at ${at + difference} of ${usedBytes} bytes`,
    );
  });
}
