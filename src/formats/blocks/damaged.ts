/**
 * What a damaged image is told: the structure, where it lies, what was found there and what was expected.
 */
import { DiskError } from "../../error.ts";

export function damaged(structure: string, at: number, found: unknown, expected: string): DiskError {
  return new DiskError("corrupt", `${structure} at ${hex(at)}: found ${String(found)}, expected ${expected}`);
}

export function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}
