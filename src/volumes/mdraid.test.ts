import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { type TestContext, test } from "node:test";
import { viewOf } from "../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../device/device.ts";
import { corpus, unpack } from "../testing/corpus.ts";
import { fileDevice } from "../testing/file-device.ts";
import { fixChecksum, memberSuperblock } from "../testing/mdraid.ts";
import { otherKernel } from "../testing/other-kernel.ts";
import { blankDisk } from "../testing/partitions.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { attempt, requires, run } from "../testing/tools.ts";
import { mdraid } from "./mdraid.ts";
import { WORD } from "./mdraid/version-0.ts";
import { SuperblockV1 } from "./mdraid/version-1.ts";
import type { VolumeTable } from "./volume.ts";
import { BitmapHeader } from "./write-intent.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

/** Sets that the kernel made, filled and stopped: what their members are, and what it read from them. */
interface Made {
  readonly disks: SimulatedFile[];
  readonly paths: readonly string[];
  readonly bytes: number;
  readonly hash: string;
}

/** Lengths of the members, and what mdadm is told. */
const SETS: Readonly<Record<string, readonly [readonly number[], string]>> = {
  // With 3 · 17 chunks in the first zone, the second begins with its second member.
  uneven: [[MiB + 1088 * KiB, 4 * MiB, 3 * MiB], "--level=0 --chunk=64"],
  striped: [[3 * MiB, 3 * MiB], "--level=0 --metadata=1.2 --chunk=16"],
  mirror0: [[3 * MiB, 3 * MiB], "--level=1 --metadata=0.90 --bitmap=internal --bitmap-chunk=64"],
  mirror1: [[3 * MiB, 4 * MiB, 3 * MiB], "--level=1 --metadata=1.0 --bitmap=internal --bitmap-chunk=64"],
  near: [[3 * MiB, 3 * MiB, 3 * MiB], "--level=10 --metadata=1.1 --layout=n2 --chunk=32 --bitmap=internal"],
  chain: [[3 * MiB, 4 * MiB], "--level=linear --metadata=1.2"],
};

const MAKE = `
  export MDADM_NO_UDEV=1
  echo 1000000 > /proc/sys/dev/raid/speed_limit_min
  make() {
    name=$1; options=$2; shift 2
    yes | mdadm --create /dev/md$name --run --raid-devices=$# $options "$@" >/tmp/said 2>&1 || { cat /tmp/said; false; }
    mdadm --wait /dev/md$name >/dev/null 2>&1 || true
    head -c $(blockdev --getsize64 /dev/md$name) /dev/urandom > /dev/md$name
    sync
    echo "$(sha256sum < /dev/md$name | cut -c1-64) $(blockdev --getsize64 /dev/md$name)"
    while ! mdadm --stop /dev/md$name >/dev/null 2>&1; do sleep 0.1; done
  }
`;

async function makeSets(t: TestContext): Promise<Record<string, Made> | undefined> {
  const sets = Object.entries(SETS).map(([name, [sizes, options]]) => {
    return { name, options, paths: sizes.map((bytes) => blankDisk(t, bytes)) };
  });
  const letters = "abcdefghijklmnopqrstuvwxyz";
  let used = 0;
  const script = sets.map(({ options, paths }, i) => {
    const devices = paths.map(() => `/dev/vd${letters[used++]}`);
    return `make ${i} "${options}" ${devices.join(" ")}`;
  });
  const printed = await otherKernel(t, {
    modules: ["crc32c_generic", "md-mod", "raid0", "raid1", "raid10", "linear"],
    disks: sets.flatMap(({ paths }) => paths),
    tools: ["/sbin/mdadm"],
    script: MAKE + script.join("\n"),
  });
  if (printed === undefined) return undefined;
  const lines = printed.trim().split("\n");
  const made: Record<string, Made> = {};
  for (const [i, { name, paths }] of sets.entries()) {
    const [hash, bytes] = lines[i]!.split(" ");
    const disks = [];
    for (const path of paths) disks.push(await SimulatedFile.load(path));
    made[name] = { disks, paths, hash: hash!, bytes: Number(bytes) };
  }
  return made;
}

