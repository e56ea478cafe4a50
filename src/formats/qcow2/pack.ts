/**
 * Packing: clusters of the tail move into free clusters before it, and the file is cut.
 *
 *   before   |header|L1|a| |b| | |c|d| |e|      free clusters (released just before), tail c d e
 *   after    |header|L1|a|c|b|d|e|              order is kept
 *
 *   each round:  claim → copy → repoint → release → cut      a flush at every arrow; clusters before L2 tables,
 *                        └ level by level ┘                  L2 tables before L1, each in a step of its own (H15)
 *
 * Rounds take the tail first, so that the file gets shorter before the next copies make it grow elsewhere: little
 * space is needed beside it. What `pointers.ts` does not offer stays where it is and is the floor of the file:
 * compressed clusters, clusters that snapshots share, tables longer than a cluster, LUKS headers. The floor is the
 * whole file where refcounts are too high or unknown owners may exist: leaks are to be repaired first.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import { viewOf } from "../../bytes/struct.ts";
import { differences } from "../../reclaim/differences.ts";
import type { Step } from "../../reclaim/plan.ts";
import type { Qcow2Context } from "./context.ts";
import { LEVELS, type Mapping, pointerBytes, visitPointers } from "./pointers.ts";
import { writeRefcount } from "./refcounts.ts";

const ROUND_BYTES_MAX = 256 * 2 ** 20;
const ROUND_MOVES_MAX = 16384;
/** 27 bytes each; what a larger file would still gain comes with the next run. */
const MOVES_MAX = 4 * 2 ** 20;

export interface Packing {
  /** By how much the file gets shorter. */
  readonly packBytes: number;
  batches(): AsyncIterable<readonly Step[]>;
}

/** Clusters to move, in ascending order; number `i` of every array belongs to one of them. */
interface Moves {
  readonly count: number;
  readonly sources: Float64Array;
  readonly targets: Float64Array;
  /** The pointer to the cluster: where it lies before anything moves, its flags, and its level. */
  readonly pointerAt: Float64Array;
  readonly flags: Uint8Array;
  readonly level: Uint8Array;
}

/** Plans for the image as it will be when its garbage is released. */
export async function planPacking(context: Qcow2Context, mapping: Mapping): Promise<Packing> {
  const { file, header, refcounts } = context;
  const movable = new SparseBitmap();
  await visitPointers(context, mapping, (cluster) => movable.setRange(cluster, cluster + 1));
  // Without a block nothing can be claimed unless one is allocated.
  const blocks = new Set(await refcounts.existing());
  const isFree = (cluster: number) =>
    mapping.count(cluster) === 0 && blocks.has(Math.floor(cluster / refcounts.blockEntries));
  const end = packedEnd(context, mapping, movable, isFree);
  const endBytes = Math.min(end * header.clusterBytes, file.bytes);
  return {
    packBytes: file.bytes - endBytes,
    async *batches() {
      const moves = await chooseMoves(context, mapping, isFree, end);
      yield* new Rounds(context, mapping, moves).batches(endBytes);
    },
  };
}

/** The smallest number of clusters that the file can have: all that lie behind it fit in before. */
function packedEnd(
  { file, header }: Qcow2Context,
  mapping: Mapping,
  movable: SparseBitmap,
  isFree: (cluster: number) => boolean,
): number {
  let end = Math.ceil(file.bytes / header.clusterBytes);
  let room = 0;
  for (let cluster = 0; cluster < end; cluster++) if (isFree(cluster)) room++;
  let moves = 0;
  for (; end > 0; end--) {
    const cluster = end - 1;
    if (mapping.count(cluster) > 0) {
      if (!movable.has(cluster) || moves === room || moves === MOVES_MAX) break;
      moves++;
    } else if (isFree(cluster)) {
      if (moves === room) break;
      room--;
    }
  }
  return end;
}

/** Pairs what lies behind `end` with free clusters before it, keeping the order. */
async function chooseMoves(
  context: Qcow2Context,
  mapping: Mapping,
  isFree: (cluster: number) => boolean,
  end: number,
): Promise<Moves> {
  const { file, header } = context;
  const clusters = Math.ceil(file.bytes / header.clusterBytes);
  const used: number[] = [];
  for (let cluster = end; cluster < clusters; cluster++) if (mapping.count(cluster) > 0) used.push(cluster);
  const count = used.length;
  const moves: Moves = {
    count,
    sources: Float64Array.from(used),
    targets: new Float64Array(count),
    pointerAt: new Float64Array(count),
    flags: new Uint8Array(count),
    level: new Uint8Array(count),
  };
  for (let cluster = 0, i = 0; i < count; cluster++) if (isFree(cluster)) moves.targets[i++] = cluster;
  await visitPointers(context, mapping, (cluster, pointerAt, flags, level) => {
    const i = indexOf(moves.sources, cluster);
    if (i < 0) return;
    moves.pointerAt[i] = pointerAt;
    moves.flags[i] = flags;
    moves.level[i] = level;
  });
  return moves;
}

