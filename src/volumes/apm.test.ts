import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { viewOf } from "../bytes/struct.ts";
import { draw } from "../testing/draw.ts";
import { fileDevice } from "../testing/file-device.ts";
import { fuzzDevice } from "../testing/fuzz.ts";
import { blankDisk, madeOnce, volumeExtents, withLoop } from "../testing/partitions.ts";
import { requires, requiresRoot, run, scratch } from "../testing/tools.ts";
import { SCHEMES } from "./all.ts";
import { apm, Entry } from "./apm.ts";
import type { VolumeTable } from "./volume.ts";

const MiB = 1024 * 1024;
const PARTS = "mklabel mac mkpart primary hfs+ 1MiB 10MiB name 2 first mkpart root ext2 12MiB 22MiB".split(
  " ",
);

const made = madeOnce((t) => {
  const path = blankDisk(t, 32 * MiB);
  run("parted", ["-s", path, ...PARTS]);
  return path;
});

async function opened(bytes: Uint8Array): Promise<VolumeTable> {
  const table = await apm.open([fuzzDevice(bytes)]);
  if (table.refusal !== undefined) {
    assert.deepEqual(table.volumes, []);
    assert.equal(table.gaps[0]!.bytes, 0);
  }
  return table;
}

/** Partitions as The Sleuth Kit lists them, without free space and the map. */
function sleuthKitPartitions(
  path: string,
  blockBytes: number,
): { number: number; start: number; end: number }[] {
  const listed = run("mmls", ["-t", "mac", "-b", `${blockBytes}`, path]);
  return [...listed.matchAll(/^\d+: +(\d+) +(\d+) +(\d+) +\d+ +(\S+)$/gm)]
    .filter(([, , , , type]) => type !== "Apple_Free" && type !== "Apple_partition_map")
    .map(([, slot, first, last]) => ({
      number: Number(slot) + 1,
      start: Number(first) * blockBytes,
      end: (Number(last) + 1) * blockBytes,
    }));
}

test("partitions are those of The Sleuth Kit", async (t) => {
  if (!requires(t, "parted", "mmls")) return;
  const path = made(t);
  await using disk = await fileDevice(path);
  assert.equal(await apm.probe(disk), true);
  const others = SCHEMES.filter((scheme) => scheme !== apm);
  for (const other of others) assert.equal(await other.probe(disk), false);
  const table = await apm.open([disk]);
  const found = volumeExtents(table).map(({ number, start, end }) => ({ number, start, end }));
  assert.deepEqual(found, sleuthKitPartitions(path, 512));
  assert.deepEqual(
    table.volumes.map(({ label, type }) => [label, type]),
    [
      ["first", "Apple_HFS"],
      ["root", "Apple_UNIX_SVR2"],
    ],
  );
  //                                       0       8       16      24
  assert.equal(draw(table.gaps[0]!, 32 * MiB, MiB), "..........##..........#########.");
  assert.equal(table.describe(0, 0), "driver descriptor record");
  assert.equal(table.describe(0, 600), "Apple partition map");
  assert.equal(table.describe(0, 11 * MiB), "gap between partitions");
});

for (const blockBytes of [2048, 4096]) {
  test(`blocks of ${blockBytes} bytes`, async (t) => {
    if (!requires(t, "parted", "losetup", "mmls") || !requiresRoot(t)) return;
    const path = blankDisk(t, 32 * MiB);
    withLoop(path, blockBytes, (device) => run("parted", ["-s", device, ...PARTS]));
    await using disk = await fileDevice(path);
    assert.equal(await apm.probe(disk), true);
    const found = volumeExtents(await apm.open([disk]));
    assert.deepEqual(
      found.map(({ number, start, end }) => ({ number, start, end })),
      sleuthKitPartitions(path, blockBytes),
    );
  });
}

test("a CD that is a Mac's and a PC's counts as used", async (t) => {
  if (!requires(t, "xorriso")) return;
  const folder = scratch(t);
  writeFileSync(join(folder, "file"), Buffer.alloc(100_000, "ullage"));
  const image = `${folder}.iso`;
  t.after(() => run("rm", ["-f", image]));
  const make = ["-as", "mkisofs", "-quiet", "-hfsplus", "-apm-block-size", "512", "-o", image, folder];
  run("xorriso", make);
  const { refusal } = await opened(new Uint8Array(readFileSync(image)));
  assert.equal(refusal?.code, "apm-hybrid");
  assert.match(refusal.message, /an ISO 9660 filesystem/);
});

const at = (entry: number, field: keyof typeof Entry.at): number => 512 * (1 + entry) + Entry.at[field];

