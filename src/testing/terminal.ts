/**
 * A person at a terminal: runs the command on a pseudo-terminal (`script`), and types when something was shown.
 */
import { spawn } from "node:child_process";

/** What to wait for, and what to type then. */
export type Dialogue = readonly (readonly [wait: RegExp, type: string])[];

export interface TerminalOptions {
  readonly directory?: string;
  readonly env?: Readonly<Record<string, string>>;
}

const TIMEOUT_MS = 60_000;

/** @param words the program and its arguments; @returns everything that was shown, and the exit code */
export async function onTerminal(
  words: readonly string[],
  dialogue: Dialogue = [],
  { directory, env = {} }: TerminalOptions = {},
): Promise<{ readonly out: string; readonly exit: number | null }> {
  const command = words.map((word) => `'${word}'`).join(" ");
  const child = spawn("script", ["-qec", command, "/dev/null"], {
    cwd: directory,
    env: { PATH: process.env["PATH"], LANG: "C.UTF-8", TERM: "xterm", ...env },
  });
  const timer = setTimeout(() => child.kill(), TIMEOUT_MS);
  let out = "";
  let heard = 0;
  let step = 0;
  child.stdout.on("data", (chunk: Buffer) => {
    out += chunk.toString();
    if (step === dialogue.length || !dialogue[step]![0].test(out.slice(heard))) return;
    heard = out.length;
    child.stdin.write(dialogue[step++]![1]);
  });
  const exit = await new Promise<number | null>((resolve) => child.on("close", resolve));
  clearTimeout(timer);
  return { out, exit };
}
