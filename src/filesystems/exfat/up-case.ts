/**
 * The up-case table: for each UTF-16 unit the one that it is compared as.
 *
 *   | 0000 | 0001 | … | ffff 0007 | 0041 | …        ffff n: the next n units stand for themselves
 *
 * Section 7.2 of the exFAT specification.
 */
import { viewOf } from "../../bytes/struct.ts";
import { damaged } from "./damage.ts";

/** By unit. */
export type UpCase = Uint16Array;

export const UNITS = 0x10000;
const COMPRESSED = 0xffff;

/** @throws Refused */
export function readUpCase(bytes: Uint8Array): UpCase {
  const table = new Uint16Array(UNITS).map((_, unit) => unit);
  const view = viewOf(bytes);
  let unit = 0;
  for (let at = 0; at + 2 <= bytes.length; at += 2) {
    const value = view.getUint16(at, true);
    if (value === COMPRESSED && at + 4 <= bytes.length && unit < UNITS - 1) {
      at += 2;
      unit += view.getUint16(at, true);
      continue;
    }
    if (unit >= UNITS) throw damaged(`up-case table: more than ${UNITS} units found`);
    table[unit++] = value;
  }
  if (unit > UNITS) throw damaged(`up-case table: ${unit} units found, at most ${UNITS} expected`);
  return table;
}

export function folded(name: string, upCase: UpCase): string {
  let folded = "";
  for (let i = 0; i < name.length; i++) folded += String.fromCharCode(upCase[name.charCodeAt(i)]!);
  return folded;
}

export function tableChecksum(bytes: Uint8Array): number {
  let sum = 0;
  for (const byte of bytes) sum = (((sum << 31) | (sum >>> 1)) + byte) | 0;
  return sum >>> 0;
}
