import assert from "node:assert/strict";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import { DiskError } from "../../error.ts";
import { execute } from "../../reclaim/execute.ts";
import type { Plan, Step, Wish } from "../../reclaim/plan.ts";
import { loadFolder, parentsIn, sourceIn } from "../../testing/qcow2-kinds.ts";
import { createImage, qemuCheck, qemuIo } from "../../testing/qemu.ts";
import type { SimulatedFile } from "../../testing/simulated-file.ts";
import { requires, scratch } from "../../testing/tools.ts";
import type { WritableImage } from "../format.ts";
import { qcow2 } from "../qcow2.ts";
import { openContext } from "./context.ts";
import { AUTOCLEAR_AT, COMPATIBLE_AT, HeaderV2, INCOMPATIBLE_AT } from "./header.ts";
import { decodeEntry, entryAt, l2TableAt } from "./tables.ts";

const MIB = 2 ** 20;
const IMAGE = "image.qcow2";
const CLUSTER_BYTES = 65536;

const NOTHING: Wish = {
  free: ExtentSet.EMPTY,
  blank: ExtentSet.EMPTY,
  pack: false,
  punch: true,
  minHoleBytes: 4096,
  hostBlockBytes: 4096,
};
const FIRST_MIB: Wish = { ...NOTHING, free: ExtentSet.of({ start: 0, end: MIB }) };

interface Written {
  readonly folder: string;
  readonly file: SimulatedFile;
  readonly open: () => Promise<WritableImage>;
}

/** 2 MiB written; none of it shared. */
async function written(t: TestContext): Promise<Written> {
  const folder = scratch(t);
  const path = createImage({ folder, name: IMAGE, virtualBytes: 4 * MIB });
  qemuIo(path, [`write -P 7 0 ${2 * MIB}`]);
  const files = await loadFolder(folder);
  const open = () => qcow2.openWritable!(sourceIn(files, IMAGE), parentsIn(files));
  return { folder, file: files.get(IMAGE)!, open };
}

async function stepsOf(plan: Plan): Promise<Step[]> {
  const steps: Step[] = [];
  for await (const batch of plan.batches()) steps.push(...batch);
  return steps;
}

async function setFlags(file: SimulatedFile, at: number, flags: bigint): Promise<void> {
  const word = viewOf(new Uint8Array(8));
  word.setBigUint64(0, flags);
  await file.write(at, new Uint8Array(word.buffer));
}

for (const [bit, code] of [
  [1n, "dirty-bit"],
  [2n, "corrupt-bit"],
] as const) {
  test(`an image with its ${code} set is refused (H17)`, async (t) => {
    if (!requires(t, "qemu-img", "qemu-io")) return;
    const { file, open } = await written(t);
    await setFlags(file, INCOMPATIBLE_AT, bit);
    await using image = await open();
    const isRefused = (error: unknown) => error instanceof DiskError && error.code === code;
    await assert.rejects(image.plan(FIRST_MIB), isRefused);
    await assert.rejects(image.write(0, new Uint8Array(512)), isRefused);
    await assert.rejects(image.repairLeaks!(), isRefused);
  });
}

test("an image with an error is refused before anything is changed (H17)", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const { file, open } = await written(t);
  // The refcount block lies in the third cluster: the last data cluster is called free.
  await file.write(2 * CLUSTER_BYTES + (file.bytes / CLUSTER_BYTES - 1) * 2, new Uint8Array(2));
  const before = Buffer.from(file.peek());
  await using image = await open();
  const isCorrupt = (error: unknown) => error instanceof DiskError && error.kind === "corrupt";
  await assert.rejects(image.plan(FIRST_MIB), isCorrupt);
  await assert.rejects(image.write(0, new Uint8Array(512)), isCorrupt);
  assert.ok(before.equals(file.peek()));
});

test("of an encrypted image nothing is freed, for nobody knows what is", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const { file, open } = await written(t);
  await file.write(HeaderV2.at.cryptMethod, Uint8Array.of(0, 0, 0, 2));
  await using image = await open();
  await assert.rejects(
    image.plan(FIRST_MIB),
    (error) => error instanceof DiskError && error.code === "encrypted",
  );
  assert.equal((await image.plan({ ...NOTHING, pack: true })).packBytes, 0);
});

test("autoclear bits that are not known are cleared first", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const { file, open } = await written(t);
  await setFlags(file, AUTOCLEAR_AT, 1n << 40n);
  await using image = await open();
  const [first] = await stepsOf(await image.plan(FIRST_MIB));
  assert.ok(first?.op === "patch" && first.at === AUTOCLEAR_AT);
  await image.write(0, new Uint8Array(512));
  assert.equal(viewOf(file.peek(AUTOCLEAR_AT, 8)).getBigUint64(0), 0n);
});

