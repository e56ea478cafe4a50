/**
 * Volumes on whole disks, from the survey to what is left after it: mirrors, half of one, swap partitions, tables inside
 * of partitions. mke2fs, mdadm, swaplabel and sfdisk make and judge.
 */
import assert from "node:assert/strict";
import { closeSync, copyFileSync, openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { reclaim, survey } from "../src/disk.ts";
import { e2fsck, liveIn, makeFilesystem, printOf } from "../src/testing/kernel-guest.ts";
import { lvcreate, lvmDisks } from "../src/testing/lvm.ts";
import { memberSuperblock } from "../src/testing/mdraid.ts";
import { otherKernel } from "../src/testing/other-kernel.ts";
import { blankDisk } from "../src/testing/partitions.ts";
import { Random } from "../src/testing/seeds.ts";
import { requires, requiresRoot, run, scratch } from "../src/testing/tools.ts";
import { PLACES } from "../src/volumes/mdraid/version-1.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const SECTOR_BYTES = 512;
const MEMBER_BYTES = 32 * MiB;

const available = (t: TestContext) =>
  requires(t, "mke2fs", "e2fsck", "mdadm", "sfdisk", "mkswap", "losetup") && requiresRoot(t);

function write(path: string, at: number, bytes: Uint8Array): void {
  const file = openSync(path, "r+");
  writeSync(file, bytes, 0, bytes.length, at);
  closeSync(file);
}

/** Two members of a mirror that hold a filesystem which the kernel filled. */
function mirror(
  t: TestContext,
  version: "1.0" | "1.2",
): { disks: [string, string]; data: { start: number; end: number } } {
  const place = PLACES[version](MEMBER_BYTES);
  const data = version === "1.2" ? { start: MiB, end: MEMBER_BYTES } : { start: 0, end: 24 * MiB };
  const sectors = (data.end - data.start) / SECTOR_BYTES;
  const first = blankDisk(t, MEMBER_BYTES);
  makeFilesystem(first, data, ["-t", "ext4", "-b", "1024"]);
  liveIn(first, data, 3);
  const second = join(scratch(t), "second.raw");
  copyFileSync(first, second);
  const disks: [string, string] = [first, second];
  for (const [role, path] of disks.entries()) {
    const values = {
      level: 1,
      usedSectors: sectors,
      dataSectors: sectors,
      dataOffset: data.start / SECTOR_BYTES,
    };
    write(path, place, memberSuperblock(role, 2, { ...values, superOffset: place / SECTOR_BYTES }));
    const said = run("mdadm", ["--examine", path]);
    assert.match(said, /Raid Level : raid1[^]*State : clean[^]*Checksum : \w+ - correct/);
  }
  return { disks, data };
}

test("H36: both members of a mirror give back what its filesystem does not use", async (t) => {
  if (!available(t)) return;
  const { disks, data } = mirror(t, "1.2");
  const print = printOf(disks[0], data);
  for (const path of disks) {
    const companions = disks.filter((other) => other !== path);
    const { volumes } = await survey(path, { format: "raw", companions });
    const volume = volumes.find(({ filesystem }) => filesystem === "ext4");
    assert.equal(volume?.state, "clean", volume?.reason?.message);
    assert.equal(volume.name, "md/0");
    const done = await reclaim(path, { format: "raw", companions, verify: true });
    assert.ok(done.applied && done.reclaimedBytes > MiB, `${done.reclaimedBytes} bytes`);
  }
  for (const path of disks) {
    assert.match(run("mdadm", ["--examine", path]), /Checksum : \w+ - correct/);
    const { status, stdout } = e2fsck(path, data);
    assert.equal(status, 0, stdout);
    assert.equal(printOf(path, data), print);
  }
  run("cmp", ["-i", `${data.start}`, ...disks]);
});

test("H5: half of a mirror gives nothing back, though it shows a whole filesystem", async (t) => {
  if (!available(t)) return;
  const { disks } = mirror(t, "1.0");
  const before = readFileSync(disks[0]);
  const { volumes, reclaimableBytes } = await survey(disks[0], { format: "raw" });
  assert.equal(volumes[0]!.reason?.code, "members-missing");
  assert.equal(reclaimableBytes, 0);
  assert.equal((await reclaim(disks[0], { format: "raw" })).applied, false);
  assert.ok(before.equals(readFileSync(disks[0])));
});

test("a swap partition keeps its header, and gives back the rest on demand", async (t) => {
  if (!available(t)) return;
  const disk = blankDisk(t, 32 * MiB);
  run("sfdisk", ["-q", disk], "label: gpt\nstart=2048, size=32768\nstart=34816, size=16384, type=swap\n");
  const root = { start: 2048 * SECTOR_BYTES, end: 34816 * SECTOR_BYTES };
  const area = { start: 34816 * SECTOR_BYTES, end: 51200 * SECTOR_BYTES };
  makeFilesystem(disk, root, ["-t", "ext4", "-b", "1024"]);
  liveIn(disk, root, 3);
  const made = join(scratch(t), "swap");
  run("truncate", ["-s", `${area.end - area.start}`, made]);
  run("mkswap", ["--label", "suspend to disk", made]);
  const bytes = Buffer.from(readFileSync(made));
  new Random(5).fill(bytes.subarray(64 * KiB));
  write(disk, area.start, bytes);

  const { volumes, worthless } = await survey(disk, { format: "raw" });
  assert.deepEqual(
    volumes.map(({ filesystem, state }) => [filesystem, state]),
    [
      ["ext4", "clean"],
      ["swap", "clean"],
    ],
  );
  assert.equal(worthless.find(({ kind }) => kind === "swap")?.bytes, area.end - area.start - 64 * KiB);
  await reclaim(disk, { format: "raw" });
  assert.ok(readFileSync(disk).subarray(area.start, area.end).equals(bytes), "not on its own");
  const done = await reclaim(disk, { format: "raw", also: ["swap"], verify: true });
  assert.ok(done.applied);
  const after = readFileSync(disk).subarray(area.start, area.end);
  assert.ok(after.subarray(0, 64 * KiB).equals(bytes.subarray(0, 64 * KiB)));
  assert.ok(after.subarray(64 * KiB).every((byte) => byte === 0));
  assert.equal(e2fsck(disk, root).status, 0);
});

test("H3: a guest that sleeps in a volume of two faces refuses the disk", async (t) => {
  if (!available(t)) return;
  const disk = blankDisk(t, 32 * MiB);
  run("sfdisk", ["-q", disk], "label: gpt\nstart=2048, size=32768\nstart=34816, size=16384, type=swap\n");
  const root = { start: 2048 * SECTOR_BYTES, end: 34816 * SECTOR_BYTES };
  makeFilesystem(disk, root, ["-t", "ext4", "-b", "1024"]);
  const area = 34816 * SECTOR_BYTES;
  write(disk, area, Buffer.from("XFSB"));
  write(disk, area + 4086, Buffer.from("SWAPSPACE2"));
  const awake = await survey(disk, { format: "raw" });
  assert.deepEqual(
    awake.volumes.map(({ reason }) => reason?.code),
    [undefined, "ambiguous"],
  );
  write(disk, area + 4086, Buffer.from("S1SUSPEND\0"));
  const { volumes, reclaimableBytes } = await survey(disk, { format: "raw" });
  assert.deepEqual(
    volumes.map(({ reason }) => reason?.code),
    ["hibernated", "hibernated"],
  );
  assert.equal(reclaimableBytes, 0);
  // One half of a mirror shows it, too.
  const bytes = 16384 * SECTOR_BYTES;
  const place = PLACES["1.0"](bytes);
  const values = { level: 1, usedSectors: 8192, dataSectors: 8192, superOffset: place / SECTOR_BYTES };
  write(disk, area, Buffer.alloc(4));
  write(disk, area + place, memberSuperblock(0, 2, values));
  const half = await survey(disk, { format: "raw" });
  assert.deepEqual(
    half.volumes.map(({ reason }) => reason?.code),
    ["hibernated", "hibernated"],
  );
});

test("H5: a partition of a RAID type without its superblock is used; one that sleeps is noticed", async (t) => {
  if (!available(t)) return;
  for (const [label, type] of [
    ["gpt", "raid"],
    ["dos", "fd"],
  ]) {
    const disk = blankDisk(t, 32 * MiB);
    run(
      "sfdisk",
      ["-q", disk],
      `label: ${label}\nstart=2048, size=32768\nstart=34816, size=16384, type=${type}\n`,
    );
    for (const [start, end] of [
      [2048, 34816],
      [34816, 51200],
    ] as const)
      makeFilesystem(disk, { start: start * SECTOR_BYTES, end: end * SECTOR_BYTES }, [
        "-t",
        "ext4",
        "-b",
        "1024",
      ]);
    const reasons = async () =>
      (await survey(disk, { format: "raw" })).volumes.map(({ reason }) => reason?.code);
    assert.deepEqual(await reasons(), [undefined, "multi-disk-member"]);
    write(disk, 34816 * SECTOR_BYTES + 4086, Buffer.from("S1SUSPEND\0"));
    assert.deepEqual(await reasons(), ["hibernated", "hibernated"]);
  }
});

test("H5: a physical volume in a partition of a RAID type is no superblock of a set", async (t) => {
  if (!available(t) || !requires(t, "lvcreate")) return;
  const [one, two] = lvmDisks(t, [8 * MiB, 8 * MiB], ([a, b]) => [
    ["vgcreate", "-s", "1M", "vg0", a!, b!],
    lvcreate("-l", "6", "-n", "root", "vg0", a!),
  ]) as [string, string];
  const disk = blankDisk(t, 32 * MiB);
  run("sfdisk", ["-q", disk], "label: gpt\nstart=2048, size=16384, type=raid\n");
  write(disk, MiB, readFileSync(one));
  const { volumes } = await survey(disk, { format: "raw", companions: [two] });
  assert.deepEqual(
    volumes.map(({ name, reason }) => [name, reason?.code]),
    [["1", "multi-disk-member"]],
  );
});

test("a disk inside of a partition is a disk", async (t) => {
  if (!available(t)) return;
  const inner = blankDisk(t, 24 * MiB);
  run("sfdisk", ["-q", inner], "label: dos\nstart=2048, size=32768, type=83\n");
  const root = { start: MiB, end: 17 * MiB };
  makeFilesystem(inner, root, ["-t", "ext4", "-b", "1024"]);
  liveIn(inner, root, 3);
  const outer = blankDisk(t, 32 * MiB);
  run("sfdisk", ["-q", outer], "label: gpt\nstart=4096, size=49152\n");
  run("dd", [`if=${inner}`, `of=${outer}`, "bs=1M", "seek=2", "conv=notrunc,sparse", "status=none"]);
  const { volumes } = await survey(outer, { format: "raw" });
  const [volume] = volumes.filter(({ filesystem }) => filesystem === "ext4");
  assert.deepEqual([volume?.name, volume?.state, volume?.start], ["1/1", "clean", 3 * MiB]);
  const done = await reclaim(outer, { format: "raw", verify: true });
  assert.ok(done.applied && done.reclaimedBytes > MiB);
  const extent = { start: 2 * MiB + root.start, end: 2 * MiB + root.end };
  assert.equal(e2fsck(outer, extent).status, 0);
});

const LOSE_POWER = `
  export MDADM_NO_UDEV=1
  echo 1000000 > /proc/sys/dev/raid/speed_limit_min
  mkdir -p /etc/lvm /run/lock/lvm /run/lvm
  cat > /etc/lvm/lvm.conf <<E
activation { udev_sync=0 udev_rules=0 monitoring=0 }
global { use_lvmpolld=0 }
backup { backup=0 archive=0 }
devices { use_devicesfile=0 hints="none" }
E
  yes | mdadm --create /dev/md0 --run --raid-devices=2 --level=1 --metadata=1.2 \
    --bitmap=internal --bitmap-chunk=64 /dev/vda /dev/vdb >/tmp/said 2>&1 || cat /tmp/said
  mdadm --wait /dev/md0 >/tmp/said 2>&1 || true
  lvm vgcreate -q -s 1M vg /dev/vdc /dev/vdd >/tmp/said 2>&1 || cat /tmp/said
  lvm lvcreate -q -y -Wn -L 4M --type raid1 -m 1 -n twin vg >/tmp/said 2>&1 || cat /tmp/said
  while lvm lvs --noheadings -o sync_percent vg/twin 2>/dev/null | grep -qv 100; do sleep 0.2; done
  head -c 500000 /dev/urandom > /dev/md0
  head -c 500000 /dev/urandom > /dev/mapper/vg-twin
  sync
  head -c 300000 /dev/urandom | dd of=/dev/md0 conv=fsync 2>/dev/null
  head -c 300000 /dev/urandom | dd of=/dev/mapper/vg-twin conv=fsync 2>/dev/null
  echo now; sleep 100`;

test("H2: a mirror that lost its power is refused, of either kind", async (t) => {
  const paths = [0, 1, 2, 3].map(() => blankDisk(t, 8 * MiB));
  const printed = await otherKernel(t, {
    modules: ["crc32c_generic", "md-mod", "raid1", "dm-mod", "dm-raid"],
    disks: paths,
    tools: ["/sbin/mdadm", "/sbin/lvm"],
    powerFailsAt: "now",
    script: LOSE_POWER,
  });
  if (printed === undefined) return;
  assert.equal(printed.trim(), "now");
  for (const [disk, companion, code] of [
    [paths[0]!, paths[1]!, "md-dirty"],
    [paths[2]!, paths[3]!, "lvm-mirror"],
  ] as const) {
    const { volumes, reclaimableBytes } = await survey(disk, { format: "raw", companions: [companion] });
    assert.equal(reclaimableBytes, 0);
    const codes = volumes.map(({ reason }) => reason?.code);
    assert.ok(codes.includes(code), JSON.stringify(volumes));
  }
});

test("H36: a disk without metadata is joined where the others expect it, and alone is refused", async (t) => {
  if (!available(t) || !requires(t, "lvcreate")) return;
  const [a, bare, foreign] = lvmDisks(t, [MEMBER_BYTES, MEMBER_BYTES, MEMBER_BYTES], ([one, two, three]) => [
    ["pvcreate", one!],
    ["pvcreate", "--metadatacopies", "0", two!],
    ["pvcreate", "--metadatacopies", "0", three!],
    ["vgcreate", "vg0", one!, two!],
    lvcreate("-L", "8M", "-n", "root", "vg0", two!),
  ]) as [string, string, string];
  makeFilesystem(bare, { start: MiB, end: 9 * MiB }, ["-t", "ext4", "-b", "1024"]);
  const reasons = async (path: string, ...companions: string[]) => {
    const { volumes } = await survey(path, { format: "raw", companions });
    return volumes.map(({ name, state, reason }) => [name, reason?.code ?? state]);
  };
  assert.deepEqual(await reasons(bare, a), [["vg0/root", "clean"]]);
  assert.deepEqual(await reasons(bare), [["", "members-missing"]]);
  assert.deepEqual(await reasons(foreign, a), [["", "members-missing"]]);
  assert.deepEqual(await reasons(foreign, a, bare), [["", "members-missing"]]);
});
