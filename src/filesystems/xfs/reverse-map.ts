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

/** Visits every record, in blocks counted through all AGs. @throws Refused when a tree is damaged */
export async function visitOwners(
  volume: Volume,
  visit: (owner: number, start: number, end: number) => void,
): Promise<void> {
  const { sb } = volume;
  for (const [ag, header] of volume.ags.entries()) {
    await readTree(volume, ag, "rmap", header.rmap, {
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
          visit(isOwn ? structureOwner(own!, ag) : high * 2 ** 32 + low, base, base + blocks);
        }
      },
    });
  }
}