test("leaked clusters and those that are free already are punched, and the leaked ones released", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const { folder, file, open } = await written(t);
  const end = file.bytes;
  await file.write(end, new Uint8Array(2 * CLUSTER_BYTES).fill(9));
  await file.write(2 * CLUSTER_BYTES + (end / CLUSTER_BYTES) * 2, Uint8Array.of(0, 1));
  const hostBytes = file.hostBytes;
  await using image = await open();
  const plan = await image.plan(NOTHING);
  assert.deepEqual([plan.unmapBytes, plan.punchBytes], [0, 2 * CLUSTER_BYTES]);
  assert.equal(plan.leakedBytes, CLUSTER_BYTES);
  await execute(plan, image.files);
  assert.equal(hostBytes - file.hostBytes, 2 * CLUSTER_BYTES);
  await file.save(join(folder, IMAGE));
  assert.deepEqual(qemuCheck(join(folder, IMAGE)), { errors: 0, leaks: 0 });
});

test("no cluster is punched while an entry may name it, or released while it may be punched (H12)", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const { file, open } = await written(t);
  await using image = await open();
  const context = await openContext(file.fork(), () => Promise.reject(new Error("no data file")));
  const tables = ExtentSet.of(wholeCluster(l2TableAt(context, context.l1, 0)));
  const counts = ExtentSet.of(wholeCluster(await context.refcounts.blockAt(0)));
  const order: string[] = [];
  for await (const batch of (await image.plan(FIRST_MIB)).batches()) {
    const kinds = batch.map((step) => {
      if (step.op !== "patch") return step.op;
      return tables.has(step.at) ? "unmap" : counts.has(step.at) ? "release" : "other";
    });
    order.push([...new Set(kinds)].join(" and "));
  }
  assert.deepEqual(order, ["unmap", "punch", "release"], "each in a batch of its own");
});

const wholeCluster = (start: number) => ({ start, end: start + CLUSTER_BYTES });

test("what a reflink shares is not punched, for it would return nothing (H35)", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const { file, open } = await written(t);
  const shared = { start: file.bytes - 32 * CLUSTER_BYTES, end: file.bytes - 28 * CLUSTER_BYTES };
  file.shared = ExtentSet.of(shared);
  await using image = await open();
  const plan = await image.plan({ ...FIRST_MIB });
  const punched = plan.punched.get("")!;
  assert.equal(plan.unmapBytes, MIB);
  assert.equal(punched.bytes, MIB - 4 * CLUSTER_BYTES);
  assert.equal(punched.touches(shared), false);
});

test("what a feature that is not known may own is not taken for a leak", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const { file, open } = await written(t);
  const end = file.bytes;
  await file.write(end, new Uint8Array(CLUSTER_BYTES).fill(9));
  await file.write(2 * CLUSTER_BYTES + (end / CLUSTER_BYTES) * 2, Uint8Array.of(0, 1));
  await setFlags(file, COMPATIBLE_AT, 1n << 40n);
  await using image = await open();
  assert.deepEqual(await stepsOf(await image.plan(NOTHING)), []);
  assert.equal((await image.plan({ ...FIRST_MIB, pack: true })).packBytes, 0, "nor moved, nor cut off");
  await assert.rejects(
    image.repairLeaks!(),
    (error) => error instanceof DiskError && error.kind === "refused",
  );
});

test("a cluster that a feature that is not known may share is not given away (H11)", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const { file, open } = await written(t);
  const context = await openContext(file.fork(), () => Promise.reject(new Error("no data file")));
  const table = await context.l2.get(l2TableAt(context, context.l1, 0));
  const { host } = decodeEntry(context, table, 3);
  const countAt = (await context.refcounts.blockAt(0)) + (host / CLUSTER_BYTES) * 2;
  await file.write(countAt, Uint8Array.of(0, 2));
  await file.write(entryAt(context.header, table, 3), Uint8Array.of(0));
  await setFlags(file, COMPATIBLE_AT, 1n << 40n);
  await using image = await open();
  const plan = await image.plan(FIRST_MIB);
  assert.equal(plan.unmapBytes, MIB - CLUSTER_BYTES);
  await execute(plan, image.files);
  assert.deepEqual([...file.peek(countAt, 2)], [0, 2]);
  assert.ok(file.peek(host, CLUSTER_BYTES).every((byte) => byte === 7));
});

test("an external data file where two guest clusters may lie at one place is refused", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const folder = scratch(t);
  const options = { data_file: join(folder, "image.data") };
  const path = createImage({ folder, name: IMAGE, virtualBytes: 4 * MIB, options });
  qemuIo(path, [`write -P 7 0 ${4 * MIB}`]);
  const files = await loadFolder(folder);
  const file = files.get(IMAGE)!;
  const context = await openContext(file, () => Promise.resolve(files.get("image.data")!));
  const table = await context.l2.get(l2TableAt(context, context.l1, 0));
  // The last cluster, which is in use, lies at the place of the first.
  await file.write(entryAt(context.header, table, 63), Uint8Array.of(0x80, 0, 0, 0, 0, 0, 0, 0));
  await using image = await qcow2.openWritable!(sourceIn(files, IMAGE), parentsIn(files));
  await assert.rejects(
    image.plan(FIRST_MIB),
    (error) => error instanceof DiskError && error.kind === "corrupt",
  );
});
