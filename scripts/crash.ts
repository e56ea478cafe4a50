/**
 * npm run crash [-- --states N] [--seed S]: crash states until N were visited (default 100,000), round after round over
 * all scenarios with a new seed each. The first violation ends the run and names its seed.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { Random } from "../src/testing/seeds.ts";
import { crashScenarios } from "../test/crash-scenarios.ts";
import { crashWalk, type Scenario } from "../test/crash-walk.ts";

const { values } = parseArgs({
  options: { states: { type: "string", default: "100000" }, seed: { type: "string", default: "1" } },
});
const folder = mkdtempSync(path.join(tmpdir(), "ullage-crash-"));
try {
  const scenarios: Scenario[] = [];
  for await (const scenario of crashScenarios(folder)) scenarios.push(scenario);
  let states = 0;
  for (let seed = Number(values.seed); states < Number(values.states); seed++) {
    for (const scenario of scenarios) {
      try {
        states += await crashWalk(scenario, {
          random: new Random(seed),
          statesPerFlush: 200,
          onwardOneIn: 20,
        });
      } catch (cause) {
        throw new Error(`seed ${seed}: ${scenario.name}`, { cause });
      }
    }
    process.stdout.write(`seed ${seed}: ${states} states, no violation\n`);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
