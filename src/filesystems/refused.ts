/**
 * The way from a finding deep in a reader up to its door, which turns it into the `refusal` of the filesystem.
 * A `DiskError` of the device below passes by: it is about the image, not about what the guest wrote.
 */
import { DiskError, type Refusal } from "../error.ts";

/** Thrown inside a reader only; its door catches every one. */
export class Refused extends Error {
  readonly refusal: Refusal;

  constructor(code: string, message: string, hint: string) {
    super(message);
    this.refusal = { code, message, hint };
  }
}

/** The findings that every filesystem can have. @param hint the guest's own way to repair it */
export function findings(hint: string) {
  return {
    /** A structure that cannot be as it is. */
    damaged: (message: string) => new Refused("damaged", message, hint),
    /** A checksum that does not match; both as they would be stored. */
    badChecksum: (structure: string, found: number, expected: number) =>
      new Refused(
        "checksum",
        `${structure}: checksum 0x${found.toString(16)} found, 0x${expected.toString(16)} expected`,
        hint,
      ),
    /** Two structures that cannot both be right. */
    contradiction: (message: string) => new Refused("contradiction", message, hint),
  };
}

/** @throws what is not about the guest's bytes */
export function refusalOf(error: unknown): Refusal {
  if (error instanceof Refused) return error.refusal;
  if (!(error instanceof DiskError) || (error.kind !== "unsupported" && error.kind !== "corrupt"))
    throw error;
  const hint = "let the guest's own check repair the filesystem first";
  return { code: error.code ?? error.kind, message: error.message, hint: error.hint ?? hint };
}

/** The result of `work`; undefined where a damage of the filesystem is in its way. */
export async function unlessDamaged<T>(work: Promise<T>): Promise<T | undefined> {
  try {
    return await work;
  } catch (error) {
    refusalOf(error);
    return undefined;
  }
}