test("what the kernel wrote to its sets is read back, from every copy", async (t) => {
  const made = await makeSets(t);
  if (made === undefined) return;
  const copies: Record<string, number> = { mirror0: 2, mirror1: 3, near: 2 };
  for (const [name, { disks, bytes, hash }] of Object.entries(made)) {
    const given = disks.toReversed();
    const { volumes, refusal, gaps } = await mdraid.open(given);
    const [volume] = volumes;
    assert.equal(refusal, undefined, `${name}: ${refusal?.message}`);
    assert.equal(volume!.device.bytes, bytes, name);
    const hashes = Array.from({ length: copies[name] ?? 1 }, () => createHash("sha256"));
    let turn = 0;
    for (const place of volume!.places({ start: 0, end: bytes })) {
      hashes[turn++ % hashes.length]!.update(await readBytes(given[place.disk]!, place.at, place.bytes));
    }
    for (const one of hashes) assert.equal(one.digest("hex"), hash, name);
    assert.ok(gaps.every((set) => set.count === 0));
    await checkMembership(disks);
    await withoutOne(disks);
  }
  await damagedVersion0(made["mirror0"]!.disks);
  await otherLayouts(made["uneven"]!.disks, made["near"]!.disks);
  judged(t, made["mirror0"]!);
  judged(t, made["mirror1"]!);
});

async function checkMembership(disks: readonly BlockDevice[]): Promise<void> {
  for (const [i, disk] of disks.entries()) {
    const membership = await mdraid.membership!(disk);
    assert.equal(membership?.total, disks.length);
    assert.equal(membership.members?.indexOf(membership.member), i);
    assert.equal(membership.set, (await mdraid.membership!(disks[0]!))?.set);
  }
}

async function withoutOne(disks: readonly BlockDevice[]): Promise<void> {
  assert.equal((await mdraid.open(disks.slice(1))).refusal?.code, "md-degraded");
  assert.equal((await mdraid.open([disks[0]!, ...disks.slice(0, -1)])).refusal?.code, "md-degraded");
}

/** mdadm still finds its checksums right where our own tests changed and restored superblocks. */
function judged(t: TestContext, { paths }: Made): void {
  if (!requires(t, "mdadm")) return;
  for (const path of paths) assert.match(run("mdadm", ["--examine", path]), /Checksum : \w+ - correct/);
}

type Change = readonly [what: string, change: (head: Uint8Array) => void, code: string];

/** Applies each change to the superblock at `at` of the last disk, with a checksum that fits. */
async function damaged(
  disks: readonly SimulatedFile[],
  at: number,
  bytes: number,
  fix: (head: Uint8Array) => void,
  changes: readonly Change[],
): Promise<void> {
  const disk = disks.at(-1)!;
  const head = await readBytes(disk, at, bytes);
  for (const [what, change, code] of changes) {
    const changed = head.slice();
    change(changed);
    fix(changed);
    await disk.write(at, changed);
    const { refusal, volumes } = await mdraid.open(disks);
    assert.equal(refusal?.code, code, `${what}: ${refusal?.message}`);
    assert.equal(volumes.length, 0);
    await mdraid.membership!(disk);
  }
  await disk.write(at, head);
  assert.equal((await mdraid.open(disks)).refusal, undefined);
}

/** The sum of all words but the checksum's, folded once. */
function fixVersion0(head: Uint8Array): void {
  const view = viewOf(head);
  let sum = 0n;
  for (let i = 0; i < 1024; i++) if (i !== WORD.checksum) sum += BigInt(view.getUint32(i * 4, true));
  view.setUint32(WORD.checksum * 4, Number(((sum & 0xffff_ffffn) + (sum >> 32n)) & 0xffff_ffffn), true);
}

