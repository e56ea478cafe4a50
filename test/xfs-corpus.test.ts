/**
 * The XFS images of other people's tests. Whatever is not refused must bear rubbish in all that is called free: to
 * xfs_repair the result is the same as before.
 */
import assert from "node:assert/strict";
import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { test } from "node:test";
import { survey } from "../src/disk.ts";
import { xfs } from "../src/filesystems/xfs.ts";
import { prove, type Proven } from "../src/reclaim/prove.ts";
import { corpus, corpusFiles, unpack } from "../src/testing/corpus.ts";
import { fileDevice } from "../src/testing/file-device.ts";
import { attempt, requires } from "../src/testing/tools.ts";
import { spoil } from "../src/testing/xfs.ts";

const BARE = /(\/xfs[^/]*|img_fs_xfs5?)\.img\.(bz2|xz)$|f_detect_xfs\/image\.bz2$/;

async function judged(image: string): Promise<Proven | undefined> {
  await using device = await fileDevice(image);
  if (!(await xfs.probe(device))) return undefined;
  return await prove(await xfs.open([device], { replay: false }), "full");
}

/** What xfs_repair says without writing, but for its clock and the turns that its threads take. */
function repair(image: string): string {
  const { status, stdout, stderr } = attempt("xfs_repair", ["-n", "-o", "force_geometry", image]);
  const lines = `${stdout}${stderr}`.split("\n").filter((line) => !/\d:\d\d|agno = /.test(line));
  return [`${status}`, ...lines].join("\n");
}

const NLINK_AT = 101;
const NLINK = 0x20;

/** Sets the bit that a mount would set; without it xfs_repair refuses to look at inodes of version 1. */
function allowNewInodes(image: string): void {
  const file = openSync(image, "r+");
  const byte = Buffer.alloc(1);
  readSync(file, byte, 0, 1, NLINK_AT);
  writeSync(file, Buffer.from([byte[0]! | NLINK]), 0, 1, NLINK_AT);
  closeSync(file);
}

async function bearsRubbish(image: string, name: string): Promise<void> {
  const proven = await judged(image);
  if (proven === undefined) return assert.match(name, /xfs-log/);
  assert.equal(proven.refusal, undefined, name);
  assert.ok(proven.free[0]!.bytes > 0);
  assert.equal(proven.leakedBytes, 0);
  if (repair(image).includes("V1 inodes unsupported")) allowNewInodes(image);
  const before = repair(image);
  assert.match(before, /^0\n/, name);
  spoil(image, 0, proven.free[0]!);
  assert.equal(repair(image), before, name);
}

test("bare filesystems", async (t) => {
  if (corpus(t) === undefined || !requires(t, "xfs_repair", "bzip2", "xz")) return;
  const names = corpusFiles(BARE);
  assert.ok(names.length >= 8, names.join(" "));
  for (const name of names) await bearsRubbish(unpack(t, name), name);
});

test("a disk with a partition", async (t) => {
  if (corpus(t) === undefined || !requires(t, "gzip")) return;
  const [name] = corpusFiles(/Xfs\/Data\/xfs5\.vhdx\.gz$/);
  const { volumes } = await survey(unpack(t, name!));
  const volume = volumes.find(({ filesystem }) => filesystem === "xfs")!;
  assert.equal(volume.state, "clean", volume.reason?.message);
});
