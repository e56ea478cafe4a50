import assert from "node:assert/strict";
import { test } from "node:test";
import { ExtentSet } from "../bytes/extents.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { cache } from "./cache.ts";
import { checked } from "./checked.ts";
import { type BlockDevice, readBytes, type Run, wholeMap, type WritableDevice } from "./device.ts";
import { overlay } from "./overlay.ts";
import { slice } from "./slice.ts";
import { traced } from "./traced.ts";

const shape = (runs: readonly Run[]) =>
  runs.map(({ start, end, kind, place }) => `${kind} ${start}-${end}${place ? ` at ${place.at}` : ""}`);

const file = (bytes: number, seed = 1) => SimulatedFile.from(new Random(seed).bytes(bytes));

/** A device that tells how often and how much it is read. */
function counted(device: SimulatedFile): { device: BlockDevice; log: string[] } {
  const log: string[] = [];
  return { device: traced(device, "below", (line) => log.push(line.slice("below read ".length))), log };
}

test("a slice is a window: reads, maps and places", async () => {
  const below = file(40_960);
  await below.punch({ start: 8192, end: 16_384 });
  const window = slice(below, { start: 4096, end: 20_480 });
  assert.equal(window.bytes, 16_384);
  assert.deepEqual(await readBytes(window, 100, 16_000), below.peek(4196, 16_000));
  assert.deepEqual(shape(await wholeMap(window)), [
    "data 0-4096 at 4096",
    "hole 4096-12288",
    "data 12288-16384 at 16384",
  ]);
  await assert.rejects(async () => window.read(16_000, new Uint8Array(400)), /lies in 16384/);
  assert.throws(() => slice(below, { start: 0, end: 40_961 }), /lies in/);
});

test("an overlay behaves like an array of bytes and leaves what is below alone", async () => {
  for (const seed of seeds(10)) {
    const random = new Random(seed);
    const below = file(50_000, seed);
    const before = below.peek();
    const model = below.peek();
    const over = overlay(below);
    let touched = ExtentSet.EMPTY;
    for (let i = 0; i < 60; i++) {
      const start = random.below(50_000);
      const end = random.between(start, Math.min(50_000, start + 12_000) + 1);
      if (random.oneIn(3)) {
        await over.zero({ start, end });
        model.fill(0, start, end);
      } else {
        const data = random.bytes(end - start);
        await over.write(start, data);
        model.set(data, start);
      }
      touched = touched.union(ExtentSet.of({ start, end }));
      const at = random.below(50_000);
      assert.deepEqual(await readBytes(over, at, 50_000 - at), model.subarray(at), `SEED=${seed}`);
    }
    assert.ok(over.written().equals(touched), `SEED=${seed}`);
    assert.deepEqual(below.peek(), before);
  }
});

test("an overlay's map shows what is below where nothing was written", async () => {
  const below = new SimulatedFile(40_960);
  await below.write(0, new Uint8Array(20_480).fill(1));
  const over = overlay(below);
  await over.write(5000, Uint8Array.of(9));
  await over.zero({ start: 24_576, end: 28_672 });
  assert.deepEqual(shape(await wholeMap(checked(over))), [
    "data 0-4096 at 0",
    "data 4096-8192",
    "data 8192-20480 at 8192",
    "hole 20480-24576",
    "data 24576-28672",
    "hole 28672-40960",
  ]);
});

test("H24: an overlay holds no more than it may", async () => {
  const over = overlay(new SimulatedFile(2 ** 40), { memoryBytesMax: 8192 });
  await over.write(0, new Uint8Array(8192));
  await over.write(100, new Uint8Array(100));
  await assert.rejects(over.write(2 ** 30, Uint8Array.of(1)), { kind: "unsupported" });
});

test("a cache reads what is below, and each block once", async () => {
  for (const seed of seeds(5)) {
    const random = new Random(seed);
    const below = file(100_001, seed);
    const { device, log } = counted(below);
    const cached = cache(device, { blockBytes: 1000, blocks: 1000, aheadBlocks: 3 });
    for (let i = 0; i < 300; i++) {
      const at = random.below(100_001);
      const bytes = random.below(Math.min(8000, 100_001 - at));
      assert.deepEqual(await readBytes(cached, at, bytes), below.peek(at, bytes), `SEED=${seed}`);
    }
    const read = ExtentSet.from(
      log.map((line) => {
        const [at, bytes] = line.split("+").map(Number) as [number, number];
        return { start: at, end: at + bytes };
      }),
    );
    const total = log.reduce((sum, line) => sum + Number(line.split("+")[1]), 0);
    assert.equal(total, read.bytes, `SEED=${seed}: no byte was fetched twice`);
  }
});

