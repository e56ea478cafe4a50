/**
 * The allocation file: one bit a block, the most significant bit of a byte first; 1 is in use.
 *
 * Technical Note TN1150, "Allocation File".
 */
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import type { BlockDevice } from "../../device/device.ts";
import { IN_FLIGHT, pipelined } from "../reading.ts";
import { contradiction, damaged } from "./refused.ts";
import type { Header } from "./volume-header.ts";

const READ_BYTES = 1 << 20;

/** The free blocks in bytes. @param file the allocation file as a device @throws Refused */
export async function freeExtents(file: BlockDevice, header: Header): Promise<ExtentSet> {
  const { blocks, blockBytes, freeBlocks } = header;
  const bytes = Math.ceil(blocks / 8);
  if (file.bytes < bytes) {
    throw damaged(`allocation file: ${file.bytes} bytes found, ${bytes} expected`);
  }
  const free = new ExtentBuilder();
  let count = 0;
  function* pieces() {
    const buffers = Array.from({ length: IN_FLIGHT }, () => new Uint8Array(Math.min(READ_BYTES, bytes + 3)));
    for (let at = 0, turn = 0; at < bytes; at += READ_BYTES, turn++) {
      yield readPiece(buffers[turn % IN_FLIGHT]!, at, Math.min(READ_BYTES, bytes - at));
    }
  }
  async function readPiece(buffer: Uint8Array, at: number, length: number) {
    await file.read(at, buffer.subarray(0, length));
    return { first: at * 8, words: viewOf(buffer.subarray(0, Math.ceil(length / 4) * 4)) };
  }
  await pipelined(pieces(), ({ first, words }) => {
    const bits = Math.min(words.byteLength * 8, blocks - first);
    clearRuns(words, bits, (start, end) => {
      count += end - start;
      free.add((first + start) * blockBytes, (first + end) * blockBytes);
    });
  });
  if (count !== freeBlocks) {
    throw contradiction(
      `allocation file: ${count} free blocks found, ${freeBlocks} expected by the volume header`,
    );
  }
  return free.build();
}

/** Calls `found` for every maximal run of clear bits among the first `bits`, most significant first, a word at a time. */
export function clearRuns(words: DataView, bits: number, found: (start: number, end: number) => void): void {
  let start = -1;
  for (let base = 0; base < bits; base += 32) {
    const word = words.getInt32(base / 8);
    if (word === (start < 0 ? -1 : 0)) continue;
    let bit = 0;
    while (bit < 32) {
      const wanted = (start < 0 ? ~word : word) & (-1 >>> bit);
      if (wanted === 0) break;
      bit = Math.clz32(wanted);
      const at = base + bit;
      if (at >= bits) break;
      if (start < 0) {
        start = at;
      } else {
        found(start, at);
        start = -1;
      }
    }
  }
  if (start >= 0) found(start, bits);
}
