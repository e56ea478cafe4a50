/**
 * Volumes that the kernel filled: free and reached must add up to the whole, files must read as the kernel reads them.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { liveIn, withMount } from "../../testing/kernel-guest.ts";
import { fileDevice } from "../../testing/file-device.ts";
import { Random } from "../../testing/seeds.ts";
import { attempt, requires, requiresRoot, run, scratch } from "../../testing/tools.ts";
import { balances, makeXfs, xfsDb } from "../../testing/xfs.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import type { FileSystem } from "../filesystem.ts";
import { xfs } from "../xfs.ts";
import { checksumOf } from "./refused.ts";
import { logExtent } from "./log.ts";
import { readSuperblock, SuperblockLayout } from "./superblock.ts";

const SIZE = 96 * 2 ** 20;
const WHOLE = { start: 0, end: SIZE };

const MAKES = [
  "",
  "-b size=1024 -i size=512,nrext64=1 -m rmapbt=1 -d agcount=5",
  "-n size=32768 -b size=2048 -i sparse=0",
  "-m finobt=0,inobtcount=0,reflink=0,bigtime=0",
  "-s size=4096 -b size=16384 -i size=2048",
];

/** What the guests of other filesystems do not have: trees of extents, shared blocks, directories of every shape. */
function fill(root: string): void {
  const at = (...names: string[]) => join(root, ...names);
  const random = new Random(3);
  const pieces = openSync(at("pieces"), "w");
  for (let i = 0; i < 900; i++) writeSync(pieces, random.bytes(512), 0, 512, i * 16384);
  closeSync(pieces);
  for (const count of [2, 20, 150, 1500]) {
    mkdirSync(at(`dir${count}`));
    for (let i = 0; i < count; i++) writeFileSync(at(`dir${count}`, `entry number ${i}`), "");
    for (let i = 0; i < count; i += 7) rmSync(at(`dir${count}`, `entry number ${i}`));
  }
  writeFileSync(at("original"), random.bytes(300_000));
  attempt("cp", ["--reflink=always", at("original"), at("clone")]);
  attempt("xfs_io", ["-c", "pwrite -q 65536 4096", at("clone")]);
  symlinkSync("x".repeat(1000), at("long link"));
  for (let i = 0; i < 40; i++) {
    attempt("setfattr", ["-n", `user.note${i}`, "-v", "v".repeat(60 * (i + 1)), at("original")]);
  }
  attempt("xfs_io", ["-c", "falloc 0 1m", at("original")]);
  run("mknod", [at("null"), "c", "1", "3"]);
  run("mkfifo", [at("fifo")]);
  writeFileSync(Buffer.concat([Buffer.from(at("odd ")), Buffer.from([1, 0xff])]), "odd");
}

async function opened(
  t: TestContext,
  path: string,
): Promise<{ device: BlockDevice; filesystem: FileSystem }> {
  const device = await fileDevice(path);
  t.after(() => device[Symbol.asyncDispose]());
  return { device, filesystem: await xfs.open([device], { replay: false }) };
}

async function contentOf(device: BlockDevice, filesystem: FileSystem, path: string): Promise<string> {
  const found = await filesystem.find(path);
  assert.ok(found, path);
  const content = new Uint8Array(found.bytes);
  for (const { fileOffset, at, bytes, unwritten } of found.extents) {
    const length = Math.min(bytes, found.bytes - fileOffset);
    if (length > 0 && !unwritten) content.set(await readBytes(device, at, length), fileOffset);
  }
  return sha256(content);
}

const sha256 = (content: Uint8Array) => createHash("sha256").update(content).digest("hex");

for (const make of MAKES) {
  test(`a disk filled by the kernel balances: mkfs.xfs ${make}`, async (t) => {
    if (!requires(t, "mkfs.xfs", "xfs_db", "xfs_io", "setfattr") || !requiresRoot(t)) return;
    const image = join(scratch(t), "image");
    makeXfs(image, make, `${SIZE}`);
    liveIn(image, WHOLE, 1);
    const expected = withMount(image, WHOLE, "rw", (root) => {
      fill(root);
      return kernelsView(root);
    });
    const { device, filesystem } = await opened(t, image);
    const owners = await balances(filesystem, image);
    for (const { path, inode, hash } of expected.files) {
      assert.equal(await contentOf(device, filesystem, path), hash, path);
      if (owners.has(inode)) assert.equal((await filesystem.describe(inode)).path, path);
    }
    for (const [folder, names] of expected.folders) {
      assert.deepEqual((await filesystem.list(folder))!.map(({ name }) => name).sort(), names);
    }
  });
}

