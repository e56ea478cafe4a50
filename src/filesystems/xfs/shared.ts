/**
 * The trees of shared blocks: which blocks several files have, and which are kept for a copy-on-write.
 *
 *   record:  | start u32, its highest bit: kept | blocks u32 | owners u32 |
 *
 * Blocks with one owner, or none, have no record. Reference count btree, "XFS Algorithms & Data Structures".
 */
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import type { Volume } from "./headers.ts";
import { damaged } from "./refused.ts";
import { agLength } from "./superblock.ts";
import { readTree } from "./trees.ts";

const RECORD_BYTES = 12;
const KEPT = 0x80000000;

export interface SharedBlocks {
  /** Blocks, not bytes, counted through all AGs. */
  readonly shared: ExtentSet;
  readonly kept: ExtentSet;
}

/** @throws Refused when a tree is damaged */
export async function readShared(
  volume: Volume,
  block: (ag: number, block: number) => void,
): Promise<SharedBlocks> {
  const { sb } = volume;
  const shared = new ExtentBuilder();
  const kept = new ExtentBuilder();
  for (const [ag, header] of volume.ags.entries()) {
    let next = sb.headerBlocks;
    await readTree(volume, ag, "refcount", header.refcount, {
      block: (at) => block(ag, at),
      leaf(view, from, count) {
        for (let at = from; at < from + count * RECORD_BYTES; at += RECORD_BYTES) {
          const word = view.getUint32(at);
          const isKept = word >= KEPT;
          const start = isKept ? word - KEPT : word;
          const [blocks, owners] = [view.getUint32(at + 4), view.getUint32(at + 8)];
          const isFit = word >= next && blocks > 0 && start + blocks <= agLength(sb, ag);
          if (!isFit || (isKept ? owners !== 1 : owners < 2)) {
            throw damaged(
              `tree of shared blocks of AG ${ag}: ${blocks} blocks at ${word} of ${owners} owners found, ` +
                `behind ${next} expected`,
            );
          }
          next = word + blocks;
          const base = ag * sb.agBlocks + start;
          (isKept ? kept : shared).add(base, base + blocks);
        }
      },
    });
  }
  return { shared: shared.build(), kept: kept.build() };
}
