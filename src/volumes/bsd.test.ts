import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { viewOf } from "../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../device/device.ts";
import { slice } from "../device/slice.ts";
import { corpus, unpack } from "../testing/corpus.ts";
import { blankDisk } from "../testing/partitions.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { requires, run } from "../testing/tools.ts";
import { bsd, Disklabel, LABEL_AT, Partition } from "./bsd.ts";
import { mbr } from "./mbr.ts";
import type { VolumeTable } from "./volume.ts";

const SECTOR_BYTES = 512;
const SLICE = { start: 2048, end: 20_480 };
const SLICE_BYTES = { start: SLICE.start * SECTOR_BYTES, end: SLICE.end * SECTOR_BYTES };
/** Letter, first and last sector of the disk, type. */
const PARTITIONS = [
  ["a", 2048, 8191, 7],
  ["b", 8192, 10_239, 1],
  ["e", 12_288, 20_479, 7],
] as const;

/** An MBR with a FreeBSD partition, and the disklabel that fdisk makes in it. */
function makeDisk(t: TestContext): string {
  const path = blankDisk(t, 16 * 1024 * 1024);
  run("sfdisk", ["-q", path], `label: dos\nstart=${SLICE.start}, size=18432, type=a5\n`);
  const add = PARTITIONS.map(([letter, first, last]) => `n\n${letter}\n${first}\n${last}\n`).join("");
  const types = PARTITIONS.map(([letter, , , type]) => `t\n${letter}\n${type}\n`).join("");
  run("fdisk", [path], `b\ny\n${add}${types}w\n`);
  return path;
}

interface Seen {
  readonly name: string;
  readonly start: number;
  readonly end: number;
}

/** First and last sector of each volume, counted from the start of the slice. */
function seen(table: VolumeTable): Seen[] {
  return table.volumes.map((volume) => {
    const [place] = volume.places({ start: 0, end: volume.device.bytes });
    assert.equal(place!.bytes, volume.device.bytes);
    assert.equal(volume.find(0, place!.at), 0);
    return {
      name: volume.name,
      start: place!.at / SECTOR_BYTES,
      end: (place!.at + place!.bytes) / SECTOR_BYTES - 1,
    };
  });
}

const EXPECTED = PARTITIONS.map(([name, start, end]) => ({
  name,
  start: start - SLICE.start,
  end: end - SLICE.start,
}));

async function sliceOf(path: string): Promise<SimulatedFile> {
  const disk = await SimulatedFile.load(path);
  return SimulatedFile.from(await readBytes(disk, SLICE_BYTES.start, SLICE_BYTES.end - SLICE_BYTES.start));
}

/** Changes the label, with a checksum that fits. */
async function relabel(device: SimulatedFile, change: (label: Uint8Array) => void): Promise<void> {
  const label = await readBytes(device, LABEL_AT, 404);
  change(label);
  Disklabel.encode({ checksum: 0 }, label);
  const view = viewOf(label);
  const count = Math.min(16, Disklabel.decode(label).partitions);
  let sum = 0;
  for (let at = 0; at < 148 + count * 16; at += 2) sum ^= view.getUint16(at, true);
  Disklabel.encode({ checksum: sum }, label);
  await device.write(LABEL_AT, label);
}

const entry = (label: Uint8Array, index: number, values: Parameters<typeof Partition.encode>[0]): void =>
  Partition.encode(values, label, 148 + index * 16);

test("a label inside of an MBR partition, with offsets of the disk", async (t) => {
  if (!requires(t, "fdisk", "sfdisk", "partx", "mmls")) return;
  const path = makeDisk(t);
  const disk = await SimulatedFile.load(path);
  const table = await mbr.open([disk]);
  assert.equal(table.volumes[0]!.type, "FreeBSD");
  const { device } = table.volumes[0]!;
  assert.equal(await bsd.probe(device), true);
  const label = await bsd.open([device]);
  assert.equal(label.refusal, undefined, label.refusal?.message);
  assert.deepEqual(seen(label), EXPECTED);
  assert.deepEqual(
    label.volumes.map(({ type }) => type),
    ["BSD UFS", "BSD swap", "BSD UFS"],
  );
  assert.equal(label.gaps[0]!.count, 0);
  assert.equal(label.describe(0, LABEL_AT), "BSD disklabel");

  const listed = run("partx", ["--noheadings", "--output", "NR,START,END", "--show", path]);
  const foreign = listed
    .trim()
    .split("\n")
    .map((line) => line.trim().split(/\s+/).map(Number))
    .filter(([number]) => number! > 4)
    .map(([, start, end]) => ({ start: start! - SLICE.start, end: end! - SLICE.start }));
  assert.deepEqual(
    seen(label).map(({ start, end }) => ({ start, end })),
    foreign,
  );
  const slicePath = blankDisk(t, 512);
  await (await sliceOf(path)).save(slicePath);
  const meta = run("mmls", ["-t", "bsd", slicePath]);
  for (const [, start, end] of PARTITIONS)
    assert.match(meta, new RegExp(`0*${start} +0*${end} `), "TSK reads the same offsets");
});

test("the first partition does not show the label again", async (t) => {
  if (!requires(t, "fdisk", "sfdisk")) return;
  const device = await sliceOf(makeDisk(t));
  const [first, second] = (await bsd.open([device])).volumes;
  assert.equal(await bsd.probe(first!.device), false);
  await device.write(SECTOR_BYTES * 6144 + LABEL_AT, await readBytes(device, LABEL_AT, 404));
  assert.equal(await bsd.probe(second!.device), true, "others are shown as they are");
});

