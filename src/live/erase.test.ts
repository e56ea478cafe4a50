import assert from "node:assert/strict";
import { test } from "node:test";
import { type Extent, ExtentSet } from "../bytes/extents.ts";
import type { WritableDevice } from "../device/device.ts";
import { Filter } from "../device/filter.ts";
import { DiskError } from "../error.ts";
import { crashStates } from "../testing/crash.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { type Operation, SimulatedFile } from "../testing/simulated-file.ts";
import { Erasing } from "./erase.ts";

const BLOCK = 4096;
const block = (index: number, blocks = 1): Extent => ({
  start: index * BLOCK,
  end: (index + blocks) * BLOCK,
});

/** A disk of blocks that all hold something, and the record of what is done to it. */
function disk(blocks: number): { file: SimulatedFile; trace: Operation[] } {
  const trace: Operation[] = [];
  const file = SimulatedFile.from(new Random(1).bytes(blocks * BLOCK), { trace });
  return { file, trace };
}

const summary = (trace: readonly Operation[]): string[] =>
  trace.map((done) => {
    if (done.op === "write") return `write ${done.at}+${done.data.length}`;
    if (done.op === "punch" || done.op === "zero") return `${done.op} ${done.range.start}-${done.range.end}`;
    return done.op;
  });

async function bytesOf(device: WritableDevice, { start, end }: Extent): Promise<Uint8Array> {
  const into = new Uint8Array(end - start);
  await device.read(start, into);
  return into;
}

const isZero = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === 0);

/** Stops every write until it is let go. */
class Gate extends Filter {
  #open = (): void => {};
  readonly #opened = new Promise<void>((resolve) => (this.#open = resolve));
  arrived = (): void => {};
  readonly atGate = new Promise<void>((resolve) => (this.arrived = resolve));

  override async write(at: number, from: Uint8Array): Promise<void> {
    this.arrived();
    await this.#opened;
    await super.write(at, from);
  }

  open(): void {
    this.#open();
  }
}

test("freed blocks are overwritten, flushed, and only then punched; many TRIMs share a flush", async () => {
  for (const pattern of ["random", "zeros"] as const) {
    const { file, trace } = disk(8);
    const old = file.peek();
    const device = new Erasing(file, { pattern });
    for (const index of [1, 2, 5]) await device.discard(block(index));
    assert.equal(trace.length, 0, "TRIMs are answered before anything is done");
    await device.settled();
    assert.deepEqual(summary(trace), [
      `write ${BLOCK}+${2 * BLOCK}`,
      `write ${5 * BLOCK}+${BLOCK}`,
      "flush",
      `punch ${BLOCK}-${3 * BLOCK}`,
      `punch ${5 * BLOCK}-${6 * BLOCK}`,
    ]);
    const first = trace.at(0);
    assert.ok(first?.op === "write");
    assert.equal(isZero(first.data), pattern === "zeros");
    assert.notDeepEqual(first.data, old.subarray(BLOCK, 3 * BLOCK));
    assert.deepEqual(device.counters, {
      overwrittenBytes: 3 * BLOCK,
      sharedBytes: 0,
      compressedBytes: 0,
      failedBytes: 0,
      waitingBytes: 0,
      flushes: 1,
    });
    for (const index of [0, 3, 4, 6, 7])
      assert.deepEqual(file.peek(index * BLOCK, BLOCK), old.subarray(index * BLOCK, (index + 1) * BLOCK));
  }
});

test("what waits to be erased reads as zeros, and no way leads around", async () => {
  const { file } = disk(4);
  Object.assign(file, { locate: (at: number, bytes: number) => ({ file, at, bytes }) });
  const device = new Erasing(file, { pattern: "random" });
  assert.equal(device.locate(0, BLOCK, "write")?.at, 0);
  await device.discard(block(1));
  assert.equal(device.locate(0, 2 * BLOCK, "read"), undefined);
  assert.equal(device.locate(BLOCK, 512, "write"), undefined);
  assert.equal(device.locate(0, BLOCK, "read")?.at, 0);
  const whole = await bytesOf(device, block(0, 3));
  assert.ok(isZero(whole.subarray(BLOCK, 2 * BLOCK)));
  assert.deepEqual(whole.subarray(2 * BLOCK), file.peek(2 * BLOCK, BLOCK));
  await device.settled();
  assert.ok(isZero(await bytesOf(device, block(1))));
  assert.equal(device.locate(BLOCK, 512, "write")?.at, BLOCK);
});

