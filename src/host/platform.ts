/**
 * What Node lacks and every host does its own way: holes, extents, locks.
 *
 *   platform.ts ── linux.ts     tested
 *              ├── darwin.ts    UNTESTED
 *              └── windows.ts   UNTESTED
 *
 * Everything here is a synchronous system call and throws errors with a `code`, as Node's own do. Without koffi there
 * is no platform: maps answer "data", and nothing is written, because nothing could be locked (H16).
 */
import type { Extent } from "../bytes/extents.ts";
import { darwin } from "./darwin.ts";
import { linux } from "./linux.ts";
import { windows } from "./windows.ts";

/** What the host has allocated for a part of a file. What is not listed is a hole. */
export interface HostExtent extends Extent {
  /** Allocated, never written, reads as zeros (`fallocate`). */
  readonly unwritten: boolean;
  /** Another file has the same blocks (reflink, snapshot). */
  readonly shared: boolean;
  /** Where it lies on the device below, byte for byte; undefined where the host does not tell, or stores something else. */
  readonly physical?: number | undefined;
}

/** Ascending, clipped to the range, of bounded number. */
export interface ExtentBatch {
  readonly extents: readonly HostExtent[];
  /** Up to where the host has told everything. */
  readonly end: number;
}

export interface Platform {
  /** Opens for writing. Here, because Windows locks by the way it opens. */
  openForWriting(path: string, flags: number): number;
  /** Gives the range back to the host. @throws ENOTSUP where there are no holes */
  punch(fd: number, range: Extent): void;
  /** Makes the range read as zeros without writing data; it stays allocated. @throws ENOTSUP */
  zeroRange(fd: number, range: Extent): void;
  /** Lets `to` share the blocks of `range` of `from`, at `at`. @throws ENOTSUP, EXDEV, EINVAL where that is not possible */
  clone(from: number, range: Extent, to: number, at: number): void;
  /** What is allocated in the range, from its start on; undefined when the host cannot tell. */
  extents(fd: number, range: Extent): ExtentBatch | undefined;
  /** The same of a file that is being written to: what is in memory alone counts, and nothing is settled. */
  dataExtents?(fd: number, range: Extent): ExtentBatch | undefined;
  /** Whether nothing is allocated in the range, and nothing of it waits in memory to be; absent where no call tells quickly. */
  isHole?(fd: number, range: Extent): boolean;
  /** Drops what is in memory of the file and on the medium as well: the next read asks the medium. Advice. */
  forget?(fd: number): void;
  /** `lsattr`: whether changes of the file's content go to the journal first; undefined where the host cannot tell. */
  journalsData?(fd: number): boolean | undefined;
  readonly locks: Locks;
  /** Returns when the host has settled its accounts of the filesystem that holds the file (H35). */
  settle(fd: number): Promise<void>;
}

/** Byte-range locks that belong to an open file, not to the process. */
export interface Locks {
  /** Takes a shared lock on one byte. @throws EAGAIN when it is held exclusively */
  share(fd: number, byte: number): void;
  /** Whether anybody else holds any lock in the range. */
  heldByOthers(fd: number, range: Extent): boolean;
  /** Whether anybody at all has the file open for writing; undefined where the host cannot tell. `fd` only reads. */
  hasWriters?(fd: number): boolean | undefined;
}

let current: Platform | undefined | null = null;

/** This host's system calls, loaded once; undefined where koffi is missing or the host is a stranger. */
export function platform(): Platform | undefined {
  if (current === null) current = load();
  return current;
}

function load(): Platform | undefined {
  switch (process.platform) {
    case "linux":
      return linux();
    case "darwin":
      return darwin();
    case "win32":
      return windows();
    default:
      return undefined;
  }
}

/** Whether the project's tests run on this host. Writing on an untested one needs `--allow untested-host`. */
export function hostTested(): boolean {
  return process.platform === "linux";
}
