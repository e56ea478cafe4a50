import assert from "node:assert/strict";
import { truncateSync } from "node:fs";
import { type TestContext, test } from "node:test";
import { crc32 } from "../bytes/checksum.ts";
import { readBytes } from "../device/device.ts";
import { corpus, unpack } from "../testing/corpus.ts";
import { draw } from "../testing/draw.ts";
import { fileDevice } from "../testing/file-device.ts";
import { blankDisk, expectedExtents, madeOnce, volumeExtents, withLoop } from "../testing/partitions.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { requires, requiresRoot, run } from "../testing/tools.ts";
import { gpt } from "./gpt.ts";
import { Entry, guidText, Header } from "./gpt/header.ts";
import { mbr } from "./mbr.ts";
import type { VolumeTable } from "./volume.ts";

const MiB = 1024 * 1024;

/** Three partitions with gaps of 2 MiB before, 4 MiB between the last two, and the rest behind. */
const sgdiskDisk = madeOnce((t) => {
  const path = blankDisk(t, 32 * MiB);
  run("sgdisk", ["-n1:2M:+2M", "-t1:ef00", "-c1:EFI", "-n2:4M:+4M", "-n4:12M:+4M", "-c4:root ☃", path]);
  return path;
});

async function loaded(t: TestContext): Promise<SimulatedFile> {
  return SimulatedFile.load(sgdiskDisk(t));
}

async function damage(disk: SimulatedFile, at: number): Promise<void> {
  const [byte] = await readBytes(disk, at, 1);
  await disk.write(at, Uint8Array.of(byte! ^ 0xff));
}

type HeaderFields = Parameters<typeof Header.encode>[0];

/** Rewrites both copies with a changed entry and changed header fields, and CRCs that fit. */
async function rewrite(
  disk: SimulatedFile,
  slot: number,
  entry: Parameters<typeof Entry.encode>[0],
  fields: HeaderFields = {},
  copies: readonly number[] = [512, disk.bytes - 512],
): Promise<void> {
  for (const at of copies) {
    const sector = await readBytes(disk, at, 512);
    const { entriesLba, entryBytes, entryCount } = Header.decode(sector);
    const entries = await readBytes(disk, entriesLba * 512, entryBytes * entryCount);
    Entry.encode(entry, entries, slot * entryBytes);
    await disk.write(entriesLba * 512, entries);
    Header.encode({ entriesCrc: crc32(entries), ...fields, headerCrc: 0 }, sector);
    Header.encode({ headerCrc: crc32(sector.subarray(0, 92)) }, sector);
    await disk.write(at, sector);
  }
}

function refusalCode(table: VolumeTable): string | undefined {
  if (table.refusal !== undefined) {
    assert.equal(table.volumes.length, 0);
    assert.equal(table.gaps[0]!.bytes, 0);
  }
  return table.refusal?.code;
}

test("partitions are those of sgdisk and sfdisk", async (t) => {
  if (!requires(t, "sgdisk", "sfdisk")) return;
  const path = sgdiskDisk(t);
  await using disk = await fileDevice(path);
  assert.equal(await gpt.probe(disk), true);
  assert.equal(await mbr.probe(disk), false);
  const table = await gpt.open([disk]);
  assert.equal(table.refusal, undefined);
  assert.deepEqual(table.notes, []);
  assert.deepEqual(volumeExtents(table), expectedExtents(path));
  assert.deepEqual(
    table.volumes.map(({ type }) => type),
    ["EFI system", "Linux", "Linux"],
  );
});

