/**
 * H2 with a real kernel: a disk copied while it was mounted, with a deletion that only the journal knows.
 */
import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { setTimeout } from "node:timers/promises";
import { reclaim, survey } from "../src/disk.ts";
import { makeGuest } from "../src/testing/guest.ts";
import { Random } from "../src/testing/seeds.ts";
import { attempt, requires, requiresRoot, run, scratch } from "../src/testing/tools.ts";

const MIB = 2 ** 20;
const allow = { replay: true };

test("H2: a block that only the replay would free is kept", async (t) => {
  if (!requiresRoot(t) || !requires(t, "mke2fs", "debugfs", "e2fsck", "mount")) return;
  const folder = scratch(t);
  const disk = makeGuest({ folder, name: "disk.raw", bytes: 64 * MIB });
  const mount = join(folder, "mount");
  mkdirSync(mount);
  run("mount", ["-o", "loop,commit=1", disk, mount]);
  const killed = join(folder, "killed.raw");
  let gone: number[];
  try {
    writeFileSync(join(mount, "gone"), new Random(7).bytes(MIB));
    run("sync", ["-f", mount]);
    gone = run("debugfs", ["-R", "blocks /gone", disk]).trim().split(/\s+/).map(Number);
    rmSync(join(mount, "gone"));
    await setTimeout(2500); // The journal commits; the bitmaps stay as they are.
    copyFileSync(disk, killed);
  } finally {
    run("umount", [mount]);
  }
  assert.equal(gone.length, 256);

  const recovered = join(folder, "recovered.raw");
  copyFileSync(killed, recovered);
  attempt("e2fsck", ["-fy", recovered]);
  const bits = run("debugfs", ["-R", `testb ${gone[0]} ${gone.length}`, recovered]);
  assert.equal(bits.match(/not in use/g)?.length, gone.length, "after a real replay the blocks are free");

  const refused = await survey(killed);
  assert.equal(refused.volumes[0]!.reason!.code, "journal-dirty");
  const { volumes, regions, reclaimableBytes } = await survey(killed, { allow });
  assert.equal(volumes[0]!.state, "clean");
  assert.ok(reclaimableBytes > 0);
  for (const block of gone)
    assert.equal(regions.get("returnable")!.has(block * 4096), false, `block ${block}`);

  const before = statSync(killed).blocks;
  assert.equal((await reclaim(killed, { allow, confirm: async () => true, verify: true })).applied, true);
  assert.ok(statSync(killed).blocks < before);
  assert.ok(attempt("e2fsck", ["-fy", killed]).status <= 1);
  assert.equal(attempt("e2fsck", ["-fn", killed]).status, 0);
});