test("a tree of extents, shared blocks and remote attributes were among them", async (t) => {
  if (!requires(t, "mkfs.xfs", "xfs_db", "xfs_io", "setfattr") || !requiresRoot(t)) return;
  const image = join(scratch(t), "image");
  makeXfs(image, "", `${SIZE}`);
  withMount(image, WHOLE, "rw", fill);
  assert.match(xfsDb(image, "path /pieces", "print core.format"), /btree/);
  assert.match(xfsDb(image, "path /original", "print core.aformat"), /extents|btree/);
  const { filesystem } = await opened(t, image);
  assert.equal((await filesystem.find("/clone"))!.fixed, "shared");
  assert.equal((await filesystem.find("/pieces"))!.fixed, undefined);
  assert.equal((await filesystem.find("/long link"))!.fixed, "checksummed");
  assert.equal((await filesystem.find("/dir2"))!.fixed, "inline");
  assert.equal(await filesystem.find("/dir2/entry number 1/below"), undefined);
  const kinds = ["/pieces", "/dir2", "/long link"].map(async (path) => (await filesystem.find(path))!.kind);
  assert.deepEqual(await Promise.all(kinds), ["file", "directory", "other"]);
  assert.equal(await filesystem.list("/pieces"), undefined);
  const names = await Promise.all([-1, -12, -11, -20].map((owner) => filesystem.describe(owner)));
  assert.deepEqual(
    names.map(({ kind, name }) => `${kind}: ${name}`),
    [
      "metadata: superblock and headers of AG 0",
      "metadata: superblock and headers of AG 1",
      "journal: log",
      "metadata: inodes of AG 1",
    ],
  );
});

