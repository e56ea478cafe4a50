/**
 * Servers as their installers leave them: on two disks partitions of type Linux RAID, mirrors over them, and on one of
 * the mirrors a volume group. Another kernel makes and fills them, is shut down without stopping the mirrors, and reads
 * them again once each disk has given back what is free on it.
 */
import assert from "node:assert/strict";
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { reclaim, survey } from "../src/disk.ts";
import { otherKernel, type OtherKernelOptions } from "../src/testing/other-kernel.ts";
import { blankDisk } from "../src/testing/partitions.ts";
import { requires, run, scratch } from "../src/testing/tools.ts";

const MiB = 1024 * 1024;

/** GPT and a BIOS that boots, as Debian makes it; MBR of old. */
const TABLES = [
  "label: gpt\nsize=1M, type=21686148-6449-6E6F-744E-656564454649\nsize=8M, type=raid\ntype=raid\n",
  "label: dos\nsize=9M, type=fd, bootable\ntype=fd\n",
];

const PREPARE = `
  export MDADM_NO_UDEV=1
  mkdir -p /etc/lvm /run/lock/lvm /run/lvm
  cat > /etc/lvm/lvm.conf <<E
activation { udev_sync=0 udev_rules=0 monitoring=0 }
global { use_lvmpolld=0 }
backup { backup=0 archive=0 }
devices { use_devicesfile=0 hints="none" md_component_detection=1 }
E
  quietly() { "$@" >/tmp/said 2>&1 || { echo "$@"; cat /tmp/said; exit 1; }; }
  use() {
    for name in root var; do
      mkdir -p /mnt/$1/$name
      mount -t ext4 /dev/mapper/$1-$name /mnt/$1/$name
    done
    mkdir -p /mnt/$1/boot
    mount -t ext4 /dev/$2 /mnt/$1/boot
  }
  leave() { umount /mnt/$1/boot /mnt/$1/root /mnt/$1/var; }
`;

const MAKE = `
  mirror() { yes | quietly mdadm --create "$@" --run --assume-clean --raid-devices=2 --level=1; }
  install() {
    quietly lvm vgcreate -q -s 1M $1 /dev/$3
    for lv in 12:root 3:swap 6:var; do quietly lvm lvcreate -q -y -Wn -L \${lv%:*}M -n \${lv#*:} $1; done
    for where in $2 mapper/$1-root mapper/$1-var; do quietly /sbin/mke2fs -q -t ext4 -O has_journal,extents,metadata_csum /dev/$where; done
    quietly mkswap /dev/mapper/$1-swap
    use $1 $2
    for folder in boot root var; do
      for i in 1 2 3 4; do head -c 500000 /dev/urandom > /mnt/$1/$folder/file$i; done
      sync
      rm /mnt/$1/$folder/file2 /mnt/$1/$folder/file3
    done
    leave $1
  }
  mirror /dev/md0 --metadata=1.2 /dev/vda2 /dev/vdb2
  mirror /dev/md1 --metadata=1.2 --bitmap=internal /dev/vda3 /dev/vdb3
  mirror /dev/md2 --metadata=0.90 /dev/vdc1 /dev/vdd1
  mirror /dev/md3 --metadata=1.0 --bitmap=internal /dev/vdc2 /dev/vdd2
  install new md0 md1
  install old md2 md3
`;

const READ = `
  join() { quietly mdadm --assemble --run "$@"; }
  join /dev/md0 /dev/vda2 /dev/vdb2; join /dev/md1 /dev/vda3 /dev/vdb3
  join /dev/md2 /dev/vdc1 /dev/vdd1; join /dev/md3 /dev/vdc2 /dev/vdd2
  for md in 0 1 2 3; do grep -q UU /proc/mdstat; cat /sys/block/md$md/md/array_state /sys/block/md$md/md/degraded; done
  quietly lvm vgchange -ay
  for where in md0 md2 mapper/new-root mapper/new-var mapper/old-root mapper/old-var; do quietly /sbin/e2fsck -fn /dev/$where; done
  use new md0; use old md2
`;

const PRINT = `
  cd /mnt; echo prints; find new old -type f | sort | xargs sha256sum; cd /
  leave new; leave old; sync
  # A set comes to rest a while after its last write.
  for md in 0 1 2 3; do
    until grep -q clean /sys/block/md$md/md/array_state; do sleep 0.1; done
  done
`;

test("H36: servers with mirrors in partitions and a volume group on them", async (t) => {
  if (!requires(t, "sfdisk", "mdadm", "lvm", "mke2fs", "e2fsck")) return;
  const disks = [0, 1, 2, 3].map(() => blankDisk(t, 40 * MiB));
  for (const [i, disk] of disks.entries()) {
    run("sh", ["-c", 'printf "%s" "$1" | sfdisk -q "$2"', "sh", TABLES[i >> 1]!, disk]);
  }
  const options = (script: string): OtherKernelOptions => ({
    modules: ["crc32c_generic", "md-mod", "raid1", "dm-mod", "ext4"],
    disks,
    tools: ["/sbin/mdadm", "/sbin/lvm", "/sbin/mke2fs", "/sbin/e2fsck"],
    script: PREPARE + script,
  });
  const made = await otherKernel(t, options(`${MAKE} use new md0; use old md2 ${PRINT}`));
  if (made === undefined) return;
  for (const [i, disk] of disks.entries()) {
    const companions = [disks[i ^ 1]!];
    const { volumes } = await survey(disk, { format: "raw", companions });
    assert.deepEqual(
      volumes.filter(({ members }) => members).map(({ filesystem, state }) => [filesystem, state]),
      [
        ["ext4", "clean"],
        ["ext4", "clean"],
        ["swap", "clean"],
        ["ext4", "clean"],
      ],
      `disk ${i}: ${JSON.stringify(volumes)}`,
    );
  }
  for (const [i, disk] of disks.entries()) {
    const done = await reclaim(disk, {
      format: "raw",
      companions: [disks[i ^ 1]!],
      verify: true,
      also: ["swap", "gaps"],
    });
    assert.ok(done.applied && done.reclaimedBytes > 2 * MiB, `disk ${i}: ${done.reclaimedBytes} bytes`);
  }
  const stale = join(scratch(t), "stale.raw");
  copyFileSync(disks[0]!, stale);
  const read = await otherKernel(t, options(READ + PRINT));
  const [states, prints] = read!.split("prints\n");
  assert.equal(states, "clean\n0\n".repeat(4));
  assert.equal(prints, made.split("prints\n")[1]);
  assert.equal(prints!.trim().split("\n").length, 12);
  // Half of each mirror as it was before that: it says that it is clean, and is not what the other half is.
  const { volumes, reclaimableBytes } = await survey(disks[1]!, { format: "raw", companions: [stale] });
  assert.deepEqual(
    volumes.map(({ name, reason }) => [name, reason?.code]),
    [
      ["1", "unknown"],
      ["2", "md-contradiction"],
      ["3", "md-contradiction"],
    ],
  );
  assert.equal(reclaimableBytes, 0);
});
