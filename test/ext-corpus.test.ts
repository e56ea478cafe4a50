/**
 * Every ext image of e2fsprogs' own tests, most of them damaged on purpose.
 *
 * Whatever is not refused must bear the one proof that counts: fill everything that was called free with rubbish, let
 * e2fsck repair the result, and compare with e2fsck's repair of the original. If e2fsck says the same and every used
 * byte is the same, nothing that mattered was given away.
 */
import assert from "node:assert/strict";
import { closeSync, openSync, readSync, rmSync, statSync, writeSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { test, type TestContext } from "node:test";
import { ExtentSet } from "../src/bytes/extents.ts";
import { ext } from "../src/filesystems/ext.ts";
import { prove, type Proven } from "../src/reclaim/prove.ts";
import { corpus, corpusFiles, unpack } from "../src/testing/corpus.ts";
import { fileDevice } from "../src/testing/file-device.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";

const IMAGES = /^tytso\+e2fsprogs\/tests\/.*image[^/]*(?<!\.tar)\.(gz|bz2)$/;

/** Why an image is refused that `e2fsck -fn` lets pass; where no comment says otherwise it is as it looks. */
const STRICTER: Readonly<Record<string, string>> = {
  f_bad_gdt_csum: "checksum", // found, and not counted as an error
  f_extent_too_deep: "damaged", // the kernel would not read it
  f_first_meta_bg_too_big: "damaged", // e2fsck takes a backup
  f_hurd: "creator-os",
  f_jnl_errno: "error-state",
  f_shared_blocks_ok: "feature-unsupported",
  f_unshare_blocks_no_space: "feature-unsupported",
  f_unshare_blocks_ok: "feature-unsupported",
  f_special_ea: "not-clean",
  f_uninit_disable: "not-clean",
  f_uninit_enable: "not-clean",
  f_zero_inode_size: "damaged", // e2fsck takes a backup
  // e2fsck -fn looks at what lies before the replay, we at what lies behind it.
  j_corrupt_commit_csum: "journal-checksum",
  j_corrupt_descr_csum: "journal-checksum",
  j_corrupt_journal_block: "journal-checksum",
  j_corrupt_revoke_rcount: "journal-corrupt",
  j_recover_csum2_32bit: "checksum",
  j_recover_csum2_64bit: "checksum",
};

/** e2fsck stamps the MMP block with the time of day. */
const RESTLESS = new Set(["f_multithread_ok"]);

test("the images of e2fsprogs are refused, or survive rubbish in all their free space", async (t) => {
  if (corpus(t) === undefined || !requires(t, "e2fsck", "gzip", "bzip2")) return;
  const folder = scratch(t);
  const tally = new Map<string, number>();
  for (const name of corpusFiles(IMAGES)) {
    const short = basename(dirname(name));
    const image = unpack(t, name);
    const proven = await judged(image);
    if (proven === undefined) continue;
    let isClean: boolean;
    if (proven.refusal !== undefined) {
      isClean = e2fsckPasses(image);
      if (isClean) assert.equal(proven.refusal.code, STRICTER[short], `${name}: ${proven.refusal.message}`);
    } else {
      assert.ok(!(short in STRICTER), name);
      isClean = RESTLESS.has(short) || (await survivesRubbish(t, folder, image, proven.free[0]!, name));
    }
    rmSync(image);
    const verdict = `${proven.refusal?.code ?? "accepted"}, e2fsck -fn: ${isClean ? "clean" : "damaged"}`;
    tally.set(verdict, (tally.get(verdict) ?? 0) + 1);
  }
  assert.ok(tally.size > 0);
  for (const [verdict, count] of tally) t.diagnostic(`${String(count).padStart(4)} ${verdict}`);
});

/** With an end: e2fsck asks about one of the images for ever. */
function e2fsckPasses(image: string): boolean {
  const command = 'timeout 3 e2fsck -fn "$1" > /dev/null 2>&1';
  return attempt("sh", ["-c", command, "sh", image]).status === 0;
}

async function judged(image: string): Promise<Proven | undefined> {
  await using device = await fileDevice(image);
  if (!(await ext.probe(device))) return undefined;
  return await prove(await ext.open([device], { replay: true }), "full");
}

/** @returns whether e2fsck found nothing to repair */
async function survivesRubbish(
  t: TestContext,
  folder: string,
  image: string,
  free: ExtentSet,
  name: string,
): Promise<boolean> {
  const [original, spoilt] = [join(folder, "original"), join(folder, "spoilt")];
  for (const copy of [original, spoilt]) {
    run("cp", ["--sparse=always", image, copy]);
    giveUuid(copy);
  }
  spoil(spoilt, free);
  const said = [original, spoilt].map((copy) => {
    const time = ["E2FSPROGS_FAKE_TIME=1700000000", "E2FSCK_TIME=1700000000"];
    const { status, stdout } = attempt("env", [...time, "e2fsck", "-fy", copy]);
    return { status, stdout: stdout.replaceAll(copy, "image") };
  });
  assert.deepEqual(said[1], said[0], name);

  await using before = await fileDevice(original);
  await using after = await fileDevice(spoilt);
  const repaired = await ext.open([before], { replay: false });
  const [freeNow] = await repaired.free();
  const used = ExtentSet.of({ start: 0, end: Math.min(before.bytes, after.bytes) }).subtract(freeNow!);
  for (const { start, end } of used) {
    for (let at = start; at < end; at += 1 << 20) {
      const pair = [before, after].map(async (device) => {
        const bytes = Buffer.alloc(Math.min(1 << 20, end - at));
        await device.read(at, bytes);
        return bytes;
      });
      const [left, right] = await Promise.all(pair);
      assert.ok(left!.equals(right!), `${name}: used bytes at ${at} differ`);
    }
  }
  if (free.subtract(freeNow!).bytes > 0) t.diagnostic(`${name}: e2fsck put new blocks into what was free`);
  return said[0]!.status === 0;
}

const UUID_AT = 1128;

/** e2fsck makes up a UUID for a filesystem that has none: another one each time. */
function giveUuid(path: string): void {
  const file = openSync(path, "r+");
  const uuid = Buffer.alloc(16);
  readSync(file, uuid, 0, 16, UUID_AT);
  if (uuid.every((byte) => byte === 0)) writeSync(file, Buffer.alloc(16, 7), 0, 16, UUID_AT);
  closeSync(file);
}

const RUBBISH = Buffer.alloc(1 << 20, 0xa5);
const SPOIL_BYTES_MAX = 16 << 20;

/** Writes rubbish over all that is free; of very large free space, over both ends of every piece. */
function spoil(path: string, free: ExtentSet): void {
  const file = openSync(path, "r+");
  const isLarge = free.bytes > SPOIL_BYTES_MAX;
  for (const { start, end } of free) {
    const stop = Math.min(end, statSync(path).size);
    for (let at = start; at < stop; at += RUBBISH.length) {
      if (isLarge && at > start && at + RUBBISH.length < stop) continue;
      writeSync(file, RUBBISH, 0, Math.min(RUBBISH.length, stop - at), at);
    }
  }
  closeSync(file);
}
