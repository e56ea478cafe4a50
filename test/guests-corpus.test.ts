/**
 * Disks that other people's tools made, whatever lies on them: each is answered or refused in words, none ends in an
 * internal error, and where something is called free it is the filesystem that `blkid` sees there, too.
 */
import assert from "node:assert/strict";
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { type Survey, survey } from "../src/disk.ts";
import { DiskError } from "../src/error.ts";
import { corpus, corpusFiles, unpack } from "../src/testing/corpus.ts";
import { attempt, requires } from "../src/testing/tools.ts";

/** e2fsprogs and btrfs-progs have tests of their own; the others' files that are no disk images are left out. */
const IMAGES = /^(?!tytso|kdave)(?!.*(\.md|\.plist|\.xml|\.bckup|LICENSE[^/]*|COPYING[^/]*)$)/;

/** What blkid calls them. */
const BLKID: Readonly<Record<string, string>> = {
  ext2: "ext2",
  ext3: "ext3",
  ext4: "ext4",
  fat12: "vfat",
  fat16: "vfat",
  fat32: "vfat",
};

test("the disks of other tools are answered or refused", async (t) => {
  if (corpus(t) === undefined || !requires(t, "blkid", "gzip", "bzip2", "xz", "tar")) return;
  for (const name of corpusFiles(IMAGES)) {
    if (statSync(join(corpus(t)!, name)).isDirectory()) continue;
    await t.test(name, async (inner) => {
      for (const path of filesOf(unpack(inner, name))) await judge(path);
    });
  }
});

function filesOf(path: string): string[] {
  if (!statSync(path).isDirectory()) return [path];
  const names = readdirSync(path, { recursive: true, encoding: "utf8" });
  return names.map((name) => join(path, name)).filter((file) => statSync(file).isFile());
}

async function judge(path: string): Promise<void> {
  const found = await survey(path).catch((error: unknown) => error);
  if (found instanceof DiskError) {
    assert.notEqual(found.kind, "interrupted", found.message);
    return;
  }
  if (found instanceof Error) throw found;
  const { format, volumes } = found as Survey;
  const [whole] = volumes;
  if (format !== "raw" || whole === undefined || whole.name !== "" || whole.state !== "clean") return;
  const said = attempt("blkid", ["-p", "-o", "value", "-s", "TYPE", path]).stdout.trim();
  assert.equal(BLKID[whole.filesystem!] ?? whole.filesystem, said);
}
