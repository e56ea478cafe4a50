/**
 * What the root directory of exFAT says of the volume: where its allocation bitmap and its up-case table are, and how
 * it is called.
 *
 *   root   | 83: label | 81: bitmap, cluster, bytes | 82: up-case table, checksum, cluster, bytes | 85: … |
 *
 * The bitmap has a bit for each cluster, the lowest bit of the first byte for cluster 2. It and the table must lie in
 * one piece, as Linux takes for granted.
 */
import { clearRuns } from "../../bytes/bitmap.ts";
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import { readBytes } from "../../device/device.ts";
import { FIRST_CLUSTER } from "../allocation-table.ts";
import { clusterAt, contentOf, visitClusters, type ClusterHeap, type Holding } from "../cluster-chains.ts";
import { pipelined } from "../reading.ts";
import { badChecksum, damaged } from "./damage.ts";
import { DIRECTORY_BYTES_MAX, SetScan, TYPE } from "./entry-sets.ts";
import { readUpCase, tableChecksum, UNITS, type UpCase } from "./up-case.ts";

export interface System {
  readonly label: string;
  readonly bitmap: Holding;
  readonly bitmapAt: number;
  readonly upCaseTable: Holding;
  readonly upCase: UpCase;
}

/** @throws Refused */
export async function readSystem(heap: ClusterHeap, root: Holding): Promise<System> {
  const found = new Map<number, Uint8Array>();
  const scan = new SetScan("root directory", true, undefined, {
    file: () => {},
    extra: () => {},
    system: (type, entry) => {
      if (found.has(type)) throw damaged(`root directory: a second entry 0x${type.toString(16)} found`);
      found.set(type, entry.slice());
    },
  });
  for await (const bytes of contentOf(heap, root, DIRECTORY_BYTES_MAX)) if (!scan.next(bytes)) break;
  const [bitmapEntry, tableEntry] = [found.get(TYPE.bitmap), found.get(TYPE.upCase)];
  if (bitmapEntry === undefined) throw damaged("root directory: no allocation bitmap found");
  if (tableEntry === undefined) throw damaged("root directory: no up-case table found");
  const bitmap = holdingOf(bitmapEntry);
  checkBitmap(heap, bitmapEntry[1]!, bitmap.bytes);
  const upCaseTable = holdingOf(tableEntry);
  const upCase = await readTable(heap, upCaseTable, viewOf(tableEntry).getUint32(4, true));
  const bitmapAt = clusterAt(heap, await onePiece(heap, bitmap, "allocation bitmap"));
  return { label: labelOf(found.get(TYPE.label)), bitmap, bitmapAt, upCaseTable, upCase };
}

function holdingOf(entry: Uint8Array) {
  const view = viewOf(entry);
  const bytes = Number(view.getBigUint64(24, true));
  return { first: view.getUint32(20, true), bytes, isContiguous: false };
}

function checkBitmap({ table }: ClusterHeap, flags: number, bytes: number): void {
  if (flags !== 0) throw damaged(`allocation bitmap: flags 0x${flags.toString(16)} found, 0 expected`);
  const expected = Math.ceil(table.clusters / 8);
  if (bytes !== expected) throw damaged(`allocation bitmap: ${bytes} bytes found, ${expected} expected`);
}

async function readTable(
  heap: ClusterHeap,
  holding: Holding & { bytes: number },
  stored: number,
): Promise<UpCase> {
  const { bytes: length } = holding;
  if (length === 0 || length > UNITS * 2 || length % 2 !== 0) {
    throw damaged(`up-case table: ${length} bytes found, at most ${UNITS * 2} expected`);
  }
  const first = await onePiece(heap, holding, "up-case table");
  const bytes = await readBytes(heap.device, clusterAt(heap, first), length);
  const expected = tableChecksum(bytes);
  if (stored !== expected) throw badChecksum("up-case table", stored, expected);
  return readUpCase(bytes);
}

/** @returns its first cluster */
async function onePiece(heap: ClusterHeap, holding: Holding, name: string): Promise<number> {
  let pieces = 0;
  await visitClusters(heap, holding, 0, () => pieces++);
  if (pieces > 1) throw damaged(`${name}: ${pieces} pieces found, one expected`);
  return holding.first;
}

const LABEL_UNITS_MAX = 11;

function labelOf(entry: Uint8Array | undefined): string {
  if (entry === undefined) return "";
  const units = Math.min(entry[1]!, LABEL_UNITS_MAX);
  return Buffer.from(entry.subarray(2, 2 + units * 2)).toString("utf16le");
}

const READ_BYTES = 1 << 20;

/** The clusters that the bitmap calls free, in bytes of the volume. */
export async function freeClusters(heap: ClusterHeap, { bitmapAt }: System): Promise<ExtentSet> {
  const { clusters } = heap.table;
  const bitmapBytes = Math.ceil(clusters / 8);
  function* pieces() {
    for (let at = 0; at < bitmapBytes; at += READ_BYTES) yield piece(at);
  }
  async function piece(at: number) {
    const bytes = Math.min(READ_BYTES, bitmapBytes - at);
    // Whole words, the last filled with clusters in use.
    const padded = new Uint8Array(Math.ceil(bytes / 4) * 4).fill(0xff);
    await heap.device.read(bitmapAt + at, padded.subarray(0, bytes));
    return { first: FIRST_CLUSTER + at * 8, words: new Int32Array(padded.buffer) };
  }
  const free = new ExtentBuilder();
  await pipelined(pieces(), ({ first, words }) => {
    const bits = Math.min(words.length * 32, FIRST_CLUSTER + clusters - first);
    clearRuns(words, bits, (from, to) =>
      free.add(clusterAt(heap, first + from), clusterAt(heap, first + to)),
    );
  });
  return free.build();
}
