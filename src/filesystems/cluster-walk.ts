/**
 * The walk over a tree of directories whose files are clusters: every cluster has one owner.
 *
 *   root ── head of the directory ── entry ── clusters of a file: visited
 *                                     └────── directory: waits until many are read at once, in the order of the disk
 *
 * Nothing is kept of a file but the bits of its clusters; a directory waits as four numbers. Directories that a loop
 * leads back to, and files that share a cluster, are found by the bits.
 */
import { SparseBitmap } from "../bytes/bitmap.ts";
import { FIRST_CLUSTER } from "./allocation-table.ts";
import {
  clusterAt,
  contentOfRuns,
  gridBytes,
  heapOf,
  visitClusters,
  type ClusterHeap,
  type Holding,
} from "./cluster-chains.ts";
import type { Visit } from "./filesystem.ts";
import { readScattered } from "./reading.ts";
import { findings } from "./refused.ts";

/** Tells the walk of an entry with clusters. Of a directory of unknown length `bytes` is undefined. */
export type Found = (kind: "file" | "directory", holding: Holding) => void;

/** Looks at one directory. */
export interface DirectoryScan {
  /** The next stretch of it, whole entries. @returns whether more is wanted */
  next(bytes: Uint8Array): boolean;
  /** Nothing follows. @throws Refused when something is cut short */
  end(): void;
}

export interface TreeWalk {
  readonly heap: ClusterHeap;
  readonly directoryBytesMax: number;
  readonly visit: Visit;
  /** @param self its first cluster, 0 for a root without clusters; @param parent that of the directory above */
  scan(self: number, parent: number, found: Found): DirectoryScan;
}

const BATCH_DIRECTORIES = 256;
/** What is read of a directory at first. */
const HEAD_BYTES = 16 << 10;
/** Numbers of a directory that waits: first cluster, bytes or -1, whether contiguous, first cluster of its parent. */
const STRIDE = 4;

interface Directory {
  readonly scan: DirectoryScan;
  readonly runs: readonly number[];
  readonly first: number;
  head: number;
  isDone: boolean;
}

export class TreeWalker {
  readonly #walk: TreeWalk;
  readonly #claimed = new SparseBitmap();
  readonly #waiting: number[] = [];
  /** Entries found and not yet followed, as `#waiting`, of files. */
  readonly #files: number[] = [];

  constructor(walk: TreeWalk) {
    this.#walk = walk;
  }

  /** What lies outside of the clusters, rounded outward to the blocks of the volume. */
  visitFixed(start: number, end: number, owner: number): void {
    const grid = gridBytes(this.#walk.heap);
    const from = Math.floor(start / grid) * grid;
    const to = Math.ceil(end / grid) * grid;
    if (from < to) this.#walk.visit(0, from, to, owner);
  }

  /** Clusters of the filesystem's own. @throws Refused when they are somebody else's too */
  async claimOwn(holding: Holding, owner: number): Promise<void> {
    await visitClusters(this.#walk.heap, holding, Number.MAX_SAFE_INTEGER, (first, clusters) => {
      this.#claim(first, clusters, owner);
    });
  }

  /** A root that lies outside of the clusters. */
  async walkOutside(scan: (found: Found) => Promise<void>): Promise<void> {
    await scan(this.#foundIn(0));
    await this.#rest();
  }

  async walkFrom(root: Holding): Promise<void> {
    this.#foundIn(0)("directory", root);
    await this.#rest();
  }

  async #rest(): Promise<void> {
    await this.#followFiles();
    while (this.#waiting.length > 0) {
      await this.#readDirectories(await this.#takeBatch());
    }
  }

  #foundIn(parent: number): Found {
    return (kind, { first, bytes, isContiguous }) => {
      const list = kind === "file" ? this.#files : this.#waiting;
      list.push(first, bytes ?? -1, isContiguous ? 1 : 0, parent);
    };
  }

  async #takeBatch(): Promise<Directory[]> {
    const { heap, directoryBytesMax } = this.#walk;
    const batch: Directory[] = [];
    while (this.#waiting.length > 0 && batch.length < BATCH_DIRECTORIES) {
      const [first, bytes, contiguous, parent] = this.#waiting.splice(-STRIDE) as [
        number,
        number,
        number,
        number,
      ];
      const runs: number[] = [];
      const holding = holdingOf(first, bytes, contiguous);
      await visitClusters(heap, holding, directoryBytesMax, (start, clusters) => {
        this.#claim(start, clusters, first);
        runs.push(start, clusters);
      });
      const scan = this.#walk.scan(first, parent, this.#foundIn(first));
      batch.push({ scan, runs, first, head: 0, isDone: false });
    }
    return batch.sort((a, b) => a.first - b.first);
  }

  async #readDirectories(batch: readonly Directory[]): Promise<void> {
    const { heap } = this.#walk;
    const unit = Math.min(heap.clusterBytes, HEAD_BYTES);
    const positions: number[] = [];
    const owners: Directory[] = [];
    for (const directory of batch) {
      for (const position of headUnits(directory.runs, heap.clusterBytes, unit)) {
        positions.push(position);
        owners.push(directory);
        directory.head += unit;
      }
    }
    await readScattered(heapOf(heap), unit, positions, (index, bytes) => {
      const directory = owners[index]!;
      if (!directory.isDone) directory.isDone = !directory.scan.next(bytes);
    });
    for (const directory of batch) {
      if (!directory.isDone) {
        for await (const bytes of contentOfRuns(heap, directory.runs, directory.head)) {
          if (!directory.scan.next(bytes)) break;
          await this.#followFiles();
        }
      }
      directory.scan.end();
    }
    await this.#followFiles();
  }

  async #followFiles(): Promise<void> {
    const files = this.#files;
    for (let i = 0; i < files.length; i += STRIDE) {
      const first = files[i]!;
      const holding = holdingOf(first, files[i + 1]!, files[i + 2]!);
      await visitClusters(this.#walk.heap, holding, 0, (start, clusters) =>
        this.#claim(start, clusters, first),
      );
    }
    files.length = 0;
  }

  #claim(first: number, clusters: number, owner: number): void {
    const { heap, visit } = this.#walk;
    const end = first + clusters;
    const taken = this.#claimed.nextSet(first, end);
    if (taken < end) {
      throw findings(heap.hint).contradiction(
        `cluster ${taken} of those in a row from ${first} belongs to another owner too`,
      );
    }
    this.#claimed.setRange(first, end);
    visit(0, clusterAt(heap, first), clusterAt(heap, end), owner);
  }
}

function holdingOf(first: number, bytes: number, contiguous: number): Holding {
  return { first, bytes: bytes < 0 ? undefined : bytes, isContiguous: contiguous === 1 };
}

/** Numbers of the first units of a directory, counted from the start of the heap. */
function* headUnits(runs: readonly number[], clusterBytes: number, unit: number): Generator<number> {
  const perCluster = clusterBytes / unit;
  let room = HEAD_BYTES / unit;
  for (let i = 0; i < runs.length && room > 0; i += 2) {
    const start = (runs[i]! - FIRST_CLUSTER) * perCluster;
    const units = Math.min(room, runs[i + 1]! * perCluster);
    for (let index = 0; index < units; index++) yield start + index;
    room -= units;
  }
}
