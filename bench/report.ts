/**
 * The page that the benchmark writes: tables of runs against each other, goals with their verdicts; and the runs of
 * ullage itself, as it is published.
 */
import { rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { installed, must, type Run, timed } from "./measure.ts";

export const MIB = 2 ** 20;
export const directory = process.env["BENCH_DIR"] ?? path.join(tmpdir(), "ullage-bench");
export const ROOT = path.join(import.meta.dirname, "..");
/** What is published, not the sources. */
const ULLAGE = path.join(ROOT, "dist", "cli", "main.js");
export const lines: string[] = [];

export function say(line: string): void {
  lines.push(line);
  process.stdout.write(`${line}\n`);
}

export const ullage = (...args: string[]): Run => timed(process.execPath, [ULLAGE, ...args]);

/** A fresh copy with its holes, on stable storage, so that no run pays for another's writes. */
export function fresh(from: string): string {
  const to = path.join(directory, `run-${path.basename(from)}`);
  rmSync(to, { force: true });
  must("cp", ["--sparse=always", from, to]);
  must("sync", ["-f", to]);
  return to;
}

export const hostBytes = (file: string): number => statSync(file).blocks * 512;

export function head(title: string): void {
  say(`\n## ${title}\n`);
  say("| | time | against ullage | peak memory |");
  say("|---|---|---|---|");
}

export function row(what: string, run: Run, against?: Run): void {
  const ratio = against ? `${(run.seconds / against.seconds).toFixed(1)} ×` : "";
  say(`| ${what} | ${run.seconds.toFixed(2)} s | ${ratio} | ${(run.peakBytes / MIB).toFixed(0)} MiB |`);
}

export const goals: string[] = [];

/** A goal of the product: at most, or at least, so much. */
export function goal(
  what: string,
  measured: number,
  bound: { atMost?: number; atLeast?: number },
  unit: string,
): void {
  const { atMost = Infinity, atLeast = -Infinity } = bound;
  const wanted = bound.atMost === undefined ? `at least ${atLeast}` : `at most ${atMost}`;
  const verdict = measured <= atMost && measured >= atLeast ? "met" : "**missed**";
  goals.push(`| ${what} | ${wanted} ${unit} | ${measured.toFixed(2)} ${unit} | ${verdict} |`);
}

/** @returns how many times as long it took; undefined when it is not installed */
export function peer(tool: string, what: string, against: Run, run: () => Run): number | undefined {
  if (!installed(tool)) {
    say(`| ${what} | not installed | | |`);
    return undefined;
  }
  const measured = run();
  row(what, measured, against);
  return measured.seconds / against.seconds;
}
