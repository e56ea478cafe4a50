/**
 * The two ends of the command: what the terminal can show, where text and messages go, and who may interrupt.
 *
 * Results go to stdout, everything else to stderr. A reader that goes away (`ullage survey ... | head -1`) is no
 * failure: the rest is dropped, and a reclaim at work comes to its end.
 */
import { DiskError } from "../error.ts";
import type { Screen } from "./text.ts";

export interface Face {
  readonly json: boolean;
  readonly screen: Screen;
  /** Somebody sits there who can answer a question. */
  readonly interactive: boolean;
  /** To stdout, as lines. */
  out(text: string): void;
  /** To stderr, as lines. */
  note(text: string): void;
}

const COLUMNS_DEFAULT = 80;
const COLUMNS_MIN = 40;
const COLUMNS_MAX = 200;

export function faceOf(json: boolean): Face {
  const { stdin, stdout, stderr } = process;
  return {
    json,
    screen: screenOf(stdout, process.env),
    interactive: !json && stdin.isTTY && stdout.isTTY,
    out: (text) => void stdout.write(`${text}\n`),
    note: (text) => void stderr.write(`${text}\n`),
  };
}

/** A reader that went away is no failure. Messages that find no room (`2>log` on a full host) stop no work, either. */
export function outliveReaders(): void {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
  });
  process.stderr.on("error", () => {});
}

export function screenOf(
  stream: { readonly isTTY?: boolean; readonly columns?: number },
  env: Readonly<Record<string, string | undefined>>,
): Screen {
  const asked = Number(
    env["COLUMNS"] || (stream.isTTY === true ? stream.columns : undefined) || COLUMNS_DEFAULT,
  );
  const columns = Number.isInteger(asked)
    ? Math.min(COLUMNS_MAX, Math.max(COLUMNS_MIN, asked))
    : COLUMNS_DEFAULT;
  const plain = (env["NO_COLOR"] ?? "") !== "" || env["TERM"] === "dumb";
  return { columns, colour: stream.isTTY === true && !plain, unicode: speaksUtf8(env) };
}

function speaksUtf8(env: Readonly<Record<string, string | undefined>>): boolean {
  const locale = env["LC_ALL"] || env["LC_CTYPE"] || env["LANG"];
  if (locale !== undefined) return /utf-?8/i.test(locale);
  return process.platform === "win32" || process.platform === "darwin";
}

export interface Interruption {
  readonly signal: AbortSignal;
  [Symbol.dispose](): void;
}

const SIGNALS = ["SIGINT", "SIGTERM"] as const;

/**
 * For work that writes: the first Ctrl-C asks it to stop at the next safe point. The second leaves at once, which
 * loses nothing either: every prefix of a plan is harmless.
 */
export function interruptible(face: Face): Interruption {
  const controller = new AbortController();
  const onSignal = (): void => {
    if (controller.signal.aborted) process.exit(130);
    face.note("\nullage: stopping at the next safe point; Ctrl-C again leaves at once");
    controller.abort(new DiskError("interrupted", "interrupted"));
  };
  for (const name of SIGNALS) process.on(name, onSignal);
  return {
    signal: controller.signal,
    [Symbol.dispose]() {
      for (const name of SIGNALS) process.off(name, onSignal);
    },
  };
}

/** For work that only reads: leaves at once. */
export function leaveOnInterrupt(): void {
  for (const name of SIGNALS) {
    process.on(name, () => {
      if (process.listenerCount(name) === 1) process.exit(130);
    });
  }
}
