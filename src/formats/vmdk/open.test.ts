/**
 * What descriptors and headers may say: disks of other people's tools, the limits, and every reason to refuse.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { suite, test } from "node:test";
import { ExtentSet } from "../../bytes/extents.ts";
import { readBytes, wholeMap } from "../../device/device.ts";
import { corpus, corpusFiles, unpack } from "../../testing/corpus.ts";
import { Random } from "../../testing/seeds.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { simulatedSource } from "../../testing/simulated-source.ts";
import { requires, scratch } from "../../testing/tools.ts";
import { filesIn, makeVmdk, saveAll, vmdkBytes } from "../../testing/vmdk.ts";
import type { OpenParent } from "../format.ts";
import { vmdk } from "../vmdk.ts";

const MIB = 1024 * 1024;
const GRAIN_BYTES = 64 * 1024;
const noParent = () => Promise.reject(new Error("no parent is asked for"));

type Made = Map<string, SimulatedFile>;

const open = (files: Made, parent: OpenParent = noParent) =>
  vmdk.open(simulatedSource(files, "disk.vmdk"), parent);
const openWritable = (files: Made, parent: OpenParent = noParent) =>
  vmdk.openWritable!(simulatedSource(files, "disk.vmdk"), parent);

async function made(options: Readonly<Record<string, string>> = {}): Promise<Made> {
  const files: Made = new Map();
  await using image = await vmdk.create!(simulatedSource(files, "disk.vmdk"), { virtualBytes: MIB, options });
  await image.write(0, new Uint8Array(3 * GRAIN_BYTES).fill(1));
  await image.flush();
  return files;
}

/** A disk that is described apart from its extents. */
function described(lines: readonly string[], files: Readonly<Record<string, Uint8Array>> = {}): Made {
  const head = ["# Disk DescriptorFile", "version=1", "CID=12345678", "parentCID=ffffffff"];
  const text = Buffer.from([...head, ...lines, ""].join("\n"));
  const all: Made = new Map([["disk.vmdk", SimulatedFile.from(text, { name: "disk.vmdk" })]]);
  for (const [name, bytes] of Object.entries(files)) all.set(name, SimulatedFile.from(bytes, { name }));
  return all;
}

const WISH = {
  free: ExtentSet.of({ start: 0, end: MIB }),
  blank: ExtentSet.EMPTY,
  pack: false,
  punch: true,
  minHoleBytes: 4096,
  hostBlockBytes: 4096,
};

/** Replaces the text in a file that holds it. */
async function edit(file: SimulatedFile, from: string, to: string): Promise<void> {
  const text = Buffer.from(file.peek(0, Math.min(file.bytes, 11 * 1024))).toString("latin1");
  const at = text.indexOf(from);
  assert.ok(at >= 0, from);
  await file.write(at, Buffer.from(to.padEnd(from.length, "\n"), "latin1"));
}

