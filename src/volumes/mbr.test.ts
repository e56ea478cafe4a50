import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { type BlockDevice, readBytes } from "../device/device.ts";
import { corpus, corpusFiles, unpack } from "../testing/corpus.ts";
import { draw } from "../testing/draw.ts";
import { fileDevice } from "../testing/file-device.ts";
import { blankDisk, expectedExtents, madeOnce, volumeExtents } from "../testing/partitions.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { requires, run } from "../testing/tools.ts";
import { SCHEMES } from "./all.ts";
import { gpt } from "./gpt.ts";
import { mbr } from "./mbr.ts";
import type { VolumeTable } from "./volume.ts";

const MiB = 1024 * 1024;
const GAPPY = `label: dos
start=2MiB, size=2MiB, type=83
start=8MiB, size=16MiB, type=5
start=9MiB, size=2MiB, type=82
start=16MiB, size=2MiB, type=8e
`;

function sfdiskDisk(t: TestContext, script: string, bytes = 32 * MiB): string {
  const path = blankDisk(t, bytes);
  run("sfdisk", ["--no-reread", "--no-tell-kernel", path], script);
  return path;
}

const gappyDisk = madeOnce((t) => sfdiskDisk(t, GAPPY));

async function gappy(t: TestContext): Promise<SimulatedFile> {
  return SimulatedFile.load(gappyDisk(t));
}

function entry(type: number, firstSector: number, sectors: number, flag = 0): Buffer {
  const bytes = Buffer.alloc(16);
  bytes[0] = flag;
  bytes[4] = type;
  bytes.writeUInt32LE(firstSector, 8);
  bytes.writeUInt32LE(sectors, 12);
  return bytes;
}

function refusalCode(table: VolumeTable): string | undefined {
  if (table.refusal !== undefined) {
    assert.equal(table.volumes.length, 0);
    assert.equal(table.gaps[0]!.bytes, 0);
  }
  return table.refusal?.code;
}

test("primary and logical partitions are those of sfdisk", async (t) => {
  if (!requires(t, "sfdisk")) return;
  const path = gappyDisk(t);
  await using disk = await fileDevice(path);
  assert.equal(await mbr.probe(disk), true);
  assert.equal(await gpt.probe(disk), false);
  const table = await mbr.open([disk]);
  assert.equal(table.refusal, undefined);
  assert.deepEqual(volumeExtents(table), expectedExtents(path));
  assert.deepEqual(
    table.volumes.map(({ name, type }) => [name, type]),
    [
      ["1", "Linux"],
      ["5", "Linux swap"],
      ["6", "Linux LVM"],
    ],
  );
});

test("forty logical partitions, one deleted, and an empty extended one", async (t) => {
  if (!requires(t, "sfdisk")) return;
  const many = `label: dos\nsize=1MiB\nsize=100MiB, type=f\n${"size=1MiB\n".repeat(40)}`;
  const path = sfdiskDisk(t, many, 128 * MiB);
  run("sfdisk", ["--no-reread", "--no-tell-kernel", "--delete", path, "7"]);
  await using disk = await fileDevice(path);
  const found = volumeExtents(await mbr.open([disk]));
  assert.equal(found.length, 40);
  assert.deepEqual(found, expectedExtents(path));
  await using empty = await fileDevice(sfdiskDisk(t, "label: dos\nsize=8MiB\nsize=20MiB, type=5\n"));
  assert.equal(volumeExtents(await mbr.open([empty])).length, 1);
});

test("gaps leave out loaders, boot records and the end (H5)", async (t) => {
  if (!requires(t, "sfdisk")) return;
  const disk = await gappy(t);
  const table = await mbr.open([disk]);
  //                                       0       8       16      24
  assert.equal(draw(table.gaps[0]!, 32 * MiB, MiB), "....####...####...#############.");
  assert.equal(table.describe(0, 0), "master boot record");
  assert.equal(table.describe(0, 4096), "space before the first partition");
  assert.match(table.describe(0, 8 * MiB), /^extended boot record/);
  assert.equal(table.describe(0, 5 * MiB), "gap between partitions");
});

