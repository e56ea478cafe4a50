/**
 * Whole reclaims of disks whose XFS a kernel filled. xfs_repair and the kernel itself are the judges: nothing to
 * repair, and every file as before; with zeros in what was free, and with rubbish.
 */
import assert from "node:assert/strict";
import { statSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { ExtentSet } from "../src/bytes/extents.ts";
import { slice } from "../src/device/slice.ts";
import { reclaim, survey } from "../src/disk.ts";
import { xfs } from "../src/filesystems/xfs.ts";
import { prove } from "../src/reclaim/prove.ts";
import { fileDevice } from "../src/testing/file-device.ts";
import { dieIn, liveIn, printOf, withMount, withPart } from "../src/testing/kernel-guest.ts";
import { attempt, requires, requiresRoot, run, scratch } from "../src/testing/tools.ts";
import { makeXfs, spoil } from "../src/testing/xfs.ts";

const MiB = 2 ** 20;
const DISK_BYTES = 104 * MiB;
const FILESYSTEM = { start: 4 * MiB, end: 100 * MiB };
const yes = { format: "raw", proof: "full", verify: true } as const;

const hostBytes = (path: string) => statSync(path).blocks * 512;

/** A disk with one partition. */
function blankGuest(t: TestContext, options: string): string {
  const disk = join(scratch(t), "disk.raw");
  run("truncate", ["-s", `${DISK_BYTES}`, disk]);
  run("sfdisk", ["-q", disk], "label: gpt\nstart=4MiB, size=96MiB\n");
  withPart(disk, FILESYSTEM, (device) => makeXfs(device, options));
  return disk;
}

/** The same, filled, with some of its files sharing their blocks. */
function makeGuest(t: TestContext, options: string): string {
  const disk = blankGuest(t, options);
  liveIn(disk, FILESYSTEM, 1);
  withMount(disk, FILESYSTEM, "rw", (root) => {
    attempt("cp", ["-a", "--reflink=always", join(root, "life1"), join(root, "clones")]);
    run("sync", ["-f", root]);
    run("sh", [
      "-c",
      'printf changed | dd of="$1" conv=notrunc status=none',
      "sh",
      join(root, "life1/linked"),
    ]);
  });
  liveIn(disk, FILESYSTEM, 2);
  return disk;
}

function copyOf(disk: string, name: string): string {
  const copy = `${disk}.${name}`;
  run("cp", ["--sparse=always", disk, copy]);
  return copy;
}

function judge(disk: string, print: string): void {
  const { status, stdout, stderr } = withPart(disk, FILESYSTEM, (device) =>
    attempt("xfs_repair", ["-n", device]),
  );
  assert.equal(status, 0, stdout + stderr);
  assert.equal(printOf(disk, FILESYSTEM), print);
}

async function provenFree(disk: string): Promise<ExtentSet> {
  await using device = await fileDevice(disk);
  const filesystem = await xfs.open([slice(device, FILESYSTEM)], { replay: false });
  const { free, refusal } = await prove(filesystem, "full");
  assert.equal(refusal, undefined);
  return free[0]!;
}

const available = (t: TestContext) =>
  requires(t, "mkfs.xfs", "xfs_repair", "qemu-img", "losetup", "sfdisk", "setfattr") && requiresRoot(t);

for (const options of ["", "-m rmapbt=1 -b size=1024 -i nrext64=1 -n size=16384"]) {
  test(`reclaim and rubbish: mkfs.xfs ${options}`, async (t) => {
    if (!available(t)) return;
    const disk = makeGuest(t, options);
    const print = printOf(disk, FILESYSTEM);
    const spoilt = copyOf(disk, "spoilt");
    spoil(spoilt, FILESYSTEM.start, await provenFree(spoilt));
    judge(spoilt, print);
    const image = copyOf(disk, "reclaimed");
    const before = hostBytes(image);
    const done = await reclaim(image, yes);
    const volume = done.survey.volumes.find(({ start }) => start === FILESYSTEM.start)!;
    assert.equal(volume.state, "clean", volume.reason?.message);
    assert.ok(hostBytes(image) < before - MiB, `host bytes went from ${before} to ${hostBytes(image)}`);
    judge(image, print);
    if (options === "") await reclaimQcow2(disk, print);
  });
}

async function reclaimQcow2(disk: string, print: string): Promise<void> {
  const image = `${disk}.qcow2`;
  run("qemu-img", ["convert", "-O", "qcow2", disk, image]);
  assert.equal((await reclaim(image, { ...yes, format: "qcow2" })).applied, true);
  assert.equal(attempt("qemu-img", ["check", image]).status, 0);
  run("qemu-img", ["convert", "-O", "raw", image, `${image}.raw`]);
  judge(`${image}.raw`, print);
}

test("a guest that was killed is refused; with a replay it loses nothing (H2)", async (t) => {
  if (!available(t)) return;
  const disk = blankGuest(t, "");
  liveIn(disk, FILESYSTEM, 1);
  const killed = `${disk}.killed`;
  dieIn(disk, FILESYSTEM, 3, killed);
  const content = run("sha256sum", [killed]);
  const { volumes, reclaimableBytes } = await survey(killed, { format: "raw" });
  const volume = volumes.find(({ start }) => start === FILESYSTEM.start)!;
  assert.equal(volume.reason?.code, "journal-dirty", volume.reason?.message);
  assert.equal(reclaimableBytes, 0);
  assert.equal((await reclaim(killed, yes)).applied, false);
  assert.equal(run("sha256sum", [killed]), content);
  const replayed = copyOf(killed, "replayed");
  const print = printOf(replayed, FILESYSTEM);
  const done = await reclaim(killed, { ...yes, allow: { replay: true } });
  assert.equal(done.applied, true);
  assert.ok(done.survey.reclaimableBytes > 0);
  assert.equal(printOf(killed, FILESYSTEM), print);
  judge(killed, print);
});
