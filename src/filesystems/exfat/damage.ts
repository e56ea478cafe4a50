/** What is found wrong with an exFAT filesystem, and what its user can do about it. */
import { findings } from "../refused.ts";

export const HINT = "run chkdsk or fsck.exfat on it in the guest, then try again";

export const { damaged, badChecksum, contradiction } = findings(HINT);
