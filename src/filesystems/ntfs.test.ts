import assert from "node:assert/strict";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { ntfs } from "./ntfs.ts";
import { ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import type { FileSystem, ReadOptions } from "./filesystem.ts";
import { fileDevice } from "../testing/file-device.ts";
import {
  inNtfs,
  makeNtfs,
  NTFS_LIFE,
  NTFS_TOOLS,
  ntfsinfoFree,
  ntfsresizeComplaint,
  partcloneFree,
} from "../testing/ntfs.ts";
import { requires, requiresRoot, run, scratch } from "../testing/tools.ts";

const MiB = 2 ** 20;

/** What mkntfs is asked for: cluster size, sector size. */
const MAKES = [
  "-c 512",
  "-c 1024",
  "-c 4096",
  "-c 65536",
  "-c 131072",
  "-c 2097152",
  "-s 1024",
  "-s 4096 -c 4096",
  "-s 4096 -c 65536",
];
/** It sleeps for a second now and then. */
const JUDGED_BY_PARTCLONE = new Set(["-c 512", "-c 2097152", "-s 4096 -c 65536"]);

async function opened(t: TestContext, path: string, options: Partial<ReadOptions> = {}): Promise<FileSystem> {
  const device = await fileDevice(path);
  t.after(() => device[Symbol.asyncDispose]());
  assert.ok(await ntfs.probe(device));
  return ntfs.open([device], { replay: false, ...options });
}

/** What is free of a volume that must not be refused; every other cluster must be reached, and no free one. */
async function provenFree(t: TestContext, path: string): Promise<ExtentSet> {
  const filesystem = await opened(t, path);
  const [free] = await filesystem.free();
  const reached = new ExtentBuilder();
  await filesystem.walk((_, start, end) => reached.add(start, end));
  assert.equal(filesystem.refusal, undefined);
  const used = reached.build();
  assert.equal(free!.intersect(used).bytes, 0);
  const whole = {
    start: 0,
    end: Math.floor(filesystem.bytes / filesystem.blockBytes) * filesystem.blockBytes,
  };
  assert.deepEqual([...free!.union(used).within(whole)], [whole]);
  return free!;
}

for (const make of MAKES) {
  test(`free space agrees with partclone and ntfsinfo: mkntfs ${make}`, async (t) => {
    if (!requires(t, ...NTFS_TOOLS)) return;
    const image = join(scratch(t), "image");
    let free = ExtentSet.EMPTY;
    for (const bytes of [102_400 * 1024, 24 * MiB, 24 * MiB + 57_344]) {
      makeNtfs(image, bytes, ...make.split(" "));
      const filesystem = await opened(t, image);
      free = await provenFree(t, image);
      assert.equal(free.bytes / filesystem.blockBytes, ntfsinfoFree(image));
      assert.equal(filesystem.bytes, bytes);
    }
    if (JUDGED_BY_PARTCLONE.has(make)) assert.deepEqual([...free], [...partcloneFree(image)]);
  });
}

/** Fills the volume with small files, deletes every second one, and puts a large file into the gaps. */
const FRAGMENT = `
  mkdir gaps
  for i in $(seq 500); do head -c 20000 /dev/urandom > gaps/$i || break; done 2> /dev/null
  head -c 20000000 /dev/urandom > rest 2> /dev/null || true
  for i in $(seq 1 2 500); do rm -f gaps/$i; done
  head -c 4000000 /dev/urandom > broken 2> /dev/null || true
`;

for (const make of ["-c 4096", "-c 512", "-s 4096 -c 4096"]) {
  test(`a volume that was lived in is free or reached, cluster by cluster: mkntfs ${make}`, async (t) => {
    if (!requires(t, ...NTFS_TOOLS, "setfattr") || !requiresRoot(t)) return;
    const image = makeNtfs(join(scratch(t), "image"), 32 * MiB, ...make.split(" "));
    inNtfs(image, NTFS_LIFE);
    await provenFree(t, image);
    inNtfs(image, FRAGMENT);
    assert.deepEqual([...(await provenFree(t, image))], [...partcloneFree(image)]);
    assert.equal(ntfsresizeComplaint(image), undefined);
  });
}

test("$MFT itself goes on in extension records", async (t) => {
  if (!requires(t, ...NTFS_TOOLS) || !requiresRoot(t)) return;
  const image = makeNtfs(join(scratch(t), "image"), 24 * MiB, "-c", "512");
  inNtfs(
    image,
    `thousand=$(head -c 1000 /dev/zero | tr '\\0' x)
     i=0; while printf %s "$thousand" > full$i; do i=$((i + 1)); done 2> /dev/null || true
     n=$i; i=0; while [ $i -lt $n ]; do true > full$i; i=$((i + 2)); done
     i=0; while true > empty$i; do i=$((i + 1)); done 2> /dev/null || true`,
  );
  assert.match(run("ntfsinfo", ["-v", "-i", "0", image]), /\$DATA \(0x80\) from mft record (?!0 )/);
  const free = await provenFree(t, image);
  assert.equal(free.bytes / 512, ntfsinfoFree(image));
  assert.equal(ntfsresizeComplaint(image), undefined);
  const filesystem = await opened(t, image);
  assert.equal((await filesystem.find("/full1"))!.bytes, 1000);
});