test("no gaps where 4096-byte sectors are possible, a GPT lies about or another table may own them", async (t) => {
  if (!requires(t, "sfdisk")) return;
  await using small = await fileDevice(sfdiskDisk(t, "label: dos\nstart=1MiB, size=1MiB\n", 64 * MiB));
  const cases: [string, BlockDevice][] = [["512 or of 4096", small]];
  for (const at of [512, 4096, 32 * MiB - 512]) {
    const disk = await gappy(t);
    await disk.write(at, Buffer.from("EFI PART"));
    cases.push([`GPT header lies at ${at}`, disk]);
  }
  const bsd = await gappy(t);
  await bsd.write(446, entry(0xa6, 4096, 4096));
  cases.push(["OpenBSD", bsd]);
  for (const [reason, disk] of cases) {
    const { gaps, notes } = await mbr.open([disk]);
    assert.equal(gaps[0]!.bytes, 0, reason);
    assert.match(notes[0]!, new RegExp(reason));
  }
});

test("impossible tables: everything is used", async (t) => {
  if (!requires(t, "sfdisk")) return;
  const ebr = 8 * MiB;
  const second = 15 * MiB;
  const cases: [string, number, Buffer, string | undefined][] = [
    ["unchanged", 446, entry(0x83, 4096, 4096), undefined],
    ["primary overlaps the extended", 446, entry(0x83, 4096, 16384), "mbr-overlap"],
    ["primary ends behind the disk", 446, entry(0x83, 4096, 61441), "mbr-range"],
    ["sector numbers near 2^32", 446, entry(0x83, 0xffffffff, 0xffffffff), "mbr-range"],
    ["two extended", 446, entry(0x85, 4096, 4096), "mbr-damaged"],
    ["chain links to where it came from", second + 462, entry(5, 14336, 2048), "mbr-extended"],
    ["chain leaves the extended partition", ebr + 462, entry(5, 32768, 1), "mbr-extended"],
    ["chain ends in no record", ebr + 462, entry(5, 4, 1), "mbr-extended"],
    ["logical ends behind the extended", ebr + 446, entry(0x83, 2048, 32768), "mbr-extended"],
    ["logical overlaps the next", ebr + 446, entry(0x83, 2048, 13000), "mbr-overlap"],
    ["two logicals in one record", ebr + 478, entry(0x83, 8192, 8), "mbr-extended"],
    ["a record's flag is 0x33", ebr + 446, entry(0x83, 2048, 4096, 0x33), "mbr-extended"],
    ["no signature in a record", second + 510, Buffer.alloc(2), "mbr-extended"],
  ];
  for (const [name, at, bytes, code] of cases) {
    const disk = await gappy(t);
    await disk.write(at, bytes);
    assert.equal(refusalCode(await mbr.open([disk])), code, name);
  }
});

test("a chain that never ends stops", async () => {
  const disk = new SimulatedFile(8 * MiB);
  const sectors = disk.bytes / 512;
  await disk.write(446, entry(5, 1, sectors - 1));
  for (let sector = 0; sector < 2000; sector++) {
    await disk.write(sector * 512 + 510, Uint8Array.of(0x55, 0xaa));
    if (sector > 0) await disk.write(sector * 512 + 446, entry(5, sector, 1));
  }
  const table = await mbr.open([disk]);
  assert.equal(refusalCode(table), "mbr-extended");
  assert.match(table.refusal!.message, /limit of 256/);
});

test("a link out of the extended partition is not followed", async () => {
  const disk = new SimulatedFile(MiB);
  for (const sector of [0, 1, 500]) await disk.write(sector * 512 + 510, Uint8Array.of(0x55, 0xaa));
  await disk.write(446, entry(5, 1, 100));
  await disk.write(512 + 446, entry(5, 499, 1));
  assert.match((await mbr.open([disk])).refusal!.message, /links to 256000, .* ends at 51712/);
});

test("a failing medium is an error and no refusal", async () => {
  const disk = new SimulatedFile(MiB);
  disk.fault = { read: disk.reads, forever: true };
  for (const scheme of SCHEMES) await assert.rejects(scheme.open([disk]), { kind: "io" }, scheme.name);
});

test("a link back is found", async () => {
  const disk = new SimulatedFile(MiB);
  for (const sector of [0, 1, 5]) await disk.write(sector * 512 + 510, Uint8Array.of(0x55, 0xaa));
  await disk.write(446, entry(5, 1, 2000));
  await disk.write(512 + 446, entry(5, 4, 1));
  await disk.write(5 * 512 + 446, entry(5, 4, 1));
  assert.match((await mbr.open([disk])).refusal!.message, /at 2560 links back to itself/);
});

