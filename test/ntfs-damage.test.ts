/**
 * Each guard of the NTFS reader with the damage that it must notice, on a volume that mkntfs and ntfs-3g made. Where
 * ntfs-3g has an opinion of its own, `ntfs-3g.probe` is asked, too.
 *
 * Log pages are written by hand, after logfile.h of ntfs-3g: its drivers only ever empty the log.
 */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import { CLUSTER, NtfsBytes, TYPE } from "../src/testing/ntfs-bytes.ts";
import { inNtfs, makeNtfs, NTFS_TOOLS } from "../src/testing/ntfs.ts";
import { Random } from "../src/testing/seeds.ts";
import { requires, requiresRoot } from "../src/testing/tools.ts";

const MiB = 2 ** 20;

const folder = mkdtempSync(join(tmpdir(), "ullage-"));
after(() => rmSync(folder, { recursive: true }));

let made: Buffer | undefined;

/** A fresh copy of the volume; undefined when the test was skipped. */
function volume(t: TestContext): NtfsBytes | undefined {
  if (!requires(t, ...NTFS_TOOLS, "ntfs-3g.probe", "setfattr") || !requiresRoot(t)) return undefined;
  if (made === undefined) {
    const image = makeNtfs(join(folder, "image"), 16 * MiB);
    const holes = Buffer.alloc(1200 * CLUSTER);
    const random = new Random(1);
    for (let at = 0; at < holes.length; at += 2 * CLUSTER) random.fill(holes.subarray(at, at + CLUSTER));
    writeFileSync(join(folder, "holes"), holes);
    inNtfs(
      image,
      `mkdir many
       for i in $(seq 80); do echo $i > many/a-name-that-is-rather-long-$i; done
       head -c 50000 /dev/urandom > plain
       head -c 50000 /dev/urandom > other
       head -c 8192 /dev/zero > hiberfil.sys
       head -c 50000 /dev/urandom > packed-by-windows
       setfattr -h -n system.ntfs_reparse_data -v 0x170000801000000001000000020000000100000001000000 packed-by-windows
       head -c 50000 /dev/urandom > elsewhere
       setfattr -h -n system.ntfs_reparse_data -v 0x13000080080000000100000002000000 elsewhere
       cp --sparse=always "${join(folder, "holes")}" holes`,
    );
    made = readFileSync(image);
  }
  return new NtfsBytes(Buffer.from(made), join(folder, "probed"));
}

const HIBERNATED = 14;
const UNCLEAN = 15;

test("the volume as it was made is fine", async (t) => {
  const fine = volume(t);
  if (fine === undefined) return;
  assert.equal(await fine.refusal(), undefined);
  assert.equal(fine.probe(), 0);
  assert.ok(fine.attribute(fine.named("holes"), TYPE.list) > 0, "a file has an attribute list");
  assert.ok(fine.attribute(fine.named("many"), TYPE.index) > 0, "a directory has index blocks");
});

test("every flag of $Volume, and its version", async (t) => {
  const harmless = new Set([7, 15]);
  const named = new Map([1, 2, 3, 4, 5, 14].map((bit) => [bit, "unfinished-work"]));
  for (let bit = 0; bit < 16; bit++) {
    const flagged = volume(t);
    if (flagged === undefined) return;
    const at = flagged.attribute(3, TYPE.information) + 24;
    flagged.change(3, (record) => record.writeUInt16LE(1 << bit, at + 10));
    const expected =
      bit === 0 ? "not-clean" : harmless.has(bit) ? undefined : (named.get(bit) ?? "feature-unknown");
    assert.equal(await flagged.refusal(), expected, `bit ${bit}`);
  }
  for (const [major, minor, code] of [
    [1, 2, "version-unsupported"],
    [3, 0, undefined],
    [3, 2, "version-unsupported"],
  ] as const) {
    const old = volume(t)!;
    const at = old.attribute(3, TYPE.information) + 24;
    old.change(3, (record) => record.set([major, minor], at + 8));
    assert.equal(await old.refusal(), code, `${major}.${minor}`);
  }
});

interface Restart {
  readonly version?: readonly [number, number];
  readonly lsn?: number;
  readonly client?: number;
  readonly flags?: number;
  readonly magic?: string;
}