test("sparse chunks of inodes balance", async (t) => {
  if (!requires(t, "mkfs.xfs", "xfs_db", "xfs_io") || !requiresRoot(t)) return;
  const image = join(scratch(t), "image");
  makeXfs(image, "-m reflink=0,finobt=0,inobtcount=0 -d agcount=1", `${SIZE}`);
  withMount(image, WHOLE, "rw", (root) => {
    const hog = join(root, "hog");
    run("xfs_io", ["-x", "-c", "resblks 0", root]);
    attempt("dd", ["if=/dev/zero", `of=${hog}`, "bs=1M"]);
    attempt("dd", ["if=/dev/zero", `of=${join(root, "rest")}`, "bs=4k"]);
    const punches = Array.from({ length: 300 }, (_, i) => ["-c", `fpunch ${i * 65536} 28672`]);
    run("xfs_io", [...punches.flat(), hog]);
    for (let i = 0; i < 600; i++) writeFileSync(join(root, `${i}`), "");
  });
  assert.match(xfsDb(image, "agi 0", "addr root", "print recs"), /:\[\d+,0xff00,32,/);
  await balances((await opened(t, image)).filesystem, image);
});

test("parent pointers and exchanged ranges, which are newer than mkfs.xfs here", async (t) => {
  if (!requires(t, "mkfs.xfs", "xfs_db") || !requiresRoot(t)) return;
  const image = join(scratch(t), "image");
  makeXfs(image, "-m rmapbt=1 -i nrext64=1", "300M");
  const file = openSync(image, "r+");
  const sector = readFileSync(image).subarray(0, 512);
  const { incompat } = SuperblockLayout.decode(sector);
  SuperblockLayout.encode({ incompat: incompat | 0x40 | 0x80 }, sector);
  SuperblockLayout.encode({ checksum: checksumOf(sector, SuperblockLayout.at.checksum) }, sector);
  writeSync(file, sector, 0, 512, 0);
  closeSync(file);
  withMount(image, { start: 0, end: 300 * 2 ** 20 }, "rw", (root) => {
    const fill = `cd "$1"; echo > file; for i in $(seq 60); do ln file "a long and longer name for a link, number $i"; done`;
    run("sh", ["-c", fill, "sh", root]);
  });
  assert.match(xfsDb(image, "path /file", "print core.aformat"), /extents|btree/);
  await balances((await opened(t, image)).filesystem, image);
});

test("eight bytes may be unused at the end of a block of a directory", async (t) => {
  if (!requires(t, "mkfs.xfs", "xfs_db") || !requiresRoot(t)) return;
  const image = join(scratch(t), "image");
  makeXfs(image, "", "32M");
  withMount(image, { start: 0, end: 32 * 2 ** 20 }, "rw", (root) => {
    mkdirSync(join(root, "full"));
    const names = ["a", "b", ...Array.from({ length: 400 }, (_, i) => `name${1000 + i}`)];
    for (const name of names) writeFileSync(join(root, "full", name), "");
  });
  assert.match(xfsDb(image, "path /full", "dblock 0", "print"), /du\[\d+\]\.length = 0x8\n/);
  await balances((await opened(t, image)).filesystem, image);
});

test("blocks kept for a copy-on-write count as used", async (t) => {
  if (!requires(t, "mkfs.xfs", "xfs_db", "xfs_io", "fsfreeze") || !requiresRoot(t)) return;
  const image = join(scratch(t), "image");
  makeXfs(image, "", `${SIZE}`);
  const { device: fresh } = await opened(t, image);
  const log = logExtent(await readSuperblock(fresh));
  const emptyLog = await readBytes(fresh, log.start * 4096, (log.end - log.start) * 4096);
  withMount(image, WHOLE, "rw", (root) => {
    writeFileSync(join(root, "original"), Buffer.alloc(2 ** 20, "ullage"));
    run("cp", ["--reflink=always", join(root, "original"), join(root, "clone")]);
    run("xfs_io", ["-c", "pwrite -q 262144 4096", "-c", "fsync", join(root, "clone")]);
    run("fsfreeze", ["-f", root]);
    run("cp", [image, `${image}.frozen`]);
    run("fsfreeze", ["-u", root]);
  });
  // All is in its place, but an unmount would have counted what is free, and given the blocks back.
  const frozen = `${image}.frozen`;
  const file = openSync(frozen, "r+");
  writeSync(file, emptyLog, 0, emptyLog.length, log.start * 4096);
  closeSync(file);
  const counts = [0, 1, 2, 3].map((ag) => xfsDb(frozen, `agf ${ag}`, "print freeblks flcount btreeblks"));
  const free = [...counts.join("").matchAll(/\d+/g)].reduce((sum, [count]) => sum + Number(count), 0);
  run("xfs_db", ["-x", "-c", "sb 0", "-c", `write -d fdblocks ${free}`, frozen]);
  const { filesystem } = await opened(t, frozen);
  const owners = [...(await balances(filesystem, frozen)).keys()];
  const names = await Promise.all(owners.map(async (owner) => (await filesystem.describe(owner)).name));
  assert.ok(names.some((name) => name.startsWith("blocks kept for copy-on-write")));
});

test("what was deleted while open counts as used, with a note", async (t) => {
  if (!requires(t, "mkfs.xfs", "xfs_db") || !requiresRoot(t)) return;
  const image = join(scratch(t), "image");
  makeXfs(image, "", "32M");
  run("xfs_db", ["-x", "-c", "agi 0", "-c", "write -d unlinked[3] 131", image]);
  const { filesystem } = await opened(t, image);
  assert.match(filesystem.notes[0]!, /deleted while open/);
});

interface KernelsView {
  readonly files: readonly { readonly path: string; readonly inode: number; readonly hash: string }[];
  readonly folders: ReadonlyMap<string, readonly string[]>;
}

/** Files of moderate length with one name that can be shown, and all that three folders hold. */
function kernelsView(root: string): KernelsView {
  const list = `cd "$1" && find . -type f -links 1 -size -64M -name '*[!A-z]' -printf '%i %P\n'`;
  const files = run("sh", ["-c", list, "sh", root])
    .split("\n")
    .filter((line) => /^[ -~]+$/.test(line))
    .map((line) => {
      const [, inode, name] = /^(\d+) (.*)$/.exec(line)!;
      const content = readFileSync(join(root, name!));
      return { path: `/${name}`, inode: Number(inode), hash: sha256(content) };
    });
  const folders = ["/dir2", "/dir150", "/dir1500", "/life1"].map(
    (folder) => [folder, readdirSync(join(root, folder)).sort()] as const,
  );
  return { files: files.filter((_, index) => index % 8 === 0), folders: new Map(folders) };
}