test("a later write stays, whether its range waits or is being erased", async () => {
  const { file } = disk(4);
  const gate = new Gate(file);
  const device = new Erasing(gate, { pattern: "random" });
  await device.discard(block(0));
  await device.discard(block(2));
  const early = device.write(2 * BLOCK, Uint8Array.of(1, 2, 3));
  await gate.atGate;
  let lateIsDone = false;
  // The batch stands at the gate by now, with block 0 in its hands.
  await new Promise((resolve) => setTimeout(resolve, 40));
  const late = device.write(10, Uint8Array.of(4, 5, 6)).then(() => (lateIsDone = true));
  const elsewhere = device.write(3 * BLOCK, Uint8Array.of(7));
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(lateIsDone, false);
  gate.open();
  await Promise.all([early, late, elsewhere]);
  await device.settled();
  assert.deepEqual([...file.peek(2 * BLOCK, 3)], [1, 2, 3]);
  assert.ok(isZero(file.peek(2 * BLOCK + 3, BLOCK - 3)), "the rest of the block was erased all the same");
  assert.deepEqual([...file.peek(9, 5)], [0, 4, 5, 6, 0]);
  assert.equal(file.peek(3 * BLOCK, 1)[0], 7);
});

test("zeros are answered when the old bytes are overwritten, flushed and replaced", async () => {
  const { file, trace } = disk(4);
  const device = new Erasing(file, { pattern: "random" });
  await device.zero({ start: 100, end: 2 * BLOCK + 5 });
  assert.deepEqual(summary(trace), [`write 100+${2 * BLOCK - 95}`, "flush", `zero 100-${2 * BLOCK + 5}`]);
  await device.zero(block(3), { keep: true });
  assert.deepEqual(summary(trace).slice(3), [
    `write ${3 * BLOCK}+${BLOCK}`,
    "flush",
    `zero ${3 * BLOCK}-${4 * BLOCK}`,
  ]);
  await assert.rejects(device.zero(block(2), { fast: true }), { kind: "unsupported" });
  assert.equal(trace.length, 6, "FAST_ZERO alters nothing");
  await Promise.all([
    device.zero(block(0)),
    device.zero(block(0)),
    device.discard(block(0)),
    device.zero(block(1)),
  ]);
  await device.settled();
  assert.ok(isZero(file.peek(0, 3 * BLOCK).subarray(0, 2 * BLOCK + 5)));
});

test("holes are not written, pieces smaller than a block are, and read as zeros", async () => {
  const { file, trace } = disk(8);
  await file.punch(block(2, 2));
  trace.length = 0;
  const device = new Erasing(file, { pattern: "random" });
  await device.discard({ start: BLOCK + 512, end: 5 * BLOCK - 512 });
  await device.settled();
  assert.deepEqual(summary(trace), [
    `write ${BLOCK + 512}+${BLOCK - 512}`,
    `write ${4 * BLOCK}+${BLOCK - 512}`,
    "flush",
    `punch ${2 * BLOCK}-${4 * BLOCK}`,
    `write ${BLOCK + 512}+${BLOCK - 512}`,
    `write ${4 * BLOCK}+${BLOCK - 512}`,
  ]);
  assert.ok(isZero(file.peek(BLOCK + 512, 4 * BLOCK - 1024)));
});

