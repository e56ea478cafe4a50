import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { ExtentSet } from "../bytes/extents.ts";
import { readBytes } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { execute } from "../reclaim/execute.ts";
import { judgedByQemu } from "../testing/foreign-image.ts";
import { conformance } from "../testing/conformance.ts";
import { tally } from "../testing/conformance/judge.ts";
import { corpus, unpack } from "../testing/corpus.ts";
import { randomWrites, writeCommand } from "../testing/qemu.ts";
import { Random } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { simulatedSource, sourceOf } from "../testing/simulated-source.ts";
import { attempt, requires, run, scratch } from "../testing/tools.ts";
import { parallels } from "./parallels.ts";

const noParent = () => Promise.reject(new Error("it has no parent"));
const MIB = 2 ** 20;
const IN_USE_AT = 44;
const FLAGS_AT = 52;

/** An image that QEMU made and wrote to at random; undefined after a skip. */
function made(folder: string, random: Random, clusterBytes: number, virtualBytes: number): string {
  const path = join(folder, "disk.hds");
  run("qemu-img", [
    "create",
    "-q",
    "-f",
    "parallels",
    "-o",
    `cluster_size=${clusterBytes}`,
    path,
    `${virtualBytes}`,
  ]);
  const writes = randomWrites(random, { count: 14, virtualBytes, grainBytes: 2048 });
  run("qemu-io", [
    "-t",
    "unsafe",
    "-f",
    "parallels",
    ...writes.flatMap((write) => ["-c", writeCommand(write)]),
    path,
  ]);
  return path;
}

function guestBytes(path: string): Buffer {
  run("qemu-img", ["convert", "-f", "parallels", "-O", "raw", path, `${path}.raw`]);
  return readFileSync(`${path}.raw`);
}

const load = (path: string) => SimulatedFile.load(path, { name: "disk.hds" });

/** The same clusters where version 1 names them: by sectors. */
function asVersion1(file: SimulatedFile, clusterBytes: number, entries: number): SimulatedFile {
  const bytes = file.peek();
  bytes.set(Buffer.from("WithoutFreeSpace"));
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < entries; i++) {
    view.setUint32(64 + i * 4, view.getUint32(64 + i * 4, true) * (clusterBytes / 512), true);
  }
  return SimulatedFile.from(bytes, { name: file.name });
}

conformance(
  parallels,
  [
    { name: "version 2, 4 KiB", clusterBytes: 4096, version: 2 },
    { name: "version 2, 64 KiB", clusterBytes: 65_536, version: 2 },
    { name: "version 1, 16 KiB", clusterBytes: 16_384, version: 1 },
  ].map(({ name, clusterBytes, version }) => ({
    name,
    seeds: 1,
    async make(t, random) {
      if (!requires(t, "qemu-img", "qemu-io")) return undefined;
      const virtualBytes = 2 * MIB + random.below(4) * 512;
      const path = made(scratch(t), random, clusterBytes, virtualBytes);
      const file = await load(path);
      const image =
        version === 1 ? asVersion1(file, clusterBytes, Math.ceil(virtualBytes / clusterBytes)) : file;
      const judge = judgedByQemu(t, "parallels", "disk.hds");
      return { files: new Map([["disk.hds", image]]), image: "disk.hds", content: guestBytes(path), judge };
    },
  })),
);

test("images of the corpus read as QEMU reads them", async (t) => {
  if (!requires(t, "qemu-img") || corpus(t) === undefined) return;
  for (const name of ["parallels-v1", "parallels-v2"]) {
    const path = unpack(t, `Xilinx+qemu/tests/qemu-iotests/sample_images/${name}.bz2`);
    await using image = await parallels.open(sourceOf(await load(path)), noParent);
    assert.deepEqual(Buffer.from(await readBytes(image, 0, image.bytes)), guestBytes(path), name);
  }
});

test("a disk that its BAT does not cover is corrupt; QEMU reads zeros there", async (t) => {
  if (corpus(t) === undefined) return;
  const path = unpack(t, "Xilinx+qemu/tests/qemu-iotests/sample_images/fake.parallels.bz2");
  await assert.rejects(parallels.open(sourceOf(await load(path)), noParent), {
    kind: "corrupt",
    message: /nb_bat_entries at 32: found 16, expected 4096 sectors covered/,
  });
});

const NOTHING = {
  free: ExtentSet.EMPTY,
  blank: ExtentSet.EMPTY,
  pack: false,
  punch: true,
  minHoleBytes: 4096,
  hostBlockBytes: 4096,
};

test("dirty bitmaps are no leaks, and who cannot mark them does not write", async (t) => {
  if (corpus(t) === undefined) return;
  const path = unpack(t, "Xilinx+qemu/tests/qemu-iotests/sample_images/parallels-with-bitmap.bz2");
  const file = await load(path);
  {
    await using image = await parallels.open(sourceOf(file), noParent);
    assert.match(image.summary, /1 dirty bitmap/);
    assert.deepEqual(await tally(image), { errors: 0, leaks: 0, first: undefined });
    assert.equal(await image.describe(2 * MIB), "format extension");
    assert.equal(await image.describe(MIB), "format extension", "a cluster of the bitmap");
    await assert.rejects(image.plan(NOTHING), { kind: "refused", code: "bitmaps" });
  }
  await file.write(2 * MIB + 100, Uint8Array.of(1));
  await assert.rejects(parallels.open(sourceOf(file), noParent), { kind: "corrupt", message: /checksum/ });
});

async function fresh(clusterBytes = 4096): Promise<SimulatedFile> {
  const files = new Map<string, SimulatedFile>();
  const options = { virtualBytes: MIB, options: { cluster_size: String(clusterBytes) } };
  await using image = await parallels.create!(simulatedSource(files, "disk.hds"), options);
  await image.write(5000, Buffer.alloc(30_000, 7));
  await image.flush();
  return files.get("disk.hds")!;
}

