/**
 * What every reader of a guest filesystem offers. Readers only read; what they cannot vouch for counts as used.
 */
import type { ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import type { Refusal } from "../error.ts";

export interface FileSystemReader {
  readonly name: string;
  /** Whether the device holds this filesystem. Must not throw on any content. */
  probe(member: BlockDevice): Promise<boolean>;
  /**
   * @param members the device that holds the filesystem, then further members (an external journal)
   * @throws DiskError `io`; everything that the disk's bytes can cause is a `refusal` of the result
   */
  open(members: readonly BlockDevice[], options: ReadOptions): Promise<FileSystem>;
}

export interface ReadOptions {
  /** `--allow replay`: replay a dirty journal virtually, in memory (H2). */
  readonly replay: boolean;
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
  /** Set: nothing here may be freed. A value, so that explain goes on as far as it can. May be set by `free` and `walk` too. */
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
  /** Where a file's bytes lie on member 0; undefined when there is no such path. */
  find(path: string): Promise<FoundFile | undefined>;
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

export interface FoundFile {
  readonly owner: number;
  readonly bytes: number;
  /** Ascending in the file; what is missing is a hole. */
  readonly extents: readonly {
    readonly fileOffset: number;
    readonly at: number;
    readonly bytes: number;
    readonly unwritten: boolean;
  }[];
}
