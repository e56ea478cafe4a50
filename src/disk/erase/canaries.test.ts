import assert from "node:assert/strict";
import { test } from "node:test";
import { ExtentSet } from "../../bytes/extents.ts";
import { Random, seeds } from "../../testing/seeds.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { plant, search } from "./canaries.ts";

const BYTES = 8 * 2 ** 20;

/** Free pieces of all lengths. */
function pieces(random: Random): ExtentSet {
  const extents = [];
  for (let at = 0; at < BYTES - 40_000; at += 1 + random.below(40_000)) {
    const start = at;
    at += random.below(random.pick([600, 3000, 60_000]));
    extents.push({ start, end: Math.min(at, BYTES) });
  }
  return ExtentSet.from(extents);
}

test("canaries are planted in what is to be erased, and nowhere else; all are found, none after an erasure", async () => {
  for (const seed of seeds(8)) {
    const random = new Random(seed);
    const file = SimulatedFile.from(random.bytes(BYTES));
    const before = file.peek();
    const free = pieces(random);
    const kept = ExtentSet.of({ start: 0, end: BYTES }).subtract(free);
    const planted = await plant(new Map([["", file]]), new Map([["", free]]));
    assert.ok(planted.count > 20 && planted.count <= 64, `${planted.count}`);
    assert.ok(planted.samples.length > 4, `${planted.samples.length}`);
    for (const { start, end } of kept)
      assert.deepEqual(file.peek(start, end - start), before.subarray(start, end), `SEED=${seed}`);
    const sighted = await search(new Map([["", file]]), planted);
    assert.equal(sighted.canaries, planted.count, `SEED=${seed}`);
    for (const { start, end } of free) await file.zero({ start, end });
    assert.deepEqual(await search(new Map([["", file]]), planted), {
      canaries: 0,
      samples: 0,
      searchedBytes: BYTES,
    });
  }
});

test("one canary that is left is found, also where the search's pieces meet", async () => {
  const file = new SimulatedFile(4 * 2 ** 20 + 100);
  const all = { start: 0, end: file.bytes };
  await file.write(0, new Random(1).bytes(file.bytes));
  const planted = await plant(new Map([["", file]]), new Map([["", ExtentSet.of(all)]]));
  const noise = new Random(2).bytes(file.bytes);
  await file.write(0, noise);
  // The host tells of it in two pieces.
  file.shared = ExtentSet.of({ start: 3 * 2 ** 20, end: 3 * 2 ** 20 + 4096 });
  const runs = file.shared;
  for (const at of [
    0,
    3 * 2 ** 20 - 9,
    3 * 2 ** 20 + 4096 - 31,
    2 ** 20 - 20,
    2 ** 21 - 32,
    file.bytes - 32,
  ]) {
    await file.write(at, planted.tag);
    await file.write(2 ** 20 + 777, planted.samples[0]!);
    file.shared = runs;
    const { canaries, samples } = await search(new Map([["", file]]), planted);
    assert.deepEqual([canaries, samples], [1, 1], `${at}`);
    await file.write(0, noise);
    file.shared = runs;
  }
});

test("what is planted and cannot be found again ends the erasure before it begins", async () => {
  const file = SimulatedFile.from(new Random(1).bytes(2 ** 20));
  file.write = () => Promise.resolve();
  const remains = new Map([["", ExtentSet.of({ start: 0, end: file.bytes })]]);
  await assert.rejects(plant(new Map([["", file]]), remains), { kind: "io" });
});
