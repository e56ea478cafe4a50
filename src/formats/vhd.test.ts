import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { ExtentSet } from "../bytes/extents.ts";
import { readBytes, wholeMap } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { execute } from "../reclaim/execute.ts";
import { conformance } from "../testing/conformance.ts";
import { corpus, corpusFiles, unpack } from "../testing/corpus.ts";
import {
  type Folder,
  foreignBytes,
  foreignImage,
  judgedByQemu,
  ownImage,
  parentsBeside,
} from "../testing/foreign-image.ts";
import { randomWrites } from "../testing/qemu.ts";
import { Random } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { simulatedSource, sourceOf } from "../testing/simulated-source.ts";
import { attempt, requires, run, scratch } from "../testing/tools.ts";
import { vhd } from "./vhd.ts";
import { checksumOf, Footer, geometryOf, wholeGeometry } from "./vhd/footer.ts";
import { Header } from "./vhd/header.ts";

const KIBIBYTE = 1024;
const MEBIBYTE = 1024 * KIBIBYTE;
const noParent = () => Promise.reject(new DiskError("io", "no such file"));

conformance(vhd, [
  ...["subformat=dynamic,force_size=on", "subformat=dynamic", "subformat=fixed"].map(
    (options) =>
      ({
        name: `QEMU's ${options}`,
        seeds: 1,
        async make(t, random) {
          if (!requires(t, "qemu-img", "qemu-io")) return undefined;
          const virtualBytes = options.includes("dynamic") ? 7 * MEBIBYTE + 512 : 600 * KIBIBYTE;
          const writes = randomWrites(random, { count: 6, virtualBytes, grainBytes: 4096 });
          const path = foreignImage({
            folder: scratch(t),
            name: "disk.vhd",
            format: "vpc",
            virtualBytes,
            options,
            writes,
          });
          const file = await SimulatedFile.load(path, { name: "disk.vhd" });
          return {
            files: new Map([["disk.vhd", file]]),
            image: "disk.vhd",
            content: foreignBytes(path, "vpc"),
            judge: judgedByQemu(t, "vpc", "disk.vhd"),
          };
        },
      }) satisfies Parameters<typeof conformance>[1][number],
  ),
  ...[16 * KIBIBYTE, 2 * MEBIBYTE].map(
    (blockSize) =>
      ({
        name: `differencing, blocks of ${blockSize}`,
        seeds: 1,
        canBlank: false,
        async make(_, random) {
          const files: Folder = new Map();
          const virtualBytes = blockSize === 2 * MEBIBYTE ? 5 * MEBIBYTE : 700 * KIBIBYTE + 512;
          const options = { block_size: String(blockSize) };
          const writes = () => randomWrites(random, { count: 8, virtualBytes, grainBytes: 512 });
          await ownImage(vhd, { folder: files, name: "base.vhd", virtualBytes, options, writes: writes() });
          const child = { ...options, backing_file: "base.vhd" };
          await ownImage(vhd, {
            folder: files,
            name: "child.vhd",
            virtualBytes,
            options: child,
            writes: writes(),
          });
          const content = await divideBlocks(files, random);
          for (const file of files.values()) file.locked = false;
          return { files, image: "child.vhd", content };
        },
        openParent: (files) => parentsBeside(vhd, files),
      }) satisfies Parameters<typeof conformance>[1][number],
  ),
  {
    name: "our own, blocks of 16 KiB",
    seeds: 1,
    async make(_, random) {
      const files: Folder = new Map();
      const writes = randomWrites(random, { count: 12, virtualBytes: 700 * KIBIBYTE, grainBytes: 512 });
      const options = { block_size: String(16 * KIBIBYTE) };
      const content = await ownImage(vhd, {
        folder: files,
        name: "disk.vhd",
        virtualBytes: 700 * KIBIBYTE,
        options,
        writes,
      });
      return { files, image: "disk.vhd", content };
    },
  },
]);

