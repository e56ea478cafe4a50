/**
 * A few thousand crash states of every kind of reclaim; `npm run crash` visits as many as it is given time for.
 */
import assert from "node:assert/strict";
import test from "node:test";
import { Random, seeds } from "../src/testing/seeds.ts";
import { requires, scratch } from "../src/testing/tools.ts";
import { crashScenarios } from "./crash-scenarios.ts";
import { crashWalk, faultWalk } from "./crash-walk.ts";

test("H12: no crash of a reclaim, pack or repair loses a byte, or dangles", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "qemu-img")) return;
  const [seed] = seeds(1);
  let states = 0;
  for await (const scenario of crashScenarios(scratch(t))) {
    await t.test(`${scenario.name} (SEED=${seed})`, async () => {
      const random = new Random(seed!);
      const visited = await crashWalk(scenario, { random, statesPerFlush: 150, onwardOneIn: 30 });
      assert.ok(visited > 0);
      states += visited;
    });
  }
  t.diagnostic(`${states} crash states`);
});

test("H20: no I/O error and no full disk loses a byte, wherever it strikes", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "qemu-img")) return;
  let runs = 0;
  for await (const scenario of crashScenarios(scratch(t))) {
    await t.test(scenario.name, async () => {
      runs += await faultWalk(scenario);
    });
  }
  t.diagnostic(`${runs} failing runs`);
});
