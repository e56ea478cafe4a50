/**
 * Object maps: where virtual objects lie, each version of them that a snapshot or the live volume needs.
 *
 *   object map → B-tree of (object id, transaction id) → flags, bytes, block
 *                one of the container (for the volumes' superblocks), one of every volume (for its file-system tree)
 *
 * What a map names is reachable: the live tree uses the youngest version of an object, a snapshot the youngest that is
 * not younger than itself. "Object Maps" of the Apple File System Reference.
 */
import { skip, struct, u32le, u64le } from "../../bytes/struct.ts";
import { looseU64, OBJECT_BYTES, readPhysical, TYPE, type Area } from "./objects.ts";
import { damaged, unfinished, unknown } from "./refused.ts";
import { mustBePhysical, walkTree } from "./tree.ts";

const MapLayout = struct({
  header: skip(OBJECT_BYTES),
  flags: u32le,
  snapshots: u32le,
  treeType: u32le,
  snapshotTreeType: u32le,
  tree: u64le,
  snapshotTree: u64le,
  newestSnapshot: u64le,
  revertMin: u64le,
  revertMax: u64le,
});

const FLAG = { manual: 0x1, encrypting: 0x2, decrypting: 0x4, keyRolling: 0x8, generations: 0x10 };
const VALUE = { deleted: 0x1, saved: 0x2, encrypted: 0x4, noHeader: 0x8, generation: 0x10 };
const VALUES_KNOWN = 0x1f;
const SNAPSHOT_REVERTED = 0x2;

/** Parallel columns, ascending by id and transaction. */
export class ObjectMap {
  readonly ids: Float64Array;
  readonly transactions: Float64Array;
  readonly blocks: Float64Array;
  readonly #flags: Uint8Array;

  constructor(ids: number[], transactions: number[], blocks: number[], flags: number[]) {
    const order = Uint32Array.from(ids.keys());
    const compare = (a: number, b: number) => ids[a]! - ids[b]! || transactions[a]! - transactions[b]!;
    order.sort(compare);
    this.ids = Float64Array.from(order, (index) => ids[index]!);
    this.transactions = Float64Array.from(order, (index) => transactions[index]!);
    this.blocks = Float64Array.from(order, (index) => blocks[index]!);
    this.#flags = Uint8Array.from(order, (index) => flags[index]!);
  }

  get count(): number {
    return this.ids.length;
  }

  isEncrypted(index: number): boolean {
    return (this.#flags[index]! & VALUE.encrypted) !== 0;
  }

  hasHeader(index: number): boolean {
    return (this.#flags[index]! & VALUE.noHeader) === 0;
  }

  /** The youngest version of an object that is not younger than `transaction`; -1 where there is none. */
  find(id: number, transaction: number): number {
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const isBefore =
        this.ids[middle]! < id || (this.ids[middle] === id && this.transactions[middle]! <= transaction);
      if (isBefore) low = middle + 1;
      else high = middle;
    }
    return low > 0 && this.ids[low - 1] === id ? low - 1 : -1;
  }
}

/**
 * Reads a whole map.
 * @param node told every block of the map itself
 * @throws Refused
 */
export async function readObjectMap(
  area: Area,
  name: string,
  block: number,
  transaction: number,
  node: (block: number) => void,
): Promise<ObjectMap> {
  const bytes = await readPhysical(area, name, block, { type: TYPE.objectMap, transaction });
  const map = MapLayout.decode(bytes);
  node(block);
  checkFlags(name, map);
  mustBePhysical(name, map.treeType);
  const [ids, transactions, blocks, flags]: [number[], number[], number[], number[]] = [[], [], [], []];
  const tree = { name, root: map.tree, subtype: TYPE.objectMap, transaction };
  await walkTree(area, tree, {
    node,
    record(view, key, keyBytes, value, valueBytes) {
      if (keyBytes !== 16 || valueBytes !== 16)
        throw damaged(`${name}: record of ${keyBytes} and ${valueBytes} bytes`);
      const found = view.getUint32(value, true);
      if ((found & ~VALUES_KNOWN) !== 0)
        throw unknown(`${name}: mapping with flags 0x${found.toString(16)} found`);
      if ((found & VALUE.deleted) !== 0) return;
      const length = view.getUint32(value + 4, true);
      if (length !== area.blockBytes) throw unknown(`${name}: object of ${length} bytes found`);
      if (ids.length >= area.blocks) throw damaged(`${name}: more objects than blocks found`);
      ids.push(looseU64(view, key));
      transactions.push(looseU64(view, key + 8));
      blocks.push(looseU64(view, value + 8));
      flags.push(found);
    },
  });
  if (map.snapshotTree !== 0) await readSnapshots(area, name, map, transaction, node);
  return new ObjectMap(ids, transactions, blocks, flags);
}

function checkFlags(name: string, map: ReturnType<typeof MapLayout.decode>): void {
  if ((map.flags & (FLAG.encrypting | FLAG.decrypting | FLAG.keyRolling)) !== 0) {
    throw unfinished("encrypting", `${name}: the volume is being encrypted or decrypted`);
  }
  const left = map.flags & ~(FLAG.manual | FLAG.generations);
  if (left !== 0) throw unknown(`${name}: flags 0x${left.toString(16)} found`);
  if (map.revertMin !== 0 || map.revertMax !== 0) {
    throw unfinished("reverting", `${name}: the volume is being reverted to a snapshot`);
  }
}

async function readSnapshots(
  area: Area,
  name: string,
  map: ReturnType<typeof MapLayout.decode>,
  transaction: number,
  node: (block: number) => void,
): Promise<void> {
  mustBePhysical(`snapshots of the ${name}`, map.snapshotTreeType);
  const tree = {
    name: `snapshots of the ${name}`,
    root: map.snapshotTree,
    subtype: TYPE.objectMapSnapshots,
    transaction,
  };
  await walkTree(area, tree, {
    node,
    record(view, _key, _keyBytes, value, valueBytes) {
      if (valueBytes < 4 || (view.getUint32(value, true) & SNAPSHOT_REVERTED) === 0) return;
      throw unfinished("reverting", `${name}: a snapshot that was reverted is not cleaned up yet`);
    },
  });
}
