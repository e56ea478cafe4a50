import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test, type TestContext } from "node:test";
import { ExtentBuilder, type ExtentSet } from "../bytes/extents.ts";
import { viewOf } from "../bytes/struct.ts";
import type { BlockDevice } from "../device/device.ts";
import { slice } from "../device/slice.ts";
import type { FileSystem } from "./filesystem.ts";
import { hfsplus } from "./hfsplus.ts";
import { clearRuns } from "./hfsplus/allocation.ts";
import { VolumeHeader } from "./hfsplus/volume-header.ts";
import { corpus, unpack } from "../testing/corpus.ts";
import { fuzzDevice } from "../testing/fuzz.ts";
import { FIRST_FILE, makeHfsPlus, makeWrapped, type HfsPlusOptions } from "../testing/hfsplus.ts";
import { requires, run, scratch } from "../testing/tools.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

const FILES = Array.from({ length: 40 }, (_, i) => ({
  name: `file${i}`,
  data: i,
  resource: i % 9 === 0 ? i * 2 : 0,
  attribute: i % 7 === 0 ? i : 0,
  isCompressed: i === 9,
}));
const FULL = { hasAttributes: true, badBlocks: 20, files: FILES } as const;
const SMALL: HfsPlusOptions = { bytes: 4 * MiB, blockBytes: 512, nodeBytes: 1024, ...FULL };

const VARIANTS: Readonly<Record<string, HfsPlusOptions>> = {
  "blocks of 512 bytes": { bytes: 4 * MiB, blockBytes: 512, nodeBytes: 1024, ...FULL },
  "blocks of 4 KiB, an end between two": { bytes: 24 * MiB + 2560, ...FULL },
  "blocks of 64 KiB, nodes of 8 KiB": { bytes: 256 * MiB, blockBytes: 64 * KiB, nodeBytes: 8192, ...FULL },
  "HFSX with a journal": { bytes: 24 * MiB, kind: "HFSX", journal: "empty", ...FULL },
  "a journal that was never used": { bytes: 16 * MiB, journal: "uninitialised" },
  "case-sensitive": { bytes: 16 * MiB, kind: "HFSX, case-sensitive", ...FULL },
};

function made(t: TestContext, options: HfsPlusOptions): string {
  const path = join(scratch(t), "volume.img");
  makeHfsPlus(path, options);
  return path;
}

const deviceOf = (path: string): BlockDevice => fuzzDevice(new Uint8Array(readFileSync(path)));

async function opened(device: BlockDevice): Promise<FileSystem> {
  assert.ok(await hfsplus.probe(device));
  return hfsplus.open([device], { replay: false });
}

/** What is free, when it and what the walk reaches are the whole volume. */
async function proven(filesystem: FileSystem): Promise<ExtentSet> {
  const [free] = await filesystem.free();
  const reached = new ExtentBuilder();
  await filesystem.walk((_member, start, end) => reached.add(start, end));
  assert.equal(filesystem.refusal, undefined);
  assert.deepEqual([...free!.intersect(reached.build())], []);
  assert.deepEqual([...free!.union(reached.build())], [{ start: 0, end: filesystem.bytes }]);
  return free!;
}

/** The blocks that The Sleuth Kit finds unallocated, in bytes. */
function sleuthKitFree(path: string, blockBytes: number, skippedBytes = 0): ExtentSet {
  const free = new ExtentBuilder();
  const listed = run("blkls", ["-l", "-f", "hfs", "-o", `${skippedBytes / 512}`, path]);
  for (const [, block] of listed.matchAll(/^(\d+)\|f$/gm)) {
    free.add(Number(block) * blockBytes, (Number(block) + 1) * blockBytes);
  }
  return free.build();
}

/** What partclone would not copy, in bytes. */
function partcloneFree(t: TestContext, path: string): ExtentSet {
  const domain = join(scratch(t), "domain");
  run("partclone.hfsplus", ["-q", "-D", "-s", path, "-o", domain, "-L", "/dev/null"]);
  const free = new ExtentBuilder();
  const lines = readFileSync(domain, "utf8").matchAll(/^(0x\S+) +(0x\S+) +\?$/gm);
  for (const [, start, length] of lines) free.add(Number(start), Number(start) + Number(length));
  return free.build();
}

