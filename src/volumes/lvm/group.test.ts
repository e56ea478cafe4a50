import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { type TestContext, test } from "node:test";
import { ExtentSet } from "../../bytes/extents.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { editLvmText, lvcreate, lvmDisks } from "../../testing/lvm.ts";
import { otherKernel } from "../../testing/other-kernel.ts";
import { blankDisk } from "../../testing/partitions.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { requires, requiresRoot } from "../../testing/tools.ts";
import { lvm } from "../lvm.ts";
import type { Volume, VolumeTable } from "../volume.ts";
import { BitmapHeader } from "../write-intent.ts";
import { RaidSuperblock } from "./mirror.ts";

const MiB = 1024 * 1024;

const available = (t: TestContext) => requires(t, "pvcreate", "lvcreate", "losetup") && requiresRoot(t);

function codes(table: VolumeTable): Record<string, string | undefined> {
  assert.equal(table.refusal, undefined, table.refusal?.message);
  return Object.fromEntries(table.volumes.map(({ name, refusal }) => [name, refusal?.code]));
}

function volume(table: VolumeTable, name: string): Volume {
  return table.volumes.find((one) => one.name === `vg/${name}`)!;
}

async function load(paths: readonly string[]): Promise<SimulatedFile[]> {
  const disks = [];
  for (const path of paths) disks.push(await SimulatedFile.load(path));
  return disks;
}

async function hash(device: BlockDevice): Promise<string> {
  return createHash("sha256")
    .update(await readBytes(device, 0, device.bytes))
    .digest("hex");
}

/** What lies at the places of a volume, once for each of its copies. */
async function hashesOfCopies(disks: readonly BlockDevice[], one: Volume, copies: number): Promise<string[]> {
  const hashes = Array.from({ length: copies }, () => createHash("sha256"));
  let turn = 0;
  for (const { disk, at, bytes } of one.places({ start: 0, end: one.device.bytes })) {
    hashes[turn++ % copies]!.update(await readBytes(disks[disk]!, at, bytes));
  }
  return hashes.map((one) => one.digest("hex"));
}

const GUEST = `
  mkdir -p /etc/lvm /run/lock/lvm /run/lvm
  cat > /etc/lvm/lvm.conf <<E
activation { udev_sync=0 udev_rules=0 monitoring=0 }
global { use_lvmpolld=0 thin_check_executable="" cache_check_executable="" }
backup { backup=0 archive=0 }
devices { use_devicesfile=0 hints="none" }
E
  lvm() { /sbin/lvm "$@" >/dev/null 2>/tmp/errors || { cat /tmp/errors; false; }; }
  lvm vgcreate -s 1M vg /dev/vda /dev/vdb
  make() { lvm lvcreate -y "$@"; }
  make -Wn -L 4M -i 2 -I 8k -n striped vg
  make -Wn -L 2M -n spread vg /dev/vda
  lvm lvextend -L 4M vg/spread /dev/vdb
  make -Wn -L 1M --type raid1 -m 1 -n twin vg
  make -Wn -L 1M -n wedge vg
  lvm lvextend -L 3M vg/twin
  make -Wn -L 4M -T vg/pool
  make -Wn -V 40M -n thin -T vg/pool
  make -Wn -L 2M -n origin vg
  make -L 1M -s -n snap vg/origin
  make -Wn -L 1M --type mirror -m 1 --mirrorlog core -n old vg
  make -Wn -L 8M -n slow vg /dev/vda
  make -L 8M --type cache-pool -n quick vg
  lvm lvconvert -y --type cache --cachepool vg/quick vg/slow
  for lv in striped spread twin thin origin; do head -c 1000000 /dev/urandom > /dev/mapper/vg-$lv; done
  for lv in striped spread twin; do sha256sum < /dev/mapper/vg-$lv; done
  while /sbin/lvm lvs --noheadings -o sync_percent vg/twin | grep -qv 100; do sleep 0.2; done
  lvm vgchange -an vg`;

const MODULES = [
  "crc32c_generic",
  "dm-mod",
  "dm-raid",
  "raid1",
  "dm-mirror",
  "dm-thin-pool",
  "dm-snapshot",
  "dm-cache",
  "dm-cache-smq",
];

