import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { DiskError } from "../../error.ts";
import { execute } from "../../reclaim/execute.ts";
import { KINDS, loadFolder, makeImage, openIn, parentsIn, sourceIn } from "../../testing/qcow2-kinds.ts";
import { guestBytes, qemuCheck } from "../../testing/qemu.ts";
import { Random, seeds } from "../../testing/seeds.ts";
import { requires, scratch } from "../../testing/tools.ts";
import { qcow2 } from "../qcow2.ts";
import { openContext } from "./context.ts";
import { refcountMax, writeRefcount } from "./refcounts.ts";
import { COMPRESSED_HIGH, COPIED_HIGH } from "./tables.ts";

const IMAGE = "image.qcow2";

/**
 * Raises counts as a crashed QEMU leaves them: of clusters nobody refers to, and of some that are in use, whose
 * entries have lost their copied flag then.
 */
async function leak(folder: string, random: Random): Promise<void> {
  const files = await loadFolder(folder);
  const file = files.get(IMAGE)!;
  const { header, refcounts, l1, l2 } = await openContext(file, async (name) =>
    files.get(name.split("/").at(-1)!)!,
  );
  const block = (await refcounts.block(0))!;
  for (let index = 0; index < l1.entries; index++) {
    const at = Number(l1.view.getBigUint64(index * 8) & 0x00ff_ffff_ffff_fe00n);
    if (at === 0 || header.externalData) continue;
    const { view } = await l2.get(at);
    for (let i = 0; i < header.l2Entries; i++) {
      const high = view.getUint32(i * header.l2EntryBytes);
      if ((high & COPIED_HIGH) === 0 || (high & COMPRESSED_HIGH) !== 0 || !random.oneIn(8)) continue;
      const host = Number(view.getBigUint64(i * header.l2EntryBytes) & 0x00ff_ffff_ffff_fe00n);
      const cluster = host / header.clusterBytes;
      if (cluster >= refcounts.blockEntries || refcountMax(refcounts.order) < 2) continue;
      writeRefcount(block.view, refcounts.order, cluster, 2);
      view.setUint32(i * header.l2EntryBytes, high & ~COPIED_HIGH);
    }
    await file.write(at, new Uint8Array(view.buffer, view.byteOffset, view.byteLength));
  }
  const end = Math.ceil(file.bytes / header.clusterBytes);
  for (let cluster = end; cluster < Math.min(end + 20, refcounts.blockEntries); cluster++) {
    writeRefcount(block.view, refcounts.order, cluster, 1);
  }
  await file.truncate((end + 20) * header.clusterBytes);
  await file.write(block.at, new Uint8Array(block.view.buffer, block.view.byteOffset, block.view.byteLength));
  await file.save(join(folder, IMAGE));
}

for (const kind of KINDS) {
  test(`leaks are given back, and nothing else is touched: ${kind.name}`, async (t) => {
    if (!requires(t, "qemu-img", "qemu-io")) return;
    for (const seed of seeds(1)) {
      const label = `SEED=${seed}`;
      const folder = scratch(t);
      const random = new Random(seed);
      const path = makeImage(folder, kind, random);
      const before = guestBytes(path);
      await leak(folder, random);
      const leaking = qemuCheck(path);
      assert.equal(leaking.errors, 0, label);
      assert.ok(leaking.leaks > 0, label);
      const files = await loadFolder(folder);
      await using image = await qcow2.openWritable!(sourceIn(files, IMAGE), parentsIn(files));
      const plan = await image.repairLeaks!();
      assert.deepEqual([plan.unmapBytes, plan.punchBytes, plan.packBytes], [0, 0, 0], label);
      await execute(plan, image.files);
      await files.get(IMAGE)!.save(path);
      assert.deepEqual(qemuCheck(path), { errors: 0, leaks: 0 }, label);
      assert.ok(guestBytes(path).equals(before), label);
    }
  });
}

test("an image with errors is not repaired", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const folder = scratch(t);
  makeImage(folder, KINDS[0]!, new Random(1));
  const files = await loadFolder(folder);
  const file = files.get(IMAGE)!;
  const { refcounts } = await openContext(file, () => Promise.reject(new Error("no data file")));
  await file.write((await refcounts.block(0))!.at, new Uint8Array(2));
  const image = await openIn(files);
  await assert.rejects(
    image.repairLeaks!(),
    (error) => error instanceof DiskError && error.kind === "corrupt",
  );
});
