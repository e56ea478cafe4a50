/**
 * Clients of NBD that others wrote, on the host: libnbd's tools and its Python binding, fio, QEMU's.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import type { TestContext } from "node:test";
import { attempt, requires, run } from "./tools.ts";

/** A piece of a disk, and what a metadata context says of it. */
export interface MapPiece {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
  readonly description: string;
}

/** Bits of `type` in `base:allocation`. */
export const HOLE = 1;
export const ZERO = 2;

/** A map without gaps, pieces of one type joined. */
export function nbdMap(uri: string, context = "base:allocation"): MapPiece[] {
  const pieces = JSON.parse(run("nbdinfo", ["--json", `--map=${context}`, uri])) as MapPiece[];
  const joined: MapPiece[] = [];
  let end = 0;
  for (const piece of pieces) {
    if (piece.offset !== end) throw new Error(`a gap at ${end}: ${JSON.stringify(pieces)}`);
    end += piece.length;
    const last = joined.at(-1);
    if (last?.type === piece.type)
      joined[joined.length - 1] = { ...last, length: last.length + piece.length };
    else joined.push(piece);
  }
  return joined;
}

/** What `nbdinfo --json` says of an export. */
export function nbdInfo(uri: string): Record<string, unknown> {
  const { exports } = JSON.parse(run("nbdinfo", ["--json", uri])) as { exports: Record<string, unknown>[] };
  return exports[0]!;
}

/** Debian's, which its python3-libnbd belongs to; `nbdsh` takes the first on the path. */
const PYTHON = "/usr/bin/python3";

/** Whether the tools and libnbd's Python binding are there; otherwise the test is skipped. */
export function requiresClients(t: TestContext, ...tools: readonly string[]): boolean {
  if (!requires(t, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io", PYTHON, ...tools)) return false;
  if (attempt(PYTHON, ["-c", "import nbd"]).status === 0) return true;
  if (process.env["CI"] === "true") throw new Error("needs python3-libnbd");
  t.skip("needs python3-libnbd");
  return false;
}

const PRELUDE = `
import json, errno
def code(call):
    try:
        call()
        return "done"
    except nbd.Error as error:
        return error.errno
`;

/**
 * Runs Python with a handle `h` that is connected, and returns what it `print`s last, a line of JSON.
 * `code(call)` gives the name of the errno, or "done".
 */
export function nbdsh(uri: string, script: string): unknown {
  const printed = run(PYTHON, ["-m", "nbd", "--base-allocation", "-u", uri, "-c", PRELUDE + script]);
  return JSON.parse(printed.trim().split("\n").at(-1)!);
}

/** As `nbdsh`, while other things happen: `heard` gets each line when it is printed; all come at the end. */
export async function nbdshAside(
  uri: string,
  script: string,
  heard: (line: string) => void,
): Promise<string[]> {
  const words = ["-m", "nbd", "-u", uri, "-c", PRELUDE + script];
  const child = spawn(PYTHON, words, { stdio: ["ignore", "pipe", "pipe"] });
  let rest = "";
  let stderr = "";
  const lines: string[] = [];
  child.stderr.setEncoding("utf8").on("data", (text: string) => void (stderr += text));
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    const parts = (rest + text).split("\n");
    rest = parts.pop()!;
    for (const line of parts) {
      lines.push(line);
      heard(line);
    }
  });
  await once(child, "close");
  if (child.exitCode !== 0)
    throw new Error(`nbdsh ended with ${child.exitCode}\n${lines.join("\n")}\n${stderr}`);
  return lines;
}

/** Runs fio's NBD engine; what it wrote is verified. @throws Error with what it said of a mismatch */
export function fio(uri: string, options: Readonly<Record<string, string | number>>): void {
  const words = Object.entries(options).map(([key, value]) => `--${key}=${value}`);
  const { status, stderr } = attempt("fio", [
    "--name=job",
    "--ioengine=nbd",
    `--uri=${uri}`,
    "--output=/dev/null",
    "--verify_state_save=0",
    ...words,
  ]);
  if (status !== 0) throw new Error(`fio ${words.join(" ")} ended with ${status}\n${stderr}`);
}
