/**
 * The judge of a virtual replay is the kernel's real one, on a copy: what is free must come out the same, and with
 * rubbish in all that we call free the kernel must replay to the same files.
 */
import assert from "node:assert/strict";
import { copyFileSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { fileDevice } from "../../testing/file-device.ts";
import { printOf, withMount } from "../../testing/kernel-guest.ts";
import { attempt, requires, requiresRoot, run, scratch } from "../../testing/tools.ts";
import { makeXfs, spoil, xfsDbFree, xfsDbTrees } from "../../testing/xfs.ts";
import type { Refused } from "../refused.ts";
import { xfs } from "../xfs.ts";
import { freeExtents } from "./free-space.ts";
import { openVolume } from "./recovery.ts";
import { readSuperblock } from "./superblock.ts";

const BYTES = 64 * 2 ** 20;
const WHOLE = { start: 0, end: BYTES };

const available = (t: TestContext) =>
  requires(t, "mkfs.xfs", "xfs_io", "xfs_repair", "xfs_db") && requiresRoot(t);

/** Files come, grow, shrink, share and go; then the filesystem stops at once. @param flush the log is written first */
function die(image: string, seed: number, flush: boolean): void {
  const churn = `cd "$1"; mkdir -p d$2; i=0; while [ $i -lt 80 ]; do
    head -c $(( (i * 7919 + $2 * 104729) % 40000 )) /dev/urandom > d$2/f$i
    [ $((i % 3)) = 0 ] && rm -f d*/f$((i / 2)); [ $((i % 10)) = 0 ] && mkdir -p d$2/deep$i && : > d$2/deep$i/x
    [ $((i % 20)) = 0 ] && sync d$2/f$i; [ $((i % 40)) = 1 ] && sync -f d$2/f$i
    i=$((i+1)); done
    cp --reflink=auto d$2/f79 d$2/clone; i=0; while [ $i -lt 60 ]; do
    dd if=/dev/zero of=d$2/pieces bs=4096 count=1 seek=$((i * 3)) conv=notrunc status=none; i=$((i+1)); done
    setfattr -n user.a -v "$(head -c 3000 /dev/zero | tr '\\0' a)" d$2/f77; ln -s "$(head -c 900 /dev/zero | tr '\\0' b)" d$2/link
    sync d$2/pieces; rm -f d$2/f1[0-9] d$2/deep10/x; [ $2 = 0 ] || rm -rf d$(($2 - 1)); sync d$2/f78`;
  withMount(image, WHOLE, "rw", (root) => {
    run("sh", ["-c", churn, "sh", root, `${seed}`]);
    run("xfs_io", ["-x", "-c", flush ? "shutdown -f" : "shutdown", root]);
  });
}

/** The image as our replay leaves it, with its log cleared, shows the same files as the kernel's. */
async function mustReadAlike(replayed: BlockDevice, image: string, print: string): Promise<void> {
  const copy = `${image}.ours`;
  writeFileSync(copy, await readBytes(replayed, 0, replayed.bytes));
  run("xfs_repair", ["-L", copy]);
  // It rescues the deleted files that the kernel cleans up.
  withMount(copy, WHOLE, "rw", (root) => rmSync(join(root, "lost+found"), { recursive: true, force: true }));
  const withoutRoot = (text: string) => text.replace(/^\. d.*$/m, "");
  mustEqual(withoutRoot(printOf(copy, WHOLE)), withoutRoot(print));
}

function mustEqual(found: string, expected: string): void {
  const lines = expected.split("\n");
  const others = found.split("\n").filter((line, index) => line !== lines[index]);
  assert.deepEqual(others.slice(0, 3), []);
  assert.equal(found.length, expected.length);
}

/** Leaves the image as the kernel's replay does. @returns the remarks of ours */
async function judge(image: string): Promise<string> {
  const judged = `${image}.judged`;
  copyFileSync(image, judged);
  withMount(judged, WHOLE, "rw", () => {});
  const expected = xfsDbFree(judged);
  const print = printOf(judged, WHOLE);
  await using device = await fileDevice(image);
  const { volume, spare } = await openVolume(device, await readSuperblock(device), true);
  assert.notEqual(spare, undefined, "the log is dirty");
  await mustReadAlike(volume.device, image, print);
  const filesystem = await xfs.open([device], { replay: true });
  const notes = filesystem.notes.join("; ");
  const after = await freeExtents(volume, "stale");
  // The kernel cleans up behind a replay, too: it frees more, and takes what its trees need for that.
  if (/intents|deleted while open/.test(notes)) {
    assert.deepEqual([...after.subtract(expected).subtract(xfsDbTrees(judged))], []);
  } else assert.deepEqual([...after], [...expected]);

  const [free] = await filesystem.free();
  assert.ok(filesystem.isUnclean);
  assert.equal(free!.subtract(xfsDbFree(image)).bytes, 0, "free before, too");
  assert.ok(free!.equals(after.intersect(spare!)) && free!.bytes > BYTES / 2);
  await filesystem.walk((_, start, end, owner) => {
    assert.ok(!free!.touches({ start, end }), `${owner} at ${start} is free`);
  });
  assert.equal(filesystem.refusal, undefined);
  spoil(image, 0, free!);
  mustEqual(printOf(image, WHOLE), print);
  const { status, stderr } = attempt("xfs_repair", ["-n", image]);
  assert.equal(status, 0, stderr);
  return notes;
}

for (const options of ["-l su=128k", "-b size=1024 -l su=32k", "-m rmapbt=1 -i nrext64=1"]) {
  test(`a filesystem that stopped: mkfs.xfs ${options}`, async (t) => {
    if (!available(t)) return;
    const image = join(scratch(t), "image");
    makeXfs(image, options, `${BYTES}`);
    for (let life = 0; life < 2; life++) {
      die(image, life, life % 2 === 1);
      assert.match(await judge(image), /transactions replayed in memory/);
    }
  });
}

test("a filesystem that stopped while a file in pieces was cut off", async (t) => {
  if (!available(t)) return;
  const image = join(scratch(t), "image");
  makeXfs(image, "-b size=1024 -m rmapbt=1,reflink=1,finobt=0", `${BYTES}`);
  let notes = "";
  for (let round = 0; round < 3 && !notes.includes("intents"); round++) {
    const script = `cd "$1"; : > other; fallocate -l 8M pieces; cp --reflink=always pieces shared$2
      i=0; while [ $i -lt 2000 ]; do echo fpunch $((i * 4096)) 2048; i=$((i+1)); done | xfs_io pieces > /dev/null
      sync -f .; truncate -s 0 pieces & sleep 0.003; echo >> other; sync other; xfs_io -x -c shutdown .; wait`;
    withMount(image, WHOLE, "rw", (root) => run("sh", ["-c", script, "sh", root, `${round}`]));
    notes = await judge(image);
  }
  t.diagnostic(notes);
});

/** The image with a byte of its log changed, or the cycle of a sector from before: so many sectors before the head. */
function torn(image: string, back: number, change: "flip" | "old"): string {
  const copy = `${image}.torn`;
  copyFileSync(image, copy);
  const text = attempt("xfs_logprint", ["-t", image]).stdout;
  const [first, head] = [/daddr: (\d+)/, /head: (\d+)/].map((number) => Number(number.exec(text)![1])) as [
    number,
    number,
  ];
  const bytes = readFileSync(copy);
  const at = (first + head - back) * 512;
  if (change === "old") bytes.fill(0, at, at + 4);
  else bytes[at + 100]! ^= 0x55;
  writeFileSync(copy, bytes);
  return copy;
}

test("a log whose end is torn ends where it ends for the kernel", async (t) => {
  if (!available(t) || !requires(t, "xfs_logprint")) return;
  const image = join(scratch(t), "image");
  makeXfs(image, "-m rmapbt=1", `${BYTES}`);
  withMount(image, WHOLE, "rw", (root) => {
    const script = `cd "$1"; for i in $(seq 16); do head -c 100000 /dev/zero > f$i; sync f$i; done; xfs_io -x -c shutdown .`;
    run("sh", ["-c", script, "sh", root]);
  });
  const found = new Set<number>();
  for (const [back, change] of [
    [1, "flip"],
    [9, "old"],
    [14, "flip"],
    [60, "flip"],
  ] as const) {
    const copy = torn(image, back, change);
    await using device = await fileDevice(copy);
    const ours = await openVolume(device, await readSuperblock(device), true).then(
      ({ volume }) => freeExtents(volume, "stale"),
      (error: Refused) => error.refusal.code,
    );
    if (typeof ours === "string") {
      assert.equal(ours, "journal-corrupt");
      assert.throws(() => withMount(copy, WHOLE, "rw", () => {}), /mount/);
    } else {
      withMount(copy, WHOLE, "rw", () => {});
      assert.deepEqual([...ours], [...xfsDbFree(copy)]);
    }
    found.add(typeof ours === "string" ? 0 : ours.bytes);
  }
  assert.equal(found.size, 4, [...found].join(" "));
});
