import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import type { ExtentSet } from "../bytes/extents.ts";
import { checked } from "../device/checked.ts";
import { CONTAINER_BYTES, makeContainer } from "../testing/apfs.ts";
import { corpus, unpack } from "../testing/corpus.ts";
import { fileDevice } from "../testing/file-device.ts";
import { partcloneFree } from "../testing/partclone.ts";
import { contentOf, unreachedOf } from "../testing/reach.ts";
import { requires, run, scratch } from "../testing/tools.ts";
import { apfs } from "./apfs.ts";
import type { FileSystem } from "./filesystem.ts";

const MiB = 2 ** 20;

async function opened(t: TestContext, path: string): Promise<FileSystem> {
  const device = checked(await fileDevice(path));
  t.after(() => device[Symbol.asyncDispose]());
  assert.ok(await apfs.probe(device));
  return apfs.open([device], { replay: false });
}

/** What is free and what is reached are the whole container, and meet nowhere. */
async function assertWhole(filesystem: FileSystem): Promise<ExtentSet> {
  const [free] = await filesystem.free();
  assert.deepEqual([...free!], [...(await unreachedOf(filesystem))]);
  return free!;
}

for (const { options, bytes } of [
  { options: [], bytes: CONTAINER_BYTES },
  { options: ["-s"], bytes: 1024 * MiB },
  { options: ["-z", "-L", "Grüße"], bytes: 1024 * MiB },
  { options: [], bytes: 20 * 1024 * MiB },
]) {
  test(`mkapfs ${options.join(" ")} of ${bytes / MiB} MiB: partclone agrees, the walk finds the rest`, async (t) => {
    if (!requires(t, "mkapfs", "partclone.apfs")) return;
    const image = makeContainer(scratch(t), options, bytes);
    const filesystem = await opened(t, image);
    const free = await assertWhole(filesystem);
    assert.deepEqual([...free], [...partcloneFree("apfs", image)]);
    assert.equal(filesystem.label, options[2] ?? "untitled");
    assert.deepEqual(await filesystem.list("/"), []);
  });
}

for (const bytes of [600 * MiB + 7 * 4096, 2 ** 41]) {
  test(`a container of ${bytes} bytes: what is free and what is reached are the whole`, async (t) => {
    if (!requires(t, "mkapfs")) return;
    const free = await assertWhole(await opened(t, makeContainer(scratch(t), [], bytes)));
    assert.ok(free.bytes > bytes * 0.9);
  });
}

test("a container that macOS filled: free agrees with The Sleuth Kit, files with what they hold", async (t) => {
  if (corpus(t) === undefined || !requires(t, "pstat", "fls", "icat", "fsapfsinfo")) return;
  const image = unpack(t, "log2timeline+dfvfs/test_data/apfs.raw");
  const filesystem = await opened(t, image);
  const free = await assertWhole(filesystem);
  const pool = run("pstat", [image]);
  assert.equal(free.bytes / 4096, Number(/Number of Free Blocks: +(\d+)/.exec(pool)![1]));
  assert.equal(filesystem.uuid, /Identifier\s+: (\S+)/.exec(run("fsapfsinfo", [image]))![1]);
  assert.equal(filesystem.label, "apfs_test");

  const superblock = /APSB Block Number: (\d+)/.exec(pool)![1]!;
  const listing = run("fls", ["-P", "apfs", "-B", superblock, "-r", "-p", "-F", image]);
  const device = await fileDevice(image);
  t.after(() => device[Symbol.asyncDispose]());
  let files = 0;
  for (const [, inode, path] of listing.matchAll(/^r\/r (\d+)[-\d]*:\t(.+)$/gm)) {
    const found = await filesystem.find(`/${path}`);
    assert.equal(found?.kind, "file", path);
    if (found.bytes === 0) continue; // It has no stream, and icat nothing to print.
    const content = await contentOf(device, found);
    assert.equal(content.toString(), run("icat", ["-P", "apfs", "-B", superblock, image, inode!]), path);
    assert.equal((await filesystem.describe(found.owner)).path, `/${path}`);
    files++;
  }
  assert.equal(files, 6);
  assert.equal((await filesystem.find("/a_directory"))!.kind, "directory");
  assert.equal((await filesystem.find("/a_link"))!.kind, "other");
  assert.equal(
    await filesystem.find("/A_DIRECTORY/A_file").then((file) => file?.bytes),
    53,
    "without regard to case",
  );
});

test("the container of the blkid tests", async (t) => {
  if (corpus(t) === undefined) return;
  const name = "util-linux+util-linux/tests/ts/blkid/images-fs/apfs.img.xz";
  const free = await assertWhole(await opened(t, unpack(t, name)));
  assert.ok(free.bytes > 9_000_000);
});
