/**
 * What a damaged image is told: the structure, where it lies, what was found there and what was expected.
 */
import { DiskError } from "../../error.ts";

/** A name out of the image, safe to print (H25). */
export function quoted(text: string): string {
  return JSON.stringify(text).replace(/[^\x20-\x7e]/gu, (c) => `\\u{${c.codePointAt(0)!.toString(16)}}`);
}

export function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}

export function corrupt(structure: string, at: number, found: unknown, expected: string): DiskError {
  return new DiskError("corrupt", `${structure} at ${hex(at)}: found ${String(found)}, expected ${expected}`);
}

/** @throws DiskError `corrupt` when a structure does not lie in its file */
export function mustLieInside(
  file: { readonly bytes: number },
  structure: string,
  at: number,
  bytes: number,
): void {
  if (at + bytes <= file.bytes) return;
  throw corrupt(structure, at, `${bytes} bytes`, `the end of the file at ${hex(file.bytes)} or before`);
}