/** A restart page of 4096 bytes. */
function restartPage({
  version = [1, 1],
  lsn = 100,
  client = 0xffff,
  flags = 0,
  magic = "RSTR",
}: Restart): Buffer {
  const page = Buffer.alloc(4096);
  page.write(magic, "latin1");
  page.writeUInt16LE(0x1e, 4);
  page.writeUInt16LE(9, 6);
  if (magic === "CHKD") page.writeBigUInt64LE(BigInt(lsn), 8);
  page.writeUInt32LE(4096, 16);
  page.writeUInt32LE(4096, 20);
  const area = 0x30;
  page.writeUInt16LE(area, 24);
  page.writeUInt16LE(version[1], 26);
  page.writeUInt16LE(version[0], 28);
  page.writeBigUInt64LE(BigInt(lsn), area);
  page.writeUInt16LE(1, area + 8);
  page.writeUInt16LE(client === 0xffff ? 0 : 0xffff, area + 10);
  page.writeUInt16LE(client, area + 12);
  page.writeUInt16LE(flags, area + 14);
  page.writeUInt32LE(67 - Math.ceil(Math.log2(2 * MiB + 1)), area + 16);
  page.writeUInt16LE(0x40 + 160, area + 20);
  page.writeUInt16LE(0x40, area + 22);
  page.writeBigUInt64LE(BigInt(2 * MiB), area + 24);
  page.writeUInt16LE(0x30, area + 36);
  page.writeUInt16LE(0x40, area + 38);
  page.fill(0xff, area + 0x40 + 16, area + 0x40 + 20);
  page.writeUInt16LE(7, 0x1e);
  for (let end = 510; end < 4096; end += 512) page.writeUInt16LE(7, end);
  return page;
}

const LOGS: readonly (readonly [string, readonly Restart[], string | undefined, number])[] = [
  ["closed", [{}, {}], undefined, 0],
  [
    "open, and marked clean",
    [
      { client: 0, flags: 2 },
      { client: 0, flags: 2 },
    ],
    undefined,
    0,
  ],
  ["closed by chkdsk", [{ magic: "CHKD" }, { magic: "CHKD" }], undefined, 0],
  ["open", [{ client: 0 }, { client: 0 }], "log-dirty", UNCLEAN],
  ["open in the later page", [{}, { client: 0, lsn: 101 }], "log-dirty", UNCLEAN],
  ["open in the earlier page", [{ client: 0 }, { lsn: 101 }], undefined, 0],
  ["version 2.0", [{ version: [2, 0] }, { version: [2, 0] }], "hibernated", HIBERNATED],
  [
    "version 2.0, open",
    [
      { version: [2, 0], client: 0 },
      { version: [2, 0], client: 0 },
    ],
    "hibernated",
    HIBERNATED,
  ],
  ["version 3.0", [{ version: [3, 0] }, { version: [3, 0] }], "feature-unknown", UNCLEAN],
];

for (const [name, pages, code, probed] of LOGS) {
  test(`$LogFile: ${name}`, async (t) => {
    const logged = volume(t);
    if (logged === undefined) return;
    const at = logged.firstCluster(2, TYPE.data) * CLUSTER;
    pages.forEach((page, index) => logged.bytes.set(restartPage(page), at + index * 4096));
    assert.equal(await logged.refusal(), code);
    assert.equal(logged.probe(), probed, "ntfs-3g");
  });
}

test("$LogFile: torn, zeroed, half emptied", async (t) => {
  for (const spoil of [
    (log: Buffer) => log.set(Buffer.concat([restartPage({}), restartPage({}).fill(9, 1022, 1024)])),
    (log: Buffer) => log.fill(0),
    (log: Buffer) => log.write("RCRD", 8192),
    (log: Buffer) => log.fill(0, 100, 104),
    (log: Buffer) => log.set(restartPage({})),
  ]) {
    const spoilt = volume(t);
    if (spoilt === undefined) return;
    const at = spoilt.firstCluster(2, TYPE.data) * CLUSTER;
    spoil(spoilt.bytes.subarray(at, at + 65_536));
    assert.equal(await spoilt.refusal(), "damaged", spoil.toString());
  }
});

