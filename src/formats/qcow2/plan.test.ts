import assert from "node:assert/strict";
import { statSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice } from "../../device/device.ts";
import { execute } from "../../reclaim/execute.ts";
import type { Plan, Wish } from "../../reclaim/plan.ts";
import {
  createImage,
  guestBytes,
  type PatternWrite,
  qemuCheck,
  qemuIo,
  randomWrites,
  writeCommand,
} from "../../testing/qemu.ts";
import { Random, seeds } from "../../testing/seeds.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { requires, run, scratch } from "../../testing/tools.ts";
import { CompressedClusters } from "./compressed.ts";
import { openContext, type Qcow2Context } from "./context.ts";
import { planReclaim } from "./plan.ts";
import { Qcow2Disk } from "./read.ts";

const MIB = 2 ** 20;

interface Variant {
  readonly name: string;
  readonly options: Readonly<Record<string, string | number>>;
  readonly backing?: boolean;
  readonly snapshot?: boolean;
  readonly compressed?: boolean;
  readonly dataFile?: "plain" | "raw";
  readonly bitmap?: boolean;
}

const VARIANTS: readonly Variant[] = [
  { name: "v2, 64 KiB", options: { compat: "0.10" } },
  { name: "v2, 4 KiB, parent", options: { compat: "0.10", cluster_size: 4096 }, backing: true },
  { name: "v2, 16 KiB, parent, snapshot, compressed", options: { compat: "0.10", cluster_size: 16384 }, backing: true, snapshot: true, compressed: true },
  { name: "v3, 512 B", options: { cluster_size: 512 } },
  { name: "v3, 512 B, parent, snapshot", options: { cluster_size: 512 }, backing: true, snapshot: true },
  { name: "v3, 64 KiB, lazy", options: { lazy_refcounts: "on" } },
  { name: "v3, 64 KiB, parent", options: {}, backing: true },
  { name: "v3, 2 MiB", options: { cluster_size: 2 * MIB } },
  { name: "v3, 4 KiB, snapshot, 64-bit counts", options: { cluster_size: 4096, refcount_bits: 64 }, snapshot: true },
  { name: "v3, 4 KiB, 1-bit counts", options: { cluster_size: 4096, refcount_bits: 1 } },
  { name: "v3, 4 KiB, 2-bit counts, snapshot", options: { cluster_size: 4096, refcount_bits: 2 }, snapshot: true },
  { name: "v3, 4 KiB, 8-bit counts", options: { cluster_size: 4096, refcount_bits: 8 }, backing: true },
  { name: "v3, 16 KiB, zlib, parent", options: { cluster_size: 16384 }, backing: true, compressed: true },
  { name: "v3, 64 KiB, zstd, snapshot", options: { compression_type: "zstd" }, compressed: true, snapshot: true },
  { name: "extended L2, 16 KiB", options: { extended_l2: "on", cluster_size: 16384 } },
  { name: "extended L2, 64 KiB, parent", options: { extended_l2: "on" }, backing: true },
  { name: "extended L2, 128 KiB, parent, snapshot, compressed", options: { extended_l2: "on", cluster_size: 131072 }, backing: true, snapshot: true, compressed: true },
  { name: "data file", options: { cluster_size: 16384 }, dataFile: "plain" },
  { name: "data file, extended L2", options: { extended_l2: "on", cluster_size: 16384 }, dataFile: "plain" },
  { name: "raw data file", options: { cluster_size: 16384 }, dataFile: "raw" },
  { name: "bitmap", options: {}, bitmap: true },
  { name: "falloc", options: { preallocation: "falloc" } },
  { name: "preallocated tables above a parent", options: { extended_l2: "on", preallocation: "metadata" }, backing: true },
]; // prettier-ignore

/** An odd length: the last cluster is cut short. */
const VIRTUAL_BYTES = 3 * MIB + 5 * 512;
const PARENT_BYTES = 2 * MIB + 3 * 512;