/** Clears bits of a child's bitmaps at random, as a writer leaves them that stores sectors alone; returns what is read. */
async function divideBlocks(files: Folder, random: Random): Promise<Buffer> {
  const file = files.get("child.vhd")!;
  const header = Header.decode(await readBytes(file, 512, Header.bytes));
  const table = Buffer.from(await readBytes(file, header.tableOffset, header.maxTableEntries * 4));
  const sectors = header.blockSize / 512;
  const base = await vhd.open(simulatedSource(files, "base.vhd"), noParent);
  const child = await vhd.open(simulatedSource(files, "child.vhd"), parentsBeside(vhd, files));
  const content = Buffer.from(await readBytes(child, 0, child.bytes));
  for (let block = 0; block < header.maxTableEntries; block++) {
    const at = table.readUInt32BE(block * 4) * 512;
    if (at > 2 ** 32) continue;
    const bitmap = await readBytes(file, at, Math.ceil(sectors / 8));
    const step = sectors / 32;
    for (let first = 0; first < sectors; first += step) {
      if (!random.oneIn(3)) continue;
      for (let sector = first; sector < first + step; sector++)
        bitmap[sector >>> 3]! &= ~(0x80 >>> (sector & 7));
      const start = block * header.blockSize + first * 512;
      const end = Math.min(content.length, start + step * 512);
      if (start < end) await base.read(start, content.subarray(start, end));
    }
    await file.write(at, bitmap);
  }
  return content;
}

/** A small image of each kind, in memory. */
async function small(options: Readonly<Record<string, string>> = {}) {
  const folder: Folder = new Map();
  const writes = [{ start: 0, end: 3 * 16 * KIBIBYTE, pattern: 7 }];
  const blocks = options["subformat"] === "fixed" ? {} : { block_size: String(16 * KIBIBYTE) };
  await ownImage(vhd, {
    folder,
    name: "disk.vhd",
    virtualBytes: 256 * KIBIBYTE,
    options: { ...blocks, ...options },
    writes,
  });
  return { folder, file: folder.get("disk.vhd")! };
}

const kind = (expected: string) => (error: unknown) => error instanceof DiskError && error.kind === expected;
const wish = {
  free: ExtentSet.of({ start: 0, end: 64 * KIBIBYTE }),
  blank: ExtentSet.EMPTY,
  pack: false,
  punch: true,
  minHoleBytes: 4096,
  hostBlockBytes: 4096,
};

/** Damages the footer at `at` and makes its checksum right again. */
async function patchFooter(file: SimulatedFile, at: number, fields: Parameters<typeof Footer.encode>[0]) {
  const bytes = await readBytes(file, at, 512);
  Footer.encode(fields, bytes);
  Footer.encode({ checksum: checksumOf(bytes, Footer.at.checksum) }, bytes);
  await file.write(at, bytes);
}

async function findings(file: SimulatedFile): Promise<string[]> {
  const messages: string[] = [];
  await using image = await vhd.open(sourceOf(file), noParent);
  for await (const { message } of image.check()) messages.push(message);
  return messages;
}

/** Reading goes on, `check` says why, and nothing is planned or written. */
async function onlyRead(file: SimulatedFile, reason: RegExp) {
  file.locked = false;
  assert.match((await findings(file)).join(), reason);
  await using image = await vhd.openWritable!(sourceOf(file), noParent);
  assert.deepEqual(await readBytes(image, 0, 4), new Uint8Array(4).fill(7));
  await assert.rejects(image.plan(wish), (error) => error instanceof DiskError && reason.test(error.message));
  await assert.rejects(image.write(0, new Uint8Array(1)), kind("refused"));
}

for (const [what, at] of [
  ["at the start", () => 0],
  ["at the end", (file: SimulatedFile) => file.bytes - 512],
] as const) {
  test(`a damaged footer ${what}: the other one serves for reading`, async () => {
    const { file } = await small();
    await file.write(at(file) + 60, new Uint8Array([1]));
    assert.equal(await vhd.probe(sourceOf(file)), true);
    await onlyRead(file, /footer at the (start|end) of the file is damaged/);
  });

  test(`a footer ${what} that differs is reported`, async () => {
    const { file } = await small();
    await patchFooter(file, at(file), { timeStamp: 1 });
    await onlyRead(file, /two copies of the footer differ/);
  });
}

test("a writer that was cut off leaves no footer at the end: the next one puts it back", async () => {
  const { file } = await small();
  const whole = file.peek();
  await file.truncate(file.bytes - 512);
  file.locked = false;
  assert.match((await findings(file)).join(), /no footer at the end/);
  {
    await using image = await vhd.openWritable!(sourceOf(file), noParent);
    await execute(await image.plan(wish), image.files);
  }
  file.locked = false;
  {
    await using image = await vhd.openWritable!(sourceOf(file), noParent);
    await image.write(128 * KIBIBYTE, new Uint8Array(512).fill(9));
  }
  assert.deepEqual(file.peek(file.bytes - 512), whole.subarray(0, 512));
  assert.deepEqual(await findings(file), []);
});

