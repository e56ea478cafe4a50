/**
 * The extents overflow file: the extents of forks that have more than eight.
 *
 *   key: | fork type, 0 or 0xff | file | first block in the file |      data: eight extents
 *
 * Technical Note TN1150, "Extents Overflow File".
 */
import { Refused } from "../refused.ts";
import {
  EXTENTS_PER_RECORD,
  visitRecord,
  type Extents,
  type Fork,
  type Geometry,
  type VisitExtent,
} from "./fork.ts";
import { contradiction, damaged } from "./refused.ts";
import { visitFrom, visitLeaves, type Tree } from "./tree.ts";

export const FORK_TYPE = { data: 0, resource: 0xff } as const;

const KEY = { bytes: 10, forkType: 2, file: 4, firstBlock: 8 };
const RECORD_BYTES = EXTENTS_PER_RECORD * 8;

function checkRecord({ name }: Tree, view: DataView, key: number, data: number, end: number): void {
  const forkType = view.getUint8(key + KEY.forkType);
  const isFork = forkType === FORK_TYPE.data || forkType === FORK_TYPE.resource;
  if (view.getUint16(key) !== KEY.bytes || !isFork || end - data < RECORD_BYTES) {
    throw damaged(`${name}: a record of fork type ${forkType} and ${end - data} bytes found`);
  }
}

/** All extents of a fork, those that are not given from the overflow file. @throws Refused when some are missing */
export async function extentsOf(
  tree: Tree,
  { blocks }: Geometry,
  file: number,
  forkType: number,
  fork: Fork,
): Promise<Extents> {
  const extents = [...fork.given];
  let next = fork.givenBlocks;
  const wanted = [file, forkType, next];
  const compare = (view: DataView, key: number): number =>
    view.getUint32(key + KEY.file) - wanted[0]! ||
    view.getUint8(key + KEY.forkType) - wanted[1]! ||
    view.getUint32(key + KEY.firstBlock) - wanted[2]!;
  if (next < fork.blocks) {
    await visitFrom(tree, compare, (view, key, data, end) => {
      checkRecord(tree, view, key, data, end);
      const isOurs =
        view.getUint32(key + KEY.file) === file &&
        view.getUint8(key + KEY.forkType) === forkType &&
        view.getUint32(key + KEY.firstBlock) === next;
      if (!isOurs) return false;
      next = visitRecord(view, data, blocks, next, (start, count) => extents.push(start, count));
      return next < fork.blocks;
    });
  }
  if (next !== fork.blocks) {
    throw contradiction(`${fork.name}: extents of ${next} blocks found, ${fork.blocks} expected`);
  }
  return extents;
}

/** Which stretch of each fork the overflow file describes: sorted, three numbers a fork. */
export class Overflow {
  readonly #forks: number[] = [];
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];

  /** @returns whether it follows what is there; a fork's records come in order */
  add(file: number, forkType: number, start: number, end: number): boolean {
    const fork = forkNumber(file, forkType);
    const last = this.#forks.at(-1);
    if (last === fork) {
      if (this.#ends.at(-1) !== start) return false;
      this.#ends[this.#ends.length - 1] = end;
      return true;
    }
    if (last !== undefined && last > fork) return false;
    if (this.#forks.length === FORKS_MAX) {
      throw new Refused(
        "unsupported",
        `extents overflow file: more than ${FORKS_MAX} forks found`,
        "all of this volume counts as used",
      );
    }
    this.#forks.push(fork);
    this.#starts.push(start);
    this.#ends.push(end);
    return true;
  }

  /** Whether the overflow file has what a fork lacks: its blocks from `given` to `blocks`, and no others. */
  completes(file: number, forkType: number, given: number, blocks: number): boolean {
    const fork = forkNumber(file, forkType);
    let low = 0;
    let high = this.#forks.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#forks[middle]! < fork) low = middle + 1;
      else high = middle;
    }
    if (this.#forks[low] !== fork) return given === blocks;
    return this.#starts[low] === given && this.#ends[low] === blocks && given < blocks;
  }
}

const FORKS_MAX = 2 ** 22;

const forkNumber = (file: number, forkType: number): number =>
  file * 2 + (forkType === FORK_TYPE.data ? 0 : 1);

/** Visits every extent that lies in the overflow file. @throws Refused */
export async function readOverflow(
  tree: Tree,
  { blocks }: Geometry,
  visit: (file: number, ...extent: Parameters<VisitExtent>) => void,
): Promise<Overflow> {
  const overflow = new Overflow();
  await visitLeaves(tree, "of keys", (view, key, data, end) => {
    checkRecord(tree, view, key, data, end);
    const file = view.getUint32(key + KEY.file);
    const forkType = view.getUint8(key + KEY.forkType);
    const first = view.getUint32(key + KEY.firstBlock);
    const next = visitRecord(view, data, blocks, first, (start, count, fileBlock) =>
      visit(file, start, count, fileBlock),
    );
    if (!overflow.add(file, forkType, first, next)) {
      throw contradiction(`${tree.name}: file ${file} has extents at ${first} that follow none`);
    }
  });
  return overflow;
}