const word = (number: number) => new Uint8Array(Uint32Array.of(number).buffer);

test("an image that was not closed is read, and not written (H17)", async () => {
  const file = await fresh();
  await file.write(IN_USE_AT, word(0x746f6e59));
  await using image = await parallels.openWritable!(sourceOf(file), noParent);
  assert.match(image.summary, /not closed/);
  await assert.rejects(image.plan(NOTHING), { kind: "refused", code: "dirty" });
  await assert.rejects(image.write(0, Uint8Array.of(1)), { kind: "refused", code: "dirty" });
});

test("marks that the specification does not allow forbid writing (H17)", async () => {
  for (const [at, value] of [
    [IN_USE_AT, 5],
    [FLAGS_AT, 2],
  ] as const) {
    const file = await fresh();
    await file.write(at, word(value));
    await using image = await parallels.open(sourceOf(file), noParent);
    await assert.rejects(image.plan(NOTHING), { kind: "unsupported" });
  }
});

test("an empty image that has clusters is corrupt; one that has none loses the bit when it is written", async () => {
  const file = await fresh();
  await file.write(FLAGS_AT, word(1));
  await assert.rejects(parallels.open(sourceOf(file), noParent), { kind: "corrupt", message: /empty image/ });
  const files = new Map<string, SimulatedFile>();
  const create = { virtualBytes: MIB, options: {} };
  await (await parallels.create!(simulatedSource(files, "disk.hds"), create))[Symbol.asyncDispose]();
  const empty = files.get("disk.hds")!;
  await empty.write(FLAGS_AT, word(1));
  {
    await using image = await parallels.openWritable!(sourceOf(empty), noParent);
    await image.write(0, Uint8Array.of(9));
  }
  assert.deepEqual(empty.peek(FLAGS_AT, 4), word(0));
  await using again = await parallels.open(sourceOf(empty), noParent);
  assert.deepEqual(await readBytes(again, 0, 2), Uint8Array.of(9, 0));
});

test("the mark stands while somebody writes, not while a plan is carried out", async () => {
  const file = await fresh();
  const mark = () => file.peek(IN_USE_AT, 4);
  {
    await using image = await parallels.openWritable!(sourceOf(file), noParent);
    const plan = await image.plan({ ...NOTHING, free: ExtentSet.of({ start: 0, end: MIB }) });
    assert.ok(plan.unmapBytes > 0);
    await execute(plan, image.files);
    assert.deepEqual(mark(), word(0));
  }
  {
    await using image = await parallels.openWritable!(sourceOf(file), noParent);
    await image.write(0, Uint8Array.of(1));
    assert.deepEqual(mark(), word(0x746f6e59));
  }
  assert.deepEqual(mark(), word(0));
});

test("QEMU finds what we make, write and reclaim whole", async (t) => {
  if (!requires(t, "qemu-img")) return;
  const path = join(scratch(t), "ours.hds");
  const mustBeClean = () => {
    const { status, stdout, stderr } = attempt("qemu-img", ["check", "-f", "parallels", path]);
    assert.equal(status, 0, stdout + stderr);
  };
  for (const clusterBytes of [4096, 65_536, MIB]) {
    const files = new Map<string, SimulatedFile>();
    const random = new Random(clusterBytes);
    const model = new Uint8Array(3 * MIB);
    const source = simulatedSource(files, "disk.hds");
    {
      await using image = await parallels.create!(source, {
        virtualBytes: model.length,
        options: { cluster_size: String(clusterBytes) },
      });
      for (let i = 0; i < 10; i++) {
        const at = random.below(model.length - 9000);
        const data = random.bytes(9000);
        await image.write(at, data);
        model.set(data, at);
      }
      await image.flush();
    }
    await files.get("disk.hds")!.save(path);
    mustBeClean();
    assert.deepEqual(guestBytes(path), Buffer.from(model));
    for (const pack of [false, true]) {
      await using image = await parallels.openWritable!(source, noParent);
      const free = ExtentSet.of({ start: pack ? 0 : MIB, end: 3 * MIB });
      await execute(await image.plan({ ...NOTHING, free, pack, punch: !pack }), image.files);
      await files.get("disk.hds")!.save(path);
      mustBeClean();
    }
  }
});

test("what a header must not say", async () => {
  for (const [at, bytes, message] of [
    [16, word(3), /version 3/],
    [28, word(0), /tracks at 28: found 0/],
    [28, word(0xffff_ffff), /tracks/],
    [32, word(0xffff_ffff), /nb_bat_entries/],
    [32, word(0x1000_0000), /BAT at 64/],
    [36, Buffer.alloc(8, 0xff), /8 PiB/],
    [48, word(0), /data_off/],
    [48, word(9), /data_off at 48: found 9, expected a multiple of 8/],
    [56, word(1), /format extension at 512/],
    [56, Buffer.from("ffffffffffff1f00", "hex"), /ext_off/],
    [64, word(0x7fff_ffff), /behind the end of the file/],
  ] as const) {
    const file = await fresh();
    await file.write(at, bytes);
    await assert.rejects(
      async () => {
        await using image = await parallels.open(sourceOf(file), noParent);
        await readBytes(image, 0, 4096);
      },
      (error) => error instanceof DiskError && message.test(error.message),
      String(message),
    );
  }
});

test("options that are none", async () => {
  for (const options of [{ cluster_size: "4097" }, { cluster_size: "1" }, { foo: "1" }] as Record<
    string,
    string
  >[]) {
    await assert.rejects(parallels.create!(simulatedSource(new Map(), "x"), { virtualBytes: MIB, options }), {
      kind: "usage",
    });
  }
});