/** A randomly written image of a variant, with zeroed and discarded ranges; returns its path. */
function makeImage(folder: string, variant: Variant, random: Random): string {
  const grainBytes = variant.options["cluster_size"] === 512 ? 512 : 2048;
  const shape = { count: 12, virtualBytes: VIRTUAL_BYTES, grainBytes };
  if (variant.backing) {
    const parent = createImage({ folder, name: "parent.qcow2", virtualBytes: PARENT_BYTES });
    qemuIo(parent, [`write -P 238 0 ${PARENT_BYTES}`]);
  }
  const options: Record<string, string | number> = { ...variant.options };
  if (variant.dataFile) options["data_file"] = join(folder, "image.data");
  if (variant.dataFile === "raw") options["data_file_raw"] = "on";
  const path = createImage({
    folder,
    name: "image.qcow2",
    virtualBytes: VIRTUAL_BYTES,
    options,
    ...(variant.backing ? { backing: "parent.qcow2" } : {}),
  });
  if (variant.bitmap) run("qemu-img", ["bitmap", "--add", "-g", "65536", path, "b0"]);
  if (variant.compressed) qemuIo(path, compressedWrites(variant, random).map(writeCommand));
  const big = { start: MIB, end: 2 * MIB, pattern: 7 };
  qemuIo(path, [big, ...randomWrites(random, shape)].map(writeCommand));
  if (variant.snapshot) {
    run("qemu-img", ["snapshot", "-c", "first", path]);
    qemuIo(path, randomWrites(random, shape).map(writeCommand));
  }
  const [zeroed, dropped] = randomWrites(random, { ...shape, count: 2 });
  qemuIo(path, [
    `write -z ${zeroed!.start} ${zeroed!.end - zeroed!.start}`,
    `discard ${dropped!.start} ${dropped!.end - dropped!.start}`,
  ]);
  return path;
}

function compressedWrites(variant: Variant, random: Random): PatternWrite[] {
  const clusterBytes = Number(variant.options["cluster_size"] ?? 65536);
  const numbers = Array.from({ length: 20 }, () => random.below(Math.floor(VIRTUAL_BYTES / clusterBytes)));
  return [...new Set(numbers)].map((number) => ({
    start: number * clusterBytes,
    end: (number + 1) * clusterBytes,
    pattern: 1 + random.below(255),
    compressed: true,
  }));
}

/** Free ranges of all sizes, among them the end of the disk. */
function randomFree(random: Random): ExtentSet {
  const ranges = Array.from({ length: 24 }, () => {
    const start = random.below(VIRTUAL_BYTES / 512) * 512;
    const bytes = (1 + random.below(random.pick([4, 64, 1024]))) * 512;
    return { start, end: Math.min(VIRTUAL_BYTES, start + bytes) };
  });
  return ExtentSet.of(...ranges, { start: VIRTUAL_BYTES - 20 * 512, end: VIRTUAL_BYTES });
}

const wish = (free: ExtentSet, more: Partial<Wish> = {}): Wish => ({
  free,
  blank: ExtentSet.EMPTY,
  pack: false,
  punch: true,
  minHoleBytes: 4096,
  hostBlockBytes: 4096,
  ...more,
});

interface Loaded {
  readonly files: Map<string, SimulatedFile>;
  readonly context: Qcow2Context<SimulatedFile>;
}

async function load(path: string): Promise<Loaded> {
  return openFiles(new Map([["", await SimulatedFile.load(path)]]), (name) => SimulatedFile.load(name));
}

async function openFiles(
  files: Map<string, SimulatedFile>,
  missing: (name: string) => Promise<SimulatedFile>,
): Promise<Loaded> {
  const context = await openContext(files.get("")!, async (name) => {
    if (!files.has(name)) files.set(name, await missing(name));
    return files.get(name)!;
  });
  return { files, context };
}

async function save({ files }: Loaded, path: string): Promise<void> {
  for (const [name, file] of files) await file.save(name === "" ? path : name);
}

function guestOf({ context }: Loaded): BlockDevice {
  const { header, l1 } = context;
  return new Qcow2Disk(context, l1, header.virtualBytes, undefined, new CompressedClusters(context));
}

/** Opens, plans, executes and writes back. */
async function reclaim(path: string, asked: Wish): Promise<{ plan: Plan; returnedBytes: number }> {
  const loaded = await load(path);
  const plan = await planReclaim(loaded.context, asked, guestOf(loaded));
  const hostBytes = () => [...loaded.files.values()].reduce((sum, file) => sum + file.hostBytes, 0);
  const before = hostBytes();
  await execute(plan, loaded.files);
  await save(loaded, path);
  return { plan, returnedBytes: before - hostBytes() };
}

