import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { type Extent, ExtentSet } from "../bytes/extents.ts";
import { readBytes, wholeMap } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { execute } from "../reclaim/execute.ts";
import type { Wish } from "../reclaim/plan.ts";
import { conformance, type Variant } from "../testing/conformance.ts";
import {
  type Folder,
  foreignBytes,
  foreignImage,
  judgedByQemu,
  ownImage,
  parentsBeside,
} from "../testing/foreign-image.ts";
import { randomWrites } from "../testing/qemu.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { simulatedSource, sourceOf } from "../testing/simulated-source.ts";
import { attempt, requires, run, scratch } from "../testing/tools.ts";
import { vdi } from "./vdi.ts";
import { Header, type HeaderFields, ImageType, NO_UUID, uuidOf } from "./vdi/header.ts";

const KIBIBYTE = 1024;
const MEBIBYTE = 1024 * KIBIBYTE;
const BLOCK_BYTES = 16 * KIBIBYTE;
const FREE = 0xffff_ffff;
const ZERO = 0xffff_fffe;
const noParent = () => Promise.reject(new DiskError("io", "no such file"));

const byQemu = (options: string): Variant => ({
  name: `QEMU's ${options}`,
  seeds: 1,
  async make(t, random) {
    if (!requires(t, "qemu-img", "qemu-io")) return undefined;
    const virtualBytes = 4 * MEBIBYTE + 512;
    const writes = randomWrites(random, { count: 5, virtualBytes, grainBytes: 4096 });
    const path = foreignImage({
      folder: scratch(t),
      name: "disk.vdi",
      format: "vdi",
      virtualBytes,
      options,
      writes,
    });
    const file = await SimulatedFile.load(path, { name: "disk.vdi" });
    const [content, judge] = [foreignBytes(path, "vdi"), judgedByQemu(t, "vdi", "disk.vdi")];
    return { files: new Map([["disk.vdi", file]]), image: "disk.vdi", content, judge };
  },
});

const ours = (name: string, options: Readonly<Record<string, string>>): Variant => ({
  name,
  seeds: 1,
  canBlank: options["backing_file"] === undefined,
  async make(_, random) {
    const files: Folder = new Map();
    const virtualBytes = 700 * KIBIBYTE + 512;
    const made = { folder: files, virtualBytes, options: { block_size: String(BLOCK_BYTES), ...options } };
    const writes = () => randomWrites(random, { count: 8, virtualBytes, grainBytes: 512 });
    if (options["backing_file"] !== undefined) {
      const base = { block_size: String(BLOCK_BYTES) };
      await ownImage(vdi, { ...made, name: "base.vdi", options: base, writes: writes() });
    }
    const content = await ownImage(vdi, { ...made, name: "disk.vdi", writes: writes() });
    // As VirtualBox leaves a block that was discarded.
    const file = files.get("disk.vdi")!;
    if ((await mapOf(file))[3] === FREE) {
      await file.write(512 + 3 * 4, Buffer.from("feffffff", "hex"));
      content.fill(0, 3 * BLOCK_BYTES, 4 * BLOCK_BYTES);
    }
    for (const each of files.values()) each.locked = false;
    return { files, image: "disk.vdi", content };
  },
  openParent: (files) => parentsBeside(vdi, files),
});

conformance(vdi, [
  byQemu("static=off"),
  byQemu("static=on"),
  ours("dynamic, blocks of 16 KiB", {}),
  ours("fixed, blocks of 16 KiB", { subformat: "fixed" }),
  ours("differencing", { backing_file: "base.vdi" }),
]);

async function headerOf(file: SimulatedFile): Promise<HeaderFields> {
  return Header.decode(await readBytes(file, 0, Header.bytes));
}

async function mapOf(file: SimulatedFile): Promise<number[]> {
  const { blocksOffset, blocks } = await headerOf(file);
  const bytes = Buffer.from(await readBytes(file, blocksOffset, blocks * 4));
  return Array.from({ length: blocks }, (_, i) => bytes.readUInt32LE(i * 4));
}

async function patchHeader(file: SimulatedFile, fields: Partial<HeaderFields>): Promise<void> {
  const bytes = await readBytes(file, 0, Header.bytes);
  Header.encode(fields, bytes);
  await file.write(0, bytes);
}