test("without a whole footer there is no image, and it is not taken for a raw disk", async () => {
  const { file } = await small();
  await file.write(60, new Uint8Array([1]));
  await file.write(file.bytes - 452, new Uint8Array([2]));
  assert.equal(await vhd.probe(sourceOf(file)), true);
  await assert.rejects(vhd.open(sourceOf(file), noParent), kind("corrupt"));
});

test("a machine in saved state is left alone (H3)", async () => {
  for (const options of [{}, { subformat: "fixed" }]) {
    const { file } = await small(options);
    if (!("subformat" in options)) await patchFooter(file, 0, { savedState: 1 });
    await patchFooter(file, file.bytes - 512, { savedState: 1 });
    await onlyRead(file, /saved state/);
  }
});

test("unknown features and Xen's block map are only read", async () => {
  for (const fields of [{ features: 0x12 }, { creatorApplication: "tap\0" }]) {
    const { file } = await small();
    for (const at of [0, file.bytes - 512]) await patchFooter(file, at, fields);
    await onlyRead(file, /features 0x10|blktap/);
  }
});

test("wrong checksums of both footers or of the header are read over, as libvhdi does", async (t) => {
  const { file } = await small();
  await file.write(512 + Header.at.checksum, new Uint8Array(4));
  await onlyRead(file, /checksum of the dynamic header/);
  const { file: both } = await small();
  for (const at of [0, both.bytes - 512]) await both.write(at + Footer.at.checksum, new Uint8Array(4));
  await onlyRead(both, /checksum of both footers/);
  if (!requires(t, "qemu-img")) return;
  // QEMU refuses the second and does not look at the first.
  const folder = scratch(t);
  await file.save(join(folder, "header.vhd"));
  await both.save(join(folder, "both.vhd"));
  assert.equal(attempt("qemu-img", ["info", "-f", "vpc", join(folder, "header.vhd")]).status, 0);
  assert.match(attempt("qemu-img", ["info", "-f", "vpc", join(folder, "both.vhd")]).stderr, /checksum/);
});

test("H1: a geometry that reaches past the current size is only read: QEMU's guest may use what lies there", async () => {
  const { file } = await small();
  for (const at of [0, file.bytes - 512]) {
    await patchFooter(file, at, {
      creatorApplication: "vpc ",
      cylinders: 1024,
      heads: 16,
      sectorsPerTrack: 63,
    });
  }
  await onlyRead(file, /geometry/);
});

test("H17: structures that lie over each other are refused", async () => {
  for (const sector of [0, 1, 2]) {
    const { file } = await small();
    await file.write(512 + Header.at.tableOffset, new Uint8Array([0, 0, 0, 0, 0, 0, sector * 2, 0]));
    await assert.rejects(vhd.open(sourceOf(file), noParent), kind("corrupt"), `${sector}`);
  }
  const { file } = await small();
  const at = file.bytes - 512;
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(at));
  await file.write(512 + Header.at.tableOffset, bytes);
  await assert.rejects(vhd.open(sourceOf(file), noParent), kind("corrupt"));
});

test("headers that cannot be are refused", async () => {
  const numbers: Partial<Record<keyof typeof Header.at, Uint8Array>> = {
    cookie: new Uint8Array([0]),
    headerVersion: new Uint8Array([0, 2]),
    blockSize: new Uint8Array([0, 0, 0x30, 0]),
    maxTableEntries: new Uint8Array([0, 0, 0, 1]),
    tableOffset: new Uint8Array([0, 0, 1]),
  };
  for (const [field, bytes] of Object.entries(numbers)) {
    const { file } = await small();
    await file.write(512 + Header.at[field as keyof typeof Header.at], bytes);
    await assert.rejects(vhd.open(sourceOf(file), noParent), DiskError, field);
  }
  const { file } = await small();
  await file.write(1536 + 4, new Uint8Array([0xff, 0xff, 0xff, 0xfe]));
  await assert.rejects(vhd.open(sourceOf(file), noParent), kind("corrupt"));
});

test("a disk longer than its blocks or its file is refused", async () => {
  const { file } = await small();
  for (const at of [0, file.bytes - 512]) await patchFooter(file, at, { currentSize: 2 ** 40 });
  await assert.rejects(vhd.open(sourceOf(file), noParent), kind("corrupt"));
  const { file: fixed } = await small({ subformat: "fixed" });
  await patchFooter(fixed, fixed.bytes - 512, { currentSize: fixed.bytes });
  await assert.rejects(vhd.open(sourceOf(fixed), noParent), kind("corrupt"));
});

