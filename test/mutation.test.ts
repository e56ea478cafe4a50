/**
 * The guards are guarded: each of the mutations below takes one guard of SAFETY out of a copy of the sources, and the
 * named tests must then fail. A guard that can go without a test noticing is no guard.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { describe, test } from "node:test";
import { promisify } from "node:util";
import { type Mutation, MUTATIONS } from "./mutations.ts";

const ROOT = path.join(import.meta.dirname, "..");

const OUTPUT_BYTES_MAX = 64 * 1024 * 1024;

describe("without its guard", { concurrency: 2 }, () => {
  for (const mutation of MUTATIONS) {
    test(`${mutation.hazard}: without "${mutation.guard}" a test fails`, () => judge(mutation));
  }
});

async function judge({ file, from, to, tests, only }: Mutation): Promise<void> {
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
    const shown = await outputOf(["--test", "--test-reporter=spec", ...names, ...tests], scratch);
    const failed = Number(/^ℹ fail (\d+)$/m.exec(shown)?.[1]);
    const isBroken = tests.some((name) => shown.includes(`✖ ${name} `));
    assert.ok(!isBroken, `the tests did not even run: ${shown}`);
    assert.ok(failed > 0, `nothing noticed: ${tests.join(", ")} passed without the guard`);
  } finally {
    rmSync(scratch, { recursive: true });
  }
}

/** What Node prints, however it ends. */
async function outputOf(words: readonly string[], cwd: string): Promise<string> {
  const options = { cwd, env: environment(), maxBuffer: OUTPUT_BYTES_MAX };
  return await promisify(execFile)(process.execPath, words, options).then(
    ({ stdout }) => stdout,
    (error: { stdout: string }) => error.stdout,
  );
}

/** A test runner inside a test runner would only report to the outer one. */
function environment(): NodeJS.ProcessEnv {
  const { NODE_TEST_CONTEXT: _, ...rest } = process.env;
  return { ULLAGE_CORPUS: path.join(ROOT, "..", "shared", "corpus"), ...rest };
}
