/**
 * The trees of owners (rmapbt): for every block in use, whose it is.
 *
 *   record:  | start u32 | blocks u32 | owner u64: an inode, or one of the filesystem's own, below zero | offset u64 |
 *
 * Records of shared blocks overlap. Reverse mapping btree, "XFS Algorithms & Data Structures".
 */
import type { Volume } from "./headers.ts";
import { damaged } from "./refused.ts";
import { structureOwner, type Structure } from "./structures.ts";
import { agLength } from "./superblock.ts";
import { readTree } from "./trees.ts";

const RECORD_BYTES = 24;
const HIGH_NEGATIVE = 0xffffffff;

/** Owners below zero, as the low half of their number. */
const OWN: ReadonlyMap<number, Structure> = new Map([
  [0xfffffffd, "headers"],
  [0xfffffffc, "log"],
  [0xfffffffb, "byBlock"], // Or the other trees and the list whose blocks come from the AGFL.
  [0xfffffffa, "inodes"],
  [0xfffffff9, "chunks"],
  [0xfffffff8, "refcount"],
  [0xfffffff7, "staging"],
]);

export interface OwnerSink {
  /** A block of the AG that belongs to the tree. */
  block(block: number): void;
  /** Blocks counted through all AGs. */
  visit(owner: number, start: number, end: number): void;
}

/** Visits every record of an AG. @throws Refused when the tree is damaged */
export async function readOwners(volume: Volume, ag: number, sink: OwnerSink): Promise<void> {
  const { sb, ags } = volume;
  await readTree(volume, ag, "rmap", ags[ag]!.rmap, {
    block: (block) => sink.block(block),
    leaf(view, from, count) {
      for (let at = from; at < from + count * RECORD_BYTES; at += RECORD_BYTES) {
        const [start, blocks] = [view.getUint32(at), view.getUint32(at + 4)];
        const [high, low] = [view.getUint32(at + 8), view.getUint32(at + 12)];
        const own = OWN.get(low);
        const isOwn = high === HIGH_NEGATIVE;
        if (blocks === 0 || start + blocks > agLength(sb, ag) || (isOwn && own === undefined)) {
          throw damaged(
            `tree of owners of AG ${ag}: ${blocks} blocks at ${start} of owner 0x${low.toString(16)} found`,
          );
        }
        const base = ag * sb.agBlocks + start;
        sink.visit(isOwn ? structureOwner(own!, ag) : high * 2 ** 32 + low, base, base + blocks);
      }
    },
  });
}
