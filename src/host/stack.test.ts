import assert from "node:assert/strict";
import { mkdirSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test, type TestContext } from "node:test";
import { mounted } from "../testing/mounted.ts";
import { scratch } from "../testing/tools.ts";
import { deviceNumber } from "./medium.ts";
import { type Roots, stackOf } from "./stack.ts";

/** The page B1h of a disk that turns 7200 times a minute. */
function characteristics({ turns = 7200, zoned = 0 } = {}): Buffer {
  const page = Buffer.alloc(64);
  page.writeUInt8(0xb1, 1);
  page.writeUInt16BE(60, 2);
  page.writeUInt16BE(turns, 4);
  page.writeUInt8(zoned << 4, 8);
  return page;
}

const DISK = { "queue/rotational": "1\n", "queue/zoned": "none\n", "queue/discard_max_bytes": "0\n" };
const TURNING = { ...DISK, "device/vpd_pgb1": characteristics() };

type Attributes = Readonly<Record<string, string | Buffer>>;

/**
 * A kernel that tells of these devices, of which the first holds the filesystem of `file`.
 * @param devices attributes by path below /sys/devices; `slaves` lists paths
 */
function kernel(
  t: TestContext,
  devices: Readonly<Record<string, Attributes>>,
): { roots: Roots; file: string } {
  const folder = scratch(t);
  const file = join(folder, "image");
  writeFileSync(file, "");
  const sys = join(folder, "sys");
  const proc = join(folder, "proc");
  const place = (path: string): string => join(sys, "devices", path);
  for (const [path, attributes] of Object.entries(devices)) {
    for (const [name, content] of Object.entries({ ...attributes })) {
      if (name === "slaves") {
        mkdirSync(join(place(path), "slaves"), { recursive: true });
        for (const slave of String(content).split(" "))
          symlinkSync(place(slave), join(place(path), "slaves", slave.split("/").at(-1)!));
        continue;
      }
      mkdirSync(dirname(join(place(path), name)), { recursive: true });
      writeFileSync(join(place(path), name), content);
    }
  }
  const [first] = Object.keys(devices);
  const number = deviceNumber(statSync(file, { bigint: true }).dev);
  mkdirSync(join(sys, "dev/block"), { recursive: true });
  if (first !== undefined) {
    symlinkSync(place(first), join(sys, "dev/block", number));
    const options = join(proc, "fs/ext4", first.split("/").at(-1)!, "options");
    mkdirSync(dirname(options), { recursive: true });
    writeFileSync(options, "rw\ndelalloc\ndata=ordered\n");
  }
  return { roots: { sys, proc }, file };
}

const mediaOf = ({ devices, opaque }: ReturnType<typeof stackOf>): string =>
  opaque === undefined
    ? devices.map(({ name, medium }) => `${name} ${medium}`).join(", ")
    : `opaque ${opaque}`;

test("a device is what it says of itself, and unknown when it says nothing", (t) => {
  const cases: readonly (readonly [string, Readonly<Record<string, Attributes>>, string])[] = [
    ["turns", { "ata1/block/sda": TURNING }, "sda magnetic"],
    ["a partition of it", { "ata1/block/sda/sda2": { partition: "2\n" }, "ata1/block/sda": TURNING }, "sda magnetic"],
    ["flash", { "ata1/block/sda": { ...TURNING, "queue/rotational": "0\n" } }, "sda flash"],
    ["says that it is flash", { "ata1/block/sda": { ...DISK, "device/vpd_pgb1": characteristics({ turns: 1 }) } }, "sda flash"],
    ["nvme", { "pci/nvme0n1": { ...DISK, "queue/rotational": "0\n" } }, "nvme0n1 flash"],
    ["rotational, for nobody knows better", { "ata1/block/sda": DISK }, "sda unknown"],
    ["a rate that is not reported", { "ata1/block/sda": { ...DISK, "device/vpd_pgb1": characteristics({ turns: 0 }) } }, "sda unknown"],
    ["host-managed zones", { "ata1/block/sda": { ...TURNING, "queue/zoned": "host-managed\n" } }, "sda shingled"],
    ["zones of its own", { "ata1/block/sda": { ...DISK, "device/vpd_pgb1": characteristics({ zoned: 2 }) } }, "sda shingled"],
    ["an old kernel", { "ata1/block/sda": { "queue/rotational": "1\n" } }, "sda unknown"],
    ["a virtual disk", { "virtio1/block/vda": TURNING }, "opaque vda"],
    ["a loop device", { "virtual/block/loop3": TURNING }, "opaque loop3"],
  ]; // prettier-ignore
  for (const [name, devices, expected] of cases) {
    const { roots, file } = kernel(t, devices);
    assert.equal(mediaOf(stackOf(file, roots)), expected, name);
  }
});

