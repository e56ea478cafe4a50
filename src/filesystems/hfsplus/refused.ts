/** What is found wrong with an HFS+ volume, and what its user can do about it. */
import { findings, Refused } from "../refused.ts";

export const HINT = "run First Aid of Disk Utility (fsck_hfs) on it in the guest, then try again";

export const { damaged, badChecksum, contradiction } = findings(HINT);

/** What nobody here can vouch for. */
export const unknown = (message: string): Refused =>
  new Refused("feature-unknown", message, "all of this volume counts as used");