test("offsets from the start of the slice, as FreeBSD's", async (t) => {
  if (!requires(t, "fdisk", "sfdisk")) return;
  const device = await sliceOf(makeDisk(t));
  await relabel(device, (label) => {
    entry(label, 2, { offset: 0 });
    for (const [letter, start] of PARTITIONS)
      entry(label, letter.charCodeAt(0) - 97, { offset: start - SLICE.start });
  });
  assert.deepEqual(seen(await bsd.open([device])), EXPECTED);
});

test("OpenBSD's label: bounds instead of a raw partition, and partitions of others", async (t) => {
  if (!requires(t, "fdisk", "sfdisk")) return;
  const path = makeDisk(t);
  const device = await sliceOf(path);
  const openBsd = (label: Uint8Array): void => {
    Disklabel.encode({ version: 1, start: SLICE.start, end: SLICE.end }, label);
    for (let i = 0; i < 5; i++) entry(label, i, { third: 0 });
    entry(label, 2, { offset: 0, sectors: 32_768 });
    entry(label, 5, { offset: 20_480, sectors: 4096, type: 8, third: 0 });
    Disklabel.encode({ partitions: 16 }, label);
  };
  await relabel(device, openBsd);
  assert.deepEqual(seen(await bsd.open([device])), EXPECTED);
  for (const change of [
    (label: Uint8Array) => Disklabel.encode({ version: 0 }, label),
    (label: Uint8Array) => Disklabel.encode({ start: 0, end: 0 }, label),
    (label: Uint8Array) => Disklabel.encode({ end: SLICE.end + 1 }, label),
    (label: Uint8Array) => entry(label, 5, { offset: 20_479 }),
    (label: Uint8Array) => entry(label, 4, { third: 1 << 16 }),
  ]) {
    const other = await sliceOf(path);
    await relabel(other, (label) => {
      openBsd(label);
      change(label);
    });
    assert.equal((await bsd.open([other])).refusal?.code, "bsd-damaged", String(change));
  }
});

test("labels that do not add up", async (t) => {
  if (!requires(t, "fdisk", "sfdisk")) return;
  const path = makeDisk(t);
  for (const [what, change, code] of [
    ["no partitions", (label: Uint8Array) => Disklabel.encode({ partitions: 0 }, label), "bsd-damaged"],
    ["many partitions", (label: Uint8Array) => Disklabel.encode({ partitions: 17 }, label), "bsd-damaged"],
    ["strange sectors", (label: Uint8Array) => Disklabel.encode({ sectorBytes: 500 }, label), "bsd-damaged"],
    ["a newer version", (label: Uint8Array) => Disklabel.encode({ version: 2 }, label), "bsd-damaged"],
    ["before the slice", (label: Uint8Array) => entry(label, 0, { offset: 2047 }), "bsd-damaged"],
    ["behind the slice", (label: Uint8Array) => entry(label, 4, { sectors: 8193 }), "bsd-damaged"],
    ["an overlap", (label: Uint8Array) => entry(label, 0, { sectors: 6145 }), "bsd-overlap"],
    ["a long raw partition", (label: Uint8Array) => entry(label, 2, { sectors: 18_433 }), "bsd-damaged"],
  ] as const) {
    const device = await sliceOf(path);
    await relabel(device, change);
    const { refusal, volumes } = await bsd.open([device]);
    assert.equal(refusal?.code, code, what);
    assert.equal(volumes.length, 0);
  }
  const device = await sliceOf(path);
  await device.write(LABEL_AT + 200, Buffer.from([1]));
  assert.match((await bsd.open([device])).refusal!.message, /checksum/);
});

test("a part of a set must show that it is", async (t) => {
  if (!requires(t, "fdisk", "sfdisk")) return;
  const device = await sliceOf(makeDisk(t));
  await relabel(device, (label) => entry(label, 4, { type: 14 }));
  const { volumes } = await bsd.open([device]);
  assert.deepEqual(
    volumes.map(({ unlessMember }) => unlessMember?.code),
    [undefined, undefined, "multi-disk-member"],
  );
});

test("a label of a whole disk beside an MBR: nobody knows which counts", async (t) => {
  if (!requires(t, "fdisk", "sfdisk")) return;
  const path = makeDisk(t);
  const disk = await SimulatedFile.load(path);
  await disk.write(LABEL_AT, await readBytes(disk, SLICE_BYTES.start + LABEL_AT, 404));
  assert.equal((await mbr.open([disk])).refusal?.code, "mbr-ambiguous");
});

test("labels of other tools that overlap are refused", async (t) => {
  if (corpus(t) === undefined) return;
  for (const [name, start] of [
    ["bsd", 0],
    ["dos+bsd", 7680 * SECTOR_BYTES],
  ] as const) {
    const path = unpack(t, `util-linux+util-linux/tests/ts/blkid/images-pt/${name}.img.xz`);
    const disk: BlockDevice = await SimulatedFile.load(path);
    const device = slice(disk, { start, end: disk.bytes });
    assert.equal(await bsd.probe(device), true);
    assert.equal((await bsd.open([device])).refusal?.code, "bsd-overlap");
  }
});

test("damage anywhere: a refusal or volumes in the slice, never an exception", async (t) => {
  if (!requires(t, "fdisk", "sfdisk")) return;
  const device = await sliceOf(makeDisk(t));
  for (const seed of seeds(150)) {
    const random = new Random(seed);
    const before = await readBytes(device, LABEL_AT, 404);
    await relabel(device, (label) => label.set(random.bytes(4), random.below(400)));
    if (await bsd.probe(device)) {
      for (const { end } of seen(await bsd.open([device]))) assert.ok(end < SLICE.end - SLICE.start);
    }
    await device.write(LABEL_AT, before);
  }
});
