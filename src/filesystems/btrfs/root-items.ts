/**
 * Root items: where every tree but those of the superblock begins.
 *
 *   | inode, 160 | generation | … | address @176 | … | references @216 | dropped up to @220, level @237 | level @238 |
 *
 * A deleted subvolume has no references; it is dropped bit by bit, and the item says how far that came.
 */
import { FIRST_SUBVOLUME, KEY, TREE } from "./keys.ts";
import { keyAt, u64At, type Node } from "./node.ts";
import { damaged } from "./refused.ts";
import { rootAt, type Root } from "./trees.ts";
import { LEVELS } from "./superblock.ts";
import type { Tree } from "./volume.ts";

const GENERATION_AT = 160;
const ADDRESS_AT = 176;
const LAST_SNAPSHOT_AT = 200;
const REFERENCES_AT = 216;
const DROPPED_AT = 220;
const DROPPED_LEVEL_AT = 237;
const LEVEL_AT = 238;
const BYTES_MIN = 239;

/** The root that item number `index` of a leaf means. @throws Refused */
function rootOf(node: Node, index: number): Root {
  const { view } = node;
  const { id } = node.key(index);
  if (node.itemBytes(index) < BYTES_MIN)
    throw damaged(`root item of tree ${id}: ${node.itemBytes(index)} bytes`);
  const at = node.itemPlace(index);
  const root = rootAt({
    tree: id,
    at: u64At(view, at + ADDRESS_AT),
    generation: u64At(view, at + GENERATION_AT),
    level: view.getUint8(at + LEVEL_AT),
  });
  const key = keyAt(view, at + DROPPED_AT);
  // A relocation tree with references keeps there how far it was merged: nothing of it is gone.
  if (view.getUint32(at + REFERENCES_AT, true) > 0 || key.id === 0n || id < FIRST_SUBVOLUME) return root;
  const level = view.getUint8(at + DROPPED_LEVEL_AT);
  if (level === 0 || level > root.level || level >= LEVELS) {
    throw damaged(`root item of tree ${id}: dropped up to a key at level ${level} of ${root.level}`);
  }
  return { ...root, dropped: { key, level } };
}

/** The generation in which the last snapshot of a subvolume was taken. */
export const lastSnapshot = (node: Node, index: number): number =>
  u64At(node.view, node.itemPlace(index) + LAST_SNAPSHOT_AT);

/** The roots that the items of a leaf mean. @throws Refused */
export function* rootsIn(node: Node, tree: Tree): Generator<Root> {
  if (tree.id !== TREE.root && tree.id !== TREE.log) return;
  for (let index = 0; index < node.count; index++) {
    if (node.type(index) === KEY.root) yield rootOf(node, index);
  }
}