async function punchedBytes(plan: Plan): Promise<number> {
  let bytes = 0;
  for await (const batch of plan.batches()) {
    for (const step of batch) if (step.op === "punch") bytes += step.range.end - step.range.start;
  }
  return bytes;
}

/** Free bytes read zeros or are unchanged, all others are unchanged. */
function assertContent(actual: Buffer, before: Buffer, free: ExtentSet, label: string): void {
  const expected = Buffer.from(before);
  assert.equal(actual.length, expected.length, label);
  for (const { start, end } of free) {
    for (let at = start; at < end; at += 512) {
      if (actual.subarray(at, at + 512).every((byte) => byte === 0)) expected.fill(0, at, at + 512);
    }
  }
  assert.ok(actual.equals(expected), `${label}: first difference at ${firstDifference(actual, expected)}`);
}

function firstDifference(a: Buffer, b: Buffer): number {
  return a.findIndex((byte, i) => byte !== b[i]);
}

for (const variant of VARIANTS) {
  test(`reclaim keeps what is used: ${variant.name}`, async (t: TestContext) => {
    if (!requires(t, "qemu-img", "qemu-io")) return;
    for (const seed of seeds(1)) {
      const label = `SEED=${seed}`;
      const folder = scratch(t);
      const random = new Random(seed);
      const path = makeImage(folder, variant, random);
      const before = guestBytes(path);
      const snapshot = variant.snapshot ? guestBytes(path, "first") : undefined;
      const free = randomFree(random);
      const asked = wish(free);
      const expected = await punchedBytes(await planReclaim((await load(path)).context, asked, NOBODY));

      const { plan, returnedBytes } = await reclaim(path, asked);
      assert.ok(plan.unmapBytes + plan.punchBytes > 0, `${label}: something was done`);
      assert.equal(returnedBytes, expected, `${label}: promise and result`);
      assert.deepEqual(qemuCheck(path), { errors: 0, leaks: 0 }, label);
      assertContent(guestBytes(path), before, free, label);
      if (snapshot) assert.ok(guestBytes(path, "first").equals(snapshot), `${label}: snapshot`);

      const again = await reclaim(path, asked);
      assert.equal(again.plan.unmapBytes, 0, `${label}: a second run finds nothing to unmap`);
      assert.equal(await punchedBytes(again.plan), 0, `${label}: nor to punch`);
    }
  });
}

for (const variant of VARIANTS) {
  test(`packing shortens the file and moves nothing else: ${variant.name}`, async (t: TestContext) => {
    if (!requires(t, "qemu-img", "qemu-io")) return;
    for (const seed of seeds(1, 2)) {
      const label = `SEED=${seed}`;
      const folder = scratch(t);
      const random = new Random(seed);
      const path = makeImage(folder, variant, random);
      const before = guestBytes(path);
      const snapshot = variant.snapshot ? guestBytes(path, "first") : undefined;
      const free = randomFree(random);
      const asked = wish(free, { pack: true, punch: false });
      const fileBytes = statSync(path).size;

      const { plan } = await reclaim(path, asked);
      if (canPack(variant)) assert.ok(plan.packBytes > 0, `${label}: something was done`);
      assert.equal(fileBytes - statSync(path).size, plan.packBytes, `${label}: promise and result`);
      assert.deepEqual(qemuCheck(path), { errors: 0, leaks: 0 }, label);
      assertContent(guestBytes(path), before, free, label);
      if (snapshot) assert.ok(guestBytes(path, "first").equals(snapshot), `${label}: snapshot`);

      const again = await reclaim(path, asked);
      assert.equal(again.plan.packBytes, 0, `${label}: a second run finds nothing to do`);
    }
  });
}

/** Whether whole clusters get free: not above a parent in version 2, nor where they are as large as the disk. */
function canPack({ options, backing, dataFile }: Variant): boolean {
  return !(options["compat"] === "0.10" && backing) && options["cluster_size"] !== 2 * MIB && !dataFile;
}

/** Asked only for ranges that must be blank. */
const NOBODY: Pick<BlockDevice, "read"> = { read: () => Promise.reject(new Error("not to be read")) };