test("H11: what is shared is given back as ever, never overwritten, and counted", async () => {
  const { file, trace } = disk(4);
  file.shared = ExtentSet.of(block(1));
  const device = new Erasing(file, { pattern: "zeros" });
  await device.discard(block(0, 3));
  await device.settled();
  assert.deepEqual(summary(trace), [
    `write 0+${BLOCK}`,
    `write ${2 * BLOCK}+${BLOCK}`,
    "flush",
    `punch 0-${3 * BLOCK}`,
  ]);
  assert.equal(device.counters.sharedBytes, BLOCK);
  assert.equal(device.counters.overwrittenBytes, 2 * BLOCK);
});

test("what could not be overwritten or flushed is not punched, and is told", async () => {
  for (const operation of [0, 1]) {
    const { file, trace } = disk(4);
    const failures: number[] = [];
    file.fault = { operation };
    const device = new Erasing(file, { pattern: "zeros", onFailure: (_, bytes) => failures.push(bytes) });
    await device.discard(block(1));
    await device.settled();
    assert.ok(!summary(trace).some((line) => line.startsWith("punch")), summary(trace).join());
    assert.deepEqual([failures, device.counters.failedBytes], [[BLOCK], BLOCK]);
    file.fault = { operation: file.operations };
    await assert.rejects(device.zero(block(2)), { kind: "io" });
    file.fault = {};
    await device.write(BLOCK, Uint8Array.of(1));
    await device.zero(block(2));
    assert.ok(isZero(file.peek(2 * BLOCK, BLOCK)));
  }
});

test("a host that says it dropped something, and did not, is found out", async () => {
  const { file } = disk(4);
  const failures: unknown[] = [];
  file.discard = () => Promise.resolve();
  const write = file.write.bind(file);
  let writes = 0;
  file.write = (at, from) => (writes++ === 0 ? write(at, from) : Promise.resolve());
  const device = new Erasing(file, { pattern: "random", onFailure: (error) => failures.push(error) });
  await device.discard(block(1));
  await device.settled();
  assert.equal((failures as { code?: string }[])[0]?.code, "not-erased");
});

test("a TRIM that fails is not the failure of zeros in the same batch", async () => {
  const { file } = disk(4);
  const device = new Erasing(file, { pattern: "zeros" });
  const write = file.write.bind(file);
  file.write = (at, from) => (at === 0 ? Promise.reject(new DiskError("io", "broken")) : write(at, from));
  await device.discard(block(0));
  await device.zero(block(2));
  await device.settled();
  assert.ok(isZero(file.peek(2 * BLOCK, BLOCK)));
  assert.equal(device.counters.failedBytes, BLOCK);
});

test("a disk that is closed has erased all that waited", async () => {
  const { file } = disk(4);
  const device = new Erasing(file, { pattern: "random" });
  await device.discard(block(1, 2));
  await device[Symbol.asyncDispose]();
  assert.equal(file.hostBytes, 2 * BLOCK);
});

test("very much that is freed at once is done in batches, cut at round offsets", async () => {
  const file = new SimulatedFile(2 ** 40);
  const device = new Erasing(file, { pattern: "zeros" });
  const sizes: number[] = [];
  file.discard = (range) => {
    sizes.push(range.end - range.start);
    assert.ok(range.start % (64 * 2 ** 20) === 4096 || range.start % (64 * 2 ** 20) === 0);
    return Promise.resolve();
  };
  await device.discard({ start: 4096, end: 2 ** 32 });
  await device.discard({ start: 2 ** 33, end: 2 ** 33 + 4096 });
  await device.settled();
  assert.equal(
    sizes.reduce((sum, bytes) => sum + bytes, 0),
    2 ** 32,
  );
  assert.ok(Math.max(...sizes) <= 128 * 2 ** 20);
  assert.equal(device.counters.flushes, 0, "holes need no flush");
});

/** Random requests, several at a time on ranges that do not meet; the model knows what must be read. */
async function requestAtRandom(device: Erasing, random: Random, model: Model): Promise<void> {
  const lanes = 4;
  const laneBytes = model.bytes.length / lanes;
  await Promise.all(
    Array.from({ length: lanes }, async (_, lane) => {
      for (let i = 0; i < 40; i++) {
        const start = lane * laneBytes + random.below(laneBytes);
        const range = { start, end: Math.min(start + 1 + random.below(3 * BLOCK), (lane + 1) * laneBytes) };
        await request(device, random, model, range);
        if (random.oneIn(8)) await new Promise((resolve) => setTimeout(resolve, random.below(25)));
      }
    }),
  );
}

