/**
 * `$Bitmap`: the allocation map's claim of what is free.
 *
 *   | 1 1 1 0 0 1 … |    bit i, from the least significant: cluster i, 1 is in use; behind the last cluster 1s follow
 */
import { clearRuns } from "../../bytes/bitmap.ts";
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