/** Eight blocks, of which 0, 2 and 5 were written in the order 5, 0, 2. */
async function small(options: Readonly<Record<string, string>> = {}, blockBytes = BLOCK_BYTES) {
  const folder: Folder = new Map();
  const writes = [5, 0, 2].map((block) => ({
    start: block * blockBytes,
    end: (block + 1) * blockBytes,
    pattern: block + 1,
  }));
  await ownImage(vdi, {
    folder,
    name: "disk.vdi",
    virtualBytes: 8 * blockBytes,
    options: { block_size: String(blockBytes), ...options },
    writes,
  });
  const file = folder.get("disk.vdi")!;
  file.locked = false;
  return { folder, file };
}

const kind = (expected: string, code?: string) => (error: unknown) =>
  error instanceof DiskError && error.kind === expected && (code === undefined || error.code === code);

const wish = (free: Extent, more: Partial<Wish> = {}): Wish => ({
  free: ExtentSet.of(free),
  blank: ExtentSet.EMPTY,
  pack: false,
  punch: true,
  minHoleBytes: 4096,
  hostBlockBytes: 4096,
  ...more,
});

async function reclaim(folder: Folder, name: string, asked: Wish) {
  folder.get(name)!.locked = false;
  await using image = await vdi.openWritable!(simulatedSource(folder, name), parentsBeside(vdi, folder));
  const plan = await image.plan(asked);
  await execute(plan, image.files);
  return plan;
}

test("new blocks follow each other, and the header counts them", async () => {
  const { file } = await small();
  assert.deepEqual(await mapOf(file), [1, FREE, 2, FREE, FREE, 0, FREE, FREE]);
  assert.equal((await headerOf(file)).blocksAllocated, 3);
});

test("in place a block stays mapped and is punched: a gap would be an error for QEMU", async () => {
  const { folder, file } = await small();
  const hostBytes = file.hostBytes;
  const plan = await reclaim(folder, "disk.vdi", wish({ start: 0, end: BLOCK_BYTES }));
  assert.deepEqual([plan.unmapBytes, plan.punchBytes, plan.packBytes], [0, BLOCK_BYTES, 0]);
  assert.equal(hostBytes - file.hostBytes, BLOCK_BYTES);
  assert.deepEqual(await mapOf(file), [1, FREE, 2, FREE, FREE, 0, FREE, FREE]);
});

test("packing unmaps, fills the gap and lowers the count; QEMU's check is clean and it reads the same", async (t) => {
  const { folder, file } = await small({}, MEBIBYTE);
  const before = file.bytes;
  const plan = await reclaim(folder, "disk.vdi", wish({ start: 0, end: MEBIBYTE }, { pack: true }));
  assert.deepEqual([plan.unmapBytes, plan.packBytes], [MEBIBYTE, MEBIBYTE]);
  assert.equal(before - file.bytes, MEBIBYTE);
  assert.deepEqual(await mapOf(file), [ZERO, FREE, 1, FREE, FREE, 0, FREE, FREE]);
  assert.equal((await headerOf(file)).blocksAllocated, 2);
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const path = join(scratch(t), "disk.vdi");
  await file.save(path);
  run("qemu-img", ["check", "-f", "vdi", path]);
  run("qemu-io", ["-f", "vdi", "-c", "write -P 9 100k 70k", path]);
  run("qemu-img", ["check", "-f", "vdi", path]);
  const again = await SimulatedFile.load(path, { name: "disk.vdi" });
  await using image = await vdi.open(sourceOf(again), noParent);
  assert.ok(foreignBytes(path, "vdi").equals(await readBytes(image, 0, image.bytes)));
});

test("a modification gets a new UUID, unless the user vouches for children", async () => {
  const { folder, file } = await small();
  const { uuidModify, uuidCreate } = await headerOf(file);
  await reclaim(folder, "disk.vdi", wish({ start: 0, end: BLOCK_BYTES }, { keepIdentity: true }));
  assert.deepEqual((await headerOf(file)).uuidModify, uuidModify);
  await reclaim(folder, "disk.vdi", wish({ start: 2 * BLOCK_BYTES, end: 3 * BLOCK_BYTES }));
  assert.notDeepEqual((await headerOf(file)).uuidModify, uuidModify);
  assert.deepEqual((await headerOf(file)).uuidCreate, uuidCreate);
});

test("bytes behind the allocated blocks do not show up in a new one", async () => {
  const { file } = await small();
  await file.write(file.bytes, new Uint8Array(BLOCK_BYTES).fill(0xee));
  {
    await using image = await vdi.openWritable!(sourceOf(file), noParent);
    await image.write(BLOCK_BYTES, new Uint8Array(512).fill(3));
    await image.flush();
    assert.deepEqual(await readBytes(image, BLOCK_BYTES + 512, 512), new Uint8Array(512));
  }
  assert.equal((await mapOf(file))[1], 3);
});

