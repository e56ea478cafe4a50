/**
 * A real guest on served disks: Debian's kernel makes ext4, XFS and Btrfs on qcow2 and raw images, fills them, deletes
 * and trims. The image then holds what the guest uses and nothing else, its checkers find nothing, and every file's
 * hash is the same.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import { reclaim, survey, type Survey } from "../src/disk.ts";
import {
  blankDisks,
  complaints,
  copies,
  liveGuest,
  type LiveDisk,
  type LiveServers,
  printsOf,
  rawView,
  requiresLiveGuest,
  serveAll,
  stored,
} from "../src/testing/live-guest.ts";
import { otherKernel } from "../src/testing/other-kernel.ts";
import { qemuCheck } from "../src/testing/qemu.ts";
import { freePort, serving } from "../src/testing/serving.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";

const BINARY = join(import.meta.dirname, "../bin/ullage.js");
const MiB = 1024 * 1024;

/** More than any filesystem here still refers to by an older root, so that what was deleted is free for everybody. */
const COMMITS = "for i in 1 2 3 4 5 6; do each commit; done";
const PRINT = "forget; each print; each unmount";

interface Filled {
  readonly disks: readonly LiveDisk[];
  readonly prints: readonly string[];
}

const folder = mkdtempSync(join(tmpdir(), "ullage-live-"));
after(() => rmSync(folder, { recursive: true }));
let filling: Promise<Filled | undefined> | undefined;

/** Disks that hold what was deleted as well; made once. Undefined when the test was skipped. */
async function filled(t: TestContext): Promise<Filled | undefined> {
  if (!requiresLiveGuest(t)) return undefined;
  filling ??= fill(t);
  return filling;
}

async function fill(t: TestContext): Promise<Filled | undefined> {
  const disks = [...blankDisks(folder, "qcow2"), ...blankDisks(folder, "raw")];
  const script = `each make; each mount_with nodiscard; each fill first 24; each delete first; ${COMMITS}; ${PRINT}`;
  const printed = await lives(t, disks, script);
  if (printed === undefined) return undefined;
  const prints = printsOf(printed);
  assert.ok(prints.length === disks.length && prints.every((print) => print.split("\n").length === 26));
  return { disks, prints };
}

const filesystemsOf = (disks: readonly LiveDisk[]): LiveDisk["filesystem"][] =>
  disks.map(({ filesystem }) => filesystem);

/** Serves the disks, lets a guest live, and stops the servers. */
async function lives(
  t: TestContext,
  disks: readonly LiveDisk[],
  script: string,
  words: readonly string[] = [],
): Promise<string | undefined> {
  const live = await serveAll(t, disks, words);
  const printed = await liveGuest(t, live.disks, { filesystems: filesystemsOf(disks), script });
  await stop(live);
  return printed;
}

async function stop({ servers }: LiveServers): Promise<void> {
  for (const server of servers) {
    const { code, stderr } = await server.stop();
    assert.equal(code, 0, stderr);
  }
}

const surveys = (disks: readonly LiveDisk[]): Promise<Survey[]> =>
  Promise.all(disks.map(({ path, format }) => survey(path, { format })));

const nameOf = ({ filesystem, format }: LiveDisk): string => `${filesystem} on ${format}`;

function allIsWell(t: TestContext, disks: readonly LiveDisk[]): void {
  for (const disk of disks) {
    assert.equal(complaints(t, disk), "", nameOf(disk));
    if (disk.format === "qcow2")
      assert.deepEqual(qemuCheck(disk.path), { errors: 0, leaks: 0 }, nameOf(disk));
  }
}

test("fstrim gives back what survey promised; reclaim finds nothing more", async (t) => {
  const origin = await filled(t);
  if (origin === undefined) return;
  const disks = copies(t, origin.disks);
  const before = await surveys(disks);
  const stores = disks.map(stored);
  const printed = await lives(t, disks, `each mount_with nodiscard; each trim; ${PRINT}`);
  assert.deepEqual(printsOf(printed!), origin.prints);
  for (const [i, after] of (await surveys(disks)).entries()) {
    const name = nameOf(disks[i]!);
    const { hostBytes, reclaimableBytes, regions } = before[i]!;
    assert.ok(reclaimableBytes > MiB, `${name}: ${reclaimableBytes} bytes promised`);
    assert.equal(after.reclaimableBytes, 0, name);
    // What may differ: what the guest wrote where nothing was stored, its log when it mounted; and for Btrfs, which
    // moves its trees, what it freed itself, and what it wrote into space that was promised.
    const [then, now, promised] = [stores[i]!, stored(disks[i]!), regions.get("returnable")!];
    const written = now.subtract(then).bytes;
    const freed = then.subtract(now).subtract(promised).bytes;
    const reused = now.intersect(then).intersect(promised).bytes;
    const moved = disks[i]!.filesystem === "btrfs" ? MiB : 0;
    assert.ok(written < MiB && freed <= moved && reused <= moved, `${name}: ${written}, ${freed}, ${reused}`);
    assert.equal(after.hostBytes! - (hostBytes! - reclaimableBytes), written - freed + reused, name);
  }
  allIsWell(t, disks);
});

