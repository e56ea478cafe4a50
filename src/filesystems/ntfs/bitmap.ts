/**
 * `$Bitmap`: the allocation map's claim of what is free.
 *
 *   | 1 1 1 0 0 1 … |    bit i, from the least significant: cluster i, 1 is in use; behind the last cluster 1s follow
 */
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import { pipelined } from "../reading.ts";
import { damaged } from "./refused.ts";
import type { Stream } from "./stream.ts";
import { FILE, type FileTable } from "./table.ts";
import { TYPE } from "./attributes.ts";

const SLICE_BYTES = 1 << 20;

/** The free clusters in bytes. @throws Refused */
export async function freeExtents(table: FileTable): Promise<ExtentSet> {
  const { clusters, clusterBytes } = table.geometry;
  const stream = wholeMap(table.stream(await table.file(FILE.bitmap), TYPE.data), Math.ceil(clusters / 8));
  const free = new ExtentBuilder(1024);
  function* slices() {
    for (let at = 0; at * 8 < clusters; at += SLICE_BYTES) yield readSlice(at);
  }
  async function readSlice(at: number) {
    const words = new Int32Array(Math.min(SLICE_BYTES, Math.ceil(clusters / 32) * 4 - at) / 4);
    await table.read(stream, at, new Uint8Array(words.buffer));
    return { first: at * 8, words };
  }
  await pipelined(slices(), ({ first, words }) => {
    clearRuns(words, Math.min(words.length * 32, clusters - first), (start, end) => {
      free.add((first + start) * clusterBytes, (first + end) * clusterBytes);
    });
  });
  return free.build();
}

/** What is missing of the map would read as zeros, which would mean free. */
function wholeMap(stream: Stream | undefined, bytes: number): Stream {
  if (stream === undefined || stream.initialised < bytes) {
    throw damaged(`$Bitmap: ${stream?.initialised ?? 0} bytes found, ${bytes} expected`);
  }
  if (stream.runs?.hasHole()) throw damaged("$Bitmap has a hole");
  return stream;
}

/** Calls `found` for every maximal run of clear bits among the first `bits`, a word at a time. */
export function clearRuns(
  words: Int32Array,
  bits: number,
  found: (start: number, end: number) => void,
): void {
  let start = -1;
  for (let index = 0; index * 32 < bits; index++) {
    const word = words[index]!;
    if (word === (start < 0 ? -1 : 0)) continue;
    for (let bit = 0; bit < 32;) {
      const wanted = (start < 0 ? ~word : word) & (-1 << bit);
      if (wanted === 0) break;
      bit = 31 - Math.clz32(wanted & -wanted);
      const at = index * 32 + bit;
      if (at >= bits) break;
      if (start >= 0) found(start, at);
      start = start < 0 ? at : -1;
    }
  }
  if (start >= 0) found(start, bits);
}