test("a child tells zeros from its parent's bytes (H9)", async () => {
  const { folder } = await small();
  const options = { block_size: String(BLOCK_BYTES), backing_file: "disk.vdi" };
  const virtualBytes = 8 * BLOCK_BYTES;
  const writes = [{ start: 0, end: BLOCK_BYTES, pattern: 9 }];
  await ownImage(vdi, { folder, name: "child.vdi", virtualBytes, options, writes });
  const read = async () => {
    await using image = await vdi.open(simulatedSource(folder, "child.vdi"), parentsBeside(vdi, folder));
    return [0, 2, 5].map(async (block) => (await readBytes(image, block * BLOCK_BYTES, 1))[0]);
  };
  assert.deepEqual(await Promise.all(await read()), [9, 3, 6]);
  const child = folder.get("child.vdi")!;
  await child.write(512 + 5 * 4, Buffer.from("feffffff", "hex"));
  assert.deepEqual(await Promise.all(await read()), [9, 3, 0]);
  await reclaim(folder, "child.vdi", wish({ start: 0, end: BLOCK_BYTES }, { pack: true }));
  assert.deepEqual((await mapOf(child)).slice(0, 3), [ZERO, FREE, FREE]);
  assert.deepEqual(await Promise.all(await read()), [0, 3, 0]);
});

test("the parent is known by its UUID under any name, as it was last modified", async () => {
  const { folder, file } = await small();
  const options = { block_size: String(BLOCK_BYTES), backing_file: "disk.vdi" };
  await ownImage(vdi, { folder, name: "child.vdi", virtualBytes: 8 * BLOCK_BYTES, options });
  folder.delete("disk.vdi");
  folder.set("another name", file);
  folder.set("other.vdi", (await small()).file);
  folder.set("text", SimulatedFile.from(new Uint8Array(600), { name: "text" }));
  const child = simulatedSource(folder, "child.vdi");
  const open = () => vdi.open(child, parentsBeside(vdi, folder));
  const image = await open();
  const uuid = uuidOf((await headerOf(file)).uuidCreate);
  assert.deepEqual(image.references, [{ role: "backing", name: "another name", format: "vdi", id: uuid }]);
  assert.deepEqual(await vdi.references(child), [{ role: "backing", name: uuid, format: "vdi", id: uuid }]);
  assert.deepEqual(image.parent!.identifiers, [uuid]);
  await patchHeader(file, { uuidModify: new Uint8Array(16).fill(1) });
  await assert.rejects(open(), kind("refused", "wrong-parent"));
  folder.delete("another name");
  await assert.rejects(open(), kind("refused", "no-parent"));
});

test("QEMU reads what we make of blocks of 1 MiB; other blocks and children it refuses", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const folder = scratch(t);
  for (const [name, options] of Object.entries({ dynamic: {}, fixed: { static: "on" } })) {
    const { file } = await small(options, MEBIBYTE);
    const path = join(folder, `${name}.vdi`);
    await file.save(path);
    run("qemu-img", ["check", "-f", "vdi", path]);
    await using image = await vdi.open(sourceOf(file), noParent);
    assert.ok(foreignBytes(path, "vdi").equals(await readBytes(image, 0, image.bytes)), name);
  }
  const path = join(folder, "small.vdi");
  await (await small()).file.save(path);
  assert.match(attempt("qemu-img", ["info", "-f", "vdi", path]).stderr, /block size/);
});

test("a fixed image has a place for every block, and keeps it", async () => {
  const { folder, file } = await small({ subformat: "fixed" });
  const before = file.bytes;
  const plan = await reclaim(folder, "disk.vdi", wish({ start: 0, end: 8 * BLOCK_BYTES }, { pack: true }));
  assert.deepEqual([plan.unmapBytes, plan.packBytes, file.bytes], [0, 0, before]);
  assert.deepEqual(await mapOf(file), [0, 1, 2, 3, 4, 5, 6, 7]);
});

/** Reading goes on, `check` says why, and nothing is planned or written. */
async function onlyRead(file: SimulatedFile, reason: RegExp) {
  await using image = await vdi.openWritable!(sourceOf(file), noParent);
  const found: string[] = [];
  for await (const { message } of image.check()) found.push(message);
  assert.match(found.join(), reason);
  await wholeMap(image);
  await assert.rejects(image.plan(wish({ start: 0, end: BLOCK_BYTES })), kind("refused"));
  await assert.rejects(image.write(0, new Uint8Array(1)), kind("refused"));
}

