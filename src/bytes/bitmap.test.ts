import assert from "node:assert/strict";
import { test } from "node:test";
import { Random, seeds } from "../testing/seeds.ts";
import { clearRuns, SparseBitmap } from "./bitmap.ts";

test("is the set of numbers that were added", () => {
  for (const seed of seeds(20)) {
    const random = new Random(seed);
    const bitmap = new SparseBitmap();
    const model = new Set<number>();
    const end = 40_000;
    for (let i = 0; i < 60; i++) {
      const start = random.below(end);
      const length = random.pick([1, 31, 32, 33, 500, 4096, 9000]);
      bitmap.setRange(start, Math.min(end, start + length));
      for (let at = start; at < Math.min(end, start + length); at++) model.add(at);
      assert.equal(bitmap.count, model.size, `SEED=${seed}`);
    }
    let nextSet = end;
    let nextClear = end;
    for (let at = end - 1; at >= 0; at--) {
      if (model.has(at)) nextSet = at;
      else nextClear = at;
      assert.equal(bitmap.has(at), model.has(at), `SEED=${seed} ${at}`);
      if (at % 7 === 0) {
        assert.equal(bitmap.nextSet(at, end), nextSet, `SEED=${seed} ${at}`);
        assert.equal(bitmap.nextClear(at, end), nextClear, `SEED=${seed} ${at}`);
        assert.equal(bitmap.nextSet(at, at + 5), nextSet < Math.min(end, at + 5) ? nextSet : at + 5);
      }
    }
  }
});

test("a full disk and a sparse one are both small", () => {
  const blocks = 2 ** 32; // 16 TiB in blocks of 4 KiB
  const full = new SparseBitmap();
  for (let at = 0; at < blocks; at += 2 ** 16) full.setRange(at, at + 2 ** 16);
  assert.equal(full.count, blocks);
  assert.equal(full.nextClear(0, blocks), blocks);
  assert.ok(full.memoryBytes < 8 * 2 ** 20, `${full.memoryBytes}`);

  const groups = new SparseBitmap();
  for (let at = 0; at < blocks; at += 32768) groups.setRange(at, at + 514);
  assert.ok(groups.memoryBytes < 80 * 2 ** 20, `${groups.memoryBytes}`);
  assert.equal(groups.nextSet(600, blocks), 32768);

  const filled = new SparseBitmap();
  for (let at = 0; at < 2 ** 20; at++) filled.setRange(at, at + 1);
  assert.ok(filled.memoryBytes < 2 ** 18, `pages filled bit by bit are given back: ${filled.memoryBytes}`);
});

test("holds numbers past 2^32", () => {
  const bitmap = new SparseBitmap();
  bitmap.setRange(2 ** 40 + 5, 2 ** 40 + 7);
  assert.equal(bitmap.nextSet(0, 2 ** 41), 2 ** 40 + 5);
  assert.equal(bitmap.nextClear(2 ** 40 + 5, 2 ** 41), 2 ** 40 + 7);
  assert.equal(bitmap.has(5), false);
});

test("runs of clear bits end where they should, at every place of a word", () => {
  for (let start = 0; start < 66; start++) {
    for (let end = start + 1; end <= 66; end++) {
      const bitmap = new Uint8Array(12).fill(0xff);
      for (let bit = start; bit < end; bit++) bitmap[bit >> 3]! &= ~(1 << (bit & 7));
      const runs: number[][] = [];
      clearRuns(new Int32Array(bitmap.buffer), 66, (from, to) => runs.push([from, to]));
      assert.deepEqual(runs, [[start, end]]);
    }
  }
});
