/** The findings in an NTFS volume, with chkdsk as the guest's way to repair them. */
import { findings } from "../refused.ts";

const HINT = "run chkdsk /f on the volume in the guest, shut it down, then try again";

export const { damaged, contradiction } = findings(HINT);
