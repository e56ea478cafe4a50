import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { ExtentSet } from "../bytes/extents.ts";
import { checked } from "../device/checked.ts";
import type { BlockDevice } from "../device/device.ts";
import { corpus, unpack } from "../testing/corpus.ts";
import { makeVolume } from "../testing/f2fs.ts";
import { fileDevice } from "../testing/file-device.ts";
import { partcloneFree } from "../testing/partclone.ts";
import { contentOf, unreachedOf } from "../testing/reach.ts";
import { attempt, requires, scratch } from "../testing/tools.ts";
import { f2fs } from "./f2fs.ts";
import type { FileSystem } from "./filesystem.ts";

/** sload.f2fs does not end well with these: the kernel fills such volumes in test/guests-f2fs.test.ts. */
const NOT_LOADED = "-O extra_attr,flexible_inline_xattr,project_quota,quota";
/** partclone does not know the checksum of a checkpoint with large bitmaps. */
const NOT_CLONED = "-i";

const MAKES = [
  "",
  "-O extra_attr,inode_checksum,sb_checksum,inode_crtime,lost_found,compression",
  NOT_LOADED,
  "-O encrypt,verity,extra_attr -C utf8 -O casefold",
  "-s 2 -z 2",
  NOT_CLONED,
  "-o 30 -a 1",
];

async function opened(
  t: TestContext,
  path: string,
): Promise<{ device: BlockDevice; filesystem: FileSystem }> {
  const device = checked(await fileDevice(path));
  t.after(() => device[Symbol.asyncDispose]());
  assert.ok(await f2fs.probe(device));
  return { device, filesystem: await f2fs.open([device], { replay: false }) };
}

/** What is free and what is reached are the whole volume, and meet nowhere. */
async function assertWhole(filesystem: FileSystem): Promise<ExtentSet> {
  const [free] = await filesystem.free();
  assert.deepEqual([...free!], [...(await unreachedOf(filesystem))]);
  return free!;
}

function growTree(folder: string): string {
  const tree = join(folder, "tree");
  mkdirSync(join(tree, "deep/er"), { recursive: true });
  mkdirSync(join(tree, "many"));
  const content = (bytes: number, seed: number) => {
    const block = createHash("sha512").update(`${seed}`).digest();
    return Buffer.alloc(bytes, block);
  };
  for (let i = 0; i < 260; i++) writeFileSync(join(tree, `many/file-${i}`), content(i * 61, i));
  writeFileSync(join(tree, "large"), content(9_000_000, 1000));
  writeFileSync(join(tree, "deep/er/späť"), content(5000, 1001));
  symlinkSync("er/späť", join(tree, "deep/link"));
  return tree;
}

async function assertFound(filesystem: FileSystem, device: BlockDevice, tree: string): Promise<void> {
  const files = readdirSync(tree, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  assert.equal(files.length, 262);
  for (const { parentPath, name } of files) {
    const path = join(parentPath, name);
    const found = await filesystem.find(path.slice(tree.length));
    const wanted = readFileSync(path);
    assert.equal(found?.bytes, wanted.length, path);
    if (found!.fixed === "inline") continue;
    assert.ok(wanted.equals(await contentOf(device, found!)), path);
    assert.equal((await filesystem.describe(found!.owner)).path, path.slice(tree.length));
  }
  const kinds = ["/large", "/many", "/deep/link"].map(async (path) => (await filesystem.find(path))!.kind);
  assert.deepEqual(await Promise.all(kinds), ["file", "directory", "other"]);
  const listed = await filesystem.list("/many");
  assert.deepEqual(listed!.map(({ name }) => name).sort(), readdirSync(join(tree, "many")).sort());
}

for (const make of MAKES) {
  test(`mkfs.f2fs ${make}: partclone agrees, the walk finds the rest, files lie where they are`, async (t) => {
    if (!requires(t, "mkfs.f2fs", "sload.f2fs", "fsck.f2fs", "partclone.f2fs")) return;
    const folder = scratch(t);
    const image = makeVolume(folder, "image", ["-l", "Ünicode", ...make.split(" ").filter(Boolean)]);
    const empty = await opened(t, image);
    await assertWhole(empty.filesystem);
    assert.equal(empty.filesystem.label, "Ünicode");
    if (make === NOT_LOADED) return;
    const tree = growTree(folder);
    assert.equal(attempt("sload.f2fs", ["-f", tree, image]).status, 0);
    assert.equal(attempt("fsck.f2fs", ["--dry-run", image]).status, 0);
    const { device, filesystem } = await opened(t, image);
    const free = await assertWhole(filesystem);
    if (make !== NOT_CLONED) assert.deepEqual([...free], [...partcloneFree("f2fs", image)]);
    await assertFound(filesystem, device, tree);
  });
}

test("the volume of the blkid tests", async (t) => {
  if (corpus(t) === undefined) return;
  const name = "util-linux+util-linux/tests/ts/blkid/images-fs/f2fs.img.xz";
  const { filesystem } = await opened(t, unpack(t, name));
  assert.ok((await assertWhole(filesystem)).bytes > 100_000_000);
  assert.equal(filesystem.label, "test-f2fs");
});

test("blocks that nodes name and the table calls free, as a loader that ran out of space leaves them", async (t) => {
  if (!requires(t, "mkfs.f2fs", "sload.f2fs")) return;
  const folder = scratch(t);
  const image = makeVolume(folder, "image", [], 60);
  const tree = growTree(folder);
  writeFileSync(join(tree, "too-large"), Buffer.alloc(80_000_000, "x"));
  assert.notEqual(attempt("sload.f2fs", ["-f", tree, image]).status, 0);
  const { filesystem } = await opened(t, image);
  const [free] = await filesystem.free();
  let met = 0;
  await filesystem.walk((_member, start, end) => {
    if (free!.touches({ start, end })) met++;
  });
  assert.ok(met > 0 || filesystem.refusal !== undefined);
});
