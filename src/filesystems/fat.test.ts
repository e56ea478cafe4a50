import assert from "node:assert/strict";
import { closeSync, openSync, readdirSync, readFileSync, readSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { ExtentSet } from "../bytes/extents.ts";
import { checked } from "../device/checked.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import { prove } from "../reclaim/prove.ts";
import { blklsFree, FAT_TOOLS, makeFat, mshowfatRuns } from "../testing/fat.ts";
import { fileDevice } from "../testing/file-device.ts";
import { attempt, requires, run, scratch } from "../testing/tools.ts";
import { fat } from "./fat.ts";
import type { FileSystem } from "./filesystem.ts";

async function opened(
  t: TestContext,
  path: string,
): Promise<{ device: BlockDevice; filesystem: FileSystem }> {
  const device = checked(await fileDevice(path));
  t.after(() => device[Symbol.asyncDispose]());
  assert.ok(await fat.probe(device));
  return { device, filesystem: await fat.open([device], { replay: false }) };
}

async function contentOf(device: BlockDevice, filesystem: FileSystem, path: string): Promise<Buffer> {
  const found = await filesystem.find(path);
  assert.ok(found, path);
  const content = Buffer.alloc(found.bytes);
  for (const { at, fileOffset, bytes } of found.extents) {
    const length = Math.min(bytes, found.bytes - fileOffset);
    content.set(await readBytes(device, at, length), fileOffset);
  }
  return content;
}

const MAKES = [
  { name: "fat12", options: "-F 12", kibibytes: 4000 },
  { name: "fat12", options: "-F 12 -f 1 -r 224 -a -s 2", kibibytes: 3001 },
  { name: "fat16", options: "-F 16 -s 1 -a", kibibytes: 8003 },
  { name: "fat16", options: "-F 16 -S 4096 -s 1", kibibytes: 20000 },
  { name: "fat16", options: "-F 16 -s 128", kibibytes: 280000 },
  { name: "fat32", options: "-F 32 -s 1", kibibytes: 34000 },
  { name: "fat32", options: "-F 32 -s 2 -f 1 -R 37 -a", kibibytes: 70000 },
  { name: "fat32", options: "-F 32 -S 4096 -s 1", kibibytes: 270000 },
];

for (const { name, options, kibibytes } of MAKES) {
  test(`a volume filled by mtools balances: ${options}, ${kibibytes} KiB`, async (t) => {
    if (!requires(t, ...FAT_TOOLS, "blkls", "mshowfat")) return;
    const folder = scratch(t);
    const image = makeFat(folder, options.split(" "), kibibytes);
    assert.equal(attempt("fsck.fat", ["-n", image]).status, 0);
    const { device, filesystem } = await opened(t, image);
    const { free, refusal, leakedBytes } = await prove(filesystem, "full");
    assert.equal(refusal, undefined);
    assert.equal(filesystem.name, name);
    assert.equal(leakedBytes, 0, "free and reached add up to the whole");
    assert.deepEqual([...free[0]!], [...blklsFree(image)]);

    const boot = Buffer.from(await readBytes(device, 0, 512));
    const clusterBytes = boot[13]! * boot.readUInt16LE(11);
    const names = readdirSync(join(folder, "tree"), { recursive: true, encoding: "utf8" });
    let compared = 0;
    for (const path of names.filter((path) => statSync(join(folder, "tree", path)).isFile())) {
      const found = await filesystem.find(path.toUpperCase());
      const isGone = /many.*number 1|^F\d*[02468]\.TXT/.test(path);
      assert.equal(found === undefined, isGone, path);
      if (found === undefined) continue;
      const source = readFileSync(join(folder, "tree", path));
      assert.ok(source.equals(await contentOf(device, filesystem, path)), path);
      if (source.length === 0 || compared++ % 9 !== 0) continue;
      assert.deepEqual(
        found.extents.map(({ bytes }) => bytes / clusterBytes),
        mshowfatRuns(image, `/${path}`).map(({ first, end }) => end - first),
      );
      assert.equal((await filesystem.describe(found.owner)).path, `/${path}`);
    }
    assert.ok(compared > 90);
    const listed = await filesystem.list("/");
    const wanted = run("sh", ["-c", 'LC_ALL=C.UTF-8 mdir -b -a -i "$1" ::/ | sort', "sh", image])
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => line.slice(3).replace(/\/$/, ""));
    assert.deepEqual(listed!.map((entry) => entry.name).sort(), wanted);
  });
}