test("H3: hiberfil.sys with a guest's memory, without, and what cannot be told", async (t) => {
  for (const [signature, code, probed] of [
    ["hibr", "hibernated", HIBERNATED],
    ["HIBR", "hibernated", HIBERNATED],
    ["RSTR", "hibernated", 0],
    ["wake", undefined, 0],
    ["WAKE", undefined, 0],
    ["\0\0\0\0", undefined, 0],
  ] as const) {
    const asleep = volume(t);
    if (asleep === undefined) return;
    const at = asleep.firstCluster(asleep.named("hiberfil.sys"), TYPE.data) * CLUSTER;
    asleep.bytes.write(signature, at, "latin1");
    assert.equal(await asleep.refusal(), code, signature);
    assert.equal(asleep.probe(), probed, `ntfs-3g, ${signature}`);
  }
  const short = volume(t)!;
  const number = short.named("hiberfil.sys");
  const at = short.attribute(number, TYPE.data);
  short.change(number, (record) => {
    for (const size of [48, 56]) record.writeBigUInt64LE(4000n, at + size);
  });
  assert.equal(await short.refusal(), "hibernated");
  assert.equal(short.probe(), HIBERNATED);
});

const DAMAGES: readonly (readonly [string, (volume: NtfsBytes) => void, RegExp])[] = [
  [
    "boot sector without its signature",
    ({ bytes }) => bytes.fill(0, 510, 512),
    /^damaged: boot sector: 0, 0 found at 510/,
  ],
  [
    "sectors of 100 bytes",
    ({ bytes }) => bytes.writeUInt16LE(100, 11),
    /^damaged: boot sector: bytes per sector/,
  ],
  [
    "3 sectors per cluster",
    ({ bytes }) => bytes.writeUInt8(3, 13),
    /^damaged: boot sector: sectors per cluster/,
  ],
  [
    "clusters of 4 MiB",
    ({ bytes }) => bytes.writeUInt8(0xf3, 13),
    /^damaged: boot sector: bytes per cluster/,
  ],
  [
    "file records of 256 bytes",
    ({ bytes }) => bytes.writeInt8(-8, 64),
    /^damaged: boot sector: length of an MFT record/,
  ],
  ["more sectors than the device", ({ bytes }) => bytes.writeUInt32LE(32_769, 40), /^truncated: /],
  [
    "$MFT behind the end",
    ({ bytes }) => bytes.writeUInt32LE(5000, 48),
    /^damaged: boot sector: cluster of \$MFT/,
  ],
  ["$MFT elsewhere", ({ bytes }) => bytes.writeUInt32LE(9, 48), /^damaged: file record 0 is not in use/],
  ["$MFTMirr elsewhere", ({ bytes }) => bytes.writeUInt32LE(9, 56), /^damaged: \$MFTMirr at 36864/],
  [
    "a copy in $MFTMirr that differs",
    (v) => v.bytes.write("x", v.mirrored(3) + v.attribute(3, TYPE.information) + 24),
    /^damaged: \$MFTMirr.* record 3 differs/,
  ],
  [
    "a torn file record",
    (v) => v.bytes.writeUInt16LE(9, v.record(v.named("plain")) + 510),
    /^damaged: file record \d+: torn/,
  ],
  [
    "a record without its magic",
    (v) => v.bytes.write("BAAD", v.record(v.named("plain"))),
    /^damaged: .*"FILE" expected/,
  ],
  [
    "a record with a flag that is not known",
    (v) => v.bytes.writeUInt16LE(0x41, v.record(v.named("plain")) + 0x16),
    /^damaged: .*: flags 0x41/,
  ],
  [
    "a record with another's number",
    (v) => v.bytes.writeUInt32LE(7, v.record(v.named("plain")) + 0x2c),
    /^damaged: .* says that it is number 7/,
  ],
  [
    "attributes without an end",
    (v) => v.bytes.writeUInt32LE(0x38, v.record(v.named("plain")) + 0x18),
    /^damaged: .*attributes at 56 to 56/,
  ],
  [
    "an attribute without a length",
    (v) => v.bytes.writeUInt32LE(0, v.at("plain", TYPE.data) + 4),
    /^damaged: .*attribute of 0 bytes/,
  ],
  [
    "an attribute of a type that is not known",
    (v) => v.bytes.writeUInt32LE(0x84, v.at("plain", TYPE.data)),
    /^feature-unknown: .*attribute type 0x84/,
  ],
  [
    "an attribute with a flag that is not known",
    (v) => v.bytes.writeUInt16LE(0x100, v.at("plain", TYPE.data) + 12),
    /^feature-unknown: .*flags 0x100/,
  ],
  [
    "an attribute of a form that is none",
    (v) => v.bytes.writeUInt8(2, v.at("plain", TYPE.data) + 8),
    /^damaged: .*attribute form 2/,
  ],
  [
    "runs that leave the volume",
    (v) => v.bytes.writeUInt8(0x7f, v.runs(v.named("plain"), TYPE.data) + 3),
    /^damaged: .*clusters 32\d+\+13 found in 4095/,
  ],
  [
    "runs that wind over the volume twice",
    (v) => {
      const at = v.record(2) + v.attribute(2, TYPE.data);
      for (const size of [40, 48, 56]) v.bytes.writeUInt32LE(2 * 4094 * CLUSTER, at + size);
      v.bytes.writeUInt32LE(2 * 4094 - 1, at + 24);
      v.bytes.set([0x12, 0xfe, 0x0f, 1, 0x12, 0xfe, 0x0f, 0], v.runs(2, TYPE.data));
    },
    /^damaged: file record 2, attribute 0x80: more than the 4095 clusters of the volume/,
  ],
  [
    "runs that are too short",
    (v) => v.bytes.writeUInt8(12, v.runs(v.named("plain"), TYPE.data) + 1),
    /^damaged: .*runs up to VCN 12 found, 13 expected/,
  ],
  [
    "runs for more than is allocated",
    (v) =>
      [40, 48, 56].forEach((size) => v.bytes.writeUInt32LE(CLUSTER * 12, v.at("plain", TYPE.data) + size)),
    /^damaged: .*runs of 53248 bytes found, 49152 allocated/,
  ],
  [
    "more initialised than there is",
    (v) => v.bytes.writeUInt32LE(50_001, v.at("plain", TYPE.data) + 56),
    /^damaged: .*50001 bytes initialised of 50000/,
  ],
  [
    "a cluster of two files",
    (v) => {
      const [one, other] = [v.runs(v.named("plain"), TYPE.data), v.runs(v.named("other"), TYPE.data)];
      v.bytes.copy(v.bytes, one, other, other + 4);
    },
    /^contradiction: .*belongs to another attribute too/,
  ],
  [
    "a used cluster that is marked free",
    (v) => v.clearBit(6, TYPE.data, v.firstCluster(v.named("plain"), TYPE.data)),
    /^contradiction: in use, but marked free: block \d+ of \/plain/,
  ],
  [
    "a used record that is marked free",
    (v) => v.clearBit(0, TYPE.bitmap, v.named("plain")),
    /^contradiction: .*the bitmap of \$MFT calls it free/,
  ],
  [
    "$Bitmap that is too short",
    (v) => v.bytes.writeUInt32LE(511, v.record(6) + v.attribute(6, TYPE.data) + 56),
    /^damaged: \$Bitmap: 511 bytes found, 512 expected/,
  ],
  [
    "$Bitmap with a hole, which would read as free",
    (v) => v.bytes.set([1, 1, 0], v.runs(6, TYPE.data)),
    /^damaged: \$Bitmap has a hole/,
  ],
  [
    "$MFT with a hole",
    (v) => {
      const runs = v.runs(0, TYPE.data) - v.record(0);
      v.change(0, (record) =>
        record.set([record[runs]!, record[runs + 1]! - 1, record[runs + 2]!, 1, 1, 0], runs),
      );
    },
    /^damaged: \$MFT has a hole/,
  ],
  [
    "an index block that is torn",
    (v) => v.bytes.writeUInt16LE(9, v.indexBlock() + 510),
    /^damaged: directory \d+, index block 0: torn/,
  ],
  [
    "an index block in another's place",
    (v) => v.bytes.writeUInt8(7, v.indexBlock() + 16),
    /^damaged: .*VCN 7 found, 0 expected/,
  ],
  [
    "an index with a hole",
    (v) =>
      v.bytes.set([1, v.bytes[v.at("many", TYPE.index) + 24]! + 1, 0], v.runs(v.named("many"), TYPE.index)),
    /^damaged: directory .* hole among them/,
  ],
  [
    "a name of a record that is not in use",
    (v) => v.bytes.writeUInt16LE(20, v.indexBlock() + 0x40),
    /^contradiction: file record 20 is not in use, but a directory names it/,
  ],
  [
    "a name of a record behind the table",
    (v) => v.bytes.writeUInt16LE(65_000, v.indexBlock() + 0x40),
    /^damaged: .*names file record 65000/,
  ],
  [
    "an attribute list with an entry that is too long",
    (v) => v.bytes.writeUInt16LE(0x1000, v.listEntry(1) + 4),
    /^damaged: attribute list of .*entry of 4096 bytes/,
  ],
  [
    "an attribute list that names another's record",
    (v) => v.bytes.writeUInt8(v.named("plain"), v.listEntry(-1) + 16),
    /^damaged: .*no extension record found/,
  ],
  [
    "an extension record of somebody else",
    (v) => v.bytes.writeUInt8(v.named("plain"), v.extension() + 0x20),
    /^damaged: .*1 of \d+ found, 1 of \d+ expected/,
  ],
  [
    "pieces of an attribute that do not join",
    (v) => {
      const piece = v.extension() + v.bytes.readUInt16LE(v.extension() + 0x14);
      for (const vcn of [16, 24]) v.bytes.writeUInt32LE(v.bytes.readUInt32LE(piece + vcn) + 1, piece + vcn);
    },
    /^damaged: .*VCN \d+ found, \d+ expected/,
  ],
];

