/**
 * The one block-device interface. A file, an image, a snapshot, a partition, a cache, a trace: each is a
 * `BlockDevice`, and they stack.
 *
 * Offsets and lengths are bytes. Ranges are half-open and lie inside the device; `checked` enforces that once, at
 * the seam, so the devices below need not.
 */
import type { Extent } from "../bytes/extents.ts";

/** Bytes that lie as they are, in order, in a file. */
export interface Place {
  readonly file: BlockDevice;
  readonly at: number;
  readonly bytes: number;
  /** The device never gives this place to other bytes of its own: who still holds its pages holds no stranger's (H14). */
  readonly isStable?: boolean;
}

/**
 * What backs a range of a device.
 *
 * - `data`: read it to know it; `zero`: reads as zeros by a promise of the table (it may still own a place: preallocated);
 *   `hole`: nothing was ever written here, reads as zeros; `compressed`: many to one, never usable in place.
 */
export interface Run extends Extent {
  readonly kind: "data" | "zero" | "hole" | "compressed";
  /** Where the bytes lie one layer below, when they lie there one to one. */
  readonly place?: Place;
  /** Something else refers to the same bytes: a snapshot, a reflink. They are not given back by this owner alone. */
  readonly shared: boolean;
  /** 0: this image; 1: its backing image; and so on. */
  readonly depth: number;
}

export interface BlockDevice extends AsyncDisposable {
  /** Length in bytes. */
  readonly bytes: number;
  /**
   * Fills the whole of `into` from offset `at`, or throws; never short.
   * @throws DiskError `io` when the medium fails, `corrupt` when the way to the bytes is broken
   */
  read(at: number, into: Uint8Array): Promise<void>;
  /** What backs `range`: ascending, gapless, in batches. Neighbouring runs need not be merged. */
  map(range: Extent): AsyncIterable<readonly Run[]>;
  /**
   * A place for the first part of a range, as long as it goes on in one piece, known without I/O; valid until the next
   * await. Who asked for access to write writes there at once, or not at all. Devices may lack it or decline.
   */
  locate?(at: number, bytes: number, access: "read" | "write"): Place | undefined;
}

/** How zeros are to be made. Without either: by whatever means is cheapest. */
export interface Zeroing {
  /** False: the space is to go back to the host. True: what is allocated stays so (NBD's NO_HOLE). */
  readonly keep?: boolean;
  /** @throws DiskError `unsupported`, with nothing altered, where it would take as long as writing (NBD's FAST_ZERO) */
  readonly fast?: boolean;
}

export interface WritableDevice extends BlockDevice {
  /** Writes all of `from` at offset `at`, or throws; after a failure those bytes are old, new or a mixture by sector. */
  write(at: number, from: Uint8Array): Promise<void>;
  /** Makes `range` read as zeros. */
  zero(range: Extent, how?: Zeroing): Promise<void>;
  /** Advice that `range` is no longer needed: afterwards it reads its old bytes or zeros, never anything else (H9). */
  discard(range: Extent): Promise<void>;
  /** Everything written before is on stable storage when this returns. Never retried after it failed (H13). */
  flush(): Promise<void>;
}

/** Bytes of a file and where the device below holds them, one to one; undefined where nobody tells. */
export interface PhysicalExtent extends Extent {
  readonly physical: number | undefined;
}

export interface FileStatus {
  /** The apparent length in bytes. */
  readonly fileBytes: number;
  /** What the host has allocated, 512 × st_blocks; null on a block device. */
  readonly hostBytes: number | null;
  /** The granule in bytes at which the host can punch holes. */
  readonly blockBytes: number;
  /** The same string for the same file, whatever its name: device and inode. */
  readonly identity: string;
}

/** A file of the host that is only read. */
export interface ReadableFile extends BlockDevice {
  stat(): Promise<FileStatus>;
  /**
   * Reads what the host has in memory, into `into` from `offset` on.
   * @returns the bytes read: fewer than asked for, or 0, where it would have to wait
   */
  tryRead?(at: number, into: Uint8Array, offset: number, bytes: number): number;
  /** Where everything that is allocated of `range` lies on the device below. Absent where the host never tells. */
  physical?(range: Extent): AsyncIterable<readonly PhysicalExtent[]>;
  /** Drops what the host holds of it in memory, so that the next read asks the medium. Advice; what is not flushed stays. */
  forget?(): void;
}

/** A file of the host, held under a lock for writing. */
export interface HostFile extends ReadableFile, WritableDevice {
  /**
   * Gives `range` back to the host; it reads as zeros afterwards. The length of the file stays.
   * @throws DiskError `unsupported` where the host has no holes
   */
  punch(range: Extent): Promise<void>;
  /**
   * Whether the host says that it holds nothing of `range`. Cheap; false where it cannot tell. No proof that it reads as
   * zeros (H8).
   */
  isHole?(range: Extent): boolean;
  /**
   * Writes into the host's memory, inside the file's length.
   * @returns the bytes written: fewer than asked for, or 0, where it would have to wait
   */
  tryWrite?(at: number, from: Uint8Array, offset: number, bytes: number): number;
  /** Sets the length in bytes. */
  truncate(bytes: number): Promise<void>;
  /**
   * Makes `bytes` bytes at `at` share the host's blocks with those at `from` of another file (reflink).
   * @returns false where that is not possible: then nothing was done
   */
  cloneFrom?(source: BlockDevice, from: number, at: number, bytes: number): Promise<boolean>;
}

/** Collects a map into one array; for tests and for devices known to be small. */
export async function wholeMap(device: BlockDevice, range?: Extent): Promise<Run[]> {
  const runs: Run[] = [];
  for await (const batch of device.map(range ?? { start: 0, end: device.bytes })) runs.push(...batch);
  return runs;
}

/** Reads `bytes` bytes at `at` into a new buffer. An empty table is not read: its offset may be anything. */
export async function readBytes(device: BlockDevice, at: number, bytes: number): Promise<Uint8Array> {
  const into = new Uint8Array(bytes);
  if (bytes > 0) await device.read(at, into);
  return into;
}
