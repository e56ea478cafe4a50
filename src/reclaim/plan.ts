/**
 * A plan: what a reclaim will do to the files of an image, as a value that can be shown, tested and executed.
 *
 * Crash safety comes from the order of the batches alone; there is no journal file. After any prefix of batches plus
 * any subset of the current one, every tool opens the image and reads the same live bytes; the worst is a leak.
 *
 *   freeing:  unmap → flush → punch → flush → release → flush        (H12)
 *   packing:  claim → flush → copy → flush → repoint → flush → release → flush → truncate    (H15)
 */
import type { Extent, ExtentSet } from "../bytes/extents.ts";

/** One change to one file. `file` is a key of the image's `files`. */
export type Step = { readonly file: string } & (
  | {
      /** Replaces bytes inside one aligned 512-byte sector; `before` must be found there. */
      readonly op: "patch";
      readonly at: number;
      readonly before: Uint8Array;
      readonly after: Uint8Array;
    }
  | {
      /** Copies bytes inside the file; holes stay holes. */ readonly op: "copy";
      readonly from: Extent;
      readonly to: number;
    }
  | { readonly op: "punch" | "zero"; readonly range: Extent }
  | { readonly op: "truncate"; readonly bytes: number }
);

export interface Plan {
  /** Guest bytes whose mapping entry is dropped. */
  readonly unmapBytes: number;
  /** File bytes punched inside blocks that stay mapped. */
  readonly punchBytes: number;
  /** By how many bytes the files get shorter. */
  readonly packBytes: number;
  /** File bytes that only the image's own accounting held: leaks of an interrupted run, given back to it. */
  readonly leakedBytes?: number;
  /** What the steps punch, by file. */
  readonly punched: ReadonlyMap<string, ExtentSet>;
  /** By how many bytes the files would get shorter if the same wish asked to pack. Reads only. */
  packableBytes(): Promise<number>;
  /** The steps; a flush of all files stands between two batches. May be called again: the same steps. */
  batches(): AsyncIterable<readonly Step[]>;
}

/** What the image is asked for, in guest bytes. */
export interface Wish {
  /** Ranges the guest no longer uses: afterwards they read zeros or are unchanged (H9). */
  readonly free: ExtentSet;
  /** Ranges that must read as zeros afterwards, and stay usable. */
  readonly blank: ExtentSet;
  /** Move the tail into the gaps and truncate, instead of punching. */
  readonly pack: boolean;
  /** Whether the host can punch holes. */
  readonly punch: boolean;
  /** Holes smaller than this many bytes are not worth their extent in the host's filesystem. */
  readonly minHoleBytes: number;
  /** The host's punching granule in bytes: the largest of the image's files. */
  readonly hostBlockBytes: number;
  /** The user vouches for children: identifiers by which they know this image stay (H33). Default false. */
  readonly keepIdentity?: boolean;
}

/** Nothing to do. */
export const EMPTY_PLAN: Plan = {
  unmapBytes: 0,
  punchBytes: 0,
  packBytes: 0,
  punched: new Map(),
  packableBytes: async () => 0,
  // oxlint-disable-next-line require-yield
  async *batches() {},
};
