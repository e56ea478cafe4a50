/**
 * The few kinds of failure that a disk, a host or a person can cause. Every surface keeps one table over
 * `ErrorKind` (exit code, NBD errno, HTTP status), so that a forgotten kind fails to compile.
 *
 * Bugs of our own are not of a kind: they are plain assertion errors and end with exit code 1.
 */

/** What went wrong, in the order of the exit codes of PRODUCT.md. */
export type ErrorKind = "usage" | "corrupt" | "unsupported" | "refused" | "busy" | "io" | "interrupted";

export interface ErrorDetails {
  /** What the user may do about it: one sentence. */
  readonly hint?: string;
  /** A stable word for scripts, such as `journal-dirty`. */
  readonly code?: string;
  readonly cause?: unknown;
}

/** A failure caused by the outside. `message` names the structure, where it lies, what was found and expected. */
export class DiskError extends Error {
  override readonly name = "DiskError";
  readonly kind: ErrorKind;
  readonly hint: string | undefined;
  readonly code: string | undefined;

  constructor(kind: ErrorKind, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.kind = kind;
    this.hint = details.hint;
    this.code = details.code;
  }
}

/** Why a structure is not trusted: a value, not an exception, so that the rest of the disk can go on. */
export interface Refusal {
  /** A stable word for scripts, such as `journal-dirty`. */
  readonly code: string;
  readonly message: string;
  readonly hint: string;
}

/** The impossible happened: a bug of ours. Never called with a condition that bytes of a disk decide. */
export function assert(condition: boolean, message = "assertion failed"): asserts condition {
  if (!condition) throw new Error(`internal error: ${message}`);
}