async function damagedVersion0(disks: readonly SimulatedFile[]): Promise<void> {
  const at = 3 * MiB - 64 * KiB;
  const set = (word: number, value: number) => (head: Uint8Array) =>
    viewOf(head).setUint32(word * 4, value, true);
  const secondDisk = WORD.disks + 32;
  await damaged(disks, at, 8192, fixVersion0, [
    ["another version", set(WORD.major, 2), "md-damaged"],
    ["a reshape", set(WORD.minor, 91), "md-features"],
    ["another set", set(WORD.uuid, 1), "md-contradiction"],
    ["another set, further on", set(WORD.restOfUuid + 2, 1), "md-contradiction"],
    ["other events", set(WORD.events, 1), "md-contradiction"],
    ["an older copy of the same events", set(WORD.updated, 1), "md-contradiction"],
    ["a level", set(WORD.level, 0), "md-contradiction"],
    ["another length", set(WORD.usedKiB, 1024), "md-contradiction"],
    ["dirty", set(WORD.state, 0x100), "md-dirty"],
    ["errors", set(WORD.state, 0x103), "md-dirty"],
    ["failed members", set(WORD.failed, 1), "md-dirty"],
    ["a spare", set(WORD.thisDisk + 4, 0), "md-role"],
    ["faulty", set(WORD.thisDisk + 4, 1), "md-role"],
    ["the same role", set(WORD.thisDisk + 3, 0), "md-degraded"],
    ["one out of service", set(secondDisk + 4, 1), "md-degraded"],
    ["a bit of the bitmap", (head) => head.fill(1, 4096 + 256, 4096 + 257), "md-dirty"],
    ["no bitmap", (head) => BitmapHeader.encode({ magic: 1 }, head, 4096), "md-dirty"],
    ["a stale bitmap", (head) => BitmapHeader.encode({ state: 2 }, head, 4096), "md-dirty"],
  ]);
  const disk = disks[0]!;
  await disk.write(at + 4000, Buffer.from([1]));
  assert.equal((await mdraid.open(disks)).refusal?.code, "md-damaged", "checksum");
  await disk.write(at + 4000, Buffer.from([0]));
}

/** Three members of a mirror of version 1.0, each of 1 MiB, with a bitmap of twelve bits as mdadm leaves it. */
async function mirrorByHand(): Promise<SimulatedFile[]> {
  const disks = [];
  for (const role of [0, 1, 2]) {
    const disk = new SimulatedFile(MiB);
    const places = {
      superOffset: PLACE / 512,
      dataSectors: 1536,
      usedSectors: 1536,
      bitmapOffset: 2 ** 32 - 16,
    };
    await disk.write(PLACE, memberSuperblock(role, 3, { level: 1, features: 1, ...places }));
    const bitmap = new Uint8Array(512);
    BitmapHeader.encode(
      { magic: 0x6d746962, version: 4, events: 17n, syncSectors: 1536, chunkBytes: 64 * KiB },
      bitmap,
    );
    bitmap[257] = 0xf0;
    await disk.write(BITMAP_AT, bitmap);
    disks.push(disk);
  }
  return disks;
}

const PLACE = MiB - 8192;
const BITMAP_AT = PLACE - 8192;

test("superblocks of version 1 that do not add up", async () => {
  const disks = await mirrorByHand();
  const at = PLACE;
  const put = (values: Parameters<typeof SuperblockV1.encode>[0]) => (head: Uint8Array) =>
    SuperblockV1.encode(values, head);
  const role = (value: number) => (head: Uint8Array) => viewOf(head).setUint16(256 + 2 * 2, value, true);
  const features: Change[] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 31].map((bit) => [
    `feature bit ${bit}`,
    (head) => put({ features: (1 | (1 << bit)) >>> 0 })(head),
    "md-features",
  ]);
  await damaged(disks, at, 4096, fixChecksum, [
    ...features,
    ["another version", put({ major: 2 }), "md-damaged"],
    ["too many roles", put({ roles: 1921 }), "md-damaged"],
    ["another place", put({ superOffset: 8 }), "md-damaged"],
    ["another set", put({ uuid: new Uint8Array(16) }), "md-contradiction"],
    ["other events", put({ events: 1n }), "md-contradiction"],
    ["an older copy of the same events", put({ updated: 1n }), "md-contradiction"],
    ["another level", put({ level: 0 }), "md-contradiction"],
    ["more members", put({ members: 4 }), "md-contradiction"],
    ["another length", put({ usedSectors: 128 }), "md-contradiction"],
    ["dirty", put({ resyncOffset: 0n }), "md-dirty"],
    ["half in sync", put({ resyncOffset: 2048n }), "md-dirty"],
    ["a device flag", put({ deviceFlags: 4 }), "md-features"],
    ["data beyond the end", put({ dataSectors: 2 ** 40 }), "md-range"],
    ["data below the superblock", put({ dataSectors: MiB / 512 }), "md-overlap"],
    ["data too short", put({ dataSectors: 8 }), "md-damaged"],
    ["a bitmap in the data", put({ bitmapOffset: 2 ** 32 - 1024 }), "md-overlap"],
    ["a bitmap before the start", put({ bitmapOffset: 2 ** 31 }), "md-range"],
    ["a spare", role(0xffff), "md-role"],
    ["faulty", role(0xfffe), "md-role"],
    ["a journal", role(0xfffd), "md-role"],
    ["a role twice", role(0), "md-degraded"],
  ]);
  const disk = disks[0]!;
  const head = await readBytes(disk, at, 4096);
  await disk.write(at + 40, Buffer.from("x"));
  assert.equal((await mdraid.open(disks)).refusal?.code, "md-damaged", "checksum");
  await disk.write(at, head);
  await disk.write(0, await readBytes(disk, at, 4096));
  assert.equal((await mdraid.open(disks)).refusal?.code, "md-ambiguous");
});

