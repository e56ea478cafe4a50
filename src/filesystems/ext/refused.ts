/**
 * The way from a finding deep in the reader up to its door, which turns it into the `refusal` of the filesystem.
 * A `DiskError` of the device below passes by: it is about the image, not about what the guest wrote.
 */
import type { Refusal } from "../../error.ts";

/** Thrown inside the reader only; `ext.ts` catches every one. */
export class Refused extends Error {
  readonly refusal: Refusal;

  constructor(code: string, message: string, hint: string) {
    super(message);
    this.refusal = { code, message, hint };
  }
}

const REPAIR = "run e2fsck on it in the guest, then try again";

/** A structure that cannot be as it is. */
export function damaged(message: string): Refused {
  return new Refused("damaged", message, REPAIR);
}

/** A checksum that does not match; both as they would be stored. */
export function badChecksum(structure: string, found: number, expected: number): Refused {
  return new Refused(
    "checksum",
    `${structure}: checksum 0x${found.toString(16)} found, 0x${expected.toString(16)} expected`,
    REPAIR,
  );
}

/** Two structures that cannot both be right. */
export function contradiction(message: string): Refused {
  return new Refused("contradiction", message, REPAIR);
}
