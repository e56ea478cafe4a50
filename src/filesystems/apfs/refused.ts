/** The findings of APFS, with the guest's own way to repair it. */
import { findings, Refused } from "../refused.ts";

const HINT = "let Disk Utility's First Aid in the guest repair the container first";

export const { damaged, contradiction } = findings(HINT);

/** A checksum of 64 bits; both as they would be stored. */
export const badChecksum = (structure: string, found: string, expected: string): Refused =>
  new Refused("checksum", `${structure}: checksum ${found} found, ${expected} expected`, HINT);

/** Something that is not understood, by its name. */
export const unknown = (message: string): Refused =>
  new Refused("feature-unsupported", message, "update ullage, or let the guest itself give its space back");

/** Something that the guest has begun and not ended. */
export const unfinished = (code: string, message: string): Refused =>
  new Refused(code, message, "start the guest, wait until it has finished, and shut it down");
