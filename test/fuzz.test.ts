/**
 * A short run of every fuzz target (H24). `npm run fuzz` runs for longer.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { requires, requiresRoot } from "../src/testing/tools.ts";
import { type FuzzOptions, fuzz } from "./fuzz/run.ts";
import { TARGETS } from "./fuzz/targets.ts";

const CASES = 120;
const MILLISECONDS_MAX = 3_000;

async function expectNothing(options: Omit<FuzzOptions, "milliseconds">): Promise<number> {
  const { findings, done } = await fuzz({ ...options, milliseconds: MILLISECONDS_MAX });
  const told = findings.map(
    ({ seed, sample, changes, message }) =>
      `npm run fuzz -- --target ${options.target} --seed ${seed} --cases 1\n${sample}\n${changes.join("\n")}\n${message}`,
  );
  assert.equal(told.join("\n\n"), "");
  return done;
}

for (const { name, needs } of TARGETS) {
  test(`fuzzing of ${name}: no exception but DiskError, bounded work`, async (t) => {
    if (!requires(t, ...needs)) return;
    if (["volumes", "sets", "xfs-log"].includes(name) && !requiresRoot(t)) return;
    assert(
      Number(await expectNothing({ target: name, seed: Number(process.env["SEED"] ?? 1), cases: CASES })) > 0,
    );
  });
}
