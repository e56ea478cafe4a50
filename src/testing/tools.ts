/**
 * Foreign tools that judge us, and the scratch folders they work in.
 *
 * A test whose tool is missing says so and is skipped; under `CI=true` it fails, so that no judge is lost silently.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";

/** Whether all `tools` are installed; otherwise the test is skipped (or fails, under CI) and should return at once. */
export function requires(t: TestContext, ...tools: readonly string[]): boolean {
  const missing = tools.filter((tool) => !isInstalled(tool));
  if (missing.length === 0) return true;
  const message = `needs ${missing.join(", ")}`;
  if (process.env["CI"] === "true") throw new Error(message);
  t.skip(message);
  return false;
}

/** Whether the test may mount and use loop devices; otherwise as `requires`. */
export function requiresRoot(t: TestContext): boolean {
  if (process.getuid?.() === 0) return true;
  if (process.env["CI"] === "true") throw new Error("needs root");
  t.skip("needs root");
  return false;
}

const installed = new Map<string, boolean>();

function isInstalled(tool: string): boolean {
  let found = installed.get(tool);
  if (found === undefined) {
    found = spawnSync("sh", ["-c", 'command -v "$1"', "sh", tool], { env: toolEnvironment }).status === 0;
    installed.set(tool, found);
  }
  return found;
}

/** mke2fs and its like lie in sbin, which is not on every user's path; messages are wanted in English. */
const toolEnvironment = {
  ...process.env,
  PATH: `${process.env["PATH"] ?? ""}:/usr/local/sbin:/usr/sbin:/sbin`,
  LC_ALL: "C",
};

const OUTPUT_BYTES_MAX = 256 * 1024 * 1024;

/** Runs a tool and returns what it printed. @throws Error with its stderr when it fails */
export function run(command: string, args: readonly string[], input?: string | Uint8Array): string {
  try {
    return execFileSync(command, args, {
      encoding: "utf8",
      env: toolEnvironment,
      maxBuffer: OUTPUT_BYTES_MAX,
      stdio: ["pipe", "pipe", "pipe"],
      ...(input === undefined ? {} : { input }),
    });
  } catch (cause) {
    const { status, stdout, stderr } = cause as { status?: number; stdout?: string; stderr?: string };
    throw new Error(
      `${command} ${args.join(" ")} ended with ${status}\n${stdout ?? ""}${stderr ?? String(cause)}`,
      {
        cause,
      },
    );
  }
}

/** Runs a tool whose exit code is part of the answer. */
export function attempt(
  command: string,
  args: readonly string[],
): { readonly status: number; readonly stdout: string; readonly stderr: string } {
  const result = spawnSync(command, args, {
    encoding: "utf8",
    env: toolEnvironment,
    maxBuffer: OUTPUT_BYTES_MAX,
  });
  if (result.error) throw result.error;
  return { status: result.status ?? -1, stdout: result.stdout, stderr: result.stderr };
}

/** A folder of the test's own, removed when the test ends. */
export function scratch(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), "ullage-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
