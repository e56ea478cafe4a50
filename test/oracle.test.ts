/**
 * The whole product against foreign judges: e2fsck, qemu-img, and the kernel that wrote the files and reads them again.
 *
 *   mke2fs → kernel fills and deletes → print → image → reclaim → qemu-img check → e2fsck → print: the same
 *
 * Every feature set of mke2fs meets raw and one other kind of image; every kind of image meets ext4 as it is made by
 * default. Formats of mapped blocks are packed, too, and judged again.
 */
import assert from "node:assert/strict";
import { statSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import type { Extent } from "../src/bytes/extents.ts";
import { reclaim, survey } from "../src/disk.ts";
import {
  addFeatures,
  crowd,
  dieIn,
  e2fsck,
  liveIn,
  makeFilesystem,
  printOf,
  recover,
  withPart,
} from "../src/testing/kernel-guest.ts";
import { lvcreate, runLvm } from "../src/testing/lvm.ts";
import { blankDisk, withLoop } from "../src/testing/partitions.ts";
import { attempt, requires, requiresRoot, run, scratch } from "../src/testing/tools.ts";

const MiB = 2 ** 20;
const DISK_BYTES = 64 * MiB;

interface Guest {
  /** The raw disk after its life. */
  readonly disk: string;
  /** The raw disk half-way through its life. */
  readonly early: string;
  readonly filesystem: Extent;
  readonly print: string;
}

interface Features {
  readonly name: string;
  readonly mke2fs: readonly string[];
  readonly layout?: Layout;
  /** Features that tune2fs adds after the guest's life. */
  readonly afterwards?: string;
}

/** Writes what lies around the filesystem, and says where the filesystem goes. */
type Layout = (disk: string, t: TestContext) => Extent;

const bare: Layout = () => ({ start: 0, end: DISK_BYTES });

const gpt: Layout = (disk) => {
  run("sfdisk", ["-q", disk], "label: gpt\nstart=1MiB, size=4MiB\nstart=6MiB, size=50MiB\n");
  return { start: 6 * MiB, end: 56 * MiB };
};

const logical: Layout = (disk) => {
  run(
    "sfdisk",
    ["-q", disk],
    "label: dos\nstart=1MiB, size=4MiB\nstart=6MiB, type=5\nstart=7MiB, size=50MiB\n",
  );
  return { start: 7 * MiB, end: 57 * MiB };
};

/** A GPT of 4096-byte sectors. */
const gpt4K: Layout = (disk) => {
  const script = "label: gpt\nstart=256, size=4MiB\nstart=1536, size=50MiB\n";
  withLoop(disk, 4096, (device) => run("sfdisk", ["-q", "--no-reread", "--no-tell-kernel", device], script));
  return { start: 6 * MiB, end: 56 * MiB };
};

/** As servers are installed: a volume group in a partition. */
const lvm: Layout = (disk, t) => {
  const { start, end } = gpt(disk, t);
  withPart(disk, { start, end }, (device) =>
    runLvm(
      t,
      [device],
      [
        ["vgcreate", "-s", "1M", "vg", device],
        lvcreate("-L", "3M", "-n", "swap", "vg"),
        lvcreate("-L", "40M", "-n", "root", "vg"),
      ],
    ),
  );
  // Behind the metadata, of 1 MiB, and the swap.
  return { start: start + 4 * MiB, end: start + 44 * MiB };
};

const MATRIX: readonly Features[] = [
  { name: "ext2, 1 KiB blocks", mke2fs: ["-t", "ext2", "-b", "1024"] },
  {
    name: "ext3, 4 KiB blocks, in a logical partition",
    mke2fs: ["-t", "ext3", "-b", "4096"],
    layout: logical,
  },
  { name: "ext4, 1 KiB blocks, in a GPT partition", mke2fs: ["-t", "ext4", "-b", "1024"], layout: gpt },
  {
    name: "ext4, 2 KiB blocks, 128-byte inodes, on LVM",
    mke2fs: ["-t", "ext4", "-b", "2048", "-I", "128"],
    layout: lvm,
  },
  {
    name: "bigalloc, in a GPT partition of 4096-byte sectors",
    mke2fs: ["-t", "ext4", "-b", "4096", "-O", "bigalloc", "-C", "16384"],
    layout: gpt4K,
  },
  {
    name: "uninit_bg, 32 bits",
    mke2fs: ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit,uninit_bg"],
  },
  { name: "meta_bg", mke2fs: ["-t", "ext4", "-b", "1024", "-g", "2048", "-O", "meta_bg,^resize_inode"] },
  {
    name: "sparse_super2, quota, project",
    mke2fs: ["-t", "ext4", "-b", "4096", "-O", "sparse_super2"],
    afterwards: "quota,project",
  },
  {
    name: "inline_data, large_dir, ea_inode",
    mke2fs: ["-t", "ext4", "-b", "4096", "-O", "inline_data,large_dir,ea_inode"],
  },
  {
    name: "orphan_file, no flex_bg",
    mke2fs: ["-t", "ext4", "-b", "4096", "-O", "orphan_file,^flex_bg"],
  },
  {
    name: "encrypt, verity, stable_inodes, mmp",
    mke2fs: ["-t", "ext4", "-b", "4096", "-O", "encrypt,verity,stable_inodes,mmp"],
  },
  {
    name: "no journal, small groups",
    mke2fs: ["-t", "ext4", "-b", "1024", "-g", "1024", "-O", "^has_journal"],
  },
];

const PLAIN: Features = { name: "ext4 by default", mke2fs: ["-t", "ext4", "-b", "4096"], layout: gpt };

function makeGuest(t: TestContext, features: Features): Guest {
  const disk = blankDisk(t, DISK_BYTES);
  const early = `${disk}.early`;
  const filesystem = (features.layout ?? bare)(disk, t);
  makeFilesystem(disk, filesystem, features.mke2fs);
  liveIn(disk, filesystem, 1);
  run("cp", ["--sparse=always", disk, early]);
  liveIn(disk, filesystem, 2);
  if (features.afterwards !== undefined) addFeatures(disk, filesystem, features.afterwards);
  const { status, stdout } = e2fsck(disk, filesystem);
  assert.equal(status, 0, stdout);
  return { disk, early, filesystem, print: printOf(disk, filesystem) };
}

/** An image of the guest, and what else must stay as it is: each a command that prints a hash. */
interface Container {
  readonly name: string;
  readonly format: string;
  /** What QEMU calls the format. */
  readonly qemu: string;
  /** Whether it is packed after it was punched. */
  readonly packs?: boolean;
  make(guest: Guest, path: string): { readonly path: string; readonly witnesses?: readonly (() => string)[] };
}

const rawImage: Container = {
  name: "raw",
  format: "raw",
  qemu: "raw",
  make({ disk }, path) {
    run("cp", ["--sparse=always", disk, path]);
    return { path };
  },
};

function qcow2(options: string): Container {
  return {
    name: `qcow2 ${options}`,
    format: "qcow2",
    qemu: "qcow2",
    make({ disk }, path) {
      run("qemu-img", ["convert", "-O", "qcow2", "-o", options, disk, path]);
      return { path };
    },
  };
}

/** A format that maps blocks of equal length. */
function blocks(format: string, options: string, qemu = format): Container {
  return {
    name: `${format} ${options}`,
    format,
    qemu,
    packs: true,
    make({ disk }, path) {
      run("qemu-img", ["convert", "-O", qemu, "-o", options, disk, path]);
      return { path };
    },
  };
}

const sha256 = (path: string) => run("sha256sum", [path]);

/** An image above the guest's early disk. */
function child(options: string): Container {
  return {
    name: `qcow2 ${options} with a backing file`,
    format: "qcow2",
    qemu: "qcow2",
    make({ disk, early }, path) {
      const base = `${path}.base`;
      run("cp", ["--sparse=always", early, base]);
      run("qemu-img", ["convert", "-O", "qcow2", "-o", options, "-B", base, "-F", "raw", disk, path]);
      return { path, witnesses: [() => sha256(base)] };
    },
  };
}

/** The guest's early disk is a snapshot inside the image. */
const withSnapshot: Container = {
  name: "qcow2 with an internal snapshot",
  format: "qcow2",
  qemu: "qcow2",
  make({ disk, early }, path) {
    run("qemu-img", ["convert", "-O", "qcow2", early, path]);
    run("qemu-img", ["snapshot", "-c", "early", path]);
    run("qemu-img", ["convert", "-n", "-O", "qcow2", disk, path]);
    const snapshot = () => {
      run("qemu-img", ["convert", "-l", "snapshot.name=early", "-O", "raw", path, `${path}.snapshot`]);
      return sha256(`${path}.snapshot`);
    };
    return { path, witnesses: [snapshot] };
  },
};

const CONTAINERS: readonly Container[] = [
  qcow2("cluster_size=64k"),
  qcow2("cluster_size=512"),
  qcow2("cluster_size=4k,refcount_bits=1"),
  qcow2("cluster_size=2M"),
  qcow2("compat=0.10"),
  qcow2("extended_l2=on,cluster_size=128k"),
  qcow2("lazy_refcounts=on,refcount_bits=64"),
  child("compat=1.1"),
  child("compat=0.10"),
  child("extended_l2=on"),
  withSnapshot,
  blocks("vhdx", "block_size=1M"),
  blocks("vhdx", "block_size=32M"),
  blocks("vhdx", "subformat=fixed"),
  blocks("vhd", "force_size=on", "vpc"),
  blocks("vhd", "subformat=fixed,force_size=on", "vpc"),
  blocks("vdi", "static=off"),
  blocks("vdi", "static=on"),
  blocks("vmdk", "subformat=monolithicSparse"),
  blocks("vmdk", "zeroed_grain=on"),
  blocks("parallels", "cluster_size=64k"),
  blocks("parallels", "cluster_size=1M"),
];

const hostBytes = (path: string) => statSync(path).blocks * 512;

/** Reclaims the guest's image and lets every judge speak. */
async function judge(guest: Guest, container: Container, folder: string): Promise<void> {
  const image = join(folder, "disk.img");
  const { path, witnesses = [] } = container.make(guest, image);
  const hashes = witnesses.map((witness) => witness());
  const { format } = container;
  const before = hostBytes(path);
  const done = await reclaim(path, { format, proof: "full", verify: true });
  const volume = done.survey.volumes.find(({ start }) => start === guest.filesystem.start)!;
  assert.equal(volume.state, "clean", volume.reason?.message);
  assert.equal(done.applied, true, "something was to be returned");
  assert.ok(hostBytes(path) < before, `host bytes went from ${before} to ${hostBytes(path)}`);
  judgeContent(guest, container, path);
  if (container.packs) {
    const packed = await reclaim(path, { format, method: "pack", proof: "full", verify: true });
    assert.equal(packed.beforeFileBytes - packed.afterFileBytes, packed.survey.packableBytes, "the promise");
    judgeContent(guest, container, path);
  }
  assert.deepEqual(
    witnesses.map((witness) => witness()),
    hashes,
    "parents and snapshots",
  );
  run("rm", ["-f", path]);
}

/** QEMU's check has no driver for some formats. */
const CHECK_UNSUPPORTED = 63;

function judgeContent(guest: Guest, { format, qemu }: Container, path: string): void {
  const raw = format === "raw" ? path : `${path}.raw`;
  if (format !== "raw") {
    const { status, stdout } = attempt("qemu-img", ["check", "-f", qemu, path]);
    assert.ok(status === 0 || (status === CHECK_UNSUPPORTED && qemu === "vpc"), stdout);
    run("qemu-img", ["convert", "-f", qemu, "-O", "raw", path, raw]);
  }
  const { status, stdout } = e2fsck(raw, guest.filesystem);
  assert.equal(status, 0, stdout);
  assert.equal(printOf(raw, guest.filesystem), guest.print);
  if (raw !== path) run("rm", ["-f", raw]);
}

const available = (t: TestContext) =>
  requires(t, "mke2fs", "e2fsck", "qemu-img", "losetup", "sfdisk", "setfattr") && requiresRoot(t);

for (const [i, features] of MATRIX.entries()) {
  test(features.name, async (t) => {
    if (!available(t)) return;
    const guest = makeGuest(t, features);
    for (const container of [rawImage, CONTAINERS[i % CONTAINERS.length]!]) {
      await t.test(container.name, (inner) => judge(guest, container, scratch(inner)));
    }
  });
}

test(PLAIN.name, async (t) => {
  if (!available(t)) return;
  const guest = makeGuest(t, PLAIN);
  for (const container of CONTAINERS) {
    await t.test(container.name, (inner) => judge(guest, container, scratch(inner)));
  }
});

test("100,000 small files, half of them deleted", async (t) => {
  if (!available(t)) return;
  const disk = blankDisk(t, 256 * MiB);
  const filesystem = { start: 0, end: 256 * MiB };
  makeFilesystem(disk, filesystem, ["-t", "ext4", "-b", "1024", "-N", "110000"]);
  crowd(disk, filesystem, 100_000);
  const print = printOf(disk, filesystem);
  await judge({ disk, early: disk, filesystem, print }, rawImage, scratch(t));
});

test("a guest that was killed: refused, or replayed as e2fsck does (H2)", async (t) => {
  if (!available(t)) return;
  const disk = blankDisk(t, DISK_BYTES);
  const filesystem = gpt(disk, t);
  makeFilesystem(disk, filesystem, ["-t", "ext4", "-b", "4096"]);
  liveIn(disk, filesystem, 1);
  const killed = join(scratch(t), "killed.raw");
  dieIn(disk, filesystem, 2, killed);
  const expected = join(scratch(t), "expected.raw");
  run("cp", ["--sparse=always", killed, expected]);
  recover(expected, filesystem);
  const content = sha256(killed);

  const { volumes } = await survey(killed, { format: "raw" });
  assert.equal(volumes.find(({ start }) => start === filesystem.start)?.reason?.code, "journal-dirty");
  assert.equal((await reclaim(killed, { format: "raw" })).applied, false);
  assert.equal(sha256(killed), content);

  const before = hostBytes(killed);
  const done = await reclaim(killed, { format: "raw", allow: { replay: true }, verify: true });
  assert.equal(done.applied, true);
  assert.ok(hostBytes(killed) < before - MiB, `host bytes went from ${before} to ${hostBytes(killed)}`);
  recover(killed, filesystem);
  const { status, stdout } = e2fsck(killed, filesystem);
  assert.equal(status, 0, stdout);
  assert.equal(printOf(killed, filesystem), printOf(expected, filesystem));
});