test("mounted with discard, what is deleted goes back at once", async (t) => {
  if (!requiresLiveGuest(t)) return;
  const own = scratch(t);
  const disks = [...blankDisks(own, "qcow2"), ...blankDisks(own, "raw")];
  // What mkfs wrote and left free is none of the mount's business.
  const made = "each make; each mount_with discard; each trim";
  const script = `${made}; each fill first 24; each delete first; ${COMMITS}; ${PRINT}`;
  const printed = await lives(t, disks, script);
  if (printed === undefined) return;
  for (const [i, { reclaimableBytes }] of (await surveys(disks)).entries()) {
    assert.equal(reclaimableBytes, 0, nameOf(disks[i]!));
  }
  allIsWell(t, disks);
  const again = await lives(t, disks, `each mount_with discard; ${PRINT}`);
  assert.deepEqual(printsOf(again!), printsOf(printed));
});

test("a server killed while a guest trims: images are whole, what was synced is there", async (t) => {
  const origin = await filled(t);
  if (origin === undefined) return;
  const disks = copies(t, origin.disks);
  const live = await serveAll(t, disks);
  const killAll = (): void => live.servers.forEach((server) => void server.kill());
  const printed = await liveGuest(t, live.disks, {
    filesystems: filesystemsOf(disks),
    script: `
      trap 'echo dead; sleep 100' EXIT
      each mount_with nodiscard; each print
      for round in 1 2 3 4 5 6 7 8 9; do
        each fill life$round 8; each delete life$round; each print_folder ./life$round
        echo "trimming $round"; each trim
      done`,
    at: { "trimming 2": () => void setTimeout(killAll, 150) },
    powerFailsAt: "dead",
  });
  assert.ok(!printed!.includes("trimming 4"), printed);
  for (const disk of disks) {
    if (disk.format === "qcow2") assert.equal(qemuCheck(disk.path).errors, 0, nameOf(disk));
    if (disk.filesystem !== "ext4") continue;
    // The journal is replayed on a copy; the disk's own replay is the kernel's, below.
    const raw = rawView(t, disk);
    const { status, stdout } = attempt("e2fsck", ["-fy", raw]);
    assert.ok(status <= 1, stdout);
    assert.equal(attempt("e2fsck", ["-fn", raw]).status, 0);
  }
  const after = printsOf((await lives(t, disks, `each mount_with nodiscard; ${PRINT}`))!);
  const before = printsOf(printed!);
  assert.ok(before.length >= 3 * disks.length, "two rounds were synced");
  for (const print of before) {
    const [disk, ...files] = print.split("\n");
    const found = after.find((one) => one.startsWith(`${disk}\n`))!.split("\n");
    for (const file of files) assert.ok(found.includes(file), `${disk}: ${file}`);
  }
  for (const disk of disks) assert.equal(complaints(t, disk), "", nameOf(disk));
});

test("a guest that discards its whole disks: undo restores every file", async (t) => {
  const origin = await filled(t);
  if (origin === undefined) return;
  const disks = copies(t, origin.disks);
  const guard = ["--guard-for", "24h", "--guard-max", "4GiB"];
  const script = `
    each mount_with nodiscard; each fill second 8; ${PRINT}
    wipe() { /sbin/blkdiscard -f $device; cmp -s -n 16777216 $device /dev/zero && echo "zeros $disk"; }
    sync; each wipe`;
  const printed = await lives(t, disks, script, guard);
  assert.equal(printed!.match(/^zeros /gm)?.length, disks.length, printed);
  for (const disk of disks) {
    const { status, stdout, stderr } = attempt(process.execPath, [
      BINARY,
      "undo",
      disk.path,
      "--last",
      "--yes",
      "--format",
      disk.format,
    ]);
    assert.equal(status, 0, stdout + stderr);
  }
  const after = await lives(t, disks, `each mount_with nodiscard; ${PRINT}`, guard);
  assert.deepEqual(printsOf(after!), printsOf(printed!));
  for (const disk of disks) assert.equal(complaints(t, disk), "", nameOf(disk));
});