for (const [name, options] of Object.entries(VARIANTS)) {
  test(`free space agrees with The Sleuth Kit and with the walk: ${name}`, async (t) => {
    if (!requires(t, "blkls")) return;
    const path = made(t, options);
    const filesystem = await opened(deviceOf(path));
    const free = await proven(filesystem);
    assert.deepEqual([...free], [...sleuthKitFree(path, filesystem.blockBytes)]);
  });
}

test("free space agrees with partclone", async (t) => {
  if (!requires(t, "partclone.hfsplus")) return;
  const path = made(t, SMALL);
  const [free] = await (await opened(deviceOf(path))).free();
  assert.deepEqual([...free!], [...partcloneFree(t, path)]);
});

test("files lie where The Sleuth Kit finds them", async (t) => {
  if (!requires(t, "istat")) return;
  // It knows no attributes outside of their records.
  const files = FILES.map((file) => ({ ...file, attribute: 0 }));
  const path = made(t, { ...SMALL, files });
  const filesystem = await opened(deviceOf(path));
  for (const [i, { name, isCompressed }] of FILES.entries()) {
    if (i % 3 !== 0) continue;
    const found = await filesystem.find(`/${name.toUpperCase()}`);
    const told = run("istat", ["-f", "hfs", path, `${FIRST_FILE + i}`]);
    const section = isCompressed ? "Resource Fork Blocks" : "Data Fork Blocks";
    const blocks = new RegExp(`${section}:\n([-\\d\\s]*)`).exec(told)?.[1] ?? "";
    const expected = new ExtentBuilder();
    for (const [, first, last] of blocks.matchAll(/(\d+)(?:-(\d+))?/g)) {
      expected.add(Number(first) * 512, (Number(last ?? first) + 1) * 512);
    }
    const extents = found!.extents.map(({ at, bytes }) => ({ start: at, end: at + bytes }));
    assert.deepEqual(extents, [...expected.build()], name);
    assert.equal(found!.fixed, isCompressed ? "compressed" : undefined);
    const { kind, path: where } = await filesystem.describe(found!.owner);
    assert.deepEqual([kind, where], ["file", `/${name}`]);
  }
  const { length } = (await filesystem.list("/"))!;
  assert.equal(length, FILES.length);
  assert.equal(await filesystem.find("/none"), undefined);
  assert.equal(await filesystem.list("/file1"), undefined);
});

test("owners have names", async (t) => {
  const path = made(t, { bytes: 24 * MiB, journal: "empty", ...FULL });
  const filesystem = await opened(deviceOf(path));
  const names = new Set<string>();
  const owners = new Set<number>();
  await filesystem.walk((_member, _start, _end, owner) => owners.add(owner));
  for (const owner of owners) {
    const { name, path: where } = await filesystem.describe(owner);
    names.add(where ?? name);
  }
  const expected = [
    "volume header",
    "copy of the volume header",
    "journal info block",
    "journal",
    "allocation file",
    "extents overflow file",
    "catalog file",
    "attributes file",
    "bad blocks",
    "/.journal",
    "/.journal_info_block",
    "/file39",
  ];
  assert.deepEqual(
    expected.filter((name) => !names.has(name)),
    [],
  );
  assert.deepEqual([filesystem.name, filesystem.label, filesystem.refusal], ["hfsplus", "ullage", undefined]);
  assert.deepEqual(await filesystem.describe(999), { kind: "unknown", name: "file 999" });
});

test("blkid knows the same name and identifier", async (t) => {
  if (!requires(t, "blkid")) return;
  const path = made(t, { bytes: 16 * MiB });
  const { label, uuid } = await opened(deviceOf(path));
  const told = run("blkid", ["-p", "-o", "export", path]);
  assert.match(told, new RegExp(`^UUID=${uuid}$`, "m"));
  assert.match(told, new RegExp(`^LABEL=${label}$`, "m"));
});

test("a volume in an HFS wrapper is read where it lies; HFS itself is refused", async (t) => {
  const path = join(scratch(t), "wrapped.img");
  const at = 4096 + 17 * 2048;
  makeWrapped(path, { ...SMALL, at });
  const bytes = new Uint8Array(readFileSync(path));
  const wrapped = await opened(fuzzDevice(bytes));
  const alone = await opened(fuzzDevice(bytes.slice(at, at + SMALL.bytes)));
  assert.deepEqual([...(await proven(wrapped))], [...(await proven(alone)).shift(at)]);
  const [inside, outside] = [await alone.find("/file3"), await wrapped.find("/file3")];
  assert.equal(outside!.extents[0]!.at, inside!.extents[0]!.at + at);

  viewOf(bytes).setUint16(1024 + 0x7c, 0);
  const classic = await opened(fuzzDevice(bytes));
  assert.equal(classic.name, "hfs");
  assert.equal(classic.refusal?.code, "hfs-classic");
});