test("sectors of 4096 bytes", async (t) => {
  if (!requires(t, "sfdisk", "losetup") || !requiresRoot(t)) return;
  const path = blankDisk(t, 32 * MiB);
  const expected = withLoop(path, 4096, (device) => {
    run("sfdisk", ["--no-reread", device], "label: gpt\nstart=512, size=8MiB, name=a\nsize=4MiB, name=b\n");
    return expectedExtents(device);
  });
  await using disk = await fileDevice(path);
  assert.equal(await gpt.probe(disk), true);
  const table = await gpt.open([disk]);
  assert.deepEqual(table.notes, []);
  assert.deepEqual(volumeExtents(table), expected);
  assert.equal(draw(table.gaps[0]!, disk.bytes, MiB), "..............#################.");
  assert.equal(table.describe(0, 4096), "primary GPT header");
  assert.equal(table.describe(0, 8192), "primary GPT entries");
  assert.equal(table.describe(0, disk.bytes - 1), "backup GPT header");
});

test("places and find are each other's inverse", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const table = await gpt.open([await loaded(t)]);
  const [, second] = table.volumes;
  assert.deepEqual(
    [...second!.places({ start: 512, end: 4096 })],
    [{ disk: 0, at: 4 * MiB + 512, bytes: 3584 }],
  );
  assert.equal(second!.find(0, 4 * MiB + 512), 512);
  assert.equal(second!.find(0, 8 * MiB), undefined);
});

test("one copy is enough, and said", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const whole = volumeExtents(await gpt.open([await loaded(t)]));
  for (const [name, at] of [
    ["primary header", 512 + 40],
    ["primary entries", 1024 + 5],
    ["backup header", 32 * MiB - 512 + 40],
    ["backup entries", 32 * MiB - 512 * 33 + 5],
  ] as const) {
    const disk = await loaded(t);
    await damage(disk, at);
    const table = await gpt.open([disk]);
    assert.equal(table.refusal, undefined, name);
    assert.deepEqual(volumeExtents(table), whole, name);
    assert.match(table.notes[0]!, new RegExp(`^${name.replace(" ", " GPT ")} at \\d+ .*CRC.*expected`), name);
    assert.equal(table.gaps[0]!.bytes, 0, "gaps of a damaged table");
  }
});

test("a wiped primary leaves the backup", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const disk = await loaded(t);
  const whole = volumeExtents(await gpt.open([disk]));
  await disk.write(512, new Uint8Array(33 * 512));
  assert.deepEqual(volumeExtents(await gpt.open([disk])), whole);
});

test("a wiped backup is said", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const disk = await loaded(t);
  await disk.write(disk.bytes - 512, new Uint8Array(512));
  const { volumes, notes } = await gpt.open([disk]);
  assert.equal(volumes.length, 3);
  assert.match(notes[0]!, /backup GPT header at 33553920 has no signature/);
});

test("both copies damaged: everything is used", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const disk = await loaded(t);
  await damage(disk, 512 + 40);
  await damage(disk, disk.bytes - 512 + 40);
  assert.equal(await gpt.probe(disk), true);
  assert.equal(refusalCode(await gpt.open([disk])), "gpt-damaged");
  await disk.write(512, new Uint8Array(512));
  await disk.write(disk.bytes - 512, new Uint8Array(512));
  assert.equal(refusalCode(await gpt.open([disk])), "gpt-damaged");
});

test("valid copies that differ: everything is used", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const disk = await loaded(t);
  await rewrite(disk, 1, { lastLba: (7 * MiB) / 512 }, {}, [512]);
  assert.equal(refusalCode(await gpt.open([disk])), "gpt-contradiction");
});