const DAMAGES: readonly {
  readonly name: string;
  readonly damage: (bytes: Uint8Array, view: DataView) => void;
  readonly code: string;
}[] = [
  {
    name: "an entry without signature",
    damage: (_, view) => view.setUint16(at(2, "signature"), 0),
    code: "apm-damaged",
  },
  {
    name: "entries that disagree about how many there are",
    damage: (_, view) => view.setUint32(at(1, "mapBlocks"), 5),
    code: "apm-damaged",
  },
  { name: "no entries", damage: (_, view) => view.setUint32(at(0, "mapBlocks"), 0), code: "apm-damaged" },
  {
    name: "a million entries",
    damage: (_, view) => view.setUint32(at(0, "mapBlocks"), 1e6),
    code: "apm-damaged",
  },
  {
    name: "a map that is too short",
    damage: (_, view) => view.setUint32(at(0, "blocks"), 3),
    code: "apm-damaged",
  },
  {
    name: "a map of another kind",
    damage: (bytes) => bytes.set(Buffer.from("Apple_partition_mop"), at(0, "type")),
    code: "apm-damaged",
  },
  {
    name: "a partition behind the end",
    damage: (_, view) => view.setUint32(at(2, "blocks"), 0xffffffff),
    code: "apm-range",
  },
  {
    name: "partitions that overlap",
    damage: (_, view) => view.setUint32(at(2, "start"), 4096),
    code: "apm-overlap",
  },
  {
    name: "a partition in the map",
    damage: (_, view) => view.setUint32(at(2, "start"), 60),
    code: "apm-overlap",
  },
  {
    name: "an MBR in the same block",
    damage: (bytes) => {
      bytes.set([0x55, 0xaa], 510);
      bytes.set([0x0c, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0], 450);
    },
    code: "apm-hybrid",
  },
  {
    name: "more drivers than there is room for",
    damage: (_, view) => view.setUint16(16, 62),
    code: "apm-damaged",
  },
  {
    name: "another filesystem on the whole disk",
    damage: (bytes) => bytes.set(Buffer.from("SWAPSPACE2"), 4086),
    code: "apm-ambiguous",
  },
];

let sound: Uint8Array | undefined;

function damaged(t: TestContext, damage: (bytes: Uint8Array, view: DataView) => void): Uint8Array {
  sound ??= new Uint8Array(readFileSync(made(t)));
  const bytes = sound.slice();
  damage(bytes, viewOf(bytes));
  return bytes;
}

for (const { name, damage, code } of DAMAGES) {
  test(`refused: ${name}`, async (t) => {
    if (!requires(t, "parted")) return;
    assert.equal((await opened(damaged(t, damage))).refusal?.code, code);
  });
}

test("a map for other blocks as well is refused", async (t) => {
  if (!requires(t, "parted")) return;
  const bytes = damaged(t, (disk, view) => {
    for (let entry = 5; entry >= 0; entry--)
      disk.copyWithin(2048 * (1 + entry), 512 * (1 + entry), 512 * (2 + entry));
    view.setUint16(2, 2048);
    for (let entry = 0; entry < 6; entry++)
      view.setUint32(2048 * (1 + entry) + Entry.at.start, 1 + entry * 64);
  });
  const { refusal } = await opened(bytes);
  assert.equal(refusal?.code, "apm-hybrid");
  assert.match(refusal.message, /a second map for blocks of 512 bytes/);
});

test("members of sets must show that they are; what has no length is no partition", async (t) => {
  if (!requires(t, "parted")) return;
  const bytes = damaged(t, (disk, view) => {
    disk.fill(0, at(1, "type"), at(1, "type") + 32);
    disk.set(Buffer.from("Apple_RAID"), at(1, "type"));
    view.setUint32(at(2, "blocks"), 0);
  });
  const { volumes } = await opened(bytes);
  assert.deepEqual(
    volumes.map(({ name, unlessMember }) => [name, unlessMember?.code]),
    [["2", "multi-disk-member"]],
  );
});

test("drivers, and what is called void, are not free", async (t) => {
  if (!requires(t, "parted")) return;
  const bytes = damaged(t, (disk, view) => {
    view.setUint16(16, 1);
    view.setUint32(18, (26 * MiB) / 512);
    view.setUint16(22, MiB / 512);
    assert.equal(view.getUint32(at(4, "start")), (10 * MiB) / 512);
    disk.fill(0, at(4, "type"), at(4, "type") + 32);
    disk.set(Buffer.from("Apple_Void"), at(4, "type"));
  });
  const { gaps } = await opened(bytes);
  //                              0       8       16      24
  assert.equal(draw(gaps[0]!, 32 * MiB, MiB), "......................####.####.");
});

test("the letters alone are no map", async () => {
  const bytes = new Uint8Array(4096);
  bytes.set(Buffer.from("ER\x02\x00", "latin1"));
  assert.equal(await apm.probe(fuzzDevice(bytes)), false);
  assert.equal(await apm.probe(fuzzDevice(bytes.subarray(0, 100))), false);
});
