import assert from "node:assert/strict";
import { rmSync } from "node:fs";
import { type TestContext, test } from "node:test";
import { viewOf } from "../bytes/struct.ts";
import { readBytes } from "../device/device.ts";
import { corpus, unpack } from "../testing/corpus.ts";
import { draw } from "../testing/draw.ts";
import { fileDevice } from "../testing/file-device.ts";
import { editLvmText, logical, lvcreate, lvmDisks } from "../testing/lvm.ts";
import { madeOnce, withLoop } from "../testing/partitions.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { requires, requiresRoot, run, scratch } from "../testing/tools.ts";
import { lvm } from "./lvm.ts";
import { Label, lvmCrc, PvHeader } from "./lvm/label.ts";
import { Header, Slot } from "./lvm/metadata-area.ts";
import { parseText } from "./lvm/text.ts";
import type { VolumeTable } from "./volume.ts";

const MiB = 1024 * 1024;

/** `root` in two pieces around `home`, and free extents behind. */
function makeLinear(t: TestContext, pvOptions: readonly string[] = []): string {
  const [path] = lvmDisks(t, [64 * MiB], ([pv]) => [
    ["pvcreate", ...pvOptions, pv!],
    ["vgcreate", "-s", "1M", "vg0", pv!],
    lvcreate("-L", "10M", "-n", "root", "vg0"),
    lvcreate("-L", "5M", "-n", "home", "vg0"),
    ["lvextend", "-L", "15M", "vg0/root"],
  ]);
  return path!;
}

const linear = madeOnce(makeLinear);

function refusalCode(table: VolumeTable): string | undefined {
  if (table.refusal !== undefined) {
    assert.equal(table.volumes.length, 0);
    assert.equal(table.gaps[0]!.bytes, 0);
  }
  return table.refusal?.code;
}

function codes(table: VolumeTable): Record<string, string | undefined> {
  assert.equal(table.refusal, undefined);
  return Object.fromEntries(table.volumes.map(({ name, refusal }) => [name, refusal?.code]));
}

const available = (t: TestContext) => requires(t, "pvcreate", "lvcreate", "losetup") && requiresRoot(t);

test("linear volumes, one in two pieces, and free extents", async (t) => {
  if (!available(t)) return;
  await using disk = await fileDevice(linear(t));
  assert.equal(await lvm.probe(disk), true);
  const table = await lvm.open([disk]);
  assert.deepEqual(codes(table), { "vg0/root": undefined, "vg0/home": undefined });
  const [root, home] = table.volumes;
  // As `pvdisplay -m` shows them: root on extents 0-9 and 15-19, home on 10-14, each of 1 MiB behind the first MiB.
  assert.deepEqual(
    [...root!.places({ start: 0, end: root!.device.bytes })],
    [
      { disk: 0, at: MiB, bytes: 10 * MiB },
      { disk: 0, at: 16 * MiB, bytes: 5 * MiB },
    ],
  );
  assert.deepEqual([...home!.places({ start: 0, end: 512 })], [{ disk: 0, at: 11 * MiB, bytes: 512 }]);
  assert.equal(draw(table.gaps[0]!, 64 * MiB, 2 * MiB), `${".".repeat(10)}+${"#".repeat(21)}`);
  assert.equal(table.describe(0, 512), "LVM label");
  assert.equal(table.describe(0, 5000), "LVM metadata area");
  assert.equal(table.describe(0, 40 * MiB), "free extents of vg0");
});

