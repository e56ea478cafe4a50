/**
 * Logs that the kernel wrote, round and round, mounted and unmounted. xfs_logprint is the judge.
 */
import assert from "node:assert/strict";
import { closeSync, openSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { fileDevice } from "../../testing/file-device.ts";
import { withMount } from "../../testing/kernel-guest.ts";
import { attempt, requires, requiresRoot, run, scratch } from "../../testing/tools.ts";
import { makeXfs, xfsDb } from "../../testing/xfs.ts";
import { xfs } from "../xfs.ts";

const BYTES = 48 * 2 ** 20;
const WHOLE = { start: 0, end: BYTES };

/** Where xfs_logprint finds the log's first sector and its head, and what it says of it. */
function judged(image: string): { first: number; head: number; sectors: number; isClean: boolean } {
  const text = attempt("xfs_logprint", ["-t", image]).stdout;
  const [, first, sectors] = /daddr: (\d+) length: (\d+)/.exec(text)!;
  const [, head, state] = /head: (\d+) state: <(\w+)>/.exec(text)!;
  return { first: Number(first), head: Number(head), sectors: Number(sectors), isClean: state === "CLEAN" };
}

async function verdict(image: string): Promise<string | undefined> {
  await using device = await fileDevice(image);
  const { refusal } = await xfs.open([device], { replay: false });
  if (refusal !== undefined) assert.equal(refusal.code, "journal-dirty");
  return refusal?.message;
}

async function agrees(image: string): Promise<number> {
  const { head, isClean } = judged(image);
  const refusal = await verdict(image);
  assert.equal(refusal === undefined, isClean, `head at ${head}: ${refusal}`);
  return head;
}

const available = (t: TestContext) => requires(t, "mkfs.xfs", "xfs_logprint") && requiresRoot(t);

for (const [options, writes] of [
  ["-l su=128k", 16],
  ["-l su=32k -s size=4096", 32],
] as const) {
  test(`a log round and round: mkfs.xfs ${options}`, async (t) => {
    if (!available(t)) return;
    const folder = scratch(t);
    const image = join(folder, "image");
    makeXfs(image, options, `${BYTES}`);
    const heads = [await agrees(image)];
    for (let round = 0; round < 7; round++) {
      const copy = join(folder, `copy${round}`);
      withMount(image, WHOLE, "rw", (root) => {
        const script = `i=0; while [ $i -lt $2 ]; do touch "$1/r$3-$i"; sync "$1/r$3-$i"; i=$((i+1)); done`;
        run("sh", ["-c", script, "sh", root, `${writes}`, `${round}`]);
        run("cp", ["--sparse=always", image, copy]);
      });
      assert.equal(judged(copy).isClean, false);
      heads.push(await agrees(copy), await agrees(image));
    }
    assert.ok(
      heads.some((head, i) => i > 0 && head < heads[i - 1]!),
      `${heads.join(" ")}`,
    );
  });
}

test("a log that xfs_repair cleared is empty, before and after the next mount", async (t) => {
  if (!available(t) || !requires(t, "xfs_repair")) return;
  const image = join(scratch(t), "image");
  makeXfs(image, "", `${BYTES}`);
  for (const name of ["first", "second"]) {
    run("xfs_repair", ["-L", image]);
    assert.equal(judged(image).isClean, true);
    await agrees(image);
    withMount(image, WHOLE, "rw", (root) => run("touch", [join(root, name)]));
    await agrees(image);
  }
});

test("a log whose unmount did not arrive whole is dirty", async (t) => {
  if (!available(t)) return;
  const image = join(scratch(t), "image");
  makeXfs(image, "", `${BYTES}`);
  withMount(image, WHOLE, "rw", (root) => run("touch", [join(root, "file")]));
  const { first, head } = judged(image);
  const wound = async (sector: number, offset: number, bytes: readonly number[], message: RegExp) => {
    const at = (first + sector) * 512 + offset;
    const before = Buffer.alloc(bytes.length);
    await using device = await fileDevice(image);
    await device.read(at, before);
    const file = openSync(image, "r+");
    writeSync(file, Buffer.from(bytes), 0, bytes.length, at);
    assert.match((await verdict(image))!, message);
    writeSync(file, before, 0, before.length, at);
    closeSync(file);
  };
  assert.equal(await verdict(image), undefined);
  await wound(head - 1, 400, [7], /no whole record ends/);
  await wound(head - 2, 100, [7], /no whole record ends/);
  // Without its checksum, as tools leave it.
  const sound = readFileSync(image);
  sound.fill(0, (first + head - 2) * 512 + 32, (first + head - 2) * 512 + 36);
  writeFileSync(image, sound);
  assert.equal(await verdict(image), undefined);
  await wound(head - 1, 9, [0], /not that of an unmount/);
  await wound(head - 2, 40, [0, 0, 0, 2], /not that of an unmount/);
  await wound(head - 2, 12, [0, 0, 4, 0], /no whole record ends/);
  await wound(head - 2, 12, [0, 0, 0, 0], /no whole record ends/);
  await wound(head - 2, 0, [0, 0, 0, 1], /not that of an unmount/);
  await wound(head - 1, 0, [0, 0, 0, 0], /./);
  await wound(head - 3, 0, [0, 0, 0, 9], /cycle 9 at sector/);
  await wound(0, 4, [0, 0, 0, 0], /never written/);
  assert.equal(await verdict(image), undefined);
  assert.match(xfsDb(image, "sb 0", "print inprogress"), /= 0/);
});