suite("disks of other people's tools", () => {
  const names = corpusFiles(/(vmdk-rs\/data|test_data|sample_images)\/[^/]*\.vmdk(\.bz2)?$/);
  const alone = names.filter((name) =>
    /streamOptimized|Sparse\.vmdk|ext2|image\.vmdk|vmfs_thick\.vmdk/.test(name),
  );

  for (const name of alone) {
    test(`${basename(name)} reads as QEMU reads it`, async (t) => {
      if (corpus(t) === undefined || !requires(t, "qemu-img")) return;
      const path = unpack(t, name);
      const files: Made = new Map();
      for (const each of names.filter((other) => other.startsWith(join(name, "..")))) {
        if (each.endsWith(".bz2")) continue;
        files.set(basename(each), await SimulatedFile.load(unpack(t, each), { name: basename(each) }));
      }
      await using image = await vmdk.open(simulatedSource(files, basename(path)), noParent);
      for await (const { message } of image.check()) assert.fail(message);
      const folder = scratch(t);
      await saveAll(files, folder);
      const expected = vmdkBytes(join(folder, basename(name)));
      assert.equal(Buffer.compare(await readBytes(image, 0, image.bytes), expected), 0);
      assert.equal((await wholeMap(image)).at(-1)?.end, image.bytes);
    });
  }

  test("a stream of 16 GiB of QEMU's tests is whole", async (t) => {
    const [name] = names.filter((each) => each.includes("iotest-version3"));
    if (corpus(t) === undefined || name === undefined) return;
    const files: Made = new Map([["disk.vmdk", await SimulatedFile.load(unpack(t, name))]]);
    await using image = await open(files);
    assert.equal(image.bytes, 16 * 1024 * MIB);
    for await (const { message } of image.check()) assert.fail(message);
    const compressed = (await wholeMap(image)).filter(({ kind }) => kind === "compressed");
    for (const { start } of compressed) await readBytes(image, start, GRAIN_BYTES);
    assert.ok(compressed.length > 0);
    await assert.rejects(image.plan(WISH), { kind: "unsupported", code: "read-only-format" });
  });

  test("what QEMU's fuzzer broke is refused", async (t) => {
    const [name] = names.filter((each) => each.includes("afl9"));
    if (corpus(t) === undefined || name === undefined) return;
    const files: Made = new Map([["disk.vmdk", SimulatedFile.from(readFileSync(unpack(t, name)))]]);
    await assert.rejects(open(files), { name: "DiskError" });
  });

  test("an extent without its descriptor is told apart", async (t) => {
    const [name] = names.filter((each) => each.includes("s001"));
    if (corpus(t) === undefined || name === undefined) return;
    const files: Made = new Map([["disk.vmdk", await SimulatedFile.load(unpack(t, name))]]);
    assert.equal(await vmdk.probe(simulatedSource(files, "disk.vmdk")), true);
    await assert.rejects(open(files), { kind: "unsupported", code: "extent" });
    assert.deepEqual(await vmdk.references(simulatedSource(files, "disk.vmdk")), []);
  });

  test("so is one of QEMU, which has room for a descriptor", async (t) => {
    if (!requires(t, "qemu-img", "qemu-io")) return;
    const folder = scratch(t);
    const options = { subformat: "twoGbMaxExtentSparse" };
    makeVmdk(folder, { name: "split", virtualBytes: MIB, options }, new Random(1));
    const source = simulatedSource(await filesIn(folder), "disk-s001.vmdk");
    await assert.rejects(vmdk.open(source, noParent), { kind: "unsupported", code: "extent" });
    assert.deepEqual(await vmdk.references(source), []);
  });
});

