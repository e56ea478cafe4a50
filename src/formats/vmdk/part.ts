/**
 * A part of the disk: what one line of the descriptor brings. The disk is its parts, one behind the other.
 *
 *   disk   | part 0: SPARSE "" | part 1: FLAT "disk-f002.vmdk" 0 | part 2: ZERO |
 */
import type { Extent } from "../../bytes/extents.ts";
import type { BlockDevice } from "../../device/device.ts";
import type { DiskError } from "../../error.ts";
import { EMPTY_PLAN, type Plan, type Wish } from "../../reclaim/plan.ts";
import type { Finding } from "../format.ts";

export interface Part {
  /** The type of the extent, as the descriptor has it. */
  readonly type: string;
  /** The key of the part's file in `files`; undefined: it has none. */
  readonly fileName: string | undefined;
  readonly device: BlockDevice;
  /** What of the file is the part's; undefined: all of it. */
  readonly held?: Extent;
  /** Bytes that the table can drop at once. */
  readonly grainBytes: number;
  /** Why nothing may be written to it; undefined: it may be. */
  readonly refusal: DiskError | undefined;
  readonly tableBytes: number;
  check(): AsyncIterable<Finding>;
  plan(wish: Wish): Promise<Plan>;
  planLeaks(): Promise<Plan>;
  /** What a byte of the part's file belongs to, where it is no guest data. */
  describe(fileOffset: number): string | undefined;
}

/** A part without tables: nothing to find, to drop or to describe. */
export const NO_TABLES = {
  tableBytes: 0,
  // oxlint-disable-next-line require-yield
  async *check(): AsyncIterable<Finding> {},
  planLeaks: () => Promise.resolve(EMPTY_PLAN),
  describe: () => undefined,
} as const;
