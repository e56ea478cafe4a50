/**
 * What both kinds of Linux md superblocks say of a member, in one shape.
 */
import type { Extent } from "../../bytes/extents.ts";
import { DiskError } from "../../error.ts";

export const MD_MAGIC = 0xa9_2b_4e_fc;
export const SECTOR_BYTES = 512;

export type Version = "0.90" | "1.0" | "1.1" | "1.2";

export interface Superblock {
  readonly version: Version;
  readonly place: Extent;
  /** Identifies the set. */
  readonly uuid: string;
  readonly name: string;
  /** -1: linear. */
  readonly level: number;
  /** Undefined where the set does not say: RAID 0 before Linux 5.4. */
  readonly layout: number | undefined;
  readonly chunkBytes: number;
  /** How many members make the set whole. */
  readonly members: number;
  /** Position in the set; undefined for spares, failed members and journals. */
  readonly role: number | undefined;
  /** The positions that it believes to be in service. */
  readonly active: readonly number[];
  readonly events: bigint;
  /**
   * When the set was last written down, the same on all members. It tells copies of different times apart where the events
   * do not: Linux takes an event back when a set comes to rest.
   */
  readonly updated: bigint;
  /** How much of each member a set of equal members uses; 0 for RAID 0 and linear. */
  readonly usedBytes: number;
  /** Where the member's data may lie. */
  readonly data: Extent;
  /** The write-intent bitmap. Its length is in its own header; it ends here at the latest. */
  readonly bitmap: Extent | undefined;
  /** What speaks against the member: a state that is not clean, a feature that is not understood. */
  readonly obstacle: Obstacle | undefined;
}

export interface Obstacle {
  readonly code: "md-dirty" | "md-features" | "md-role";
  readonly message: string;
}

export function corrupt(version: Version, at: number, what: string, code = "md-damaged"): DiskError {
  return new DiskError("corrupt", `Linux RAID superblock ${version} at ${at} ${what}`, { code });
}

/** What the member's role, its features and its state say against it, the worst first. */
export function obstacleOf(
  role: number | undefined,
  features: readonly string[],
  state: readonly string[],
): Obstacle | undefined {
  if (features.length > 0) return { code: "md-features", message: `it has ${features.join(", ")}` };
  if (role === undefined) return { code: "md-role", message: "it is a spare or has failed" };
  if (state.length > 0) return { code: "md-dirty", message: `it ${state.join(", ")}` };
  return undefined;
}
