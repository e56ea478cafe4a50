import assert from "node:assert/strict";
import { test } from "node:test";
import type { Extent } from "../bytes/extents.ts";
import type { BlockDevice, Run } from "../device/device.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { allocation, allocationDepth } from "./contexts.ts";

const KiB = 1024;
const GiB = 2 ** 30;

type Part = readonly [bytes: number, kind: Run["kind"], extra?: { isPlaced?: true; depth?: number }];

/** A device of nothing but a map, in batches of `batchRuns`; counts the batches that were taken. */
function mapped(parts: readonly Part[], batchRuns = 3): { device: BlockDevice; taken: () => number } {
  const runs: Run[] = [];
  let at = 0;
  for (const [bytes, kind, { isPlaced, depth = 0 } = {}] of parts) {
    const place = isPlaced ? { place: { file: undefined as unknown as BlockDevice, at, bytes } } : {};
    runs.push({ start: at, end: at + bytes, kind, shared: false, depth, ...place });
    at += bytes;
  }
  let taken = 0;
  const device: BlockDevice = {
    bytes: at,
    read: () => Promise.reject(new Error("a map needs no reads")),
    async *map(range: Extent) {
      await Promise.resolve();
      const inside = runs
        .filter(({ start, end }) => end > range.start && start < range.end)
        .map((run) => ({
          ...run,
          start: Math.max(run.start, range.start),
          end: Math.min(run.end, range.end),
        }));
      for (let i = 0; i < inside.length; i += batchRuns) {
        taken++;
        yield inside.slice(i, i + batchRuns);
      }
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
  return { device, taken: () => taken };
}

const MIXED: readonly Part[] = [
  [1000, "hole"],
  [200, "data"],
  [24, "compressed"],
  [300, "zero"],
  [400, "zero", { isPlaced: true }],
  [500, "data", { isPlaced: true, depth: 1 }],
  [600, "hole", { depth: 1 }],
  [700, "hole"],
  [800, "zero", { depth: 2 }],
];

const flat = (found: readonly { bytes: number; flags: number }[]): number[][] =>
  found.map(({ bytes, flags }) => [bytes, flags]);

test("base:allocation: holes and zeros; neighbours are one", async () => {
  const { device } = mapped(MIXED);
  assert.deepEqual(flat(await allocation(device).status({ start: 0, end: device.bytes }, 100)), [
    [1000, 3],
    [224, 0],
    [300, 3],
    [400, 2],
    [500, 0],
    [2100, 3],
  ]);
});

test("qemu:allocation-depth: which image of the chain", async () => {
  const { device } = mapped(MIXED);
  assert.deepEqual(flat(await allocationDepth(device).status({ start: 0, end: device.bytes }, 100)), [
    [1000, 0],
    [924, 1],
    [500, 2],
    [1300, 0],
    [800, 3],
  ]);
});

test("a part of the disk, and no more descriptors than were asked for", async () => {
  const { device } = mapped(MIXED, 1);
  const range = { start: 900, end: 1530 };
  const all = [
    [100, 3],
    [224, 0],
    [300, 3],
    [6, 2],
  ];
  for (const max of [1, 2, 3, 4, 5]) {
    assert.deepEqual(flat(await allocation(device).status(range, max)), all.slice(0, max), `${max}`);
  }
  const inside = await allocation(device).status({ start: 1100, end: 1101 }, 1);
  assert.deepEqual(flat(inside), [[1, 0]]);
});

test("one descriptor is as long as what is alike, over many batches", async () => {
  const { device, taken } = mapped(
    [...Array.from({ length: 50 }, (): Part => [10, "hole"]), [10, "data"], [10, "hole"]],
    1,
  );
  assert.deepEqual(flat(await allocation(device).status({ start: 0, end: device.bytes }, 1)), [[500, 3]]);
  assert.equal(taken(), 51);
});

test("the work of one answer has limits", async () => {
  const alternating = Array.from({ length: 5000 }, (_, i): Part => [10, i % 2 === 0 ? "hole" : "data"]);
  const { device, taken } = mapped(alternating, 2);
  const found = await allocation(device).status({ start: 0, end: device.bytes }, 1_000_000);
  assert.deepEqual([found.length, taken()], [128, 64]);
  const vast = mapped([[2 ** 50, "hole"]]).device;
  const [first, ...others] = await allocation(vast).status({ start: GiB, end: 2 ** 50 }, 10);
  assert.deepEqual([first, others], [{ bytes: 256 * GiB, flags: 3 }, []]);
});

test("a file of the host: data and holes", async () => {
  const file = new SimulatedFile(64 * KiB);
  await file.write(8 * KiB, new Uint8Array(8 * KiB).fill(7));
  const found = await allocation(file).status({ start: 0, end: 64 * KiB }, 100);
  assert.deepEqual(flat(found), [
    [8 * KiB, 3],
    [8 * KiB, 0],
    [48 * KiB, 3],
  ]);
});