test("a guest's fixed disk that begins with a footer stays fixed, and is only read", async () => {
  const { file } = await small({ subformat: "fixed" });
  await file.write(0, (await small()).file.peek(0, 2048));
  const image = await vhd.open(sourceOf(file), noParent);
  assert.equal(image.details["subformat"], "fixed");
  await assert.rejects(image.plan(wish), kind("refused"));
});

test("packing moves the footer, and QEMU reads what is left", async (t) => {
  if (!requires(t, "qemu-img")) return;
  const { file } = await small();
  file.locked = false;
  {
    await using image = await vhd.openWritable!(sourceOf(file), noParent);
    await execute(
      await image.plan({ ...wish, free: ExtentSet.of({ start: 0, end: 32 * KIBIBYTE }), pack: true }),
      image.files,
    );
  }
  assert.equal(file.bytes, 2048 + 512 + 16 * KIBIBYTE + 512);
  assert.deepEqual(file.peek(file.bytes - 512), file.peek(0, 512));
  const path = join(scratch(t), "disk.vhd");
  await file.save(path);
  const expected = Buffer.alloc(256 * KIBIBYTE);
  expected.fill(7, 32 * KIBIBYTE, 48 * KIBIBYTE);
  assert.ok(foreignBytes(path, "vpc").equals(expected));
});

test("QEMU reads and writes what we make, of every subformat", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  for (const options of [{}, { subformat: "fixed" }, { force_size: "off" }]) {
    const { file } = await small(options);
    const path = join(scratch(t), "disk.vhd");
    await file.save(path);
    run("qemu-io", ["-f", "vpc", "-c", "write -P 9 100k 70k", path]);
    const again = await SimulatedFile.load(path, { name: "disk.vhd" });
    await using image = await vhd.open(sourceOf(again), noParent);
    assert.ok(
      foreignBytes(path, "vpc").equals(await readBytes(image, 0, image.bytes)),
      JSON.stringify(options),
    );
    assert.deepEqual(await findings(again), []);
  }
});

test("QEMU heeds no bitmap of a dynamic image; a block that is written again is marked as a whole", async (t) => {
  if (!requires(t, "qemu-img")) return;
  const { file } = await small();
  const bitmapAt = 2048;
  await file.write(bitmapAt, new Uint8Array(512));
  const path = join(scratch(t), "disk.vhd");
  await file.save(path);
  assert.equal(foreignBytes(path, "vpc")[0], 7);
  file.locked = false;
  await using image = await vhd.openWritable!(sourceOf(file), noParent);
  assert.deepEqual(await readBytes(image, 0, 2), new Uint8Array([7, 7]));
  await image.write(4096, new Uint8Array(512).fill(8));
  await image.flush();
  assert.deepEqual(file.peek(bitmapAt, 512), new Uint8Array(512).fill(0xff));
});

test("the geometry is that of the specification's appendix, and QEMU's", async (t) => {
  assert.deepEqual(geometryOf(2 ** 40), { cylinders: 65535, heads: 16, sectorsPerTrack: 255 });
  assert.equal(wholeGeometry(2 ** 31), 2 ** 31);
  if (!requires(t, "qemu-img")) return;
  const folder = scratch(t);
  for (const mebibytes of [1, 9, 70, 500, 505, 1000, 8100, 130_000]) {
    const path = foreignImage({
      folder,
      name: `${mebibytes}.vhd`,
      format: "vpc",
      virtualBytes: mebibytes * MEBIBYTE,
    });
    const { virtualBytes } = JSON.parse(
      run("qemu-img", ["info", "--output=json", path]).replace("virtual-size", "virtualBytes"),
    ) as { virtualBytes: number };
    assert.equal(wholeGeometry(mebibytes * 2048) * 512, virtualBytes, `${mebibytes} MiB`);
  }
});

test("the parent is known by its id, whatever it is called", async () => {
  const folder: Folder = new Map();
  const make = (name: string, options: Record<string, string>, pattern: number) =>
    ownImage(vhd, {
      folder,
      name,
      virtualBytes: MEBIBYTE,
      options,
      writes: [{ start: 0, end: 4096, pattern }],
    });
  await make("base.vhd", {}, 1);
  await make("other.vhd", {}, 2);
  await make("child.vhd", { backing_file: "base.vhd" }, 3);
  const child = simulatedSource(folder, "child.vhd");
  const base = await vhd.open(simulatedSource(folder, "base.vhd"), noParent);
  const [reference] = await vhd.references(child);
  assert.deepEqual(reference, { role: "backing", name: "base.vhd", format: "vhd", id: base.identifiers![0] });
  folder.set("base.vhd", folder.get("other.vhd")!);
  await assert.rejects(vhd.open(child, parentsBeside(vhd, folder)), (error) => {
    return error instanceof DiskError && error.kind === "refused" && error.code === "wrong-parent";
  });
  folder.delete("base.vhd");
  await assert.rejects(vhd.open(child, parentsBeside(vhd, folder)), kind("io"));
});

