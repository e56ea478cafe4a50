import assert from "node:assert/strict";
import { test } from "node:test";
import { corpus, corpusFiles, unpack } from "../testing/corpus.ts";
import { fileDevice } from "../testing/file-device.ts";
import { raid } from "./raid.ts";

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
    assert.match(refusal!.hint, wanted.source === "ZFS" ? /zpool trim/ : /trim in the guest/);
    assert.match(refusal!.message, wanted);
    assert.equal(volumes.length, 0);
  }
});
