/**
 * What every reader of a guest filesystem offers. Readers only read; what they cannot vouch for counts as used.
 */
import type { ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import type { Membership } from "../device/membership.ts";
import type { Refusal } from "../error.ts";

export interface FileSystemReader {
  readonly name: string;
  /** Whether the device holds this filesystem. Must not throw on any content. */
  probe(member: BlockDevice): Promise<boolean>;
  /**
   * For filesystems on several devices: which set this device belongs to. Undefined when that cannot be told, and then
   * `open` says why. Must not throw on any content.
   */
  membership?(member: BlockDevice): Promise<Membership | undefined>;
  /**
   * @param members the device that holds the filesystem, then further members: an external journal, or all devices of
   * the set in the order of `Membership.members`, else ascending by `Membership.member`
   * @throws DiskError `io`; everything that the disk's bytes can cause is a `refusal` of the result
   */
  open(members: readonly BlockDevice[], options: ReadOptions): Promise<FileSystem>;
}

export interface ReadOptions {
  /** `--allow replay`: replay a dirty journal virtually, in memory (H2). */
  readonly replay: boolean;
  /** `--allow shadow-loss`: blocks that only stored snapshots of the guest need (NTFS shadow copies) may be freed. */
  readonly shadowLoss?: boolean;
}

export interface FileSystem {
  /** `ext4`. */
  readonly name: string;
  readonly label: string;
  readonly uuid: string;
  /** The allocation unit in bytes (bigalloc: the cluster). `free` and `walk` speak in multiples of it. */
  readonly blockBytes: number;
  /** Length of the filesystem in bytes, from the start of its first member; what lies behind it counts as used. */
  readonly bytes: number;
  /** For people: `bitmaps + inode walk`. */
  readonly witness: { readonly map: string; readonly walk: string };
  readonly notes: readonly string[];
  /** True: the guest was not shut down cleanly, and the volume is only read because of a replay. */
  readonly isUnclean?: boolean;
  /** Bytes of member 0 that are worth nothing once the guest was shut down cleanly: a swap area behind its header. */
  readonly scratch?: ExtentSet;
  /**
   * Set: nothing here may be freed. A value, so that explain goes on as far as it can. May be set by `free` and `walk`
   * too. The code `hibernated` refuses every volume of the disk: the guest will be resumed (H3).
   */
  readonly refusal: Refusal | undefined;
  /** The allocation map's claim, per member. Empty sets when refused. */
  free(): Promise<readonly ExtentSet[]>;
  /**
   * Visits everything reachable: metadata and the blocks of every inode, in any order, aligned outward to
   * `blockBytes`. The same bytes may be visited twice. An owner is a number that `describe` understands; the
   * filesystem's own structures have negative owners.
   */
  walk(visit: Visit): Promise<void>;
  describe(owner: number): Promise<OwnerDescription>;
  /**
   * Where a file's bytes lie on member 0; undefined when there is no such path. Names are compared as the guest
   * compares them: without regard to case where it has none.
   */
  find(path: string): Promise<FoundFile | undefined>;
  /** What a directory holds, without `.` and `..`; undefined when there is no such directory. At most `LISTED_MAX`, and
   * where only so many are wanted, about `atMost`: each may cost a look at its inode. */
  list(path: string, atMost?: number): Promise<readonly ListedFile[] | undefined>;
}

export type Visit = (member: number, start: number, end: number, owner: number) => void;

export interface OwnerDescription {
  readonly kind: "metadata" | "journal" | "directory" | "file" | "symlink" | "special" | "unknown";
  /** `superblock`, `inode table of group 7`, `journal`: what to call it. */
  readonly name: string;
  readonly path?: string;
  /** Apparent length of a file in bytes. */
  readonly bytes?: number;
}

/** A directory with more entries than this is listed in part. */
export const LISTED_MAX = 1_000_000;

export interface ListedFile {
  readonly name: string;
  readonly kind: "file" | "directory" | "other";
  /** Bytes of the volume that it occupies; 0 for a directory. */
  readonly allocatedBytes: number;
}

export function listedKind(kind: OwnerDescription["kind"]): ListedFile["kind"] {
  return kind === "file" || kind === "directory" ? kind : "other";
}

export interface FoundFile {
  readonly owner: number;
  /** A link is not followed: it is an `other`. */
  readonly kind: ListedFile["kind"];
  /** Apparent length in bytes. */
  readonly bytes: number;
  /**
   * Set: why the bytes at `extents` are not simply the file's content, or not its alone, in a word or two:
   * `compressed`, `encrypted`, `checksummed`, `shared`, `inline`. Such bytes are never blanked.
   */
  readonly fixed?: string;
  /** Ascending in the file; what is missing is a hole. */
  readonly extents: readonly {
    readonly fileOffset: number;
    readonly at: number;
    readonly bytes: number;
    readonly unwritten: boolean;
  }[];
}
