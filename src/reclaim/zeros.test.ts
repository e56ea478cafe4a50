import assert from "node:assert/strict";
import { test } from "node:test";
import { ExtentSet } from "../bytes/extents.ts";
import { draw } from "../testing/draw.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { zeroRuns } from "./zeros.ts";

const whole = (file: SimulatedFile) => ExtentSet.of({ start: 0, end: file.bytes });

test("finds aligned runs of zeros", async () => {
  const file = new SimulatedFile(16 * 512);
  for (const at of [0, 512 * 4 - 1, 512 * 7 + 100, 512 * 8]) await file.write(at, Uint8Array.of(1));
  assert.equal(draw(await zeroRuns(file, whole(file), 512), file.bytes, 512), ".##.###..#######");
  assert.equal(draw(await zeroRuns(file, whole(file), 2048), file.bytes, 512), "............####");
  const part = ExtentSet.of({ start: 600, end: 512 * 3 }, { start: 512 * 5, end: 512 * 6 + 1 });
  assert.equal(draw(await zeroRuns(file, part, 512), file.bytes, 512), "..#..#..........");
});

test("H8: what the map calls a hole is read, not believed", async () => {
  const file = SimulatedFile.from(new Uint8Array(8192).fill(1));
  file.map = async function* (range) {
    yield [{ ...range, kind: "hole", shared: false, depth: 0 }];
  };
  assert.equal((await zeroRuns(file, whole(file), 4096)).count, 0);
});

test("agrees with a look at every byte", async () => {
  for (const seed of seeds(8)) {
    const random = new Random(seed);
    const bytes = 3_000_000 + random.below(100_000);
    const file = new SimulatedFile(bytes);
    for (let i = 0; i < 60; i++)
      await file.write(random.below(bytes - 5000), random.bytes(random.below(5000)));
    const within = ExtentSet.from(
      Array.from({ length: 40 }, () => {
        const start = random.below(bytes);
        return {
          start,
          end: random.between(start, Math.min(bytes, start + random.pick([900, 30_000, 2_000_000]))),
        };
      }),
    );
    const grainBytes = random.pick([512, 1024, 4096, 65_536, 2_097_152]);
    const content = file.peek();
    const expected = [];
    for (const { start, end } of within.alignInward(grainBytes)) {
      for (let at = start; at < end; at += grainBytes) {
        if (content.subarray(at, at + grainBytes).every((byte) => byte === 0)) {
          expected.push({ start: at, end: at + grainBytes });
        }
      }
    }
    const found = await zeroRuns(file, within, grainBytes);
    assert.deepEqual([...found], [...ExtentSet.from(expected)], `SEED=${seed}`);
  }
});

test("reads close neighbours in one go, and only what is wanted", async () => {
  const file = new SimulatedFile(64 * 2 ** 20);
  const near = Array.from({ length: 50 }, (_, i) => ({ start: i * 8192, end: i * 8192 + 4096 }));
  await zeroRuns(file, ExtentSet.from([...near, { start: 2 ** 25, end: 2 ** 25 + 4096 }]), 4096);
  assert.equal(file.reads, 2);
});

test("tells how far it is, and stops when it is asked to", async () => {
  const file = new SimulatedFile(8 * 2 ** 20);
  const seen: number[] = [];
  await zeroRuns(file, whole(file), 4096, { onProgress: (done, total) => seen.push(done / total) });
  assert.equal(seen.at(-1), 1);
  assert.ok(seen.length > 4 && seen.every((part, i) => i === 0 || part >= seen[i - 1]!));
  const abort = new AbortController();
  await assert.rejects(
    zeroRuns(file, whole(file), 4096, { signal: abort.signal, onProgress: () => abort.abort() }),
    { kind: "interrupted" },
  );
  file.fault = { read: file.reads + 2 };
  await assert.rejects(zeroRuns(file, whole(file), 4096), { kind: "io" });
});
