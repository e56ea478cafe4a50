/** What is found wrong with a FAT filesystem, and what its user can do about it. */
import { findings } from "../refused.ts";

export const HINT = "run chkdsk or fsck.fat on it in the guest, then try again";

export const { damaged, contradiction } = findings(HINT);