test("what is not HFS+ is left to others", async () => {
  assert.equal(await hfsplus.probe(fuzzDevice(new Uint8Array(1536))), false);
  const letters = new Uint8Array(4096);
  letters.set(Buffer.from("BD"), 1024);
  assert.equal(await hfsplus.probe(fuzzDevice(letters)), false);
});

test("runs of clear bits end where they should, at every place of a word", () => {
  for (let start = 0; start < 66; start++) {
    for (let end = start + 1; end <= 66; end++) {
      const bitmap = new Uint8Array(12).fill(0xff);
      for (let bit = start; bit < end; bit++) bitmap[bit >> 3]! &= ~(0x80 >> (bit & 7));
      const runs: number[][] = [];
      clearRuns(viewOf(bitmap), 66, (from, to) => runs.push([from, to]));
      assert.deepEqual(runs, [[start, end]]);
    }
  }
});

test("every attribute of the volume is vouched for, or refuses it", async (t) => {
  const bytes = new Uint8Array(readFileSync(made(t, { bytes: 4 * MiB })));
  const at = 1024 + VolumeHeader.at.attributes;
  const codes = new Map<string, number[]>();
  for (let bit = 0; bit < 32; bit++) {
    const changed = bytes.slice();
    const view = viewOf(changed);
    view.setUint32(at, view.getUint32(at) ^ (1 << bit));
    const { refusal } = await opened(fuzzDevice(changed));
    const code = refusal?.code ?? "opens";
    codes.set(code, [...(codes.get(code) ?? []), bit]);
  }
  const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);
  assert.deepEqual(Object.fromEntries(codes), {
    "feature-unknown": [...range(0, 7), ...range(16, 29)],
    opens: [7, 9, 10, 12, 15, 29, 31],
    "not-clean": [8],
    "error-state": [11, 14],
    damaged: [13],
    "feature-unsupported": [30],
  });
});

const real: readonly { readonly name: string; readonly label: string; readonly paths: readonly string[] }[] =
  [
    {
      name: "util-linux+util-linux/tests/ts/blkid/images-fs/hfsplus.img.xz",
      label: "123456789ABCDE",
      paths: [],
    },
    {
      name: "log2timeline+dfvfs/test_data/hfsplus.raw",
      label: "hfsplus_test",
      paths: ["/passwords.txt", "/A_Directory/a_file"],
    },
  ];

for (const { name, label, paths } of real) {
  test(`a volume that macOS made: ${name}`, async (t) => {
    if (corpus(t) === undefined || !requires(t, "blkls", "partclone.hfsplus")) return;
    const path = unpack(t, name);
    const filesystem = await opened(deviceOf(path));
    const free = await proven(filesystem);
    assert.equal(filesystem.label, label);
    assert.deepEqual([...free], [...sleuthKitFree(path, filesystem.blockBytes)]);
    assert.deepEqual([...free], [...partcloneFree(t, path)]);
    for (const wanted of paths) {
      const { extents, kind } = (await filesystem.find(wanted))!;
      assert.deepEqual([extents.length > 0, kind], [true, "file"], wanted);
      assert.equal((await filesystem.find(dirname(wanted)))!.kind, "directory");
    }
  });
}

test("a partition of a disk image that macOS made", async (t) => {
  if (corpus(t) === undefined || !requires(t, "qemu-img")) return;
  const folder = scratch(t);
  const packed = unpack(t, "Xilinx+qemu/tests/qemu-iotests/sample_images/simple-dmg.dmg.bz2");
  const disk = join(folder, "disk.raw");
  run("qemu-img", ["convert", "-O", "raw", packed, disk]);
  const whole = deviceOf(disk);
  const filesystem = await opened(slice(whole, { start: 40 * 512, end: 3480 * 512 }));
  await proven(filesystem);
  assert.equal((await filesystem.find("/simple"))!.extents.length, 1);
});
