/**
 * A fork: the bytes of a file, in extents.
 *
 *   | logicalSize | clumpSize | totalBlocks | start, count | × 8 |     what does not fit: extents overflow file
 *
 * Technical Note TN1150, "Fork Data Structure".
 */
import { viewOf } from "../../bytes/struct.ts";
import { concat } from "../../device/concat.ts";
import type { BlockDevice } from "../../device/device.ts";
import { slice } from "../../device/slice.ts";
import { Refused } from "../refused.ts";
import { damaged } from "./refused.ts";

export const FORK_BYTES = 80;
export const EXTENTS_PER_RECORD = 8;
const TOTAL_BLOCKS_AT = 12;
const EXTENTS_AT = 16;

export interface Geometry {
  readonly blockBytes: number;
  readonly blocks: number;
}

/** Start blocks and counts, in turn. */
export type Extents = readonly number[];

export interface Fork {
  readonly name: string;
  /** Length in bytes. */
  readonly bytes: number;
  readonly blocks: number;
  /** Blocks of the extents that are given here; the overflow file has the rest. */
  readonly givenBlocks: number;
  readonly given: Extents;
}

/** Called for each extent with its place in the file, all in blocks. */
export type VisitExtent = (start: number, count: number, fileBlock: number) => void;

/** Visits the extents of one record of eight, which begins at `fileBlock`; returns where it ends in the file. */
export function visitRecord(
  view: DataView,
  at: number,
  blocks: number,
  fileBlock: number,
  visit: VisitExtent,
): number {
  let next = fileBlock;
  for (let i = 0; i < EXTENTS_PER_RECORD; i++) {
    const start = view.getUint32(at + i * 8);
    const count = view.getUint32(at + i * 8 + 4);
    if (count === 0) break;
    if (start + count > blocks) {
      throw damaged(`an extent of ${count} blocks at ${start} found, ${blocks} blocks expected in all`);
    }
    visit(start, count, next);
    next += count;
  }
  return next;
}

/** How many blocks the fork at `at` has. */
export const forkBlocks = (view: DataView, at: number): number => view.getUint32(at + TOTAL_BLOCKS_AT);

/** Visits the extents in the fork at `at`; returns how many of its blocks they are. */
export function visitFork(view: DataView, at: number, blocks: number, visit: VisitExtent): number {
  return visitRecord(view, at + EXTENTS_AT, blocks, 0, visit);
}

/** @throws Refused for what cannot be */
export function decodeFork(name: string, from: Uint8Array, { blockBytes, blocks }: Geometry): Fork {
  const view = viewOf(from);
  const given: number[] = [];
  const givenBlocks = visitFork(view, 0, blocks, (start, count) => given.push(start, count));
  const total = forkBlocks(view, 0);
  const bytes = view.getUint32(0) * 2 ** 32 + view.getUint32(4);
  if (givenBlocks > total || bytes > total * blockBytes) {
    throw damaged(`${name}: ${bytes} bytes in ${total} blocks found, of which ${givenBlocks} are given`);
  }
  return { name, bytes, blocks: total, givenBlocks, given };
}

/** A special file in more pieces is not worth reading. */
export const PIECES_MAX = 8192;

/** The fork as a device, as long as its content. */
export function forkDevice(
  device: BlockDevice,
  fork: Fork,
  extents: Extents,
  blockBytes: number,
): BlockDevice {
  if (extents.length > 2 * PIECES_MAX) {
    throw new Refused(
      "unsupported",
      `${fork.name}: more than ${PIECES_MAX} extents found`,
      "all of this volume counts as used",
    );
  }
  const pieces: BlockDevice[] = [];
  for (let i = 0; i < extents.length; i += 2) {
    const start = extents[i]! * blockBytes;
    pieces.push(slice(device, { start, end: start + extents[i + 1]! * blockBytes }));
  }
  return slice(concat(pieces), { start: 0, end: fork.bytes });
}
