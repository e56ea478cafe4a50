/**
 * npm run fuzz -- [--seconds N] [--seed S] [--target NAME] [--cases N]
 *
 * Long fuzzing of every parser; the short run stands in test/fuzz.test.ts. Each finding names the seed of its case:
 * `--target NAME --seed S --cases 1` replays it.
 */
import { parseArgs } from "node:util";
import { fuzz } from "../test/fuzz/run.ts";
import { TARGETS } from "../test/fuzz/targets.ts";

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "60" },
    seed: { type: "string", default: "1" },
    cases: { type: "string", default: `${2 ** 31}` },
    target: { type: "string" },
  },
});
const chosen = TARGETS.filter(({ name }) => values.target === undefined || values.target === name);
if (chosen.length === 0) {
  process.stderr.write(`targets: ${TARGETS.map(({ name }) => name).join(", ")}\n`);
  process.exit(2);
}
let findings = 0;
for (const { name } of chosen) {
  const report = await fuzz({
    target: name,
    seed: Number(values.seed),
    cases: Number(values.cases),
    milliseconds: (Number(values.seconds) * 1000) / chosen.length,
    onFinding: ({ seed, sample, changes, message }) => {
      process.stdout.write(`\nFINDING --target ${name} --seed ${seed} --cases 1   (${sample})\n`);
      process.stdout.write(`${changes.map((change) => `  ${change}\n`).join("")}${message}\n`);
    },
  });
  findings += report.findings.length;
  process.stdout.write(`\n${name}: ${report.done} cases, ${report.findings.length} findings\n`);
  const counts = Object.entries(report.statistics).sort(([a], [b]) => (a < b ? -1 : 1));
  for (const [word, count] of counts) process.stdout.write(`  ${String(count).padStart(7)}  ${word}\n`);
}
process.exit(findings === 0 ? 0 : 1);
