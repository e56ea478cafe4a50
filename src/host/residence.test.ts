/**
 * Where the device holds a file, as `filefrag` sees it, and what the host forgets of it.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import type { Extent } from "../bytes/extents.ts";
import type { PhysicalExtent, ReadableFile } from "../device/device.ts";
import { mounted } from "../testing/mounted.ts";
import { Random } from "../testing/seeds.ts";
import { requires, run, scratch } from "../testing/tools.ts";
import { LockedFile } from "./locked-file.ts";
import { hostSource } from "./source.ts";

const BLOCK = 4096;

/** `   0:        0..       7:      34816..     34823:      8:             last,eof` */
function filefrag(path: string): PhysicalExtent[] {
  const lines = run("filefrag", ["-v", "-b1024", path]).matchAll(/^ *\d+: +(\d+)\.\. +(\d+): +(\d+)\.\./gm);
  return Array.from(lines, ([, first, last, physical]) => ({
    start: Number(first) * 1024,
    end: (Number(last) + 1) * 1024,
    physical: Number(physical) * 1024,
  }));
}

async function placesOf(file: ReadableFile, range: Extent): Promise<PhysicalExtent[]> {
  const found: PhysicalExtent[] = [];
  for await (const batch of file.physical!(range)) found.push(...batch);
  return found;
}

for (const filesystem of ["ext4", "xfs"] as const) {
  test(`${filesystem}: a file's blocks are where filefrag says, and stay there when they are overwritten`, async (t) => {
    const point = mounted(t, filesystem, 64);
    if (point === undefined || !requires(t, "filefrag")) return;
    const path = join(point, "file");
    await using file = await hostSource(path).create();
    const random = new Random(1);
    for (const at of [0, 9, 4, 40, 22]) await file.write(at * BLOCK, random.bytes(3 * BLOCK));
    await file.flush();
    const all = { start: 0, end: file.bytes };
    const found = await placesOf(file, all);
    assert.deepEqual(found, filefrag(path));
    assert.ok(found.length > 3);
    const [part] = await placesOf(file, { start: BLOCK, end: 2 * BLOCK });
    assert.deepEqual(part, { start: BLOCK, end: 2 * BLOCK, physical: found[0]!.physical! + BLOCK });
    for (const at of [0, 9]) await file.write(at * BLOCK, random.bytes(3 * BLOCK));
    await file.flush();
    assert.deepEqual(await placesOf(file, all), found);
  });
}

test("what is compressed, or not written yet, lies nowhere", async (t) => {
  const point = mounted(t, "btrfs", 160);
  if (point === undefined || !requires(t, "chattr")) return;
  const path = join(point, "file");
  run("sh", [
    "-c",
    `touch "$1" && chattr +c "$1" && yes | head -c 300000 > "$1" && sync -f "$1"`,
    "sh",
    path,
  ]);
  await using file = await hostSource(path).open();
  const found = await placesOf(file, { start: 0, end: file.bytes });
  assert.ok(found.length > 0);
  assert.ok(found.every(({ physical }) => physical === undefined));
});

test("the host forgets what is on the medium as well, and nothing else", async (t) => {
  const path = join(scratch(t), "file");
  await using file = await hostSource(path).create();
  assert.ok(file instanceof LockedFile);
  const content = new Random(1).bytes(64 * BLOCK);
  await file.write(0, content);
  await file.flush();
  assert.equal(file.isCached(0, content.length), true);
  file.forget();
  assert.equal(file.isCached(0, content.length), false);
  const read = new Uint8Array(content.length);
  await file.read(0, read);
  assert.deepEqual(read, content);
});
