/**
 * The guards are guarded: each of the mutations below takes one guard of SAFETY out of a copy of the sources, and the
 * named tests must then fail. A guard that can go without a test noticing is no guard.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import test from "node:test";
import { MUTATIONS } from "./mutations.ts";

const ROOT = path.join(import.meta.dirname, "..");

for (const { hazard, guard, file, from, to, tests, only } of MUTATIONS) {
  test(`${hazard}: without "${guard}" a test fails`, () => {
    const scratch = mkdtempSync(path.join(tmpdir(), "ullage-mutation-"));
    try {
      for (const part of ["src", "test", "bin", "samples", "package.json"]) {
        cpSync(path.join(ROOT, part), path.join(scratch, part), { recursive: true });
      }
      symlinkSync(path.join(ROOT, "node_modules"), path.join(scratch, "node_modules"));
      const mutated = path.join(scratch, file);
      const source = readFileSync(mutated, "utf8");
      assert.equal(source.split(from).length, 2, `${file} must hold the guard exactly once: ${from}`);
      writeFileSync(
        mutated,
        source.replace(from, () => to),
      );
      const names = only === undefined ? [] : [`--test-name-pattern=${only}`];
      const run = spawnSync(process.execPath, ["--test", "--test-reporter=spec", ...names, ...tests], {
        cwd: scratch,
        encoding: "utf8",
        env: environment(),
      });
      const failed = Number(/^ℹ fail (\d+)$/m.exec(run.stdout)?.[1]);
      const isBroken = tests.some((name) => run.stdout.includes(`✖ ${name} `));
      assert.ok(!isBroken, `the tests did not even run: ${run.stdout}`);
      assert.ok(failed > 0, `nothing noticed: ${tests.join(", ")} passed without the guard`);
    } finally {
      rmSync(scratch, { recursive: true });
    }
  });
}

/** A test runner inside a test runner would only report to the outer one. */
function environment(): NodeJS.ProcessEnv {
  const { NODE_TEST_CONTEXT: _, ...rest } = process.env;
  return { ULLAGE_CORPUS: path.join(ROOT, "..", "shared", "corpus"), ...rest };
}
