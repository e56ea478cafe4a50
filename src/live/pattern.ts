/**
 * What freed bytes are overwritten with: zeros, or a keystream of AES-256-CTR under a key that is drawn for the run and
 * forgotten with it. The stream goes on from write to write, so that no two blocks are alike.
 */
import { createCipheriv, randomBytes } from "node:crypto";

export const PATTERNS = ["random", "zeros"] as const;
export type PatternName = (typeof PATTERNS)[number];

/** At most so many bytes are asked for at once. */
export const PATTERN_BYTES_MAX = 1024 * 1024;

/** The next bytes of a pattern; to be used before the next call. */
export type Pattern = (bytes: number) => Uint8Array;

export function patternOf(name: PatternName): Pattern {
  const zeros = new Uint8Array(PATTERN_BYTES_MAX);
  if (name === "zeros") return (bytes) => zeros.subarray(0, bytes);
  const stream = createCipheriv("aes-256-ctr", randomBytes(32), randomBytes(16));
  return (bytes) => stream.update(zeros.subarray(0, bytes));
}

/** Writes the next of `pattern` over all of `extents`. */
export async function overwrite(
  extents: Iterable<{ readonly start: number; readonly end: number }>,
  pattern: Pattern,
  write: (at: number, from: Uint8Array) => Promise<void>,
): Promise<number> {
  let written = 0;
  for (const { start, end } of extents) {
    for (let at = start; at < end;) {
      const bytes = Math.min(end - at, PATTERN_BYTES_MAX);
      await write(at, pattern(bytes));
      at += bytes;
      written += bytes;
    }
  }
  return written;
}
