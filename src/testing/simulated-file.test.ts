import assert from "node:assert/strict";
import { statSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { ExtentSet } from "../bytes/extents.ts";
import { wholeMap } from "../device/device.ts";
import { Random, seeds } from "./seeds.ts";
import { type Operation, PowerCut, SimulatedFile } from "./simulated-file.ts";
import { simulatedSource } from "./simulated-source.ts";
import { scratch } from "./tools.ts";

const shape = async (file: SimulatedFile) =>
  (await wholeMap(file))
    .map((run) => `${run.kind[0]}${run.shared ? "*" : ""}${run.start}-${run.end}`)
    .join(" ");

test("a file of 16 TiB costs what is written", async () => {
  const tebibytes = 16 * 2 ** 40;
  const file = new SimulatedFile(tebibytes);
  await file.write(tebibytes - 4, Uint8Array.of(1, 2, 3, 4));
  assert.equal(file.hostBytes, 4096);
  assert.equal(await shape(file), `h0-${tebibytes - 4096} d${tebibytes - 4096}-${tebibytes}`);
  await file.punch({ start: 0, end: tebibytes });
  assert.equal(file.hostBytes, 0);
});

test("holes, unwritten and shared extents show in the map and in the allocation", async () => {
  const file = new SimulatedFile(10 * 4096);
  file.preallocate({ start: 4096, end: 3 * 4096 });
  await file.write(2 * 4096, new Uint8Array(4 * 4096).fill(7));
  assert.equal(await shape(file), "h0-4096 z4096-8192 d8192-24576 h24576-40960");
  assert.equal(file.hostBytes, 5 * 4096);
  file.shared = ExtentSet.of({ start: 12288, end: 20480 });
  await file.punch({ start: 9000, end: 12289 });
  assert.equal(await shape(file), "h0-4096 z4096-8192 d8192-16384 d*16384-20480 d20480-24576 h24576-40960");
  assert.deepEqual([...file.peek(8999, 3)], [7, 0, 0]);
  assert.deepEqual([...file.peek(12288, 2)], [0, 7]);
  await file.zero({ start: 0, end: 40960 });
  assert.equal(await shape(file), "h0-4096 z4096-24576 h24576-40960");
});

test("behaves as an array of bytes, and forks do not see each other", async () => {
  for (const seed of seeds(10)) {
    const random = new Random(seed);
    const pairs = [{ file: new SimulatedFile(3000, { blockBytes: 512 }), model: new Uint8Array(3000) }];
    for (let i = 0; i < 400; i++) {
      const pair = random.pick(pairs);
      const start = random.below(pair.model.length);
      const end = random.between(start, pair.model.length + 1);
      const choice = random.below(6);
      if (choice === 0) {
        await pair.file.punch({ start, end });
        pair.model.fill(0, start, end);
      } else if (choice === 1) {
        await pair.file.zero({ start, end });
        pair.model.fill(0, start, end);
      } else if (choice === 2 && pairs.length < 5) {
        pairs.push({ file: pair.file.fork(), model: pair.model.slice() });
      } else if (choice === 3 && random.oneIn(4)) {
        const bytes = random.between(1, 4000);
        await pair.file.truncate(bytes);
        const model = new Uint8Array(bytes);
        model.set(pair.model.subarray(0, bytes));
        pair.model = model;
      } else {
        const data = random.bytes(end - start);
        await pair.file.write(start, data);
        pair.model.set(data, start);
      }
    }
    for (const { file, model } of pairs) assert.deepEqual(file.peek(), model, `SEED=${seed}`);
  }
});

test("fails where it is told to", async () => {
  const file = new SimulatedFile(8192);
  file.fault = { operation: 1 };
  await file.write(0, Uint8Array.of(1));
  await assert.rejects(file.flush(), { name: "DiskError", kind: "io" });
  await file.flush();
  file.fault = { operation: 3, forever: true };
  await assert.rejects(file.write(0, new Uint8Array(1024).fill(5)), { kind: "io" });
  assert.deepEqual([file.peek(511, 1)[0], file.peek(512, 1)[0]], [5, 0], "a failed write may be half done");
  await assert.rejects(file.punch({ start: 0, end: 4096 }), { kind: "io" });
  file.fault = { read: 1 };
  await file.read(0, new Uint8Array(1));
  await assert.rejects(file.read(0, new Uint8Array(1)), { kind: "io" });
  file.fault = { powerCut: file.operations };
  await assert.rejects(file.flush(), PowerCut);
  await assert.rejects(file.read(0, new Uint8Array(1)), PowerCut, "nothing works after a power cut");
});

test("a full host refuses to allocate, and lets what is allocated be written", async () => {
  const file = new SimulatedFile(4 * 4096, { capacityBytes: 4096 });
  await file.write(0, Uint8Array.of(1));
  await assert.rejects(file.write(4096, Uint8Array.of(1)), { kind: "io", code: "no-space" });
  await file.write(1, Uint8Array.of(1));
  await file.punch({ start: 0, end: 4096 });
  await file.write(4096, Uint8Array.of(1));
});

test("records what was done", async () => {
  const trace: Operation[] = [];
  const file = new SimulatedFile(8192, { trace, name: "a" });
  const data = Buffer.of(1);
  await file.write(5, data);
  data[0] = 9;
  await file.punch({ start: 0, end: 4096 });
  await file.flush();
  await file.truncate(4096);
  assert.deepEqual(trace, [
    { op: "write", at: 5, data: Uint8Array.of(1), file: "a" },
    { op: "punch", range: { start: 0, end: 4096 }, file: "a" },
    { op: "flush", file: "a" },
    { op: "truncate", bytes: 4096, file: "a" },
  ]);
});

test("goes to a real file and back", async (t) => {
  const path = join(scratch(t), "file");
  const file = new SimulatedFile(1_000_001);
  await file.write(999_990, new Uint8Array(11).fill(3));
  await file.save(path);
  assert.equal(statSync(path).size, 1_000_001);
  assert.ok(statSync(path).blocks * 512 < 100_000);
  assert.deepEqual(new Uint8Array(readFileSync(path)), file.peek());
  assert.equal(await shape(await SimulatedFile.load(path)), await shape(file));
});

test("a source opens, locks, creates and refers", async () => {
  const files = new Map([["a", new SimulatedFile(5)]]);
  const source = simulatedSource(files, "a");
  assert.equal((await source.open()).bytes, 5);
  const held = await source.openWritable!();
  await assert.rejects(source.openWritable!(), { kind: "busy" });
  await (await source.open())[Symbol.asyncDispose]();
  await assert.rejects(source.openWritable!(), { kind: "busy" }, "closing a reader frees no lock");
  await held[Symbol.asyncDispose]();
  await (await source.openWritable!()).flush();
  await (await (await source.refer("b")).create!()).write(0, Uint8Array.of(1));
  assert.equal(files.get("b")!.bytes, 1);
  await assert.rejects(source.refer("../b"), { kind: "refused" });
});