test("a count that is too low, unknown flags and extra bytes are only read", async () => {
  const { file } = await small();
  await patchHeader(file, { blocksAllocated: 2 });
  await onlyRead(file, /blocks allocated at 0x184: found 2, expected 3/);
  const { file: flagged } = await small();
  await patchHeader(flagged, { flags: 4 });
  await onlyRead(flagged, /flags 0x4/);
});

test("an entry that leads out of the file, or to another's block, stops every write (H17)", async () => {
  for (const slot of [1000, 0]) {
    const { file } = await small();
    await patchHeader(file, { blocksAllocated: 2000 });
    await file.write(512 + 2 * 4, Buffer.from([slot & 0xff, slot >>> 8, 0, 0]));
    const before = file.peek();
    {
      await using image = await vdi.openWritable!(sourceOf(file), noParent);
      const range = { start: 2 * BLOCK_BYTES, end: 2 * BLOCK_BYTES + 512 };
      await assert.rejects(image.write(range.start, new Uint8Array(512)), kind("corrupt"));
      await assert.rejects(image.zero(range), kind("corrupt"));
      await assert.rejects(image.discard(range), kind("corrupt"));
    }
    assert.deepEqual(file.peek(), before);
  }
});

test("extra bytes lie before each block, and are not the guest's", async () => {
  const { file } = await small();
  await patchHeader(file, { blockExtraBytes: 512 });
  const { dataOffset } = await headerOf(file);
  for (const slot of [0, 1, 2]) {
    const at = dataOffset + slot * (BLOCK_BYTES + 512);
    await file.write(at, new Uint8Array(512).fill(0xee));
    await file.write(at + 512, new Uint8Array(BLOCK_BYTES).fill(slot + 1));
  }
  await using image = await vdi.open(sourceOf(file), noParent);
  assert.deepEqual(await readBytes(image, 2 * BLOCK_BYTES, 2), new Uint8Array([3, 3]));
  assert.deepEqual(await readBytes(image, BLOCK_BYTES - 2, 4), new Uint8Array([2, 2, 0, 0]));
  assert.equal(await image.describe(dataOffset), "head of block 5");
  await onlyRead(file, /512 extra bytes/);
});

test("headers that cannot be are refused", async () => {
  const damages: Partial<Record<keyof HeaderFields, [unknown, "corrupt" | "unsupported"]>> = {
    version: [0x0001_0000, "unsupported"],
    type: [3, "unsupported"],
    sectorBytes: [4096, "unsupported"],
    blocksOffset: [511, "corrupt"],
    dataOffset: [512, "corrupt"],
    diskBytes: [8 * BLOCK_BYTES + 1, "corrupt"],
    blockBytes: [3 * 4096, "corrupt"],
    blockExtraBytes: [100, "corrupt"],
    blocks: [2 ** 31, "corrupt"],
    uuidLinkage: [new Uint8Array(16).fill(1), "unsupported"],
  };
  for (const [field, [value, expected]] of Object.entries(damages)) {
    const { file } = await small();
    await patchHeader(file, { [field]: value });
    await assert.rejects(vdi.open(sourceOf(file), noParent), kind(expected), field);
  }
  const { file } = await small();
  await patchHeader(file, { type: ImageType.differencing });
  assert.equal(uuidOf((await headerOf(file)).uuidLinkage), NO_UUID);
  await assert.rejects(vdi.open(sourceOf(file), noParent), kind("corrupt"));
  await file.truncate(100);
  assert.equal(await vdi.probe(sourceOf(file)), false);
});

test("a disk of odd length ends with a whole sector", async () => {
  const { file } = await small();
  await patchHeader(file, { diskBytes: 7 * BLOCK_BYTES + 1 });
  await using image = await vdi.open(sourceOf(file), noParent);
  assert.equal(image.bytes, 7 * BLOCK_BYTES + 512);
});

test("options that VDI has not are refused before a file is made", async () => {
  for (const options of [
    { subformat: "sparse" },
    { static: "maybe" },
    { static: "off", subformat: "fixed" },
    { block_size: "1000" },
    { cluster_size: "4096" },
    { subformat: "fixed", backing_file: "disk.vdi" },
    { backing_file: "base.qcow2", backing_fmt: "qcow2" },
  ] as Record<string, string>[]) {
    const folder: Folder = new Map();
    const asked = { folder, name: "disk.vdi", virtualBytes: MEBIBYTE, options };
    await assert.rejects(ownImage(vdi, asked), kind("usage"), JSON.stringify(options));
    assert.equal(folder.size, 0);
  }
});
