/**
 * Failures as the command line tells them: an exit code, a sentence, a hint, an object in the JSON document.
 */
import { resolve } from "node:path";
import { DiskError, type ErrorKind } from "../error.ts";
import { printable, type Screen, wrap } from "./text.ts";

/** `internal` is a bug of ours: no kind of `DiskError`, and the only one with a stack worth showing. */
export type FailureKind = ErrorKind | "internal";

export const EXIT: Readonly<Record<FailureKind, number>> = {
  internal: 1,
  usage: 2,
  corrupt: 3,
  unsupported: 4,
  refused: 5,
  busy: 6,
  io: 7,
  interrupted: 130,
};

export interface Failure {
  readonly kind: FailureKind;
  readonly message: string;
  readonly hint: string | null;
  readonly code: string | null;
  readonly stack: string | undefined;
}

export function failureOf(error: unknown): Failure {
  if (error instanceof DiskError) {
    const { kind, message, hint, code, stack } = error;
    return { kind, message, hint: hint ?? null, code: code ?? null, stack };
  }
  if (!(error instanceof Error)) {
    return { kind: "internal", message: String(error), hint: null, code: null, stack: undefined };
  }
  const { message, stack } = error;
  if (error.name === "AbortError" || error.name === "ExitPromptError") {
    return { kind: "interrupted", message: "interrupted", hint: null, code: null, stack };
  }
  // An error of the operating system that nobody put into words.
  if ("syscall" in error && "code" in error) {
    return { kind: "io", message, hint: null, code: String(error.code), stack };
  }
  const hint = "this is a bug of ullage; set ULLAGE_DEBUG=1 to see where, and please report it";
  return { kind: "internal", message, hint, code: null, stack };
}

/** `ullage: disk.qcow2: refused: ...`, then the hint. */
export function renderFailure(failure: Failure, path: string | undefined, screen: Screen): string {
  const safe = (text: string): string => printable(text, screen);
  const where = path === undefined ? "" : `${safe(path)}: `;
  // A file that fails names itself, so that messages about other files than the image are understood.
  const message =
    path === undefined ? failure.message : withoutPrefix(failure.message, [path, resolve(path)]);
  // A usage error is about the words of the command line, not about the image.
  const kind = failure.kind === "usage" ? "" : `${failure.kind === "io" ? "I/O error" : failure.kind}: `;
  const lines = wrap("ullage: ", `${where}${kind}${safe(message)}`, screen.columns);
  if (failure.hint !== null) lines.push(...wrap("  hint: ", safe(failure.hint), screen.columns));
  if (process.env["ULLAGE_DEBUG"] !== undefined && failure.stack !== undefined) {
    lines.push(...failure.stack.split("\n").map(safe));
  }
  return lines.join("\n");
}

function withoutPrefix(message: string, paths: readonly string[]): string {
  const prefix = paths.map((path) => `${path}: `).find((start) => message.startsWith(start));
  return prefix === undefined ? message : message.slice(prefix.length);
}