test("what merely ends with 55AA is no table", async (t) => {
  if (!requires(t, "mkfs.vfat", "mkfs.ntfs", "mke2fs")) return;
  const plain = new SimulatedFile(MiB);
  await plain.write(510, Uint8Array.of(0x55, 0xaa));
  assert.equal(await mbr.probe(plain), false, "no entries");
  await plain.write(446, entry(0x83, 0, 100));
  assert.equal(await mbr.probe(plain), false, "a partition in sector 0");
  const code = new SimulatedFile(MiB);
  await code.write(0, new Random(1).bytes(510));
  await code.write(510, Uint8Array.of(0x55, 0xaa));
  assert.equal(await mbr.probe(code), false, "boot code");
  assert.equal(await mbr.probe(new SimulatedFile(100)), false, "shorter than a sector");
  for (const [tool, ...args] of [
    ["mkfs.vfat", "-F12"],
    ["mkfs.vfat", "-F16"],
    ["mkfs.vfat", "-F32"],
    ["mkfs.ntfs", "-qF"],
    ["mke2fs", "-qF"],
  ] as const) {
    const path = blankDisk(t, 64 * MiB);
    run(tool, [...args, path]);
    const disk = await SimulatedFile.load(path);
    await disk.write(446, entry(0x83, 2048, 2048));
    for (let slot = 1; slot < 4; slot++) await disk.write(446 + slot * 16, Buffer.alloc(16));
    await disk.write(510, Uint8Array.of(0x55, 0xaa));
    const isTable = (await mbr.probe(disk)) && refusalCode(await mbr.open([disk])) === undefined;
    assert.equal(isTable, false, [tool, ...args].join(" "));
  }
});

test("a table before an unpartitioned filesystem or volume is ambiguous", async (t) => {
  if (!requires(t, "sfdisk")) return;
  for (const [at, magic] of [
    [1080, "\x53\xef"],
    [512, "LABELONE"],
    [65_600, "_BHRfS_M"],
  ] as const) {
    const disk = await gappy(t);
    await disk.write(at, Buffer.from(magic, "latin1"));
    assert.equal(refusalCode(await mbr.open([disk])), "mbr-ambiguous", magic);
  }
});

test("a magic inside of a partition is the partition's", async () => {
  const disk = new SimulatedFile(MiB);
  await disk.write(446, entry(0x83, 1, 100));
  await disk.write(510, Uint8Array.of(0x55, 0xaa));
  await disk.write(1080, Uint8Array.of(0x53, 0xef));
  assert.equal((await mbr.open([disk])).volumes.length, 1);
});

test("a disk of three sectors", async () => {
  const disk = new SimulatedFile(3 * 512);
  await disk.write(446, entry(0x83, 1, 2));
  await disk.write(510, Uint8Array.of(0x55, 0xaa));
  assert.equal((await mbr.open([disk])).volumes[0]!.device.bytes, 1024);
  assert.equal(await gpt.probe(disk), false);
  await disk.write(446, entry(0xee, 1, 2));
  assert.equal(await gpt.probe(disk), true);
  assert.equal((await gpt.open([disk])).refusal!.code, "gpt-damaged");
});

test("partition 1 in sector 1", async (t) => {
  if (corpus(t) === undefined || !requires(t, "sfdisk")) return;
  const path = unpack(t, "log2timeline+dfvfs/test_data/mbr.raw");
  await using disk = await fileDevice(path);
  assert.equal(await mbr.probe(disk), true);
  assert.deepEqual(volumeExtents(await mbr.open([disk])), expectedExtents(path));
});

test("no bare filesystem of util-linux' suite looks like a table", async (t) => {
  if (corpus(t) === undefined) return;
  const images = corpusFiles(/util-linux.*images-fs.*\.img\.xz$/);
  assert.ok(images.length > 50);
  const sector = `${blankDisk(t, 0)}.sector`;
  const found: string[] = [];
  for (const name of images) {
    run("sh", ["-c", `xz -dc "$1" 2>/dev/null | head -c 70000 >"$2"`, "sh", `${corpus(t)}/${name}`, sector]);
    await using disk = await fileDevice(sector);
    if ((await mbr.probe(disk)) || (await gpt.probe(disk))) found.push(name);
  }
  assert.deepEqual(found, []);
});

test("damage anywhere never throws", async (t) => {
  if (!requires(t, "sfdisk")) return;
  const disk = await gappy(t);
  for (const seed of seeds(500)) {
    const random = new Random(seed);
    const at = random.pick([0, 8 * MiB, 15 * MiB]) + random.between(440, 512);
    const before = await readBytes(disk, at, 4);
    await disk.write(at, random.bytes(4));
    await mbr.probe(disk);
    const { volumes } = await mbr.open([disk]);
    for (const { device } of volumes)
      assert.ok(device.bytes > 0 && device.bytes < disk.bytes, `SEED=${seed}`);
    await disk.write(at, before);
  }
});
