/**
 * What a damaged image is told: the structure, where it lies, what was found there and what was expected.
 */
import type { ReadableFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";

/** A stretch of the file that holds a table. */
export interface Stretch {
  readonly at: number;
  readonly bytes: number;
}

/** A name out of the image, safe to print (H25). */
export function quoted(text: string): string {
  return JSON.stringify(text).replace(/[^\x20-\x7e]/gu, (c) => `\\u{${c.codePointAt(0)!.toString(16)}}`);
}

export function corrupt(structure: string, at: number, found: unknown, expected: string): DiskError {
  return new DiskError("corrupt", `${structure} at ${hex(at)}: found ${String(found)}, expected ${expected}`);
}

export function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}

/**
 * Checks that a table lies on clusters, behind the header and inside the file. A table of 0 bytes may lie anywhere.
 * @throws DiskError `corrupt`
 */
export function tableAt(
  file: ReadableFile,
  clusterBytes: number,
  structure: string,
  at: number,
  bytes: number,
): number {
  if (bytes === 0) return at;
  if (at % clusterBytes !== 0)
    throw corrupt(structure, at, "an unaligned offset", `a multiple of ${clusterBytes}`);
  if (at === 0) throw corrupt(structure, at, "offset 0, the header", "a cluster of its own");
  if (at + bytes > file.bytes) {
    throw corrupt(structure, at, `${bytes} bytes`, `the end of the file at ${hex(file.bytes)} or before`);
  }
  return at;
}