interface Model {
  readonly bytes: Uint8Array;
  /** 1: was freed and not written since: old bytes or zeros. */
  readonly freed: Uint8Array;
}

async function request(
  device: Erasing,
  random: Random,
  { bytes, freed }: Model,
  range: Extent,
): Promise<void> {
  const { start, end } = range;
  switch (random.below(6)) {
    case 0:
      return device.flush();
    case 1:
    case 2:
      await device.discard(range);
      freed.fill(1, start, end);
      return;
    case 3:
      await device.zero(range, random.oneIn(2) ? { keep: true } : undefined);
      bytes.fill(0, start, end);
      freed.fill(0, start, end);
      return;
    case 4: {
      const read = await bytesOf(device, range);
      for (let at = start; at < end; at++) {
        const byte = read[at - start]!;
        if (byte !== bytes[at] && !(freed[at] === 1 && byte === 0)) assert.fail(`byte ${at}`);
      }
      return;
    }
    default: {
      const from = random.bytes(end - start);
      await device.write(start, from);
      bytes.set(from, start);
      freed.fill(0, start, end);
    }
  }
}

test("a disk that is erased behaves like an array of bytes", async () => {
  for (const seed of seeds(6)) {
    const random = new Random(seed);
    const { file } = disk(64);
    const model = { bytes: file.peek(), freed: new Uint8Array(64 * BLOCK) };
    const device = new Erasing(file, { pattern: random.pick(["random", "zeros"]) });
    await requestAtRandom(device, random, model);
    await device.settled();
    const found = file.peek();
    for (let at = 0; at < found.length; at++) {
      const isRight = model.freed[at] === 1 ? found[at] === 0 : found[at] === model.bytes[at];
      if (!isRight) assert.fail(`byte ${at}, freed ${model.freed[at]}, SEED=${seed}`);
    }
  }
});

test("H12: a crash at any instant loses no used byte, and no hole was made over bytes that were not overwritten", async () => {
  for (const seed of seeds(3)) {
    const random = new Random(seed);
    const trace: Operation[] = [];
    const before = SimulatedFile.from(random.bytes(12 * BLOCK));
    const file = before.fork({ trace });
    const device = new Erasing(file, { pattern: "random" });
    let kept = ExtentSet.of(block(0, 12));
    for (let i = 0; i < 6; i++) {
      const range = { start: random.below(10) * BLOCK + random.below(2) * 512, end: 11 * BLOCK };
      const freed = { start: range.start, end: Math.min(range.end, range.start + 2 * BLOCK) };
      kept = kept.subtract(ExtentSet.of(freed));
      await device.discard(freed);
      if (random.oneIn(2)) await device.settled();
    }
    await device.settled();
    for await (const { files, label } of crashStates(new Map([["", before]]), trace, { random })) {
      const found = files.get("")!;
      for (const { start, end } of kept)
        assert.deepEqual(
          found.peek(start, end - start),
          before.peek(start, end - start),
          `${label} SEED=${seed}`,
        );
    }
    requireOverwritten(before, trace);
  }
});

/** Every block that is punched was overwritten, as a whole, and flushed since. */
function requireOverwritten(before: SimulatedFile, trace: readonly Operation[]): void {
  let written = ExtentSet.EMPTY;
  let durable = ExtentSet.EMPTY;
  for (const done of trace) {
    if (done.op === "write")
      written = written.union(ExtentSet.of({ start: done.at, end: done.at + done.data.length }));
    if (done.op === "flush") durable = durable.union(written);
    if (done.op === "punch")
      assert.ok(durable.covers(done.range), `punch ${done.range.start}-${done.range.end}`);
  }
  assert.ok(before.hostBytes > 0);
}
