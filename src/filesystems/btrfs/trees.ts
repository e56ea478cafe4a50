/**
 * Going through trees from their roots, each node read once, in batches that follow the order of the disk.
 *
 *   waiting: nodes whose parents were read     take a batch → read → their children wait, their items are looked at
 *
 * The last to wait is the first to be read, and few inner nodes are taken at a time, so that what waits stays small.
 */
import { compareKeys, type Key, type Node, type NodeReference } from "./node.ts";
import { isSubvolume, TREE } from "./keys.ts";
import { damaged } from "./refused.ts";
import { LEVELS } from "./superblock.ts";
import type { NodeSource, Tree, Wanted } from "./volume.ts";

const BATCH_NODES = 2048;
const BATCH_INNER_NODES = 32;

/** A tree that is being deleted: what lies before `key` is gone already. */
interface Dropped {
  readonly key: Key;
  /** Of the node whose keys were dropped up to there; above it, whole subtrees. */
  readonly level: number;
}

export interface Root extends Wanted {
  readonly dropped?: Dropped | undefined;
}

export interface Visitor {
  /** Whether a node is to be read. */
  enters(node: Root): boolean;
  /** Every node that was read, leaves too. */
  node?(node: Node): void;
  /** @returns further roots */
  leaf(node: Node, tree: Tree): Iterable<Root> | void;
}

/** @throws Refused */
export async function traverse(source: NodeSource, roots: readonly Root[], visitor: Visitor): Promise<void> {
  const waiting: Root[] = [];
  const wait = (node: Root) => {
    if (visitor.enters(node)) waiting.push(node);
  };
  roots.forEach(wait);
  while (waiting.length > 0) {
    await source.read(takeBatch(waiting), (node, wanted) => {
      visitor.node?.(node);
      if (node.level > 0) children(node, wanted, wait);
      else for (const root of visitor.leaf(node, wanted.tree) ?? []) wait(root);
    });
  }
}

function takeBatch(waiting: Root[]): Root[] {
  const batch: Root[] = [];
  let inner = 0;
  while (waiting.length > 0 && batch.length < BATCH_NODES && inner < BATCH_INNER_NODES) {
    const next = waiting.pop()!;
    if (next.level > 0) inner++;
    batch.push(next);
  }
  return batch;
}

function children(node: Node, { tree, dropped }: Root, wait: (child: Root) => void): void {
  if (dropped === undefined || node.level < dropped.level) {
    for (let index = 0; index < node.count; index++) wait({ ...node.child(index), tree });
    return;
  }
  for (let index = 0; index < node.count; index++) {
    const isPast = compareKeys(node.key(index), dropped.key) >= 0;
    const isOnPath = !isPast && node.level > dropped.level && !isReached(node, index + 1, dropped.key);
    if (isOnPath) wait({ ...node.child(index), tree, dropped });
    else if (isPast) wait({ ...node.child(index), tree });
  }
}

/** Whether key number `index` is there and does not lie behind `key`. */
function isReached(node: Node, index: number, key: Key): boolean {
  return index < node.count && compareKeys(node.key(index), key) <= 0;
}

function treeOf(id: bigint): Tree {
  const isShared = isSubvolume(id) || id === TREE.relocation || id === TREE.dataRelocation || id === TREE.log;
  return { id, nodesSay: isShared ? undefined : id };
}

export interface Start extends NodeReference {
  /** The id of the tree that begins there. */
  readonly tree: bigint;
}

/** @throws Refused for a level that no tree has */
export function rootAt({ tree, at, generation, level }: Start): Root {
  if (level >= LEVELS) throw damaged(`root of tree ${tree}: level ${level}`);
  return { at, generation, level, tree: treeOf(tree) };
}