/** Number of the first element of a sorted array that is not below `value`. */
function lowerBound(sorted: Float64Array, value: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (sorted[middle]! < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Where `value` stands in a sorted array; -1: nowhere. */
function indexOf(sorted: Float64Array, value: number): number {
  const index = lowerBound(sorted, value);
  return sorted[index] === value ? index : -1;
}

/** Generates the steps; all state is the number of the move from which on everything is done. */
class Rounds {
  readonly #context: Qcow2Context;
  readonly #mapping: Mapping;
  readonly #moves: Moves;

  constructor(context: Qcow2Context, mapping: Mapping, moves: Moves) {
    this.#context = context;
    this.#mapping = mapping;
    this.#moves = moves;
  }

  async *batches(endBytes: number): AsyncGenerator<readonly Step[]> {
    const { file, header } = this.#context;
    const { clusterBytes } = header;
    const step = Math.min(ROUND_MOVES_MAX, Math.max(1, ROUND_BYTES_MAX / clusterBytes));
    for (let end = this.#moves.count; end > 0; end -= step) {
      const start = Math.max(0, end - step);
      yield* this.#round(start, end);
      if (start > 0) yield [cut((this.#moves.sources[start - 1]! + 1) * clusterBytes)];
    }
    if (endBytes < file.bytes) yield [cut(endBytes)];
  }

  /** Moves `[start, end)`; all from `end` on were moved before. */
  async *#round(start: number, end: number): AsyncGenerator<readonly Step[]> {
    const { sources, targets, level } = this.#moves;
    yield await this.#recount(targets, [start, end], {
      claimed: [end, start],
      released: [end, end],
      moved: end,
    });
    for (let depth = 0; depth < LEVELS; depth++) {
      const numbers: number[] = [];
      for (let i = start; i < end; i++) if (level[i] === depth) numbers.push(i);
      if (numbers.length === 0) continue;
      yield this.#copies(numbers);
      yield numbers.map((i) => this.#repoint(i, end));
    }
    yield await this.#recount(sources, [start, end], {
      claimed: [start, start],
      released: [end, start],
      moved: start,
    });
  }

  /** Copies of clusters that follow each other on both sides are joined. */
  #copies(numbers: readonly number[]): Step[] {
    const { file, header } = this.#context;
    const { clusterBytes } = header;
    const { sources, targets } = this.#moves;
    const steps: Step[] = [];
    for (let first = 0; first < numbers.length;) {
      const source = sources[numbers[first]!]!;
      const target = targets[numbers[first]!]!;
      let count = 1;
      while (first + count < numbers.length) {
        const next = numbers[first + count]!;
        if (sources[next] !== source + count || targets[next] !== target + count) break;
        count++;
      }
      const start = source * clusterBytes;
      const end = start + count * clusterBytes;
      const to = target * clusterBytes;
      steps.push({ file: "", op: "copy", from: { start, end: Math.min(end, file.bytes) }, to });
      if (end > file.bytes) {
        const rest = { start: to + file.bytes - start, end: to + end - start };
        steps.push({ file: "", op: "zero", range: rest });
      }
      first += count;
    }
    return steps;
  }

  #repoint(i: number, moved: number): Step {
    const { clusterBytes } = this.#context.header;
    const { sources, targets, pointerAt, flags } = this.#moves;
    return {
      file: "",
      op: "patch",
      at: this.#place(pointerAt[i]!, moved),
      before: pointerBytes(sources[i]! * clusterBytes, flags[i]!),
      after: pointerBytes(targets[i]! * clusterBytes, flags[i]!),
    };
  }

  /** Where a byte lies when all moves from `moved` on are done. */
  #place(at: number, moved: number): number {
    const { clusterBytes } = this.#context.header;
    const { sources, targets } = this.#moves;
    const cluster = Math.floor(at / clusterBytes);
    const i = indexOf(sources, cluster);
    return i >= moved ? at + (targets[i]! - cluster) * clusterBytes : at;
  }

  /**
   * Patches of the refcount blocks that count `clusters[range]`.
   * @param change from which move on targets are claimed and sources released, before and after; `moved` says where
   *   the blocks are
   */
  async #recount(
    clusters: Float64Array,
    [start, end]: readonly [number, number],
    change: {
      readonly claimed: readonly [number, number];
      readonly released: readonly [number, number];
      readonly moved: number;
    },
  ): Promise<Step[]> {
    const { refcounts } = this.#context;
    const steps: Step[] = [];
    let last = -1;
    for (let i = start; i < end; i++) {
      const number = Math.floor(clusters[i]! / refcounts.blockEntries);
      if (number === last) continue;
      last = number;
      const at = this.#place(await refcounts.blockAt(number), change.moved);
      const before = this.#block(number);
      const after = before.slice();
      this.#overlay(before, number, change.claimed[0], change.released[0]);
      this.#overlay(after, number, change.claimed[1], change.released[1]);
      steps.push(...differences("", at, before, after));
    }
    return steps;
  }

  /** A refcount block before anything moves. */
  #block(number: number): Uint8Array {
    const { blockBytes, blockEntries, order } = this.#context.refcounts;
    const bytes = new Uint8Array(blockBytes);
    const view = viewOf(bytes);
    for (let i = 0; i < blockEntries; i++) {
      const count = this.#mapping.count(number * blockEntries + i);
      if (count > 0) writeRefcount(view, order, i, count);
    }
    return bytes;
  }

  /** Counts targets as claimed and sources as released from the given moves on. */
  #overlay(block: Uint8Array, number: number, claimed: number, released: number): void {
    const { blockEntries, order } = this.#context.refcounts;
    const { sources, targets } = this.#moves;
    const view = viewOf(block);
    const first = number * blockEntries;
    const set = (clusters: Float64Array, from: number, count: number) => {
      const end = lowerBound(clusters, first + blockEntries);
      for (let i = Math.max(from, lowerBound(clusters, first)); i < end; i++) {
        writeRefcount(view, order, clusters[i]! - first, count);
      }
    };
    set(targets, claimed, 1);
    set(sources, released, 0);
  }
}

function cut(bytes: number): Step {
  return { file: "", op: "truncate", bytes };
}
