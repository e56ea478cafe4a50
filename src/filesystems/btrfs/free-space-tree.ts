/**
 * The free space tree: what the kernel believes to be free when it allocates. Where it is valid it must be the
 * complement of the extents, for otherwise one of the two is wrong.
 *
 *   (group, 198, length)  info: | number of extents | 1: bitmaps |
 *   (start, 199, length)  free
 *   (start, 200, length)  bitmap, a bit a sector, 1 is free
 *
 * Entries in no block group are leftovers that the kernel ignores.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import type { ExtentSet } from "../../bytes/extents.ts";
import type { Chunk } from "./chunks.ts";
import { treeRoot } from "./extent-map.ts";
import { KEY, TREE } from "./keys.ts";
import type { Node } from "./node.ts";
import type { Volume } from "./opening.ts";
import { contradiction, damaged } from "./refused.ts";
import { traverse } from "./trees.ts";

/** @throws Refused */
export async function checkFreeSpaceTree(volume: Volume, freeOf: (chunk: Chunk) => ExtentSet): Promise<void> {
  const { sb, nodes } = volume;
  const free = new SparseBitmap();
  await traverse(nodes, [treeRoot(volume, TREE.freeSpace)], {
    enters: nodes.onceEach(),
    leaf(node) {
      for (let index = 0; index < node.count; index++) {
        if (nodes.map.chunkOf(node.id(index), node.offset(index)) !== undefined)
          addFree(node, index, sb.sectorBytes, free);
      }
    },
  });
  for (const chunk of nodes.map.chunks) {
    const end = chunk.end / sb.sectorBytes;
    let at = chunk.start / sb.sectorBytes;
    for (const extent of freeOf(chunk)) {
      const start = extent.start / sb.sectorBytes;
      const stray = free.nextSet(at, start);
      if (stray < start) throw disagreement(stray * sb.sectorBytes, "free");
      at = extent.end / sb.sectorBytes;
      const lost = free.nextClear(start, at);
      if (lost < at) throw disagreement(lost * sb.sectorBytes, "used");
    }
    const stray = free.nextSet(at, end);
    if (stray < end) throw disagreement(stray * sb.sectorBytes, "free");
  }
}

const disagreement = (at: number, found: string) =>
  contradiction(`free space tree: ${at} is ${found}, but not so in the extent tree`);

function addFree(node: Node, index: number, sectorBytes: number, free: SparseBitmap): void {
  const first = node.id(index) / sectorBytes;
  const sectors = node.offset(index) / sectorBytes;
  const type = node.type(index);
  if (!Number.isInteger(first) || !Number.isInteger(sectors)) {
    throw damaged(`free space tree: an item at ${node.id(index)} for ${node.offset(index)} bytes`);
  }
  if (type === KEY.freeSpaceExtent) free.setRange(first, first + sectors);
  if (type !== KEY.freeSpaceBitmap) return;
  const bitmap = node.item(index);
  if (bitmap.length !== Math.ceil(sectors / 8)) {
    throw damaged(`free space tree: a bitmap of ${bitmap.length} bytes for ${sectors} sectors`);
  }
  let start = -1;
  for (let bit = 0; bit <= sectors; bit++) {
    const isSet = bit < sectors && ((bitmap[bit >>> 3]! >>> (bit & 7)) & 1) === 1;
    if (isSet && start < 0) start = bit;
    if (isSet || start < 0) continue;
    free.setRange(first + start, first + bit);
    start = -1;
  }
}
