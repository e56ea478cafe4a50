/** What is found wrong with a Btrfs, and what its user can do about it. */
import { findings, Refused } from "../refused.ts";

export const { damaged, contradiction } = findings(
  "run btrfs check --readonly on it, repair it or mount it once in the guest, then try again",
);

export const badChecksum = (structure: string) =>
  new Refused(
    "checksum",
    `${structure}: its checksum does not match`,
    "run btrfs scrub in the guest, then try again",
  );

export const unsupported = (message: string) =>
  new Refused("feature-unsupported", message, "free the space from inside the guest, with fstrim");