suite("descriptors", () => {
  test("flat, zero and sparse extents of one custom disk lie one behind the other", async () => {
    const sparse = await made({ subformat: "twoGbMaxExtentSparse" });
    const files = described(
      [
        'createType="custom"',
        'RW 8 FLAT "disk-f001.vmdk" 8',
        "RW 16 ZERO",
        'RW 2048 SPARSE "disk-s001.vmdk"',
        'RW 8 FLAT "disk-f001.vmdk" 0',
      ],
      { "disk-f001.vmdk": new Uint8Array(8192).fill(4, 0, 4096).fill(5, 4096) },
    );
    files.set("disk-s001.vmdk", sparse.get("disk-s001.vmdk")!.fork());
    {
      await using image = await openWritable(files);
      assert.deepEqual([...image.files.keys()], ["", "disk-f001.vmdk", "disk-s001.vmdk"]);
      assert.deepEqual(
        image.references.map(({ role, name }) => `${role} ${name}`),
        ["data disk-f001.vmdk", "data disk-s001.vmdk"],
      );
      const starts = [0, 4096, 12288, 12288 + MIB];
      const first: (number | undefined)[] = [];
      for (const at of starts) first.push((await readBytes(image, at, 1))[0]);
      assert.deepEqual(first, [5, 0, 1, 4]);
      const plan = await image.plan({ ...WISH, free: ExtentSet.of({ start: 0, end: image.bytes }) });
      assert.equal(plan.unmapBytes, 3 * GRAIN_BYTES);
      assert.deepEqual([...plan.punched.keys()].sort(), ["disk-f001.vmdk", "disk-s001.vmdk"]);
      assert.equal(plan.punched.get("disk-f001.vmdk")?.bytes, 8192);
      await assert.rejects(image.write(4096, new Uint8Array(10)), { kind: "unsupported" });
    }
  });

  test("an unknown line is read over, and nothing is written (H22)", async () => {
    const files = described(
      ['createType="monolithicFlat"', 'changeTrackPath="disk-ctk.vmdk"', 'RW 8 FLAT "f.vmdk" 0'],
      { "f.vmdk": new Uint8Array(4096).fill(9) },
    );
    await using image = await openWritable(files);
    assert.equal((await readBytes(image, 0, 1))[0], 9);
    for (const work of [image.plan(WISH), image.write(0, new Uint8Array(1))]) {
      await assert.rejects(work, { kind: "unsupported", code: "unknown-line", message: /changeTrackPath/ });
    }
  });

  test("what we cannot keep is refused by its name", async () => {
    const flat = { "f.vmdk": new Uint8Array(4096) };
    const cases: readonly [lines: readonly string[], found: RegExp][] = [
      [['createType="fullDevice"', 'RW 8 FLAT "/dev/sda" 0'], /"fullDevice"/],
      [['createType="vmfsRaw"', 'RW 8 VMFSRAW "f.vmdk"'], /"vmfsRaw"/],
      [['createType="vmfs"', 'RW 8 VMFSRDM "f.vmdk"'], /"VMFSRDM"/],
      [['createType="custom"', 'NOACCESS 8 FLAT "f.vmdk" 0'], /NOACCESS/],
      [['createType="vmfs"'], /no extent/],
      [['createType="monolithicFlat"', 'RW 9 FLAT "f.vmdk" 0'], /flat extent "f.vmdk"/],
      [['createType="monolithicFlat"', 'RW 0 FLAT "f.vmdk" 0'], /sectors/],
      [['createType="monolithicFlat"', 'RW 999999999999999 FLAT "f.vmdk" 0'], /sectors/],
      [['createType="monolithicFlat"', "RW 8 FLAT f.vmdk 0"], /expected an extent/],
      [['createType="monolithicFlat"', 'RW 8 FLAT "../f.vmdk" 0'], /outside/],
      [['createType="monolithicFlat"', ...Array.from({ length: 4097 }, () => "RW 1 ZERO")], /4097 extents/],
    ];
    for (const [lines, found] of cases) {
      await assert.rejects(open(described(lines, flat)), { name: "DiskError", message: found }, lines[1]);
    }
  });

  test("what one extent would free is no other one's", async () => {
    const sparse = await made({ subformat: "twoGbMaxExtentSparse" });
    const cases: readonly (readonly string[])[] = [
      ['RW 2048 SPARSE "disk-s001.vmdk"', 'RW 2048 SPARSE "disk-s001.vmdk"'],
      ['RW 2048 SPARSE "disk-s001.vmdk"', 'RW 8 FLAT "disk-s001.vmdk" 128'],
      ['RW 8 FLAT "f.vmdk" 0', 'RW 8 FLAT "f.vmdk" 7'],
      ['RW 1 FLAT "disk.vmdk" 0'],
    ];
    for (const lines of cases) {
      const files = described(['createType="custom"', `# ${"x".repeat(512)}`, ...lines], {
        "f.vmdk": new Uint8Array(8192),
      });
      files.set("disk-s001.vmdk", sparse.get("disk-s001.vmdk")!);
      await assert.rejects(open(files), { kind: "corrupt", message: /lies over another/ }, lines.join());
    }
  });

  test("an extent that may only be read is only read", async () => {
    const files = described(['createType="custom"', 'RDONLY 8 FLAT "f.vmdk" 0'], {
      "f.vmdk": new Uint8Array(4096),
    });
    await using image = await openWritable(files);
    await assert.rejects(image.plan(WISH), { kind: "refused", message: /RDONLY/ });
    await assert.rejects(image.write(0, new Uint8Array(1)), { kind: "refused" });
  });

  test("a parent of another content, or half of a parent, is refused", async () => {
    const files = await made();
    const parent = async () => vmdk.open(simulatedSource(new Map(files), "disk.vmdk"), noParent);
    const [cid] = (await parent()).identifiers ?? [];
    const child = (name: string, id: string) => {
      const all = described([`parentFileNameHint="${name}"`, 'createType="custom"', "RW 2048 ZERO"]);
      const text = Buffer.from(all.get("disk.vmdk")!.peek()).toString().replace("ffffffff", id);
      return new Map([["disk.vmdk", SimulatedFile.from(Buffer.from(text), { name: "disk.vmdk" })]]);
    };
    {
      await using image = await open(child("base.vmdk", cid!), parent);
      assert.deepEqual(image.references[0], { role: "backing", name: "base.vmdk", format: "vmdk", id: cid });
    }
    await assert.rejects(open(child("base.vmdk", "00000001"), parent), {
      kind: "refused",
      code: "parent-changed",
    });
    await assert.rejects(open(child("base.vmdk", "ffffffff"), parent), {
      kind: "corrupt",
      message: /both or neither/,
    });
  });
});

