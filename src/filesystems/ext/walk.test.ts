/**
 * Filesystems filled by the kernel or by mke2fs, judged by e2fsck, dumpe2fs and debugfs.
 */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import {
  closeSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { dumpe2fsFree } from "../../testing/ext.ts";
import { fileDevice } from "../../testing/file-device.ts";
import { attempt, requires, requiresRoot, run, scratch } from "../../testing/tools.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { ext } from "../ext.ts";
import type { FileSystem } from "../filesystem.ts";

/** Features that need a kernel to fill them, then those that the kernel does not mount. */
const MOUNTED = [
  "-t ext2 -b 1024",
  "-t ext2 -b 4096 -I 128",
  "-t ext3 -b 2048",
  "-t ext4 -b 1024",
  "-t ext4",
  "-t ext4 -O inline_data,ea_inode -I 512",
  "-t ext4 -O bigalloc -C 16384",
  "-t ext4 -O bigalloc -C 32768 -b 1024",
  "-t ext4 -O ^resize_inode,meta_bg",
  "-t ext4 -O ^metadata_csum,uninit_bg,^64bit,^flex_bg",
  "-t ext4 -O ^extent,^64bit",
  "-t ext4 -O ^has_journal,^filetype -I 128",
];
const COPIED = [
  "-t ext4 -b 16384",
  "-t ext4 -b 65536",
  "-t ext4 -O sparse_super2",
  "-t ext4 -O casefold,orphan_file,metadata_csum_seed,verity,encrypt,large_dir",
  "-t ext4 -O quota,project",
];

/** Every shape of file: fragmented, sparse far out, long and short symlinks, hard links, attributes, deleted ones. */
function fill(folder: string): void {
  const at = (...names: string[]) => join(folder, ...names);
  for (let i = 0; i < 200; i++) writeFileSync(at(`small${i}`), randomBytes(i * 41));
  mkdirSync(at("big"));
  for (let i = 0; i < 700; i++) writeFileSync(at("big", `entry number ${i}`), "");
  for (let i = 0; i < 700; i += 7) rmSync(at("big", `entry number ${i}`));
  mkdirSync(at("deep", "a", "b", "c"), { recursive: true });
  writeFileSync(at("deep", "a", "b", "c", "leaf"), "leaf");
  linkSync(at("deep", "a", "b", "c", "leaf"), at("hard"));
  symlinkSync("leaf", at("deep", "short"));
  symlinkSync("x".repeat(300), at("deep", "long"));
  const holes = openSync(at("holes"), "w");
  for (let i = 0; i < 500; i++) writeSync(holes, randomBytes(1024), 0, 1024, i * 16384);
  closeSync(holes);
  writeFileSync(at("sparse"), randomBytes(5000));
  truncateSync(at("sparse"), 90_000_000);
  const sparse = openSync(at("sparse"), "r+");
  writeSync(sparse, randomBytes(3000), 0, 3000, 80_000_000);
  closeSync(sparse);
  writeFileSync(at("plain"), randomBytes(1_000_000));
  writeFileSync(at("gone"), randomBytes(2_000_000));
  writeFileSync(Buffer.concat([Buffer.from(at("odd ")), Buffer.from([1, 0xff])]), "odd");
  rmSync(at("gone"));
  run("mknod", [at("null"), "c", "1", "3"]);
  run("mkfifo", [at("fifo")]);
}

/** Attributes that fit into a large inode, into a block, and only into an inode of their own. */
function addAttributes(folder: string): void {
  for (const bytes of [40, 700, 3000]) {
    const files = [0, 1, 2].map((i) => join(folder, `small${(bytes % 90) + i}`));
    attempt("setfattr", ["-n", "user.text", "-v", "v".repeat(bytes), ...files]);
  }
}

async function opened(
  t: TestContext,
  path: string,
): Promise<{ device: BlockDevice; filesystem: FileSystem }> {
  const device = await fileDevice(path);
  t.after(() => device[Symbol.asyncDispose]());
  return { device, filesystem: await ext.open([device], { replay: false }) };
}

function mounted<T>(t: TestContext, image: string, use: (folder: string) => T): T {
  const folder = scratch(t);
  run("mount", ["-o", "loop", image, folder]);
  try {
    return use(folder);
  } finally {
    run("umount", [folder]);
  }
}

test("a short symlink with an attribute value of its own balances", async (t) => {
  if (!requires(t, "mke2fs", "mount", "setfattr", "dumpe2fs") || !requiresRoot(t)) return;
  const image = join(scratch(t), "image");
  run("mke2fs", ["-q", "-F", "-t", "ext4", "-O", "ea_inode", image, "32M"]);
  mounted(t, image, (folder) => {
    symlinkSync("short", join(folder, "link"));
    run("setfattr", ["-h", "-n", "trusted.large", "-v", "v".repeat(20_000), join(folder, "link")]);
  });
  const { filesystem } = await opened(t, image);
  await balances(filesystem, image);
});

/** Double entry without a contradiction and without a leak. */
async function balances(filesystem: FileSystem, image: string): Promise<Map<number, number>> {
  const [free] = await filesystem.free();
  assert.deepEqual([...free!], [...dumpe2fsFree(image)]);
  const used = new Set<number>();
  const owners = new Map<number, number>();
  await filesystem.walk((_, start, end, owner) => {
    assert.ok(!free!.touches({ start, end }), `${owner} at ${start} is free`);
    for (let at = start; at < end; at += filesystem.blockBytes) used.add(at);
    if (!owners.has(owner)) owners.set(owner, start);
  });
  assert.equal(filesystem.refusal, undefined);
  assert.equal(
    used.size * filesystem.blockBytes + free!.bytes,
    Math.ceil(filesystem.bytes / filesystem.blockBytes) * filesystem.blockBytes,
  );
  return owners;
}

async function contentOf(device: BlockDevice, filesystem: FileSystem, path: string): Promise<string> {
  const found = await filesystem.find(path);
  assert.ok(found, path);
  const content = new Uint8Array(found.bytes);
  for (const { fileOffset, at, bytes, unwritten } of found.extents) {
    const length = Math.min(bytes, found.bytes - fileOffset);
    if (length > 0 && !unwritten) content.set(await readBytes(device, at, length), fileOffset);
  }
  return createHash("sha256").update(content).digest("hex");
}

for (const make of MOUNTED) {
  test(`a disk filled by the kernel balances: ${make}`, async (t) => {
    if (!requires(t, "mke2fs", "mount", "setfattr", "e2fsck", "debugfs") || !requiresRoot(t)) return;
    const image = join(scratch(t), "image");
    run("mke2fs", ["-q", "-F", ...make.split(" "), image, "96M"]);
    const hashes = mounted(t, image, (folder) => {
      fill(folder);
      addAttributes(folder);
      return ["plain", "holes", "sparse", "hard", "small0", "small1", "small199", "small7"].map((name) => {
        return [
          `/${name}`,
          createHash("sha256")
            .update(readFileSync(join(folder, name)))
            .digest("hex"),
        ] as const;
      });
    });
    assert.equal(attempt("e2fsck", ["-fn", image]).status, 0);
    const { device, filesystem } = await opened(t, image);
    const owners = await balances(filesystem, image);
    for (const [path, hash] of hashes) assert.equal(await contentOf(device, filesystem, path), hash, path);
    await namesAgree(filesystem, image, owners);
    assert.ok(await filesystem.find("/odd \\x01\\xff"), "escaped names are found again");
    assert.equal(await filesystem.find("/deep/nobody"), undefined);
  });
}

/** debugfs names the owner of a block, and its path. */
async function namesAgree(filesystem: FileSystem, image: string, owners: Map<number, number>): Promise<void> {
  const inodes = [...owners].filter(([owner]) => owner > 11).slice(-60);
  const blockBytes = Number(/^Block size: +(\d+)/m.exec(run("dumpe2fs", ["-h", image]))![1]);
  const blocks = inodes.map(([, start]) => start / blockBytes);
  const checked = run("debugfs", ["-R", `icheck ${blocks.join(" ")}`, image]);
  const names = run("debugfs", ["-R", `ncheck ${inodes.map(([owner]) => owner).join(" ")}`, image]);
  for (const [index, [owner]] of inodes.entries()) {
    if (filesystem.blockBytes === blockBytes)
      assert.match(checked, new RegExp(`^${blocks[index]}\t${owner}$`, "m"));
    const paths = [...names.matchAll(new RegExp(`^${owner}\t(.*)$`, "gm"))].map((match) =>
      match[1]!.replace("//", "/"),
    );
    const { path, kind } = await filesystem.describe(owner);
    if (kind === "metadata") assert.deepEqual(paths, []);
    else
      assert.ok(
        paths.includes(path!) || path!.startsWith("/odd"),
        `${owner}: ${path} is not among ${paths.join(" ")}`,
      );
  }
}

for (const make of COPIED) {
  test(`a disk filled by mke2fs balances: ${make}`, async (t) => {
    if (!requires(t, "mke2fs", "dumpe2fs")) return;
    const source = scratch(t);
    fill(source);
    const image = join(scratch(t), "image");
    run("mke2fs", ["-q", "-F", ...make.split(" "), "-d", source, image, "160M"]);
    const { device, filesystem } = await opened(t, image);
    await balances(filesystem, image);
    for (const name of readdirSync(source)) {
      if (name.startsWith("odd") || !lstatSync(join(source, name)).isFile()) continue;
      const hash = createHash("sha256")
        .update(readFileSync(join(source, name)))
        .digest("hex");
      assert.equal(await contentOf(device, filesystem, `/${name}`), hash, name);
    }
  });
}

const RESIZED = [
  { make: "-t ext4 -b 1024", from: "40M", to: "300M" },
  { make: "-t ext4 -b 1024", from: "200M", to: "30M" },
  { make: "-t ext4 -b 1024 -O ^resize_inode,meta_bg", from: "40M", to: "300M" },
];

for (const { make, from, to } of RESIZED) {
  test(`a disk resized from ${from} to ${to} balances: ${make}`, async (t) => {
    if (!requires(t, "mke2fs", "resize2fs", "dumpe2fs")) return;
    const image = join(scratch(t), "image");
    run("mke2fs", ["-q", "-F", ...make.split(" "), "-d", join(import.meta.dirname, ".."), image, from]);
    run("resize2fs", ["-f", image, to]);
    const { filesystem } = await opened(t, image);
    await balances(filesystem, image);
  });
}

test("a disk with bad blocks balances", async (t) => {
  if (!requires(t, "mke2fs", "dumpe2fs")) return;
  const folder = scratch(t);
  const [image, list] = [join(folder, "image"), join(folder, "list")];
  writeFileSync(list, "5000\n5001\n20000\n");
  run("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "1024", "-l", list, image, "40M"]);
  const { filesystem } = await opened(t, image);
  const owners = await balances(filesystem, image);
  assert.equal(owners.get(1), 5000 * 1024);
  assert.equal((await filesystem.describe(1)).name, "bad blocks");
});

/** Gives directory `/d` every free block, 32768 to an extent, by one leaf that takes the first of them. */
async function inflateDirectory(image: string): Promise<void> {
  const place = /block (\d+), offset 0x(\w+)/.exec(run("debugfs", ["-R", "imap d", image]))!;
  const leaf = Buffer.alloc(4096);
  let leafBlock = 0;
  let [count, logical] = [0, 0];
  for (const { start, end } of dumpe2fsFree(image)) {
    leafBlock ||= start / 4096;
    for (
      let block = Math.max(start / 4096, leafBlock + 1);
      block < end / 4096 && count < 340;
      block += 32768
    ) {
      const blocks = Math.min(32768, end / 4096 - block);
      leaf.writeUInt32LE(logical, ++count * 12);
      leaf.writeUInt16LE(blocks, count * 12 + 4);
      leaf.writeUInt32LE(block, count * 12 + 8);
      logical += blocks;
    }
  }
  const header = (entries: number, max: number, depth: number) =>
    Buffer.from(Uint16Array.of(0xf30a, entries, max, depth, 0, 0).buffer);
  header(count, 340, 0).copy(leaf);
  const root = Buffer.alloc(60);
  header(1, 4, 1).copy(root);
  root.writeUInt32LE(leafBlock, 16);
  const file = openSync(image, "r+");
  writeSync(file, leaf, 0, leaf.length, leafBlock * 4096);
  writeSync(file, root, 0, root.length, Number(place[1]) * 4096 + parseInt(place[2]!, 16) + 40);
  closeSync(file);
}

test("H24: a directory of ten million blocks on a sparse disk takes no memory", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "dumpe2fs")) return;
  const image = join(scratch(t), "image");
  const features = "^metadata_csum,^resize_inode,^has_journal,uninit_bg";
  run("mke2fs", ["-q", "-F", "-t", "ext4", "-O", features, "-N", "5000", image, "48G"]);
  run("debugfs", ["-w", "-R", "mkdir d", image]);
  await inflateDirectory(image);
  const { device, filesystem } = await opened(t, image);
  const before = process.memoryUsage().heapUsed;
  let peak = 0;
  const read = device.read.bind(device);
  device.read = (at, into) => {
    peak = Math.max(peak, process.memoryUsage().heapUsed - before);
    return read(at, into);
  };
  await filesystem.walk(() => {});
  assert.match(filesystem.refusal!.message, /of directory inode 12: an entry at 0 of 0 bytes found/);
  assert.ok(peak < 64 * 2 ** 20, `${peak} bytes`);
});