test("segments agree with pvs", async (t) => {
  if (!available(t)) return;
  const path = linear(t);
  const reported = withLoop(path, 512, (device) => {
    const config = `devices { filter=["a|^${device}$|","r|.*|"] use_devicesfile=0 hints="none" }`;
    const options = ["--driverloaded", "n", "--config", config, "--noheadings", "--units", "b", "--nosuffix"];
    return run("pvs", [
      ...options,
      "--segments",
      "-o",
      "lv_name,pe_start,pvseg_start,pvseg_size,seg_start",
      device,
    ]);
  });
  await using disk = await fileDevice(path);
  const { volumes, gaps } = await lvm.open([disk]);
  const lines = reported
    .trim()
    .split("\n")
    .map((line) => line.trim().split(/\s+/));
  assert.equal(lines.length, 4);
  for (const fields of lines) {
    const [start, first, extents, inVolume] = fields.slice(-4).map(Number) as [
      number,
      number,
      number,
      number,
    ];
    const place = { disk: 0, at: start + first * MiB, bytes: extents * MiB };
    if (fields.length === 4 || fields[0] === "") {
      assert.ok(gaps[0]!.covers({ start: place.at, end: place.at + place.bytes }));
      continue;
    }
    const volume = volumes.find(({ name }) => name === `vg0/${fields[0]}`)!;
    const range = { start: inVolume, end: inVolume + place.bytes };
    assert.deepEqual([...volume.places(range)], [place]);
    assert.equal(volume.find(0, place.at), inVolume);
  }
});

test("a volume in pieces is read across its seams", async (t) => {
  if (!available(t)) return;
  const disk = await SimulatedFile.load(linear(t));
  await disk.write(11 * MiB - 4, Buffer.from("left"));
  await disk.write(16 * MiB, Buffer.from("right"));
  const { volumes } = await lvm.open([disk]);
  const { device } = volumes[0]!;
  assert.equal(device.bytes, 15 * MiB);
  assert.equal(Buffer.from(await readBytes(device, 10 * MiB - 4, 9)).toString(), "leftright");
  assert.deepEqual(
    [...volumes[0]!.places({ start: 10 * MiB - 4, end: 10 * MiB + 5 })],
    [
      { disk: 0, at: 11 * MiB - 4, bytes: 4 },
      { disk: 0, at: 16 * MiB, bytes: 5 },
    ],
  );
});

test("the origin of a snapshot is used: its free blocks are the snapshot's", async (t) => {
  if (!available(t)) return;
  const path = linear(t);
  const disk = await SimulatedFile.load(path);
  const segment = 'type = "snapshot" chunk_size = 8 origin = "root" cow_store = "home"';
  const snapshot = logical("snapshot0", true, 15, segment);
  await editLvmText(disk, (text) => text.replace("logical_volumes {", `logical_volumes { ${snapshot}`));
  assert.deepEqual(codes(await lvm.open([disk])), {
    "vg0/snapshot0": "lvm-layout",
    "vg0/root": "lvm-layout",
    "vg0/home": "lvm-layout",
  });
});

test("a pvmove under way is refused", async (t) => {
  if (!available(t)) return;
  const disk = await SimulatedFile.load(linear(t));
  const moving = `pvmove0 { id = "p" status = ["READ", "WRITE", "PVMOVE", "LOCKED"] flags = [] segment_count = 1
    segment1 { start_extent = 0 extent_count = 5 type = "mirror" mirror_count = 2 mirrors = ["pv0", 20, "pv0", 30] } }`;
  await editLvmText(disk, (text) => text.replace("logical_volumes {", `logical_volumes { ${moving}`));
  assert.equal(refusalCode(await lvm.open([disk])), "lvm-layout");
});