test("impossible partitions: everything is used", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const cases: [string, Parameters<typeof Entry.encode>[0], HeaderFields, string?, RegExp?][] = [
    ["unchanged", {}, {}],
    ["overlaps its neighbour", { lastLba: (12 * MiB) / 512 }, {}, "gpt-overlap"],
    ["overlaps the entries", { firstLba: 33, lastLba: 40 }, { firstUsableLba: 33 }, "gpt-overlap"],
    ["begins before the usable range", { firstLba: 33, lastLba: 40 }, {}, "gpt-range"],
    ["ends behind the usable range", { firstLba: 40000, lastLba: 65503 }, {}, "gpt-range"],
    ["ends behind the disk", { firstLba: 40000, lastLba: 70000 }, { lastUsableLba: 70000 }, "gpt-range"],
    [
      "ends before it begins",
      { firstLba: 9000, lastLba: 8998 },
      {},
      "gpt-damaged",
      /begins at LBA 9000 and ends at 8998/,
    ],
    ["is past 2^53", { firstLba: 9000, lastLba: 2 ** 52 }, {}, "gpt-range"],
    ["entries of 100 bytes", {}, { entryBytes: 100 }, "gpt-damaged", /entries of 100 bytes/],
    ["a million entries", {}, { entryCount: 1e6 }, "gpt-damaged", /1000000 entries of 128/],
    ["entries behind the disk", {}, { entriesLba: 65536 }, "gpt-damaged", /reach behind the disk/],
    ["another place", {}, { ownLba: 7 }, "gpt-damaged", /says it is at LBA 7, expected 1/],
    ["revision 2", {}, { revision: 0x20000 }, "gpt-damaged", /revision 0x00020000/],
    ["a header of 20 bytes", {}, { headerBytes: 20 }, "gpt-damaged", /is 20 bytes long/],
    [
      "usable range turned around",
      {},
      { firstUsableLba: 9, lastUsableLba: 5 },
      "gpt-damaged",
      /usable LBAs 9 to 5/,
    ],
  ];
  for (const [name, entry, fields, code, message = /./] of cases) {
    const disk = await loaded(t);
    await rewrite(disk, 1, entry, fields);
    const table = await gpt.open([disk]);
    assert.equal(refusalCode(table), code, name);
    if (code !== undefined) assert.match(table.refusal!.message, message, name);
  }
});

test("gaps leave out the loader's place, alignment and the end (H5)", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const disk = await loaded(t);
  const table = await gpt.open([disk]);
  //                                       0       8       16      24
  assert.equal(draw(table.gaps[0]!, 32 * MiB, MiB), "........####....###############.");
  assert.equal(table.describe(0, 0), "protective MBR");
  assert.equal(table.describe(0, MiB), "space before the first partition");
  assert.equal(table.describe(0, 9 * MiB), "gap between partitions");
  assert.equal(table.describe(0, 20 * MiB), "space behind the last partition");
});

test("no gaps where a partition has a table of its own", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const disk = await loaded(t);
  await rewrite(disk, 1, { typeGuid: Buffer.from("b47c6e51cf6ed6118ff800022d09712b", "hex") });
  const { gaps, notes } = await gpt.open([disk]);
  assert.equal(gaps[0]!.bytes, 0);
  assert.match(notes[0]!, /FreeBSD disklabel/);
});

test("members of sets must show that they are", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const disk = await loaded(t);
  await rewrite(disk, 1, { typeGuid: Buffer.from("0f889da1fc053b4da006743f0f84911e", "hex") });
  const { volumes } = await gpt.open([disk]);
  assert.deepEqual(
    volumes.map(({ unlessMember }) => unlessMember?.code),
    [undefined, "multi-disk-member", undefined],
  );
});

test("a hybrid MBR must agree", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const path = sgdiskDisk(t);
  run("sgdisk", ["-h2", path]);
  const disk = await SimulatedFile.load(path);
  assert.equal(await mbr.probe(disk), false);
  assert.deepEqual((await gpt.open([disk])).notes, ["hybrid MBR"]);
  for (const slot of [0, 1, 2, 3]) {
    const [type] = await readBytes(disk, 446 + slot * 16 + 4, 1);
    if (type !== 0 && type !== 0xee) await damage(disk, 446 + slot * 16 + 12);
  }
  assert.equal(refusalCode(await gpt.open([disk])), "gpt-hybrid");
});

