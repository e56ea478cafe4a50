/**
 * Times whole processes from outside: wall seconds and peak memory by GNU time's account, several runs, the median.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";

export interface Run {
  readonly seconds: number;
  readonly peakBytes: number;
  readonly stdout: string;
}

/** Runs a command to its end. @throws Error when it fails */
export function timed(
  command: string,
  args: readonly string[],
  environment: Record<string, string> = {},
): Run {
  const scratch = mkdtempSync(path.join(tmpdir(), "ullage-time-"));
  try {
    const report = path.join(scratch, "report");
    const done = spawnSync("/usr/bin/time", ["-o", report, "-f", "%e %M", command, ...args], {
      encoding: "utf8",
      maxBuffer: 1 << 28,
      env: { ...process.env, ...environment },
    });
    if (done.status !== 0)
      throw new Error(`${command} ${args.join(" ")}: exit ${done.status}\n${done.stderr}${done.stdout}`);
    const [seconds, kibibytes] = readFileSync(report, "utf8").trim().split("\n").at(-1)!.split(" ");
    return { seconds: Number(seconds), peakBytes: Number(kibibytes) * 1024, stdout: done.stdout };
  } finally {
    rmSync(scratch, { recursive: true });
  }
}

/** Wall time of one call in this process, in seconds. */
export async function clock<T>(action: () => T | Promise<T>): Promise<{ seconds: number; result: T }> {
  const start = performance.now();
  const result = await action();
  return { seconds: (performance.now() - start) / 1000, result };
}

/** The run with the median time; the peak is the largest of all. */
export function median(runs: readonly Run[]): Run {
  const sorted = [...runs].sort((a, b) => a.seconds - b.seconds);
  const middle = sorted[Math.floor(sorted.length / 2)]!;
  return { ...middle, peakBytes: Math.max(...runs.map(({ peakBytes }) => peakBytes)) };
}

/** Whether a command is installed. */
export function installed(command: string): boolean {
  return spawnSync("sh", ["-c", `command -v ${command}`]).status === 0;
}

export function must(command: string, args: readonly string[]): string {
  const done = spawnSync(command, args, { encoding: "utf8", maxBuffer: 1 << 28 });
  if (done.status !== 0) throw new Error(`${command} ${args.join(" ")}: exit ${done.status}\n${done.stderr}`);
  return done.stdout;
}