test("layers that write in place are seen through, and no others", (t) => {
  const sda = { "ata1/block/sda": TURNING };
  const two = { ...sda, "ata2/block/sdb": { ...TURNING, "queue/rotational": "0\n" } };
  const lvm = `LVM-${"a1B2".repeat(16)}`;
  const cases: readonly (readonly [string, Readonly<Record<string, Attributes>>, string])[] = [
    ["a volume of LVM", { "v/dm-0": { "dm/uuid": `${lvm}\n`, slaves: "ata1/block/sda" }, ...sda }, "sda magnetic"],
    ["thin: a volume on a pool", { "v/dm-2": { "dm/uuid": lvm, slaves: "v/dm-1" }, "v/dm-1": { "dm/uuid": `${lvm}-tpool`, slaves: "ata1/block/sda" }, ...sda }, "opaque dm-2"],
    ["a part of a snapshot", { "v/dm-1": { "dm/uuid": `${lvm}-cow`, slaves: "ata1/block/sda" }, ...sda }, "opaque dm-1"],
    ["dm-crypt on LVM", { "v/dm-1": { "dm/uuid": "CRYPT-LUKS2-00ff-name", slaves: "v/dm-0" }, "v/dm-0": { "dm/uuid": lvm, slaves: "ata1/block/sda" }, ...sda }, "sda magnetic"],
    ["LVM on dm-crypt", { "v/dm-1": { "dm/uuid": lvm, slaves: "v/dm-0" }, "v/dm-0": { "dm/uuid": "CRYPT-LUKS2-00ff-name", slaves: "ata1/block/sda" }, ...sda }, "sda magnetic"],
    ["dm-integrity", { "v/dm-1": { "dm/uuid": "CRYPT-INTEGRITY-00ff", slaves: "ata1/block/sda" }, ...sda }, "opaque dm-1"],
    ["RAID 1", { "v/md0": { "md/level": "raid1\n", slaves: "ata1/block/sda ata2/block/sdb" }, ...two }, "sda magnetic, sdb flash"],
    ["RAID 5", { "v/md0": { "md/level": "raid5\n", slaves: "ata1/block/sda ata2/block/sdb" }, ...two }, "opaque md0"],
  ]; // prettier-ignore
  for (const [name, devices, expected] of cases) {
    const { roots, file } = kernel(t, devices);
    assert.equal(mediaOf(stackOf(file, roots)), expected, name);
  }
  const { roots, file } = kernel(t, {});
  assert.match(
    mediaOf(stackOf(file, roots)),
    /^opaque device/,
    "no device at all: Btrfs, overlayfs, NFS, tmpfs",
  );
});

test("ext4 that journals content says so, of one file or of all", (t) => {
  const { roots, file } = kernel(t, { "ata1/block/sda": TURNING });
  const { filesystem, journalsData } = stackOf(file, roots);
  if (filesystem !== "ext4") return t.skip(`the scratch folder lies on ${filesystem}`);
  assert.equal(journalsData, false);
  writeFileSync(join(roots.proc, "fs/ext4/sda/options"), "rw\ndata=journal\n");
  assert.equal(stackOf(file, roots).journalsData, true);
  assert.equal(stackOf(file, { ...roots, proc: "/nowhere" }).journalsData, undefined);
});

test("what the host really is: a filesystem on a loop device", (t) => {
  const point = mounted(t, "xfs", 300);
  if (point === undefined) return;
  const file = join(point, "image");
  writeFileSync(file, "");
  const { filesystem, opaque, devices, journalsData } = stackOf(file);
  assert.deepEqual([filesystem, devices, journalsData], ["xfs", [], false]);
  assert.match(opaque ?? "", /^loop\d+$/);
});