test("what the kernel wrote to linear, striped and mirrored volumes; all others are used", async (t) => {
  const paths = [blankDisk(t, 96 * MiB), blankDisk(t, 96 * MiB)];
  const printed = await otherKernel(t, {
    modules: MODULES,
    disks: paths,
    tools: ["/sbin/lvm"],
    script: GUEST,
  });
  if (printed === undefined) return;
  const disks = await load(paths);
  const table = await lvm.open(disks);
  const {
    "vg/striped": striped,
    "vg/spread": spread,
    "vg/twin": twin,
    "vg/wedge": wedge,
    ...others
  } = codes(table);
  assert.deepEqual([striped, spread, twin, wedge], [undefined, undefined, undefined, undefined]);
  assert.ok(
    Object.values(others).every((code) => code !== undefined),
    JSON.stringify(others),
  );
  for (const name of ["pool", "thin", "origin", "snap", "old", "old_mimage_0", "slow", "pool_tdata"])
    assert.ok(`vg/${name}` in others, `${name} is listed: ${Object.keys(others).join(" ")}`);
  assert.ok(!("vg/twin_rimage_0" in others), "the images of a mirror that is opened are no volumes");

  const hashes = printed
    .trim()
    .split("\n")
    .map((line) => line.slice(0, 64));
  assert.equal(hashes.length, 3, printed);
  for (const [i, name] of ["striped", "spread", "twin"].entries()) {
    const one = volume(table, name);
    assert.equal(await hash(one.device), hashes[i], name);
    const copies = name === "twin" ? 2 : 1;
    assert.deepEqual(await hashesOfCopies(disks, one, copies), Array(copies).fill(hashes[i]), name);
    for (const range of [
      { start: MiB - 9000, end: MiB + 9000 },
      { start: 0, end: 1 },
    ]) {
      let at = range.start;
      let turn = 0;
      for (const place of one.places(range)) {
        assert.equal(one.find(place.disk, place.at), at);
        if (++turn % copies === 0) at += place.bytes;
      }
      assert.equal(at, range.end);
    }
  }
  assertApart(disks, table);
  await outOfSync(disks, table);
});

/** No byte is in two volumes, and none of a volume is a gap. */
function assertApart(disks: readonly BlockDevice[], table: VolumeTable): void {
  for (const [number, { bytes }] of disks.entries()) {
    const regions = table.volumes.flatMap((one) =>
      [...one.places({ start: 0, end: one.device.bytes })]
        .filter(({ disk }) => disk === number)
        .map((place) => ({ start: place.at, end: place.at + place.bytes })),
    );
    const held = ExtentSet.from(regions);
    assert.equal(
      held.bytes,
      regions.reduce((sum, { start, end }) => sum + end - start, 0),
    );
    const gaps = table.gaps[number]!;
    assert.equal(gaps.intersect(held).count, 0);
    assert.ok(gaps.bytes > 0 && gaps.bytes + held.bytes < bytes);
  }
}

/** Each sign that the images of a mirror may differ refuses it. */
async function outOfSync(disks: readonly SimulatedFile[], table: VolumeTable): Promise<void> {
  const disk = disks[1]!;
  const logs = Array.from({ length: disk.bytes / MiB }, (_, i) => i * MiB).filter(
    (at) => table.describe(1, at) === "mirror log of vg/twin",
  );
  assert.equal(logs.length, 1);
  const [at] = logs as [number];
  const head = await readBytes(disk, at, 8192);
  const changes: readonly ((bytes: Uint8Array) => void)[] = [
    (bytes) => RaidSuperblock.encode({ magic: 0 }, bytes),
    (bytes) => RaidSuperblock.encode({ position: 0 }, bytes),
    (bytes) => RaidSuperblock.encode({ devices: 3 }, bytes),
    (bytes) => RaidSuperblock.encode({ level: 4 }, bytes),
    (bytes) => RaidSuperblock.encode({ events: 1n }, bytes),
    (bytes) => RaidSuperblock.encode({ failedDevices: 1n }, bytes),
    (bytes) => RaidSuperblock.encode({ recoveryOffset: 0n }, bytes),
    (bytes) => RaidSuperblock.encode({ resyncOffset: 2048n }, bytes),
    (bytes) => RaidSuperblock.encode({ flags: 1 }, bytes),
    (bytes) => RaidSuperblock.encode({ compatFeatures: 3 }, bytes),
    (bytes) => RaidSuperblock.encode({ incompatFeatures: 1 }, bytes),
    (bytes) => BitmapHeader.encode({ magic: 0 }, bytes, 4096),
    (bytes) => BitmapHeader.encode({ version: 5 }, bytes, 4096),
    (bytes) => BitmapHeader.encode({ events: 0n }, bytes, 4096),
    (bytes) => BitmapHeader.encode({ state: 2 }, bytes, 4096),
    (bytes) => BitmapHeader.encode({ syncSectors: 8 }, bytes, 4096),
    (bytes) => BitmapHeader.encode({ chunkBytes: 0 }, bytes, 4096),
    (bytes) => bytes.fill(4, 4096 + 256, 4096 + 257),
  ];
  for (const change of changes) {
    const bytes = head.slice();
    change(bytes);
    await disk.write(at, bytes);
    assert.equal(codes(await lvm.open(disks))["vg/twin"], "lvm-mirror", String(change));
  }
  await disk.write(at, head);
  assert.equal(codes(await lvm.open(disks))["vg/twin"], undefined);
}