test("a freed block above a parent stays mapped and is punched: nothing else would read as zeros (H9)", async () => {
  for (const pack of [false, true]) {
    const { folder } = await small();
    const options = { block_size: String(16 * KIBIBYTE), backing_file: "disk.vhd" };
    const writes = [{ start: 0, end: 48 * KIBIBYTE, pattern: 9 }];
    await ownImage(vhd, { folder, name: "child.vhd", virtualBytes: 256 * KIBIBYTE, options, writes });
    const child = folder.get("child.vhd")!;
    child.locked = false;
    {
      const source = simulatedSource(folder, "child.vhd");
      await using image = await vhd.openWritable!(source, parentsBeside(vhd, folder));
      const free = ExtentSet.of({ start: 0, end: 16 * KIBIBYTE });
      const plan = await image.plan({ ...wish, free, pack, hostBlockBytes: 512, minHoleBytes: 512 });
      assert.deepEqual([plan.unmapBytes, plan.punchBytes], [0, 16 * KIBIBYTE]);
      await execute(plan, image.files);
    }
    await using image = await vhd.open(simulatedSource(folder, "child.vhd"), parentsBeside(vhd, folder));
    assert.deepEqual(await readBytes(image, 16 * KIBIBYTE - 1, 2), new Uint8Array([0, 9]));
  }
});

test("options that VHD has not are refused before a file is made", async () => {
  for (const options of [
    { subformat: "sparse" },
    { force_size: "maybe" },
    { block_size: "1000" },
    { cluster_size: "4096" },
    { subformat: "fixed", block_size: "4096" },
    { backing_file: "base.qcow2", backing_fmt: "qcow2" },
  ] as Record<string, string>[]) {
    const folder: Folder = new Map();
    const asked = { folder, name: "disk.vhd", virtualBytes: MEBIBYTE, options };
    await assert.rejects(ownImage(vhd, asked), kind("usage"), JSON.stringify(options));
    assert.equal(folder.size, 0);
  }
});

/** By what QEMU disagrees with the length of the disk: it takes the geometry where Virtual PC made the image. */
const GEOMETRY_ONLY = /virtualpc/;

for (const name of corpusFiles(/\.vhd(\.bz2)?$/)) {
  test(`reads ${name}`, async (t) => {
    if (!corpus(t) || !requires(t, "qemu-img", "bzip2")) return;
    const path = unpack(t, name);
    const file = await SimulatedFile.load(path, { name: "image" });
    const folder: Folder = new Map([["image", file]]);
    if (name.endsWith("image-differential.vhd")) {
      folder.set("image.vhd", await SimulatedFile.load(unpack(t, name.replace("-differential", ""))));
    } else if (name.endsWith("fat-differential.vhd")) {
      const [reference] = await vhd.references(sourceOf(file));
      assert.equal(reference?.name, "fat-parent.vhd");
      assert.equal(reference.id, "5fa21a55-f394-aa4d-9958-1951a67d5540");
      return;
    }
    await using image = await vhd.open(simulatedSource(folder, "image"), parentsBeside(vhd, folder));
    const summed = !name.includes("test_data/image");
    for await (const { message } of image.check()) assert.ok(!summed, message);
    if (!summed) return;
    const info = JSON.parse(run("qemu-img", ["info", "-f", "vpc", "--output=json", path])) as Record<
      string,
      number
    >;
    if (GEOMETRY_ONLY.test(name)) assert.ok(info["virtual-size"]! < image.bytes);
    else assert.equal(info["virtual-size"], image.bytes);
    const runs = (await wholeMap(image)).filter(({ kind: backed }) => backed === "data");
    assert.ok(runs.length > 0 || image.bytes > 100 * MEBIBYTE);
    if (image.bytes < 10 * MEBIBYTE) {
      const copy = join(scratch(t), "copy.vhd");
      run("cp", [path, copy]);
      assert.ok(foreignBytes(copy, "vpc").equals(await readBytes(image, 0, image.bytes)));
    }
  });
}