test("a cache forgets what was not used for longest", async () => {
  const { device, log } = counted(file(100_000));
  const cached = cache(device, { blockBytes: 1000, blocks: 5, aheadBlocks: 0 });
  const touch = (block: number) => cached.read(block * 1000, new Uint8Array(10));
  for (const block of [0, 10, 20, 30, 40, 0, 50, 0, 10]) await touch(block);
  assert.deepEqual(
    log,
    [0, 10, 20, 30, 40, 50, 10].map((block) => `${block * 1000}+1000`),
  );
});

test("a cache reads ahead where reads follow each other, and lets large reads pass", async () => {
  const { device, log } = counted(file(100_000));
  const cached = cache(device, { blockBytes: 1000, blocks: 100, aheadBlocks: 4 });
  await cached.read(50_000, new Uint8Array(1000));
  await cached.read(51_000, new Uint8Array(1000));
  await cached.read(52_000, new Uint8Array(3000));
  await cached.read(0, new Uint8Array(60_000));
  await cached.read(98_999, new Uint8Array(1001));
  assert.deepEqual(log, ["50000+1000", "51000+5000", "0+60000", "98000+2000"]);
});

test("a trace names every operation and its range, and keeps the device's kind", async () => {
  const lines: string[] = [];
  const device = traced(file(8192), "file", (line) => lines.push(line));
  await device.read(5, new Uint8Array(3));
  await device.write(0, new Uint8Array(4));
  await device.zero({ start: 1, end: 3 });
  await device.punch({ start: 0, end: 4096 });
  await device.truncate(4096);
  await device.flush();
  await wholeMap(device);
  assert.deepEqual(lines, [
    "file read 5+3",
    "file write 0+4",
    "file zero 1+2",
    "file punch 0+4096",
    "file truncate 4096",
    "file flush",
    "file map 0+4096",
  ]);
  assert.equal((await device.stat()).fileBytes, 4096);
  assert.equal(device.bytes, 4096);
});

test("a checked device stops a breach of the contract before it reaches the device", async () => {
  const below = file(8192);
  const device = checked(below);
  const breaches: (() => Promise<unknown>)[] = [
    () => device.read(8190, new Uint8Array(3)),
    () => device.read(-1, new Uint8Array(1)),
    () => device.read(0.5, new Uint8Array(1)),
    () => device.zero({ start: 0, end: 8193 }),
    () => device.punch({ start: 5, end: 4 }),
    () => wholeMap(device, { start: 0, end: 9000 }),
    () => device.truncate(NaN),
  ];
  for (const breach of breaches) await assert.rejects(async () => breach(), /internal error/);
  assert.deepEqual([below.reads, below.operations], [0, 0]);
  await device.write(8192, Uint8Array.of(1));
  assert.equal(device.bytes, 8193, "a file may grow by a write");
  const disk: WritableDevice = checked(overlay(below));
  await assert.rejects(async () => disk.write(8193, Uint8Array.of(1)), /internal error/, "a disk may not");
});

test("a checked device finds gaps and overlaps in a map", async () => {
  const run = (start: number, end: number): Run => ({ start, end, kind: "hole", shared: false, depth: 0 });
  for (const runs of [
    [run(0, 10)],
    [run(0, 10), run(11, 20)],
    [run(0, 15), run(10, 20)],
    [run(0, 0), run(0, 20)],
    [run(0, 21)],
  ]) {
    const below = file(20);
    below.map = async function* () {
      yield runs;
    };
    await assert.rejects(wholeMap(checked(below)), /internal error/);
  }
  assert.equal((await wholeMap(checked(file(20)))).length, 1);
});

test("a checked device is not used after it was closed", async () => {
  const device = checked(file(8192));
  await device.read(0, new Uint8Array(1));
  await device[Symbol.asyncDispose]();
  await assert.rejects(async () => device.read(0, new Uint8Array(1)), /open/);
  await assert.rejects(async () => device.flush(), /open/);
});