/** Two disks; with the device mapper away, LVM writes nothing but metadata. */
function twoDisks(t: TestContext, ...pvOptions: readonly string[]): string[] {
  return lvmDisks(t, [40 * MiB, 40 * MiB], ([a, b]) => [
    ["pvcreate", a!],
    ["pvcreate", ...pvOptions, b!],
    ["vgcreate", "-s", "1M", "vg", a!, b!],
    lvcreate("-L", "8M", "-n", "plain", "vg", a!),
    lvcreate("-L", "8M", "-n", "elsewhere", "vg", b!),
    lvcreate("-L", "8M", "-i", "2", "-I", "64k", "-n", "striped", "vg"),
    lvcreate("-L", "2M", "-n", "readonly", "-pr", "vg", a!),
    lvcreate("-L", "2M", "-n", "skipped", "-ky", "vg", a!),
  ]);
}

test("a group is whole, and each of its disks says so", async (t) => {
  if (!available(t)) return;
  const disks = await load(twoDisks(t));
  const [a, b] = [await lvm.membership!(disks[0]!), await lvm.membership!(disks[1]!)];
  assert.equal(a?.total, 2);
  assert.equal(a.name, "vg");
  assert.deepEqual(a.members, [a.member, b?.member]);
  assert.deepEqual({ ...a, member: "" }, { ...b, member: "" });

  const forward = await lvm.open(disks);
  assert.deepEqual(codes(forward), {
    "vg/plain": undefined,
    "vg/elsewhere": undefined,
    "vg/striped": undefined,
    "vg/readonly": "lvm-status",
    "vg/skipped": "lvm-status",
  });
  const [place] = volume(forward, "elsewhere").places({ start: 0, end: 1 });
  assert.equal(place!.disk, 1);
  const [swapped] = volume(await lvm.open(disks.toReversed()), "elsewhere").places({ start: 0, end: 1 });
  assert.deepEqual(swapped, { ...place, disk: 0 });
  for (const alone of disks) assert.equal((await lvm.open([alone])).refusal?.code, "lvm-missing-pv");
  const twice = await lvm.open([disks[0]!, disks[0]!]);
  assert.equal(twice.refusal?.code, "lvm-missing-pv");
  assert.equal(twice.gaps.length, 2);
});

test("the metadata of all disks must agree; a disk without any is fine", async (t) => {
  if (!available(t)) return;
  const bare = await load(twoDisks(t, "--metadatacopies", "0"));
  assert.equal((await lvm.open(bare)).volumes.length, 5);
  const stated = await lvm.membership!(bare[0]!);
  const unstated = await lvm.membership!(bare[1]!);
  assert.deepEqual([unstated?.set, unstated?.member], ["", stated?.members?.[1]]);
  assert.equal((await lvm.open([bare[1]!])).refusal?.code, "lvm-no-metadata");
  const disks = await load(twoDisks(t));
  await editLvmText(disks[1]!, (text) => text.replace(/seqno = \d+/, "seqno = 3"));
  assert.equal((await lvm.open(disks)).refusal?.code, "lvm-contradiction");
});

test("stripes that do not add up", async (t) => {
  if (!available(t)) return;
  const paths = twoDisks(t);
  for (const [change, code] of [
    [(text: string) => text.replace("stripe_size = 128", "stripe_size = 0"), "lvm-damaged"],
    [(text: string) => text.replace("stripe_size = 128", "stripe_size = 96"), "lvm-damaged"],
    [(text: string) => text.replace("stripe_size = 128", "stripe_size = 1048576"), "lvm-damaged"],
    [
      (text: string) => text.replace('["ALLOCATABLE"]\nflags = []', '["ALLOCATABLE"]\nflags = ["MISSING"]'),
      "lvm-status",
    ],
    [(text: string) => text.replace("stripe_size = 128", "stripe_size = 128 parity = 1"), undefined],
  ] as const) {
    const disks = await load(paths);
    for (const disk of disks) await editLvmText(disk, change);
    const table = await lvm.open(disks);
    assert.equal(table.refusal?.code, code);
    if (code === undefined) assert.equal(codes(table)["vg/striped"], "lvm-layout");
  }
});