suite("identity", () => {
  const cidOf = async (files: Made) => {
    await using image = await open(files);
    return image.identifiers?.[0];
  };

  test("the CID changes with the first write of a sitting, and a reclaim keeps it", async () => {
    for (const options of [{}, { subformat: "monolithicFlat" }]) {
      const files = await made(options);
      const before = await cidOf(files);
      {
        await using image = await openWritable(files);
        await image.plan(WISH);
      }
      assert.equal(await cidOf(files), before);
      {
        await using image = await openWritable(files);
        await image.write(5, new Uint8Array(5));
        await image.flush();
      }
      const after = await cidOf(files);
      assert.match(after!, /^[0-9a-f]{8}$/);
      assert.notEqual(after, before);
    }
  });

  test("a short CID becomes one of eight digits", async () => {
    const files = await made();
    const old = (await cidOf(files))!;
    await edit(files.get("disk.vmdk")!, `CID=${old}`, "CID=7");
    assert.equal(await cidOf(files), "00000007");
    {
      await using image = await openWritable(files);
      await image.write(5, new Uint8Array(5));
      await image.flush();
    }
    assert.notEqual(await cidOf(files), "00000007");
  });
});

test("a disk is not longer than 64 TiB, whatever its lines add up to (H23)", async () => {
  const files = described(['createType="custom"', ...Array.from({ length: 65 }, () => `RW ${2 ** 31} ZERO`)]);
  await assert.rejects(open(files), { kind: "unsupported", message: /at most 137438953472/ });
});

test("thousands of lines that name one extent cost one (H24)", async () => {
  const files = await made();
  const own = files.get("disk.vmdk")!;
  let reads = 0;
  const readable = own.readable.bind(own);
  own.readable = () => {
    const opened = readable();
    const read = opened.read.bind(opened);
    return Object.assign(opened, {
      read(at: number, into: Uint8Array) {
        reads++;
        return read(at, into);
      },
    });
  };
  const lines = Array.from({ length: 1000 }, () => `RW ${MIB / 512} SPARSE "s.vmdk"`);
  const all = described(['createType="custom"', ...lines]);
  all.set("s.vmdk", own);
  await assert.rejects(open(all), { kind: "corrupt", message: /lies over another/ });
  assert.ok(reads < 20, `${reads} reads`);
});
