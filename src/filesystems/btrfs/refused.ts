/** What is found wrong with a Btrfs, and what its user can do about it. */
import { findings, Refused } from "../refused.ts";

/** `refuse`: what cannot be is a reason to refuse. `pass by`: its other copies are tried, then it is left out. */
export type Unreadable = "refuse" | "pass by";

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
