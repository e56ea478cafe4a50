/**
 * Volumes by mkfs.xfs with all its options, judged by xfs_db.
 */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { fileDevice } from "../testing/file-device.ts";
import { requires, run, scratch } from "../testing/tools.ts";
import { makeXfs, xfsDbFree } from "../testing/xfs.ts";
import type { FileSystem } from "./filesystem.ts";
import { xfs } from "./xfs.ts";

/** What mkfs.xfs is asked for. */
const MAKES = [
  "",
  "-m crc=0",
  "-m crc=0 -n ftype=0 -i attr=1,projid32bit=0",
  "-m crc=0 -l lazy-count=0,version=1",
  "-m crc=0 -b size=512 -i size=256",
  "-m crc=0 -b size=65536 -i size=256",
  "-b size=1024 -d agcount=7",
  "-b size=8192",
  "-b size=65536 -i size=2048",
  "-s size=4096",
  "-l size=20m,su=256k",
  "-l agnum=0",
  "-n size=65536",
  "-n version=ci",
  "-i sparse=0,nrext64=1",
  "-m finobt=0,inobtcount=0,bigtime=0,reflink=0",
  "-m rmapbt=1",
  "-m rmapbt=1,reflink=0 -d su=64k,sw=4",
];

async function opened(t: TestContext, path: string): Promise<FileSystem> {
  const device = await fileDevice(path);
  t.after(() => device[Symbol.asyncDispose]());
  assert.ok(await xfs.probe(device));
  return xfs.open([device], { replay: false });
}

for (const make of MAKES) {
  test(`free space agrees with xfs_db: mkfs.xfs ${make}`, async (t) => {
    if (!requires(t, "mkfs.xfs", "xfs_db")) return;
    const image = join(scratch(t), "image");
    makeXfs(image, `-L label ${make}`, "200000K");
    const filesystem = await opened(t, image);
    const [free] = await filesystem.free();
    assert.equal(filesystem.refusal, undefined);
    assert.equal(filesystem.label, "label");
    assert.deepEqual([...free!], [...xfsDbFree(image)]);
  });
}

test("a UUID that was changed is not that of the metadata", async (t) => {
  if (!requires(t, "mkfs.xfs", "xfs_admin")) return;
  const image = join(scratch(t), "image");
  makeXfs(image, "", "300M");
  const before = (await opened(t, image)).uuid;
  run("xfs_admin", ["-U", "generate", image]);
  const filesystem = await opened(t, image);
  await filesystem.free();
  assert.equal(filesystem.refusal, undefined);
  assert.notEqual(filesystem.uuid, before);
  assert.match(run("blkid", ["-p", image]), new RegExp(filesystem.uuid));
});

test("what is no XFS is not taken for one", async (t) => {
  const image = join(scratch(t), "image");
  for (const [content, isOne] of [
    ["", false],
    ["XFS", false],
    ["XFSC".padEnd(4096), false],
    ["XFSB".padEnd(4096), true],
  ] as const) {
    writeFileSync(image, content);
    const device = await fileDevice(image);
    t.after(() => device[Symbol.asyncDispose]());
    assert.equal(await xfs.probe(device), isOne);
    const filesystem = await xfs.open([device], { replay: false });
    assert.ok(filesystem.refusal, content);
    assert.deepEqual([...(await filesystem.free())[0]!], []);
  }
});