test("metadata that does not add up: everything is used", async (t) => {
  if (!available(t)) return;
  const path = linear(t);
  const cases: [string, (text: string) => string, string][] = [
    ["exported", (text) => text.replace('"RESIZEABLE"', '"EXPORTED"'), "lvm-status"],
    ["partial", (text) => text.replace("flags = []", 'flags = ["PARTIAL"]'), "lvm-status"],
    ["read-only", (text) => text.replace(', "WRITE"', ""), "lvm-status"],
    ["shared", (text) => text.replace("max_lv = 0", 'lock_type = "sanlock"'), "lvm-status"],
    [
      "missing",
      (text) => text.replace('["ALLOCATABLE"]\nflags = []', '[]\nflags = ["MISSING"]'),
      "lvm-status",
    ],
    ["format 1", (text) => text.replace('"lvm2"', '"lvm1"'), "lvm-damaged"],
    ["another PV", (text) => text.replace(/(pv0 \{\s+id = ")./, "$1-"), "lvm-damaged"],
    ["extents elsewhere", (text) => text.replace("pe_start = 2048", "pe_start = 2056"), "lvm-damaged"],
    ["too many extents", (text) => text.replace("pe_count = 63", "pe_count = 64"), "lvm-range"],
    ["no extent size", (text) => text.replace("extent_size = 2048", "extent_size = 0"), "lvm-damaged"],
    ["segments overlap", (text) => text.replace('"pv0", 10', '"pv0", 9'), "lvm-overlap"],
    ["segment behind the end", (text) => text.replace('"pv0", 15', '"pv0", 60'), "lvm-range"],
    ["segment missing", (text) => text.replace("segment_count = 2", "segment_count = 3"), "lvm-damaged"],
    ["segment not next", (text) => text.replace("start_extent = 10", "start_extent = 11"), "lvm-damaged"],
    ["stripes missing", (text) => text.replace("stripe_count = 1", "stripe_count = 2"), "lvm-damaged"],
    ["another text", (text) => text.replace("Text Format Volume Group", "Something"), "lvm-damaged"],
    ["a newer version", (text) => text.replace("version = 1", "version = 2"), "lvm-damaged"],
    ["two groups", (text) => `${text.replace(/\0/g, "")} vg1 { }`, "lvm-damaged"],
    ["a group with a strange name", (text) => text.replace("vg0 {", '"vg0 " {'), "lvm-damaged"],
    ["a volume with a strange name", (text) => text.replace("root {", '"../root" {'), "lvm-damaged"],
    ["no braces", (text) => text.replace("{", ""), "lvm2-damaged"],
    ["a name twice", (text) => text.replace("max_lv = 0", "seqno = 4"), "lvm2-damaged"],
  ];
  for (const [name, change, code] of cases) {
    const disk = await SimulatedFile.load(path);
    await editLvmText(disk, change);
    assert.equal(refusalCode(await lvm.open([disk])), code, name);
  }
});

test("a metadata area among the free extents is no gap", async (t) => {
  if (!available(t)) return;
  const disk = await SimulatedFile.load(makeLinear(t, ["--metadatacopies", "2"]));
  const change = (text: string) => text.replace("pe_count = 62", "pe_count = 63");
  const second = 63 * MiB;
  for (const at of [4096, second]) await editLvmText(disk, change, at);
  const { refusal, gaps } = await lvm.open([disk]);
  assert.equal(refusal, undefined, refusal?.message);
  assert.equal(gaps[0]!.end(gaps[0]!.count - 1), second);
});

test("two metadata areas must agree", async (t) => {
  if (!available(t)) return;
  const path = makeLinear(t, ["--metadatacopies", "2"]);
  const disk = await SimulatedFile.load(path);
  assert.equal((await lvm.open([disk])).volumes.length, 2);
  await editLvmText(disk, (text) => text.replace("seqno = 4", "seqno = 3"));
  assert.equal(refusalCode(await lvm.open([disk])), "lvm-contradiction");
});

test("metadata elsewhere or damaged: everything is used", async (t) => {
  if (!available(t)) return;
  const [bare] = lvmDisks(t, [32 * MiB], ([pv]) => [["pvcreate", pv!]]);
  await using noGroup = await fileDevice(bare!);
  assert.equal(refusalCode(await lvm.open([noGroup])), "lvm-no-metadata");
  const path = linear(t);
  for (const [name, at, bytes, code] of [
    ["label's CRC", 512 + 16, 1, "lvm2-damaged"],
    ["PV header", 512 + 40, 1, "lvm2-damaged"],
    ["area's magic", 4096 + 8, 1, "lvm2-damaged"],
    ["area's CRC", 4096, 1, "lvm2-damaged"],
    ["texts", 4096 + 512, 32 * 1024, "lvm2-damaged"],
  ] as const) {
    const disk = await SimulatedFile.load(path);
    const found = await readBytes(disk, at, bytes);
    await disk.write(
      at,
      found.map((byte) => byte ^ 0x20),
    );
    assert.equal(refusalCode(await lvm.open([disk])), code, name);
  }
});

test("a metadata area that does not add up", async (t) => {
  if (!available(t)) return;
  const path = linear(t);
  for (const [change, code, message] of [
    [
      (area: Uint8Array) => Slot.encode({ offset: 512, bytes: 9 }, area, Header.bytes + Slot.bytes),
      "lvm-pending",
    ],
    [(area: Uint8Array) => Slot.encode({ flags: 1 }, area, Header.bytes), "lvm-no-metadata"],
    [(area: Uint8Array) => Slot.encode({ offset: 0 }, area, Header.bytes), "lvm-no-metadata"],
    [(area: Uint8Array) => area.fill(0x20, 4, 20), "lvm2-damaged", /no magic/],
    [(area: Uint8Array) => Header.encode({ version: 2 }, area), "lvm2-damaged", /version 2/],
    [(area: Uint8Array) => Header.encode({ start: 8192 }, area), "lvm2-damaged", /bytes at 8192/],
    [(area: Uint8Array) => Header.encode({ bytes: 8192 }, area), "lvm2-damaged", /8192 bytes at 4096/],
    [(area: Uint8Array) => Slot.encode({ offset: 100 }, area, Header.bytes), "lvm2-damaged", /at 100 in/],
    [(area: Uint8Array) => Slot.encode({ bytes: 2 ** 40 }, area, Header.bytes), "lvm2-damaged", /a text of/],
    [(area: Uint8Array) => Slot.encode({ crc: 1 }, area, Header.bytes), "lvm2-damaged", /expected 1$/],
  ] as const) {
    const disk = await SimulatedFile.load(path);
    const area = await readBytes(disk, 4096, 512);
    change(area);
    Header.encode({ crc: lvmCrc(area.subarray(4)) }, area);
    await disk.write(4096, area);
    const table = await lvm.open([disk]);
    assert.equal(refusalCode(table), code);
    if (message !== undefined) assert.match(table.refusal!.message, message);
  }
});

test("a label that does not add up", async (t) => {
  if (!available(t)) return;
  const path = linear(t);
  const areaLength = 32 + PvHeader.bytes + 32 + 8;
  for (const [change, message] of [
    [(sector: Uint8Array) => Label.encode({ sector: 2 }, sector), /says it is in sector 2/],
    [(sector: Uint8Array) => Label.encode({ headerOffset: 8 }, sector), /PV header at 8/],
    [(sector: Uint8Array) => Label.encode({ headerOffset: 500 }, sector), /cut short/],
    [(sector: Uint8Array) => sector.fill(1, 32 + PvHeader.bytes), /cut short|past/],
    [(sector: Uint8Array) => viewOf(sector).setUint32(areaLength, 2 ** 31, true), /does not fit/],
    [(sector: Uint8Array) => viewOf(sector).setUint32(areaLength, 512, true), /does not fit/],
    [(sector: Uint8Array) => PvHeader.encode({ deviceBytes: 65 * MiB }, sector, 32), /on a device of/],
  ] as const) {
    const disk = await SimulatedFile.load(path);
    const sector = await readBytes(disk, 512, 512);
    change(sector);
    Label.encode({ crc: lvmCrc(sector.subarray(20)) }, sector);
    await disk.write(512, sector);
    const table = await lvm.open([disk]);
    assert.notEqual(refusalCode(table), undefined);
    assert.match(table.refusal!.message, message);
  }
});

test("a text may go around the end of its area", async (t) => {
  if (!available(t)) return;
  const changes = Array.from({ length: 12 }, (_, i) => [
    "vgchange",
    "--addtag",
    `${"x".repeat(900)}${i}`,
    "vg0",
  ]);
  const [path] = lvmDisks(t, [32 * MiB], ([pv]) => [
    ["pvcreate", "--metadatasize", "32k", "--dataalignment", "4k", pv!],
    ["vgcreate", "-s", "1M", "vg0", pv!],
    lvcreate("-L", "4M", "-n", "root", "vg0"),
    ...changes,
  ]);
  const disk = await SimulatedFile.load(path!);
  const header = await readBytes(disk, 4096, 512);
  const { bytes: areaBytes } = Header.decode(header);
  const { offset, bytes } = Slot.decode(header, Header.bytes);
  assert.ok(offset + bytes > areaBytes, `text at ${offset} of ${bytes} bytes is to go around ${areaBytes}`);
  assert.deepEqual(codes(await lvm.open([disk])), { "vg0/root": undefined });
});

test("a label in another sector, or in two", async (t) => {
  if (!available(t)) return;
  const disk = await SimulatedFile.load(linear(t));
  const sector = await readBytes(disk, 512, 512);
  Label.encode({ sector: 3 }, sector);
  Label.encode({ crc: lvmCrc(sector.subarray(20)) }, sector);
  await disk.write(3 * 512, sector);
  assert.match((await lvm.open([disk])).refusal!.message, /sectors 1 and 3/);
  await disk.write(512, new Uint8Array(512));
  assert.equal((await lvm.open([disk])).volumes.length, 2);
});

test("images of other tools", async (t) => {
  if (corpus(t) === undefined || !requires(t, "qemu-img")) return;
  const raw = `${scratch(t)}/lvm.raw`;
  for (const [name, expected] of [
    ["lvm", ["test_volume_group/test_logical_volume"]],
    ["lvmtest", ["vg_test/lv_test1", "vg_test/lv_test2"]],
  ] as const) {
    run("qemu-img", ["convert", "-O", "raw", unpack(t, `log2timeline+dfvfs/test_data/${name}.qcow2`), raw]);
    await using disk = await fileDevice(raw);
    assert.deepEqual(Object.keys(codes(await lvm.open([disk]))), expected);
    rmSync(raw);
  }
});

test("damage anywhere never throws and never trusts what LVM does not", async (t) => {
  if (!available(t)) return;
  const disk = await SimulatedFile.load(linear(t));
  const whole = JSON.stringify(codes(await lvm.open([disk])));
  for (const seed of seeds(300)) {
    const random = new Random(seed);
    const at = random.pick([512, 512 + 32, 4096, 4096 + 40, 4096 + 512]) + random.below(200);
    const before = await readBytes(disk, at, 4);
    await disk.write(at, random.bytes(4));
    await lvm.probe(disk);
    const table = await lvm.open([disk]);
    if (table.refusal === undefined) assert.equal(JSON.stringify(codes(table)), whole, `SEED=${seed}`);
    await disk.write(at, before);
  }
});

test("the text is parsed in bounded depth and linear time", () => {
  const section = parseText('a { b = [1, "x\\"y", -2.5] # } "\n c { } }\n\0');
  assert.deepEqual(section.section("a").array("b"), [1, 'x"y', -2.5]);
  assert.equal(section.section("a").sections("c").length, 0);
  const typed = parseText('n = 1 m = -1 s = "x" l = ["x"] b { }');
  for (const wrong of [
    () => typed.number("s"),
    () => typed.number("m"),
    () => typed.number("none"),
    () => typed.string("n"),
    () => typed.string("l"),
    () => typed.array("s"),
    () => typed.array("b"),
    () => typed.section("l"),
    () => typed.section("none"),
  ]) {
    assert.throws(wrong, { kind: "corrupt", message: /^LVM metadata: .* expected a/ });
  }
  for (const text of [
    "a {".repeat(50_000),
    "a",
    "a {",
    "@",
    "a = @",
    "a =",
    "a = [1",
    "a = [1 2]",
    'a = "x',
    "}",
    "a { } }",
    "a = b",
    "= 1",
  ]) {
    assert.throws(() => parseText(text), { kind: "corrupt" }, text.slice(0, 20));
  }
  assert.throws(() => parseText(`a = ${"# ".repeat(2_000_000)}`), { kind: "corrupt" });
  assert.equal(parseText(`a = "${"x".repeat(8 * MiB)}"`).string("a").length, 8 * MiB);
  assert.throws(() => parseText(`a = "${"\\x".repeat(4 * MiB)}`), { kind: "corrupt" });
  assert.throws(() => parseText("x".repeat(8 * MiB)), { kind: "corrupt" });
});
