import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import { DiskError } from "../../error.ts";
import { execute } from "../../reclaim/execute.ts";
import {
  KINDS,
  loadFolder,
  makeImage,
  parentsIn,
  sourceIn,
  VIRTUAL_BYTES,
} from "../../testing/qcow2-kinds.ts";
import { guestBytes, qemuCheck } from "../../testing/qemu.ts";
import { Random, seeds } from "../../testing/seeds.ts";
import { requires, scratch } from "../../testing/tools.ts";
import { qcow2 } from "../qcow2.ts";

/** Plans for `blank` alone, executes and writes back. @throws DiskError `refused` */
async function blank(folder: string, ranges: ExtentSet, punch: boolean): Promise<void> {
  const files = await loadFolder(folder);
  await using image = await qcow2.openWritable!(sourceIn(files, "image.qcow2"), parentsIn(files));
  const granules = { minHoleBytes: 4096, hostBlockBytes: 4096 };
  const plan = await image.plan({ free: ExtentSet.EMPTY, blank: ranges, pack: false, punch, ...granules });
  await execute(plan, image.files);
  for (const [name, file] of files) await file.save(join(folder, name));
}

function randomRanges(random: Random): Extent[] {
  return Array.from({ length: 4 }, () => {
    const start = random.below(VIRTUAL_BYTES / 512) * 512;
    const bytes = (1 + random.below(random.pick([4, 300]))) * 512;
    return { start, end: Math.min(VIRTUAL_BYTES, start + bytes) };
  });
}

for (const kind of KINDS) {
  test(`a blank range reads zeros, or the plan is refused: ${kind.name}`, async (t) => {
    if (!requires(t, "qemu-img", "qemu-io")) return;
    for (const seed of seeds(1)) {
      const folder = scratch(t);
      const random = new Random(seed);
      const path = makeImage(folder, kind, random);
      const expected = guestBytes(path);
      for (const range of randomRanges(random)) {
        const label = `SEED=${seed}, ${range.start}-${range.end}`;
        try {
          await blank(folder, ExtentSet.of(range), random.oneIn(2));
        } catch (error) {
          assert.ok(
            error instanceof DiskError && error.code === "shared-cluster",
            `${label}: ${String(error)}`,
          );
          const hasOther = kind.backing !== undefined || kind.compressed || (kind.snapshots ?? 0) > 0;
          assert.ok(hasOther, `${label}: nobody else holds these bytes`);
          continue;
        }
        expected.fill(0, range.start, range.end);
        assert.deepEqual(qemuCheck(path), { errors: 0, leaks: 0 }, label);
        const actual = guestBytes(path);
        assert.equal(
          actual.findIndex((byte, at) => byte !== expected[at]),
          -1,
          label,
        );
      }
    }
  });
}
