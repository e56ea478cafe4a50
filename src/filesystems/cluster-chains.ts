/**
 * A heap of clusters, and the files in it: chains that the allocation table links, or clusters in a row.
 *
 *   | … | table | cluster 2 | 3 | 4 | 5 | 6 |        chain from 3: 3 → 4 → 6, two runs
 *                  ^ heapAt
 */
import { slice } from "../device/slice.ts";
import type { BlockDevice } from "../device/device.ts";
import { BAD, END, FIRST_CLUSTER, FREE, type AllocationTable } from "./allocation-table.ts";
import { findings, type Refused } from "./refused.ts";

export interface ClusterHeap {
  readonly device: BlockDevice;
  readonly table: AllocationTable;
  /** Where cluster 2 begins, in bytes. */
  readonly heapAt: number;
  readonly clusterBytes: number;
  /** The guest's own way to repair it. */
  readonly hint: string;
}

/** Which clusters a directory entry says it owns. */
export interface Holding {
  /** 0: none. */
  readonly first: number;
  /** Undefined for a directory whose length only its chain tells. */
  readonly bytes: number | undefined;
  /** The clusters lie in a row, and the allocation table knows nothing of them. */
  readonly isContiguous: boolean;
}

export type VisitRun = (first: number, clusters: number) => void;

/** Where a cluster begins. */
export function clusterAt({ heapAt, clusterBytes }: ClusterHeap, cluster: number): number {
  return heapAt + (cluster - FIRST_CLUSTER) * clusterBytes;
}

/** The largest power of two that divides the start and the end of every cluster. */
export function gridBytes({ heapAt, clusterBytes }: ClusterHeap): number {
  let grid = clusterBytes;
  while (heapAt % grid !== 0) grid /= 2;
  return grid;
}

/** All clusters as a device, cluster 2 at 0. */
export function heapOf(heap: ClusterHeap): BlockDevice {
  const { device, heapAt, clusterBytes, table } = heap;
  return slice(device, { start: heapAt, end: heapAt + table.clusters * clusterBytes });
}

/**
 * Calls `run` for every stretch of clusters in a row, in the order of the file.
 * @param bytesMax of a holding that does not say how long it is
 * @throws Refused when the clusters are not as many as its length asks for, or are none
 */
export async function visitClusters(
  heap: ClusterHeap,
  holding: Holding,
  bytesMax: number,
  run: VisitRun,
): Promise<void> {
  const { table, clusterBytes } = heap;
  const { first, bytes } = holding;
  const wanted = bytes === undefined ? undefined : Math.ceil(bytes / clusterBytes);
  if (first === 0) {
    if (wanted === 0) return;
    throw damageOf(heap, `an entry of ${bytes ?? "some"} bytes has no cluster`);
  }
  if (!table.holds(first) || wanted === 0 || (wanted ?? 0) > table.clusters) {
    throw damageOf(
      heap,
      `cluster ${first} found for ${bytes ?? "some"} bytes, ${table.clusters} clusters expected`,
    );
  }
  if (holding.isContiguous) {
    if (wanted === undefined || !table.holds(first + wanted - 1)) {
      throw damageOf(
        heap,
        `${wanted} clusters in a row from ${first} reach behind the last of ${table.clusters}`,
      );
    }
    return run(first, wanted);
  }
  const most = wanted ?? Math.max(1, Math.floor(bytesMax / clusterBytes));
  const found = await followChain(heap, first, most, run);
  if (wanted !== undefined && found !== wanted) {
    throw damageOf(heap, `the chain from cluster ${first}: ${found} clusters found, ${wanted} expected`);
  }
}

/** @returns how many clusters the chain has */
async function followChain(heap: ClusterHeap, first: number, most: number, run: VisitRun): Promise<number> {
  const { table } = heap;
  let start = first;
  let count = 0;
  // A loop comes by a cluster that is remembered for longer and longer.
  let remembered = 0;
  for (let cluster = first; ;) {
    if (cluster === remembered)
      throw damageOf(heap, `the chain from cluster ${first} comes back to ${cluster}`);
    if ((count & (count + 1)) === 0) remembered = cluster;
    if (++count > most)
      throw damageOf(heap, `the chain from cluster ${first} is longer than the ${most} clusters expected`);
    let next = table.entry(cluster);
    if (next === undefined) {
      await table.load(cluster);
      next = table.entry(cluster)!;
    }
    if (next === cluster + 1 && table.holds(next)) {
      cluster = next;
      continue;
    }
    run(start, cluster + 1 - start);
    if (next === END) return count;
    if (!table.holds(next)) {
      const what = next === FREE ? "free" : next === BAD ? "bad" : `followed by ${next}`;
      throw damageOf(heap, `the chain from cluster ${first}: cluster ${cluster} is ${what}`);
    }
    start = cluster = next;
  }
}

/** Made only when it is thrown: chains are followed by the million. */
function damageOf({ hint }: ClusterHeap, message: string): Refused {
  return findings(hint).damaged(message);
}

const READ_BYTES_MAX = 1 << 20;

/** The bytes of a holding, in order. @throws Refused */
export async function* contentOf(
  heap: ClusterHeap,
  holding: Holding,
  bytesMax: number,
): AsyncGenerator<Uint8Array> {
  const runs: number[] = [];
  await visitClusters(heap, holding, bytesMax, (first, clusters) => runs.push(first, clusters));
  yield* contentOfRuns(heap, runs, 0);
}

/** The bytes of runs (first cluster, clusters; first cluster, …) from `skipped` on. The next piece overwrites one. */
export async function* contentOfRuns(
  heap: ClusterHeap,
  runs: readonly number[],
  skipped: number,
): AsyncGenerator<Uint8Array> {
  let buffer = new Uint8Array(0);
  let rest = skipped;
  for (let i = 0; i < runs.length; i += 2) {
    const at = clusterAt(heap, runs[i]!);
    const bytes = runs[i + 1]! * heap.clusterBytes;
    for (let done = Math.min(rest, bytes); done < bytes;) {
      const length = Math.min(READ_BYTES_MAX, bytes - done);
      if (buffer.length < length) buffer = new Uint8Array(length);
      const piece = buffer.subarray(0, length);
      await heap.device.read(at + done, piece);
      yield piece;
      done += length;
    }
    rest -= Math.min(rest, bytes);
  }
}
