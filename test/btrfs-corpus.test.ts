/**
 * The images of btrfs-progs' own tests, most of them damaged on purpose.
 *
 * Whatever is not refused must bear the one proof that counts: fill everything that was called free with rubbish, and
 * btrfs check must say of the result what it says of the original, by the backup roots, too. What is refused although
 * btrfs check passes it stands in a list.
 */
import assert from "node:assert/strict";
import { closeSync, openSync, rmSync, statSync, writeSync } from "node:fs";
import { basename, join } from "node:path";
import { test, type TestContext } from "node:test";
import { checked } from "../src/device/checked.ts";
import type { ExtentSet } from "../src/bytes/extents.ts";
import { btrfs } from "../src/filesystems/btrfs.ts";
import { prove, type Proven } from "../src/reclaim/prove.ts";
import { corpus, corpusFiles, unpack } from "../src/testing/corpus.ts";
import { fileDevice } from "../src/testing/file-device.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";

/** Dumps of metadata, and whole volumes but for the few whose unpacking takes seconds. */
const SLOW = "018|055|bad_free_space_cache|block_group_item_false_alert|ino-cache|disk\\d|convert|resume";
const IMAGES = new RegExp(
  `^kdave\\+btrfs-progs/tests/(?!.*(${SLOW}))(fsck-tests|fuzz-tests|misc-tests)/.*\\.(img|raw)(\\.xz)?$`,
);

/** Why an image is refused that `btrfs check` lets pass. */
const STRICTER: readonly (readonly [RegExp, string])[] = [
  [/063-log-missing-csum|065-valid-log-tree|052-seed-dirty-log/, "journal-dirty"],
  [/068-orphan-dev-extent/, "damaged"],
  [/069-unknown-fs-tree-key/, "damaged"],
];

test("the images of btrfs-progs are refused, or survive rubbish in all their free space", async (t) => {
  if (corpus(t) === undefined || !requires(t, "btrfs", "btrfs-image", "xz")) return;
  const folder = scratch(t);
  const tally = new Map<string, number>();
  for (const name of corpusFiles(IMAGES)) {
    const image = restored(t, folder, name);
    const proven = image && (await judged(image));
    if (!proven) continue;
    const original = check(image);
    const isClean = original.startsWith("0\n");
    if (proven.refusal === undefined) {
      spoil(image, proven.free[0]!);
      assert.equal(check(image), original, name);
    } else if (isClean) {
      const reason = STRICTER.find(([pattern]) => pattern.test(name))?.[1];
      assert.equal(proven.refusal.code, reason, `${name}: ${proven.refusal.message}`);
    }
    rmSync(image);
    const verdict = `${proven.refusal?.code ?? "accepted"}, btrfs check: ${isClean ? "clean" : "damaged"}`;
    tally.set(verdict, (tally.get(verdict) ?? 0) + 1);
  }
  assert.ok(tally.size > 0);
  for (const [verdict, count] of tally) t.diagnostic(`${String(count).padStart(4)} ${verdict}`);
});

/** Of these whole parts are gone, or lie in trees of their own, and nothing is wrong with them. */
const WHOLE = [
  "fsck-tests/021-partially-dropped-snapshot-case/dropped-snapshot.img",
  "fsck-tests/020-extent-ref-cases/tree_reloc_for_fs_tree.img",
  "fsck-tests/020-extent-ref-cases/shared_block_ref.img",
];

test("a snapshot that is half deleted, a balance that is half done", async (t) => {
  if (corpus(t) === undefined || !requires(t, "btrfs-image", "xz")) return;
  const folder = scratch(t);
  for (const name of WHOLE) {
    const [packed] = corpusFiles(new RegExp(`${name.replaceAll(".", "\\.")}(\\.xz)?$`));
    const proven = await judged(restored(t, folder, packed!)!);
    assert.equal(proven!.refusal, undefined, `${name}: ${proven!.refusal?.message}`);
  }
});

/** A copy that may be written; undefined for a dump that btrfs-image does not take. */
function restored(t: TestContext, folder: string, name: string): string | undefined {
  const unpacked = unpack(t, name);
  const image = join(folder, basename(unpacked));
  if (unpacked.endsWith(".img")) {
    if (attempt("btrfs-image", ["-r", unpacked, image]).status !== 0) return undefined;
  } else {
    run("cp", ["--sparse=always", unpacked, image]);
  }
  return image;
}

async function judged(image: string): Promise<Proven | undefined> {
  await using device = checked(await fileDevice(image));
  if (!(await btrfs.probe(device))) return undefined;
  return await prove(await btrfs.open([device], { replay: false }), "full");
}

/**
 * What `btrfs check` says, by the current roots and by the newest backup where that is still there: a dump holds the
 * current trees only. With an end: some images make it run for ever.
 */
function check(image: string): string {
  const said = [[], ["--backup"]].map((options) => {
    const command = ["10", "btrfs", "check", "--readonly", ...options, image];
    const { status, stdout, stderr } = attempt("timeout", command);
    const isAnswer = status === 0 || status === 1; // Else it broke down, or ran out of time.
    return isAnswer ? `${status}\n${stdout}${stderr}`.replaceAll(image, "") : `${status}`;
  });
  return said.filter((text) => !text.includes("cannot open file system")).join("\n");
}

const RUBBISH = Buffer.alloc(1 << 20, 0xa5);
const SPOIL_BYTES_MAX = 16 << 20;

/** Writes rubbish over all that is free; of very large free space, over both ends of every piece. */
function spoil(path: string, free: ExtentSet): void {
  const file = openSync(path, "r+");
  const isLarge = free.bytes > SPOIL_BYTES_MAX;
  const { size } = statSync(path);
  for (const { start, end } of free) {
    const stop = Math.min(end, size);
    for (let at = start; at < stop; at += RUBBISH.length) {
      if (isLarge && at > start && at + RUBBISH.length < stop) continue;
      writeSync(file, RUBBISH, 0, Math.min(RUBBISH.length, stop - at), at);
    }
  }
  closeSync(file);
}
