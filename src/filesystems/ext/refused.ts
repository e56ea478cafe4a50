/** What is found wrong with an ext filesystem, and what its user can do about it. */
import { findings } from "../refused.ts";

export const { damaged, badChecksum, contradiction } = findings(
  "run e2fsck on it in the guest, then try again",
);