test("the superblock of a partition that ends with the disk is not the disk's", async () => {
  const [disk] = await mirrorByHand();
  const head = await readBytes(disk!, PLACE, 4096);
  SuperblockV1.encode({ superOffset: PLACE / 512 - 64 }, head);
  await disk!.write(PLACE, head);
  assert.equal(await mdraid.probe(disk!), true, "a damaged one is");
  fixChecksum(head);
  await disk!.write(PLACE, head);
  assert.equal(await mdraid.probe(disk!), false);
});

test("a write-intent bitmap that is not clear", async () => {
  const disks = await mirrorByHand();
  assert.equal((await mdraid.open(disks)).refusal, undefined);
  const disk = disks[1]!;
  const head = await readBytes(disk, BITMAP_AT, 512);
  for (const change of [
    (bytes: Uint8Array) => (bytes[256] = 1),
    (bytes: Uint8Array) => (bytes[257] = 0xf8),
    (bytes: Uint8Array) => BitmapHeader.encode({ magic: 1 }, bytes),
    (bytes: Uint8Array) => BitmapHeader.encode({ version: 5 }, bytes),
    (bytes: Uint8Array) => BitmapHeader.encode({ events: 16n }, bytes),
    (bytes: Uint8Array) => BitmapHeader.encode({ state: 2 }, bytes),
    (bytes: Uint8Array) => BitmapHeader.encode({ syncSectors: 1535 }, bytes),
    (bytes: Uint8Array) => BitmapHeader.encode({ chunkBytes: 0 }, bytes),
    (bytes: Uint8Array) => BitmapHeader.encode({ syncSectors: 2 ** 30, chunkBytes: 512 }, bytes),
  ]) {
    const changed = head.slice();
    change(changed);
    await disk.write(BITMAP_AT, changed);
    assert.equal((await mdraid.open(disks)).refusal?.code, "md-dirty", String(change));
  }
});

/** The disks, with other values in each of their superblocks of version 1.1 or 1.2. */
async function withValues(
  disks: readonly SimulatedFile[],
  at: number,
  values: Parameters<typeof SuperblockV1.encode>[0],
): Promise<VolumeTable> {
  const changed = [];
  for (const disk of disks) {
    const copy = SimulatedFile.from(await readBytes(disk, 0, disk.bytes));
    const head = await readBytes(copy, at, 4096);
    SuperblockV1.encode(values, head);
    fixChecksum(head);
    await copy.write(at, head);
    changed.push(copy);
  }
  return mdraid.open(changed);
}

async function otherLayouts(uneven: readonly SimulatedFile[], near: readonly SimulatedFile[]): Promise<void> {
  for (const [disks, at, values, code] of [
    [uneven, 4096, { features: 0 }, "md-layout"],
    [uneven, 4096, { layout: 3 }, "md-layout"],
    [uneven, 4096, { chunkSectors: 0 }, "md-damaged"],
    [uneven, 4096, { chunkSectors: 1 << 14 }, "md-damaged"],
    [near, 0, { layout: 0x201 }, "md-layout"],
    [near, 0, { layout: 0x1_0102 }, "md-layout"],
    [near, 0, { layout: 0x104 }, "md-layout"],
    [near, 0, { layout: 0x100 }, "md-layout"],
    [near, 0, { chunkSectors: 0 }, "md-damaged"],
    [near, 0, { level: 5 }, "md-level"],
    [near, 0, { level: 6 }, "md-level"],
    [near, 0, { level: 2 ** 32 - 4 }, "md-level"],
  ] as const) {
    const { refusal } = await withValues(disks, at, values);
    assert.equal(refusal?.code, code, JSON.stringify(values));
  }
  // The second zone begins with the member that comes next, or with its own first.
  const second = 3 * 17 * 64 * KiB;
  for (const [layout, disk] of [
    [1, 2],
    [2, 1],
  ] as const) {
    const { volumes } = await withValues(uneven, 4096, { layout });
    assert.equal([...volumes[0]!.places({ start: second, end: second + 1 })][0]!.disk, disk);
  }
}

