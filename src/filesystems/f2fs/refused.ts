/** The findings of F2FS, with the guest's own way to repair it. */
import { findings, Refused } from "../refused.ts";

export const { damaged, badChecksum, contradiction } = findings("run fsck.f2fs in the guest first");

/** Something that is not understood, by its name. */
export const unknown = (message: string): Refused =>
  new Refused("feature-unsupported", message, "update ullage, or let the guest itself give its space back");

export const notClean = (message: string): Refused =>
  new Refused("not-clean", message, "mount it in the guest and unmount it cleanly, or run fsck.f2fs");
