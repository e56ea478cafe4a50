import assert from "node:assert/strict";
import { test } from "node:test";
import { fuzzDevice } from "../testing/fuzz.ts";
import { AllocationTable } from "./allocation-table.ts";
import { visitClusters, type ClusterHeap } from "./cluster-chains.ts";
import { Refused } from "./refused.ts";

const END = 0xffffffff;

/** A heap of a million clusters whose table begins with `entries`, from cluster 2 on. */
function heapOf(...entries: readonly number[]): ClusterHeap {
  const clusters = 1_000_000;
  const bytes = new Uint8Array(Uint32Array.of(0, 0, ...entries).buffer);
  const device = fuzzDevice(bytes, clusters * 8);
  const table = new AllocationTable(device, { at: 0, clusters, bits: 32 });
  return { device, table, heapAt: 4_100_000, clusterBytes: 1, hint: "repair it" };
}

async function runsOf(heap: ClusterHeap, first: number, bytes: number | undefined, bytesMax = 0) {
  const runs: number[][] = [];
  await visitClusters(heap, { first, bytes, isContiguous: false }, bytesMax, (start, count) => {
    assert.ok(runs.push([start, count]) < 100, "the runs of a loop have an end");
  });
  return runs;
}

const refused = (message: RegExp) => (error: unknown) =>
  error instanceof Refused && message.test(error.message);

test("a chain is its runs", async () => {
  const heap = heapOf(3, 4, 6, 0, 7, END);
  assert.deepEqual(await runsOf(heap, 2, 5), [
    [2, 3],
    [6, 2],
  ]);
  assert.deepEqual(await runsOf(heap, 6, undefined, 100), [[6, 2]]);
  assert.deepEqual(await runsOf(heap, 0, 0), []);
});

test("H24: a chain that comes back ends, however long its file is", async () => {
  for (const entries of [[2], [4, 0, 2], [4, 0, 6, 0, 8, 0, 4]]) {
    await assert.rejects(runsOf(heapOf(...entries), 2, 1_000_000), refused(/comes back/));
    await assert.rejects(runsOf(heapOf(...entries), 2, undefined, 1_000_000), refused(/comes back/));
  }
});

test("H24: a file has no more clusters than there are", async () => {
  await assert.rejects(runsOf(heapOf(3, END), 2, 2 ** 52), refused(/1000000 clusters expected/));
  const row = { first: 3, bytes: 1_000_000, isContiguous: true };
  await assert.rejects(
    visitClusters(heapOf(), row, 0, () => {}),
    refused(/reach behind the last/),
  );
});
