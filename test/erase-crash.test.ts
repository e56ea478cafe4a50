/**
 * Erasures that are crashed at every point: no used byte is lost, no hole is made over bytes that were not overwritten.
 */
import assert from "node:assert/strict";
import test from "node:test";
import { Random, seeds } from "../src/testing/seeds.ts";
import { requires, scratch } from "../src/testing/tools.ts";
import { eraseScenarios } from "./crash-scenarios.ts";
import { crashWalk, faultWalk } from "./crash-walk.ts";

test("H12, H20: no crash, no I/O error and no full disk costs a used byte while free ones are erased", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "qemu-img")) return;
  const [seed] = seeds(1);
  let states = 0;
  for await (const scenario of eraseScenarios(scratch(t))) {
    await t.test(`${scenario.name} (SEED=${seed})`, async () => {
      const random = new Random(seed!);
      const visited = await crashWalk(scenario, { random, statesPerFlush: 12, onwardOneIn: 30 });
      assert.ok(visited > 0);
      states += visited;
      if (scenario.name === "v3, snapshot, erase") await faultWalk(scenario);
    });
  }
  t.diagnostic(`${states} crash states`);
});
