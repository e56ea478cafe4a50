import assert from "node:assert/strict";
import { readFileSync, statSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { ExtentSet } from "../../bytes/extents.ts";
import { execute } from "../../reclaim/execute.ts";
import type { Plan, Wish } from "../../reclaim/plan.ts";
import type { Files } from "../../testing/crash.ts";
import {
  type Kind,
  KINDS,
  loadFolder,
  makeImage,
  parentsIn,
  sourceIn,
  VIRTUAL_BYTES,
} from "../../testing/qcow2-kinds.ts";
import { createImage, guestBytes, qemuCheck, qemuIo, writeCommand } from "../../testing/qemu.ts";
import { Random, seeds } from "../../testing/seeds.ts";
import { requires, scratch } from "../../testing/tools.ts";
import { qcow2 } from "../qcow2.ts";

/** Written last and freed in part, so that there is something to do. */
const WRITTEN = { start: 2 ** 20, end: 2 ** 21, pattern: 7 };
const CERTAIN = { start: 1.25 * 2 ** 20, end: 1.75 * 2 ** 20 };

function makeWritten(folder: string, kind: Kind, random: Random): string {
  const path = makeImage(folder, kind, random);
  qemuIo(path, [writeCommand(WRITTEN)]);
  return path;
}

/** Free ranges of all sizes, among them the end of the disk. */
function randomFree(random: Random): ExtentSet {
  const ranges = Array.from({ length: 24 }, () => {
    const start = random.below(VIRTUAL_BYTES / 512) * 512;
    const bytes = (1 + random.below(random.pick([4, 64, 1024]))) * 512;
    return { start, end: Math.min(VIRTUAL_BYTES, start + bytes) };
  });
  return ExtentSet.of(...ranges, CERTAIN, { start: VIRTUAL_BYTES - 20 * 512, end: VIRTUAL_BYTES });
}

const wish = (free: ExtentSet, more: Partial<Wish> = {}): Wish => ({
  free,
  blank: ExtentSet.EMPTY,
  pack: false,
  punch: true,
  minHoleBytes: 4096,
  hostBlockBytes: 4096,
  ...more,
});

const openIn = (files: Files) => qcow2.openWritable!(sourceIn(files, IMAGE), parentsIn(files));

const IMAGE = "image.qcow2";

/** Opens, plans, executes and writes back. */
async function reclaim(folder: string, asked: Wish): Promise<{ plan: Plan; returnedBytes: number }> {
  const files = await loadFolder(folder);
  await using image = await openIn(files);
  const plan = await image.plan(asked);
  const hostBytes = () => [...files.values()].reduce((sum, file) => sum + file.hostBytes, 0);
  const before = hostBytes();
  await execute(plan, image.files);
  for (const [name, file] of files) await file.save(join(folder, name));
  return { plan, returnedBytes: before - hostBytes() };
}

async function punchedBytes(plan: Plan): Promise<number> {
  let bytes = 0;
  for await (const batch of plan.batches()) {
    for (const step of batch) if (step.op === "punch") bytes += step.range.end - step.range.start;
  }
  return bytes;
}

/** What every disk of the image holds, the active one first. */
function contents(path: string, kind: Kind): Buffer[] {
  const snapshots = Array.from({ length: kind.snapshots ?? 0 }, (_, i) => guestBytes(path, `snapshot ${i}`));
  return [guestBytes(path), ...snapshots];
}

/** Free bytes of the active disk read zeros or are unchanged, all others are unchanged (H9, H11). */
function assertContents(actual: Buffer[], before: Buffer[], free: ExtentSet, label: string): void {
  const [disk, ...snapshots] = before;
  const expected = Buffer.from(disk!);
  for (const { start, end } of free) {
    for (let at = start; at < end; at += 512) {
      if (actual[0]!.subarray(at, at + 512).every((byte) => byte === 0)) expected.fill(0, at, at + 512);
    }
  }
  for (const [i, content] of [expected, ...snapshots].entries()) {
    const difference = actual[i]!.findIndex((byte, at) => byte !== content[at]);
    assert.equal(difference, -1, `${label}: disk ${i} differs at ${difference}`);
    assert.equal(actual[i]!.length, content.length, label);
  }
}

for (const kind of KINDS) {
  test(`reclaim keeps what is used: ${kind.name}`, async (t) => {
    if (!requires(t, "qemu-img", "qemu-io")) return;
    for (const seed of seeds(1)) {
      const label = `SEED=${seed}`;
      const folder = scratch(t);
      const random = new Random(seed);
      const path = makeWritten(folder, kind, random);
      const before = contents(path, kind);
      const free = randomFree(random);
      const asked = wish(free);

      const { plan, returnedBytes } = await reclaim(folder, asked);
      assert.ok(plan.unmapBytes + plan.punchBytes > 0, `${label}: something was done`);
      assert.equal(returnedBytes, await punchedBytes(plan), `${label}: promise and result`);
      if (kind.dataFile === "raw") {
        assert.equal(plan.unmapBytes, 0, `${label}: a raw data file stays mapped as it lies`);
        const disk = readFileSync(join(folder, "image.data")).subarray(0, VIRTUAL_BYTES);
        assert.ok(disk.equals(guestBytes(path)), `${label}: data file`);
      }
      assert.deepEqual(qemuCheck(path), { errors: 0, leaks: 0 }, label);
      assertContents(contents(path, kind), before, free, label);

      const again = await reclaim(folder, asked);
      assert.equal(again.plan.unmapBytes, 0, `${label}: a second run finds nothing to unmap`);
      assert.equal(await punchedBytes(again.plan), 0, `${label}: nor to punch`);
    }
  });
}

for (const kind of KINDS) {
  test(`packing shortens the file and moves nothing else: ${kind.name}`, async (t) => {
    if (!requires(t, "qemu-img", "qemu-io")) return;
    for (const seed of seeds(1, 2)) {
      const label = `SEED=${seed}`;
      const folder = scratch(t);
      const random = new Random(seed);
      const path = makeWritten(folder, kind, random);
      const before = contents(path, kind);
      const fileBytes = statSync(path).size;
      const free = randomFree(random);
      const asked = wish(free, { pack: true, punch: false });

      const { plan } = await reclaim(folder, asked);
      if (canPack(kind)) assert.ok(plan.packBytes > 0, `${label}: something was done`);
      assert.equal(fileBytes - statSync(path).size, plan.packBytes, `${label}: promise and result`);
      assert.deepEqual(qemuCheck(path), { errors: 0, leaks: 0 }, label);
      assertContents(contents(path, kind), before, free, label);

      const again = await reclaim(folder, asked);
      assert.equal(again.plan.packBytes, 0, `${label}: a second run finds nothing to do`);
    }
  });
}

test("the cut end of a file moves with the zeros that it stands for", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const folder = scratch(t);
  const path = createImage({ folder, name: IMAGE, virtualBytes: 4 * 2 ** 20 });
  qemuIo(path, [`write -P 7 0 ${2 ** 20}`, `write -P 8 ${2 ** 21} 4096`]);
  const before = contents(path, KINDS[0]!);
  truncateSync(path, statSync(path).size - 60 * 1024);
  const free = ExtentSet.of({ start: 0, end: 2 ** 20 });
  await reclaim(folder, wish(free, { pack: true, punch: false }));
  assert.deepEqual(qemuCheck(path), { errors: 0, leaks: 0 });
  assertContents(contents(path, KINDS[0]!), before, free, "cut");
});

/** Whether whole clusters get free: not above a parent in version 2, nor where they are as large as the disk. */
function canPack({ options, backing, dataFile }: Kind): boolean {
  return !(options["compat"] === "0.10" && backing) && options["cluster_size"] !== 2 ** 21 && !dataFile;
}