test("a guest that cannot trim: reclaim gives back afterwards what it deleted", async (t) => {
  const origin = await filled(t);
  if (origin === undefined) return;
  const disks = copies(t, origin.disks);
  const live = await serveAll(t, disks);
  const printed = await liveGuest(
    t,
    live.disks.map((disk) => ({ ...disk, discard: false })),
    {
      filesystems: filesystemsOf(disks),
      script: `
        each mount_with nodiscard; ${COMMITS}
        refused() { if /sbin/fstrim $folder; then exit 1; else echo "refused"; fi; }
        each refused; ${PRINT}`,
    },
  );
  await stop(live);
  assert.equal(printed!.match(/^refused$/gm)?.length, disks.length);
  for (const disk of disks) {
    const done = await reclaim(disk.path, { format: disk.format, verify: true });
    assert.ok(done.reclaimedBytes > MiB, nameOf(disk));
    assert.equal(done.reclaimedBytes, done.predictedBytes, nameOf(disk));
  }
  allIsWell(t, disks);
  const after = await lives(t, disks, `each mount_with ro; ${PRINT}`);
  assert.deepEqual(printsOf(after!), printsOf(printed!));
});

/** The kernel's own client over TCP: a disk for files, and one of which every way of giving back is asked. */
const KERNEL_CLIENT = (port: number): string => `
  ifconfig lo 127.0.0.1 up; ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
  /sbin/nbd-client -N files.qcow2 10.0.2.2 ${port} /dev/nbd0 >/dev/null
  /sbin/nbd-client -N blocks.qcow2 -connections 2 10.0.2.2 ${port} /dev/nbd1 >/dev/null
  cat /sys/block/nbd0/size /sys/block/nbd1/size
  /sbin/mke2fs -q -t ext4 -b 4096 /dev/nbd0
  mount -t ext4 -o discard /dev/nbd0 /mnt
  for i in 1 2 3 4 5 6 7 8; do head -c $((i * 300000)) /dev/urandom > /mnt/file$i; done
  sync -f /mnt; rm /mnt/file[357]
  (cd /mnt; sha256sum file* > /tmp/before)
  umount /mnt; echo 3 > /proc/sys/vm/drop_caches
  mount -t ext4 /dev/nbd0 /mnt
  (cd /mnt; sha256sum -c /tmp/before | grep -c OK)
  /sbin/fstrim /mnt; (cd /mnt; cat /tmp/before); umount /mnt
  yes all | dd of=/dev/nbd1 bs=1M count=8 iflag=fullblock conv=fsync 2>/dev/null
  /sbin/blkdiscard -o 1M -l 1M /dev/nbd1; /sbin/blkdiscard -z -o 3M -l 1M /dev/nbd1
  sync; echo 3 > /proc/sys/vm/drop_caches
  for i in 0 1 2 3 4; do dd if=/dev/nbd1 bs=1M skip=$i count=1 2>/dev/null | sha256sum; done
  /sbin/nbd-client -d /dev/nbd0; /sbin/nbd-client -d /dev/nbd1`;

test("the kernel's own client: files, TRIM and zeros over TCP", async (t) => {
  if (!requires(t, "nbd-client", "mke2fs", "fstrim", "blkdiscard", "e2fsck")) return;
  const own = scratch(t);
  const [files, blocks] = ["files.qcow2", "blocks.qcow2"].map((name) => join(own, name)) as [string, string];
  for (const image of [files, blocks]) run("qemu-img", ["create", "-q", "-f", "qcow2", image, "64M"]);
  const port = await freePort();
  const served = await serving(t, [files, blocks], { port });
  const printed = await otherKernel(t, {
    modules: ["nbd", "virtio_net", "ext4", "crc32c_generic"],
    disks: [],
    network: true,
    tools: ["/sbin/nbd-client", "/sbin/mke2fs", "/sbin/blkdiscard", "/sbin/fstrim"],
    script: KERNEL_CLIENT(port),
  });
  if (printed === undefined) return;
  assert.equal((await served.stop()).code, 0);
  const lines = printed.trim().split("\n");
  assert.deepEqual(lines.slice(0, 3), ["131072", "131072", "5"]);
  const digest = (bytes: Buffer): string => `${createHash("sha256").update(bytes).digest("hex")}  -`;
  const all = digest(Buffer.from("all\n".repeat(MiB / 4)));
  const zeros = digest(Buffer.alloc(MiB));
  assert.deepEqual(lines.slice(-5), [all, zeros, all, zeros, all]);
  const disk: LiveDisk = { path: files, format: "qcow2", filesystem: "ext4" };
  allIsWell(t, [disk]);
  assert.equal((await survey(files, { format: "qcow2" })).reclaimableBytes, 0);
  assert.deepEqual(qemuCheck(blocks), { errors: 0, leaks: 0 });
  const hashes = lines.slice(3, -5);
  assert.equal(hashes.length, 5);
  for (const line of hashes) {
    const [hash, name] = line.split("  ") as [string, string];
    const copy = join(own, name);
    run("debugfs", ["-R", `dump /${name} ${copy}`, rawView(t, disk)]);
    assert.equal(createHash("sha256").update(readFileSync(copy)).digest("hex"), hash, name);
  }
});
