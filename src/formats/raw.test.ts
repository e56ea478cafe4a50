import assert from "node:assert/strict";
import { test } from "node:test";
import { ExtentSet } from "../bytes/extents.ts";
import { DiskError } from "../error.ts";
import { execute } from "../reclaim/execute.ts";
import type { Step, Wish } from "../reclaim/plan.ts";
import { conformance } from "../testing/conformance.ts";
import { draw } from "../testing/draw.ts";
import { someSectors } from "../testing/conformance/judge.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { simulatedSource, sourceOf } from "../testing/simulated-source.ts";
import { raw } from "./raw.ts";

const noParent = () => Promise.reject(new Error("raw images have no parent"));

conformance(
  raw,
  [512, 4096, 65_536].map((blockBytes) => ({
    name: `host blocks of ${blockBytes}`,
    async make(_, random) {
      const bytes = 600_000 + random.below(4) * 512;
      const file = SimulatedFile.from(random.bytes(bytes), { blockBytes, name: "disk" });
      for (const range of someSectors(random, bytes, 4)) await file.punch(range);
      return { files: new Map([["disk", file]]), image: "disk", content: file.peek() };
    },
  })),
);

const KIBIBYTE = 1024;

const wish = (more: Partial<Wish>): Wish => ({
  free: ExtentSet.EMPTY,
  blank: ExtentSet.EMPTY,
  pack: false,
  punch: true,
  minHoleBytes: 4096,
  hostBlockBytes: 4096,
  ...more,
});

async function stepsFor(file: SimulatedFile, asked: Partial<Wish>): Promise<Step[]> {
  await using image = await raw.open(sourceOf(file), noParent);
  const plan = await image.plan(wish(asked));
  const steps: Step[] = [];
  for await (const batch of plan.batches()) steps.push(...batch);
  const punched = steps.reduce(
    (sum, step) => sum + (step.op === "punch" ? step.range.end - step.range.start : 0),
    0,
  );
  assert.equal(plan.punchBytes, punched);
  return steps;
}

/** What is punched, in cells of 4 KiB. */
async function punches(file: SimulatedFile, asked: Partial<Wish>): Promise<string> {
  const ranges = (await stepsFor(file, asked)).flatMap((step) => (step.op === "punch" ? [step.range] : []));
  return draw(ExtentSet.from(ranges), file.bytes, 4096);
}

const filled = (kibibytes: number) => SimulatedFile.from(new Uint8Array(kibibytes * KIBIBYTE).fill(1));

test("H10: only whole host blocks are punched", async () => {
  const free = ExtentSet.of({ start: 512, end: 9 * KIBIBYTE }, { start: 16 * KIBIBYTE, end: 20 * KIBIBYTE });
  assert.equal(await punches(filled(32), { free }), ".#..#...");
});

test("H35: what is a hole already, or shared, returns nothing and is left alone", async () => {
  const file = filled(32);
  await file.punch({ start: 0, end: 4096 });
  file.shared = ExtentSet.of({ start: 8192, end: 12288 });
  assert.equal(await punches(file, { free: ExtentSet.of({ start: 0, end: 20480 }) }), ".#.##...");
});

test("an unwritten extent owns space, too", async () => {
  const file = new SimulatedFile(32 * KIBIBYTE);
  file.preallocate({ start: 0, end: 32 * KIBIBYTE });
  assert.equal(await punches(file, { free: ExtentSet.of({ start: 4096, end: 12288 }) }), ".##.....");
});

test("small holes are not made, unless they lengthen one that is there", async () => {
  const file = filled(64);
  await file.punch({ start: 16 * KIBIBYTE, end: 24 * KIBIBYTE });
  const block = (first: number, count: number) => ({ start: first * 4096, end: (first + count) * 4096 });
  const free = ExtentSet.of(block(0, 1), block(3, 1), block(8, 2), block(12, 4));
  assert.equal(await punches(file, { free, minHoleBytes: 12 * KIBIBYTE }), "...#........####");
});

test("blank ranges read zeros afterwards, whatever the map says of them (H8)", async () => {
  const file = filled(32);
  file.map = async function* (range) {
    yield [{ ...range, kind: "hole", shared: false, depth: 0 }];
  };
  const blank = ExtentSet.of({ start: 100, end: 10_000 });
  for (const asked of [{ punch: true }, { punch: false }, { pack: true }]) {
    const victim = file.fork();
    await using image = await raw.openWritable!(sourceOf(victim), noParent);
    await execute(await image.plan(wish({ blank, ...asked })), image.files);
    const expected = file.peek().fill(0, 100, 10_000);
    assert.deepEqual(victim.peek(), expected);
  }
});

test("neither a host without holes nor packing gives anything back", async () => {
  const free = ExtentSet.of({ start: 0, end: 32 * KIBIBYTE });
  assert.deepEqual(await stepsFor(filled(32), { free, punch: false }), []);
  assert.deepEqual(await stepsFor(filled(32), { free, pack: true }), []);
});

test("creates a file that is one hole", async () => {
  const files = new Map<string, SimulatedFile>();
  const source = simulatedSource(files, "new");
  await using image = await raw.create!(source, { virtualBytes: 10 * 2 ** 30, options: {} });
  assert.equal(image.bytes, 10 * 2 ** 30);
  assert.equal(files.get("new")!.hostBytes, 0);
  await assert.rejects(
    raw.create!(simulatedSource(files, "other"), { virtualBytes: 1, options: { cluster_size: "1" } }),
    (error) => error instanceof DiskError && error.kind === "usage",
  );
});

test("300,000 extents are planned in batches", async () => {
  const count = 300_000;
  const file = new SimulatedFile(count * 8192);
  file.map = async function* (range) {
    const place = { file, at: range.start, bytes: range.end - range.start };
    yield [{ ...range, kind: "data", place, shared: false, depth: 0 }];
  };
  const packed = new Float64Array(count * 2);
  for (let i = 0; i < packed.length; i++) packed[i] = i * 4096;
  await using image = await raw.open({ ...sourceOf(file), open: () => Promise.resolve(file) }, noParent);
  const plan = await image.plan(wish({ free: ExtentSet.fromSorted(packed) }));
  let steps = 0;
  for await (const batch of plan.batches()) {
    assert.ok(batch.length < 100_000);
    steps += batch.length;
  }
  assert.equal(steps, count);
});
