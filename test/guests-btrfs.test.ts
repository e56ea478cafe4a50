/**
 * Btrfs through the whole product, judged by the kernel that wrote it and by btrfs-progs.
 *
 *   kernel fills and deletes → print → reclaim → btrfs check → print: the same, by every older root, too
 */
import assert from "node:assert/strict";
import { closeSync, openSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import type { ExtentSet } from "../src/bytes/extents.ts";
import { explain, reclaim, survey } from "../src/disk.ts";
import { btrfs } from "../src/filesystems/btrfs.ts";
import { OLDER } from "../src/filesystems/btrfs/owners.ts";
import { dumpedBackups, dumpedPlaces } from "../src/testing/btrfs.ts";
import { live, makeBtrfs, printOfBtrfs, printOfFolder, withBtrfs } from "../src/testing/btrfs-guest.ts";
import { fileDevice } from "../src/testing/file-device.ts";
import { attempt, requires, requiresRoot, run, scratch } from "../src/testing/tools.ts";

const MiB = 2 ** 20;

const available = (t: TestContext) =>
  requires(t, "mkfs.btrfs", "btrfs", "losetup", "qemu-img") && requiresRoot(t);

function guest(t: TestContext, devices: number, options: string, mount = "rw"): string[] {
  const folder = scratch(t);
  const paths = Array.from({ length: devices }, (_, index) => join(folder, `disk${index}.raw`));
  makeBtrfs(paths, devices === 1 ? 256 : 160, options.split(" ").filter(Boolean));
  withBtrfs(paths, mount, (root) => live(root, 3));
  return paths;
}

/** What `btrfs restore` finds by one root, and whether it complained. */
function restored(t: TestContext, path: string, root: number): string {
  const folder = scratch(t);
  const { status, stderr } = attempt("btrfs", ["restore", "-s", "-S", "-i", "-t", `${root}`, path, folder]);
  const files = run("sh", [
    "-c",
    'cd "$1" && find . -type f -print0 | sort -z | xargs -0 -r sha256sum',
    "sh",
    folder,
  ]);
  rmSync(folder, { recursive: true });
  return `${status}\n${stderr.replaceAll(path, "")}\n${files}`;
}

function checked(path: string, ...options: readonly string[]): string {
  const { status, stdout, stderr } = attempt("btrfs", ["check", "--readonly", ...options, path]);
  return `${status}\n${stdout}${stderr}`.replaceAll(path, "");
}

/** The node in which the current root tree begins. */
function currentRoot(path: string): number {
  const superblock = run("btrfs", ["inspect-internal", "dump-super", path]);
  return Number(/^root\s+(\d+)/m.exec(superblock)![1]);
}

/** Writes over all copies of a node. */
function destroyNode(path: string, at: number): void {
  const places = dumpedPlaces(path, at);
  assert.ok(places.length > 0);
  const file = openSync(path, "r+");
  for (const place of places) writeSync(file, Buffer.alloc(4096, 0xdb), 0, 4096, place);
  closeSync(file);
}

test("H4: after a reclaim all files are there, and by every older root what was there before", async (t) => {
  if (!available(t)) return;
  const [disk] = guest(t, 1, "", "compress=zstd") as [string];
  const backups = dumpedBackups(disk).sort((a, b) => a.generation - b.generation);
  assert.equal(backups.length, 4);
  const before = {
    print: printOfBtrfs([disk]),
    restored: backups.map(({ root }) => restored(t, disk, root)),
    checked: backups.map(({ root }) => checked(disk, "--tree-root", `${root}`)),
  };
  const early = `${disk}.before`;
  run("cp", ["--sparse=always", disk, early]);

  const done = await reclaim(disk, { format: "raw", verify: true });
  assert.equal(done.applied, true);
  assert.ok(done.reclaimedBytes > MiB, `${done.reclaimedBytes} bytes`);
  assert.match(checked(disk), /^0\n/);
  assert.equal(printOfBtrfs([disk]), before.print);
  backups.forEach(({ root, generation }, index) => {
    assert.equal(restored(t, disk, root), before.restored[index], `generation ${generation}`);
    assert.equal(checked(disk, "--tree-root", `${root}`), before.checked[index], `generation ${generation}`);
  });
  for (const path of [disk, early]) destroyNode(path, currentRoot(path));
  const rescued = printOfBtrfs([disk], "ro,rescue=usebackuproot");
  assert.notEqual(rescued, before.print, "an older generation is another one");
  assert.equal(rescued, printOfBtrfs([early], "ro,rescue=usebackuproot"));
});

test("H4: what an older generation lists is kept, though the way to it is broken", async (t) => {
  if (!available(t)) return;
  const [disk] = guest(t, 1, "") as [string];
  const whole = await freeOf(disk);
  const [newest, ...older] = dumpedBackups(disk).sort((a, b) => b.generation - a.generation);
  const changed = older.filter(({ fileRoot }) => fileRoot !== newest!.fileRoot);
  assert.ok(changed.length > 0);
  for (const { fileRoot } of changed) destroyNode(disk, fileRoot);
  assert.match(checked(disk), /^0\n/);
  assert.equal((await freeOf(disk)).subtract(whole).bytes, 0);
});

/** A root item with its drop progress, and the address of the root. */
const SUBVOLUME = /\(256 ROOT_ITEM[^]*?bytenr (\d+)[^]*?drop_progress key \([1-9]/;

/** Makes a filesystem that is unmounted so soon after a subvolume of it was deleted. */
function deleteHalf(disk: string, seconds: string): void {
  makeBtrfs([disk], 256, ["-n", "4096", "-m", "single"]);
  withBtrfs([disk], "rw", (root) => {
    run("btrfs", ["subvolume", "create", join(root, "sub")]);
    for (let i = 0; i < 15_000; i++) writeFileSync(join(root, "sub", `${i}`), Buffer.alloc(1000, i));
  });
  withBtrfs([disk], "rw", (root) => {
    run("btrfs", ["subvolume", "delete", join(root, "sub")]);
    run("btrfs", ["filesystem", "sync", root]);
    run("sleep", [seconds]);
  });
}

/** Looks for the moment at which the kernel is in the midst of it: too soon nothing is deleted, too late all of it. */
function foundHalf(disk: string, rootsOf: () => string): boolean {
  let [tooSoon, tooLate] = [0, 0.1];
  for (let i = 0; i < 12; i++) {
    const seconds = i % 4 === 0 ? 0.02 : (tooSoon + tooLate) / 2;
    deleteHalf(disk, `${seconds}`);
    const roots = rootsOf();
    if (SUBVOLUME.test(roots)) return true;
    if (/\(256 ROOT_ITEM/.test(roots)) [tooSoon, tooLate] = [seconds, Math.max(tooLate, seconds * 2)];
    else tooLate = seconds;
  }
  return false;
}

test("H4: a subvolume that was half deleted is kept for an older generation", async (t) => {
  if (!available(t)) return;
  const disk = join(scratch(t), "disk.raw");
  const dump = (...options: string[]) =>
    attempt("btrfs", ["inspect-internal", "dump-tree", ...options, disk]).stdout;
  const isHalf = foundHalf(disk, () => dump("-t", "root"));
  if (!isHalf) return t.diagnostic("it was deleted at once, or not at all");
  const [, root] = SUBVOLUME.exec(dump("-t", "root"))!;
  const printed = dump("--follow", "-b", root!).matchAll(/^leaf (\d+) items/gm);
  const leaves = new Set(Array.from(printed, ([, at]) => Number(at)));
  const [sample] = leaves;
  assert.deepEqual(dumpedPlaces(disk, sample!), [sample], "what is not mirrored lies where its address says");
  const wanted = new Set<number>();
  const current = new Set<number>();
  await using device = await fileDevice(disk);
  const filesystem = await btrfs.open([device], { replay: false });
  await filesystem.walk((_, at, end, owner) => {
    if (owner !== OLDER) current.add(at);
    else if (leaves.has(at) && end - at === 4096) wanted.add(at);
  });
  assert.ok(wanted.size > 0, "leaves that were dropped in the last generation");
  for (const { extentRoot } of dumpedBackups(disk)) {
    if (!current.has(extentRoot)) destroyNode(disk, extentRoot);
  }
  const free = await freeOf(disk);
  assert.deepEqual(
    [...wanted].filter((at) => free.has(at)),
    [],
  );
});

async function freeOf(path: string): Promise<ExtentSet> {
  await using device = await fileDevice(path);
  const filesystem = await btrfs.open([device], { replay: false });
  const [free] = await filesystem.free();
  assert.equal(filesystem.refusal, undefined);
  return free!;
}

test("a Btrfs in an image of mapped blocks", async (t) => {
  if (!available(t)) return;
  const [disk] = guest(t, 1, "--mixed --csum blake2") as [string];
  const print = printOfBtrfs([disk]);
  const image = `${disk}.qcow2`;
  run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", disk, image]);
  const { volumes } = await survey(image);
  assert.deepEqual([volumes[0]!.filesystem, volumes[0]!.state], ["btrfs", "clean"]);
  assert.equal((await reclaim(image, { verify: true })).applied, true);
  run("qemu-img", ["check", image]);
  run("qemu-img", ["convert", "-O", "raw", image, disk]);
  assert.match(checked(disk), /^0\n/);
  assert.equal(printOfBtrfs([disk]), print);
});

for (const options of ["-m raid1 -d raid0", "-m dup -d single"]) {
  test(`H36: two disks of one Btrfs give back what is free on each: ${options}`, async (t) => {
    if (!available(t)) return;
    const disks = guest(t, 2, options) as [string, string];
    const print = printOfBtrfs(disks);
    const [alone] = (await survey(disks[0], { format: "raw" })).volumes;
    assert.deepEqual([alone!.state, alone!.reason?.code], ["refused", "members-missing"]);
    for (const disk of disks) {
      const companions = disks.filter((other) => other !== disk);
      const done = await reclaim(disk, { format: "raw", companions, verify: true });
      assert.equal(done.applied, true);
    }
    assert.equal(printOfBtrfs(disks), print);
  });
}

test("H2: a killed guest is refused; with --allow replay nothing that its log needs goes", async (t) => {
  if (!available(t)) return;
  const [disk] = guest(t, 1, "") as [string];
  const killed = `${disk}.killed`;
  withBtrfs([disk], "rw", (root) => {
    for (let i = 0; i < 20; i++) {
      writeFileSync(join(root, `late${i}`), Buffer.alloc(50_000, `late ${i} `));
      run("sync", [join(root, `late${i}`)]);
    }
    run("cp", ["--sparse=always", disk, killed]);
  });
  const copy = `${killed}.copy`;
  run("cp", ["--sparse=always", killed, copy]);
  const [volume] = (await survey(killed, { format: "raw" })).volumes;
  assert.equal(volume!.reason?.code, "journal-dirty");
  assert.ok((await explain(killed, { format: "raw", file: "/last" })).file, "and is explained all the same");
  assert.equal((await reclaim(killed, { format: "raw" })).applied, false);
  assert.equal((await reclaim(killed, { format: "raw", allow: { replay: true } })).applied, true);
  const print = withBtrfs([copy], "rw", printOfFolder);
  assert.match(print, /late19/);
  assert.equal(withBtrfs([killed], "rw", printOfFolder), print);
  assert.match(checked(killed), /^0\n/);
});

test("files of subvolumes are explained", async (t) => {
  if (!available(t)) return;
  const [disk] = guest(t, 1, "-d single") as [string];
  const { file } = await explain(disk, { format: "raw", file: "/sub/inner/file1" });
  const { offsets } = await explain(disk, { format: "raw", offsets: [file!.pieces[0]!.offset] });
  assert.match(offsets[0]!.ownerPath!, /^\/(sub|snapshot)\/inner\/file1$/);
});
