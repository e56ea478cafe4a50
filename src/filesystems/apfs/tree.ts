/**
 * Walks over whole B-trees whose nodes are found by their block: physical trees, and the ephemeral ones of a checkpoint.
 *
 *   root, level 2   →   all nodes of level 1, in the order of the disk   →   all leaves, in the order of the disk
 *
 * Every level is one below that above it and no node comes twice, so that a walk ends.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import { readScattered } from "../reading.ts";
import { readEphemeral, type Container } from "./checkpoint.ts";
import {
  FLAG,
  readInfo,
  readNode,
  visitChildren,
  visitRecords,
  type TreeInfo,
  type VisitRecord,
} from "./node.ts";
import { checkRange, readPhysical, STORAGE, TYPE, verifyObject, type Area } from "./objects.ts";
import { damaged, unknown } from "./refused.ts";

/** A physical tree. */
export interface Tree {
  /** What to call it: `object map`. */
  readonly name: string;
  readonly root: number;
  /** Subtype of its nodes. */
  readonly subtype: number;
  /** No node is younger. */
  readonly transaction: number;
}

export interface TreeSink {
  node(block: number): void;
  readonly record: VisitRecord;
}

const LEVELS_MAX = 16;

/** Visits all nodes and the records of all leaves, in any order. @throws Refused */
export async function walkTree(area: Area, tree: Tree, sink: TreeSink): Promise<void> {
  const bytes = await readPhysical(area, tree.name, tree.root, { ...tree, type: TYPE.treeRoot });
  const root = readNode(bytes, tree.root);
  const info = readInfo(root);
  if (root.level >= LEVELS_MAX) throw damaged(`${tree.name}: ${root.level} levels found`);
  const seen = new SparseBitmap();
  let records = 0;
  let nodes = 0;
  let waiting: number[] = [];
  const blockOf = (child: bigint): number => {
    const block = Number(child);
    checkRange(area, tree.name, block, 1);
    if (seen.has(block) || block === tree.root)
      throw damaged(`${tree.name}: node in block ${block} found twice`);
    seen.setRange(block, block + 1);
    return block;
  };
  const take = (taken: Uint8Array, block: number, level: number) => {
    const node = readNode(taken, block);
    const isRoot = (node.flags & FLAG.root) !== 0;
    if (node.level !== level || isRoot !== (block === tree.root)) {
      throw damaged(`${tree.name}: node in block ${block} of level ${node.level} found, ${level} expected`);
    }
    sink.node(block);
    nodes++;
    if (level > 0) return visitChildren(node, info, (child) => waiting.push(blockOf(child)));
    records += node.records;
    visitRecords(node, info, sink.record);
  };
  take(bytes, tree.root, root.level);
  for (let level = root.level - 1; level >= 0; level--) {
    const positions = Float64Array.from(waiting).sort();
    waiting = [];
    await readScattered(area.device, area.blockBytes, positions, (index, node) => {
      const block = positions[index]!;
      verifyObject(node, block, { ...tree, type: TYPE.treeNode, id: block, storage: STORAGE.physical });
      take(node, block, level);
    });
  }
  if (info.records !== records || info.nodes !== nodes) {
    throw damaged(
      `${tree.name}: ${records} records in ${nodes} nodes found, ${info.records} in ${info.nodes} expected`,
    );
  }
}

/** The records of an ephemeral tree, whose nodes are all in the checkpoint. @throws Refused */
export async function walkEphemeralTree(
  container: Container,
  name: string,
  root: number,
  subtype: number,
  visit: VisitRecord,
): Promise<void> {
  const seen = new Set<number>([root]);
  const ids = [root];
  let info: TreeInfo | undefined;
  for (let id = ids.pop(); id !== undefined; id = ids.pop()) {
    const type = id === root ? TYPE.treeRoot : TYPE.treeNode;
    const { bytes, block } = await readEphemeral(container, name, id, type, subtype);
    const node = readNode(bytes, block);
    info ??= readInfo(node);
    if (node.level === 0) {
      visitRecords(node, info, visit);
      continue;
    }
    visitChildren(node, info, (child) => {
      if (seen.has(Number(child))) throw damaged(`${name}: node ${child} found twice`);
      seen.add(Number(child));
      ids.push(Number(child));
    });
  }
}

/** @throws Refused where `type` of a superblock says that a tree is not found by its block */
export function mustBePhysical(name: string, type: number): void {
  if ((type & 0xc0000000) >>> 0 !== STORAGE.physical) {
    throw unknown(`${name}: tree of type 0x${type.toString(16)} found, a physical one expected`);
  }
}