for (const [name, damage, verdict] of DAMAGES) {
  test(`damage: ${name}`, async (t) => {
    const damaged = volume(t);
    if (damaged === undefined) return;
    damage(damaged);
    assert.match((await damaged.verdict()) ?? "proven", verdict);
  });
}

test("bad clusters are nobody's to give", async (t) => {
  const bad = volume(t);
  if (bad === undefined) return;
  const before = await bad.free();
  const lcn = Math.floor((before.start(0) + before.end(0)) / 2 / CLUSTER);
  const at = bad.attribute(8, TYPE.data, "$Bad");
  bad.change(8, (record) => {
    const clusters = 4095;
    const runs = at + record.readUInt16LE(at + 32);
    const length = record.readUInt32LE(at + 4) + 16;
    record.writeUInt32LE(length, at + 4);
    record.writeUInt32LE(record.readUInt32LE(0x18) + 16, 0x18);
    record.set([2, 0, 0, 0x21, 1, 0, 0, 2, 0, 0, 0], runs);
    record.writeUInt16LE(lcn, runs + 1);
    record.writeUInt16LE(lcn, runs + 5);
    record.writeUInt16LE(clusters - lcn - 1, runs + 8);
    record.writeUInt32LE(0xffffffff, at + length);
  });
  assert.match((await bad.verdict()) ?? "proven", /^contradiction: .* block \d+ of \$BadClus/);
  bad.setBit(6, TYPE.data, lcn);
  assert.equal(await bad.verdict(), undefined);
  assert.equal(before.bytes - (await bad.free()).bytes, CLUSTER);
});

test("what is encrypted, or lies behind a reparse point, is not simply a file's content", async (t) => {
  const special = volume(t);
  if (special === undefined) return;
  const at = special.attribute(special.named("plain"), TYPE.data);
  special.change(special.named("plain"), (record) => record.writeUInt16LE(0x4000, at + 12));
  const filesystem = await special.open();
  assert.equal(filesystem.refusal, undefined);
  assert.equal((await filesystem.find("/plain"))!.fixed, "encrypted");
  assert.equal((await filesystem.find("/packed-by-windows"))!.fixed, "compressed");
  assert.equal((await filesystem.find("/elsewhere"))!.fixed, "reparse point");
  assert.equal((await filesystem.find("/other"))!.fixed, undefined);
});
