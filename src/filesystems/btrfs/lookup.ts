/**
 * Looking for single items of a tree, from its root down, with the last nodes held in memory.
 */
import { treeRoot } from "./extent-map.ts";
import { compareKeys, Node, type Key } from "./node.ts";
import type { Volume } from "./opening.ts";
import { damaged } from "./refused.ts";
import type { Root } from "./trees.ts";

const HELD_NODES = 256;

export interface Item {
  readonly key: Key;
  readonly node: Node;
  readonly index: number;
}

const OFFSET_MAX = 2n ** 64n - 1n;

export class Lookup {
  readonly #volume: Volume;
  /** In the order of their last use. */
  readonly #held = new Map<number, Node>();

  constructor(volume: Volume) {
    this.#volume = volume;
  }

  /** The items of one type that an object has, ascending. @throws Refused */
  items(tree: bigint, id: bigint, type: number): AsyncGenerator<Item> {
    return this.#between(tree, { id, type, offset: 0n }, { id, type, offset: OFFSET_MAX });
  }

  /** The first such item, or the one with that offset. @throws Refused */
  async item(tree: bigint, id: bigint, type: number, offset?: bigint): Promise<Item | undefined> {
    const from = { id, type, offset: offset ?? 0n };
    for await (const item of this.#between(tree, from, { ...from, offset: offset ?? OFFSET_MAX }))
      return item;
    return undefined;
  }

  #between(tree: bigint, from: Key, to: Key): AsyncGenerator<Item> {
    return this.#below(treeRoot(this.#volume, tree), from, to, new Set());
  }

  async *#below(root: Root, from: Key, to: Key, seen: Set<number>): AsyncGenerator<Item> {
    if (seen.has(root.at)) throw damaged(`node at ${root.at}: two ways lead to it in one tree`);
    seen.add(root.at);
    const node = await this.#read(root);
    for (let index = 0; index < node.count; index++) {
      const key = node.key(index);
      if (compareKeys(key, to) > 0) break;
      if (node.level === 0) {
        if (compareKeys(key, from) >= 0) yield { key, node, index };
      } else if (index + 1 === node.count || compareKeys(node.key(index + 1), from) > 0) {
        yield* this.#below({ ...node.child(index), tree: root.tree }, from, to, seen);
      }
    }
  }

  async #read(root: Root): Promise<Node> {
    let node = this.#held.get(root.at);
    if (node?.level !== root.level) {
      await this.#volume.nodes.read([root], ({ at, bytes }) => (node = new Node(at, bytes.slice())));
    }
    this.#held.delete(root.at);
    this.#held.set(root.at, node!);
    for (const oldest of this.#held.keys()) {
      if (this.#held.size <= HELD_NODES) break;
      this.#held.delete(oldest);
    }
    return node!;
  }
}