test("half of a mirror stays recognised under the filesystem that it shows", async (t) => {
  if (corpus(t) === undefined || !requires(t, "mke2fs", "mdadm")) return;
  const path = unpack(t, "util-linux+util-linux/tests/ts/blkid/images-fs/mdraid.img.xz");
  assert.equal(attempt("mdadm", ["--examine", path]).status, 0, "mdadm knows it");
  run("mke2fs", ["-q", "-F", "-t", "ext4", path, "9M"]);
  await using disk = await fileDevice(path);
  assert.equal(await mdraid.probe(disk), true);
  assert.equal((await mdraid.membership!(disk))?.total, 2);
  assert.notEqual((await mdraid.open([disk])).refusal, undefined);
});

test("superblocks in the order of bytes of another machine", async (t) => {
  if (corpus(t) === undefined || !requires(t, "mdadm")) return;
  const path = unpack(t, "util-linux+util-linux/tests/ts/blkid/images-fs/mdraid.img.xz");
  const disk = await SimulatedFile.load(path);
  const little = await mdraid.membership!(disk);
  const at = 10 * MiB - 64 * KiB;
  const words = Buffer.from(await readBytes(disk, at, 4096)).swap32();
  // The halves of the events change places, too.
  const [low, high] = [words.readUInt32BE(WORD.events * 4), words.readUInt32BE(WORD.events * 4 + 4)];
  words.writeUInt32BE(high, WORD.events * 4);
  words.writeUInt32BE(low, WORD.events * 4 + 4);
  await disk.write(at, words);
  await disk.save(path);
  assert.match(run("mdadm", ["--examine", "--metadata=0.swap", path]), /correct/);
  assert.equal(await mdraid.probe(disk), true);
  assert.deepEqual(await mdraid.membership!(disk), little);
});

test("version 1.0 lies 8 KiB before the end, on a multiple of 4 KiB", async () => {
  for (const bytes of [MiB, MiB + 512, MiB + 3584]) {
    const disk = new SimulatedFile(bytes);
    assert.equal(await mdraid.probe(disk), false);
    await disk.write(MiB - 8192, Buffer.from("fc4e2ba901000000", "hex"));
    assert.equal(await mdraid.probe(disk), true, `${bytes}`);
    assert.equal((await mdraid.open([disk])).refusal?.code, "md-damaged");
  }
  assert.equal(await mdraid.probe(new SimulatedFile(100)), false);
});

test("any bytes: a refusal, never an exception", async (t) => {
  if (corpus(t) === undefined) return;
  for (const [name, at] of [
    ["mdraid-1", 4096],
    ["mdraid", 10 * MiB - 64 * KiB],
  ] as const) {
    const disk = await SimulatedFile.load(
      unpack(t, `util-linux+util-linux/tests/ts/blkid/images-fs/${name}.img.xz`),
    );
    const whole = JSON.stringify(await shown(disk));
    for (const seed of seeds(100)) {
      const random = new Random(seed);
      const place = at + 4 + random.below(250);
      const before = await readBytes(disk, place, 4);
      await disk.write(place, random.bytes(4));
      const said = await shown(disk);
      if (said.refusal === undefined) assert.equal(JSON.stringify(said), whole, `SEED=${seed}`);
      await disk.write(place, before);
    }
  }
});

async function shown(disk: BlockDevice): Promise<{ refusal: string | undefined; volumes: number[] }> {
  await mdraid.probe(disk);
  await mdraid.membership!(disk);
  const table: VolumeTable = await mdraid.open([disk]);
  return { refusal: table.refusal?.code, volumes: table.volumes.map(({ device }) => device.bytes) };
}
