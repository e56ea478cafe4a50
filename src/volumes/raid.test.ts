import assert from "node:assert/strict";
import { test } from "node:test";
import { corpus, corpusFiles, unpack } from "../testing/corpus.ts";
import { fileDevice } from "../testing/file-device.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { attempt, requires, run } from "../testing/tools.ts";
import { raid } from "./raid.ts";

const MiB = 1024 * 1024;

test("members of sets in util-linux' suite are recognised, and nothing else is", async (t) => {
  if (corpus(t) === undefined) return;
  const expected: Record<string, RegExp> = {
    "bcache-B": /bcache/,
    "bcache-C": /bcache/,
    "bcache-journal": /bcache/,
    "ddf-raid": /DDF/,
    "drbd-v08": /DRBD/,
    "drbd-v09": /DRBD/,
    "isw-raid": /Intel/,
    "mdraid-1": /Linux RAID/,
    mdraid: /Linux RAID/,
    zfs: /ZFS/,
  };
  for (const name of corpusFiles(
    /util-linux.*images-fs\/(mdraid|ddf|isw|drbd-v|bcache-|zfs|ext|jbd|lvm|swap).*\.xz$/,
  )) {
    await using disk = await fileDevice(unpack(t, name));
    const wanted = expected[/([^/]*)\.img\.xz$/.exec(name)![1]!];
    assert.equal(await raid.probe(disk), wanted !== undefined, name);
    if (wanted === undefined) continue;
    const { refusal, volumes } = await raid.open([disk]);
    assert.equal(refusal!.code, "multi-disk-member");
    assert.match(refusal!.message, wanted);
    assert.equal(volumes.length, 0);
  }
});

test("half of a mirror stays recognised under the filesystem that it shows", async (t) => {
  if (corpus(t) === undefined || !requires(t, "mke2fs", "mdadm")) return;
  const path = unpack(t, "util-linux+util-linux/tests/ts/blkid/images-fs/mdraid.img.xz");
  assert.equal(attempt("mdadm", ["--examine", path]).status, 0, "mdadm knows it");
  run("mke2fs", ["-q", "-F", "-t", "ext4", path, "9M"]);
  await using disk = await fileDevice(path);
  assert.equal(await raid.probe(disk), true);
});

test("md 1.0 lies 8 KiB before the end, on a multiple of 4 KiB", async () => {
  for (const bytes of [MiB, MiB + 512, MiB + 3584]) {
    const disk = new SimulatedFile(bytes);
    assert.equal(await raid.probe(disk), false);
    await disk.write(MiB - 8192, Buffer.from("fc4e2ba901000000", "hex"));
    assert.equal(await raid.probe(disk), true, `${bytes}`);
  }
  assert.equal(await raid.probe(new SimulatedFile(100)), false);
});