test("a hybrid MBR counts sectors of 4096 bytes where the GPT does", async (t) => {
  if (!requires(t, "sgdisk", "losetup") || !requiresRoot(t)) return;
  const path = blankDisk(t, 64 * MiB);
  const expected = withLoop(path, 4096, (device) => {
    run("sgdisk", ["-n1:2M:+8M", "-n2:16M:+4M", "-n3:24M:+4M", "-h", "1:3", device]);
    return expectedExtents(device);
  });
  const disk = await SimulatedFile.load(path);
  const table = await gpt.open([disk]);
  assert.deepEqual(volumeExtents(table), expected);
  assert.deepEqual(table.notes, ["hybrid MBR"]);
  for (const field of [8, 12]) {
    const changed = await SimulatedFile.load(path);
    await damage(changed, 446 + 16 + field);
    assert.equal(refusalCode(await gpt.open([changed])), "gpt-hybrid", `field at ${field}`);
  }
});

test("a disk that was made larger keeps its old end", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const path = sgdiskDisk(t);
  truncateSync(path, 64 * MiB);
  await using disk = await fileDevice(path);
  const table = await gpt.open([disk]);
  assert.equal(table.volumes.length, 3);
  assert.deepEqual(table.notes, []);
  assert.equal(draw(table.gaps[0]!, 64 * MiB, MiB), "........####....###############+" + ".".repeat(32));
});

test("no protective MBR, no GPT", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const disk = await loaded(t);
  await disk.write(0, new Uint8Array(512));
  assert.equal(await gpt.probe(disk), false);
});

test("labels cannot command a terminal (H25)", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const disk = await loaded(t);
  const name = Buffer.alloc(72);
  name.write("a\u001b[2J\u202eb\ud800", "utf16le");
  await rewrite(disk, 1, { name });
  assert.equal((await gpt.open([disk])).volumes[1]!.label, "a\\u{1b}[2J\\u{202e}b\\u{d800}");
});

test("GUIDs have three fields in little-endian order", () => {
  const bytes = Buffer.from("28732ac11ff8d211ba4b00a0c93ec93b", "hex");
  assert.equal(guidText(bytes), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
});

test("util-linux' own image", async (t) => {
  if (corpus(t) === undefined || !requires(t, "sfdisk")) return;
  const path = unpack(t, "util-linux+util-linux/tests/ts/blkid/images-pt/gpt.img.xz");
  await using disk = await fileDevice(path);
  const expected = expectedExtents(path);
  assert.equal(expected.length, 5);
  assert.deepEqual(volumeExtents(await gpt.open([disk])), expected);
});

test("damage anywhere never throws and never trusts what sgdisk does not", async (t) => {
  if (!requires(t, "sgdisk")) return;
  const disk = await loaded(t);
  const whole = JSON.stringify(volumeExtents(await gpt.open([disk])));
  for (const seed of seeds(300)) {
    const random = new Random(seed);
    const at = random.oneIn(4) ? disk.bytes - 1 - random.below(33 * 512) : random.below(34 * 512);
    const before = await readBytes(disk, at, 8);
    await disk.write(at, random.bytes(8).subarray(0, disk.bytes - at));
    await gpt.probe(disk);
    const table = await gpt.open([disk]);
    if (table.refusal === undefined)
      assert.equal(JSON.stringify(volumeExtents(table)), whole, `SEED=${seed}`);
    await disk.write(at, before);
  }
});

test("a disk that was given to somebody else, whose old table is still whole at its end, is ambiguous", async (t) => {
  if (!requires(t, "sgdisk", "mkswap")) return;
  const path = blankDisk(t, 32 * MiB);
  run("sgdisk", ["-n1:2M:+20M", path]);
  run("mkswap", [path]);
  const swap = await SimulatedFile.load(path);
  assert.equal(refusalCode(await gpt.open([swap])), "gpt-ambiguous");
  for (const [at, magic] of [
    [512, "LABELONE"],
    [1080, "\x53\xef"],
    [65_600, "_BHRfS_M"],
  ] as const) {
    const disk = await loaded(t);
    await disk.write(at, Buffer.from(magic, "latin1"));
    assert.equal(refusalCode(await gpt.open([disk])), "gpt-ambiguous", magic);
  }
});
