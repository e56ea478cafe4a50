/**
 * The walk: everything that is reachable from the newest checkpoint.
 *
 *   container   superblock copy, checkpoint areas, internal pool, free queues, object map, key bags, EFI driver
 *   volume      object map → every version of every object, so that the live tree and all snapshots are covered
 *               extent records of the live volume and of each snapshot; file extents found in the trees
 *
 * Objects of a volume are read in the order of the disk, each once, however many snapshots share it. A file extent must
 * lie in the extent records. Where a volume is encrypted its tree cannot be read, and the extent records, which are not
 * encrypted, are all there is.
 */
import { viewOf } from "../../bytes/struct.ts";
import { readScattered } from "../reading.ts";
import type { Visit } from "../filesystem.ts";
import { Claims } from "./claims.ts";
import type { Contents, Volume } from "./contents.ts";
import { isOfTree } from "./file-tree.ts";
import { readNode, visitChildren, visitRecords, type VisitRecord } from "./node.ts";
import { looseU64, OBJECT_BYTES, readPhysical, TYPE } from "./objects.ts";
import { readObjectMap, type ObjectMap } from "./omap.ts";
import { KIND, kindOf, NO_OWNER, ownerIn, readExtent, readFileExtent } from "./records.ts";
import { damaged, unknown } from "./refused.ts";
import { readSnapshots, type Snapshot } from "./snapshots.ts";
import { readSpaceManager, visitQueues } from "./spaceman.ts";
import { structureOwner, type Structure } from "./structures.ts";
import { mustBePhysical, walkTree } from "./tree.ts";
import { nameOf, SEALED } from "./volume.ts";

const JUMPSTART_EXTENTS_AT = 176;
const JUMPSTART_EXTENTS_MAX = 200;

/** @throws Refused for every damage and contradiction on the way */
export async function walk(contents: Contents, visit: Visit): Promise<void> {
  const walker = new Walker(contents, visit);
  await walker.container();
  for (const volume of contents.volumes) await walker.volume(volume);
}

class Walker {
  readonly #contents: Contents;
  readonly #claims: Claims;

  constructor(contents: Contents, visit: Visit) {
    this.#contents = contents;
    this.#claims = new Claims(contents.container, visit);
  }

  async container(): Promise<void> {
    const { container, mapBlocks } = this.#contents;
    const { sb } = container;
    const manager = await readSpaceManager(container);
    const { pool } = manager;
    this.#own("container superblock", 0, 1);
    this.#own("checkpoint descriptors", container.descriptorBase, sb.descriptorBlocks);
    this.#own("checkpoint data", container.dataBase, sb.dataBlocks);
    this.#own("space manager", pool.base, pool.blocks);
    this.#own("space manager", pool.bitmapsBase, pool.bitmapsBlocks);
    for (const block of mapBlocks) this.#own("object map", block, 1);
    this.#own("key bag", sb.keybagStart, sb.keybagBlocks);
    this.#own("key bag", sb.mediaKeybagStart, sb.mediaKeybagBlocks);
    this.#own("blocked-out area", sb.blockedOutStart, sb.blockedOutBlocks);
    await visitQueues(container, manager, (start, blocks) => {
      const isInPool = start >= pool.base && start + blocks <= pool.base + pool.blocks;
      if (!isInPool) this.#own("earlier checkpoints", start, blocks);
    });
    if (sb.jumpstart !== 0) await this.#jumpstart(sb.jumpstart);
  }

  #own(structure: Structure, start: number, blocks: number, volume?: number): void {
    this.#claims.metadata(structure, start, blocks, structureOwner(structure, volume));
  }

  /** The driver by which firmware reads the container. */
  async #jumpstart(block: number): Promise<void> {
    const { container } = this.#contents;
    const { transaction } = container.sb;
    const bytes = await readPhysical(container, "EFI driver", block, { type: TYPE.jumpstart, transaction });
    this.#own("EFI driver", block, 1);
    const view = viewOf(bytes);
    const count = view.getUint32(OBJECT_BYTES + 12, true);
    if (count > JUMPSTART_EXTENTS_MAX) throw damaged(`EFI driver: ${count} extents found`);
    for (let index = 0; index < count; index++) {
      const at = JUMPSTART_EXTENTS_AT + index * 16;
      this.#own("EFI driver", looseU64(view, at), looseU64(view, at + 8));
    }
  }

  async volume(volume: Volume): Promise<void> {
    const { container } = this.#contents;
    const { number, block, sb } = volume;
    const { transaction } = container.sb;
    const name = nameOf(sb);
    this.#own("volume superblock", block, 1, number);
    const node = (structure: Structure) => (at: number) => this.#own(structure, at, 1, number);
    const map = await readObjectMap(
      container,
      `object map of volume ${name}`,
      sb.objectMap,
      transaction,
      node("object map"),
    );
    const snapshots = await readSnapshots(container, volume, node("snapshots"));
    mustBePhysical(`extent records of volume ${name}`, sb.extentTreeType);
    const extentTrees = new Set([sb.extentTree, ...snapshots.map(({ extentTree }) => extentTree)]);
    for (const root of extentTrees) if (root !== 0) await this.#extents(volume, root);
    await this.#objects(volume, map);
    this.#checkRoots(volume, map, snapshots);
    const sealed = [sb, ...snapshots.map((snapshot) => snapshot.sb)].filter(
      (one) => (one.incompat & SEALED) !== 0n,
    );
    const fileExtentTrees = new Set(sealed.map((one) => one.fileExtentTree));
    for (const root of fileExtentTrees) if (root !== 0) await this.#sealedExtents(volume, root);
  }

  /** The live tree and that of every snapshot begin with an object of the map. */
  #checkRoots({ sb, number }: Volume, map: ObjectMap, snapshots: readonly Snapshot[]): void {
    const { transaction } = this.#contents.container.sb;
    const roots = [
      { tree: sb.tree, transaction },
      ...snapshots.map((one) => ({ ...one, tree: one.sb.tree })),
    ];
    for (const root of roots) {
      if (map.find(root.tree, root.transaction) >= 0) continue;
      throw damaged(`volume ${number}: no tree ${root.tree} of transaction ${root.transaction} found`);
    }
  }

  async #extents({ sb, number }: Volume, root: number): Promise<void> {
    const { container } = this.#contents;
    const { transaction } = container.sb;
    const nobody = structureOwner("data without a file", number);
    const tree = {
      name: `extent records of volume ${nameOf(sb)}`,
      root,
      subtype: TYPE.extentTree,
      transaction,
    };
    const claim = (start: number, blocks: number, owner: number) =>
      this.#claims.recorded(start, blocks, owner === NO_OWNER ? nobody : ownerIn(number, owner));
    await walkTree(container, tree, {
      node: (block) => this.#own("extent records", block, 1, number),
      record: (view, key, keyBytes, value, valueBytes) =>
        readExtent(view, key, keyBytes, value, valueBytes, claim),
    });
  }

  /** All objects of a volume: those that can be read are nodes of its tree, nearly always. */
  async #objects({ number, sb }: Volume, map: ObjectMap): Promise<void> {
    const { container } = this.#contents;
    const isSealed = (sb.incompat & SEALED) !== 0n;
    for (let index = 0; index < map.count; index++)
      this.#own("file-system tree", map.blocks[index]!, 1, number);
    const readable = Uint32Array.from(map.ids.keys()).filter((index) => !map.isEncrypted(index));
    readable.sort((a, b) => map.blocks[a]! - map.blocks[b]!);
    const positions = Float64Array.from(readable, (index) => map.blocks[index]!);
    const record = this.#fileExtents();
    await readScattered(container.device, container.blockBytes, positions, (place, bytes) => {
      const index = readable[place]!;
      if (!map.hasHeader(index) && !isSealed)
        throw unknown(`object ${map.ids[index]}: no header, and no seal`);
      if (!isOfTree(bytes, map, index)) return;
      const node = readNode(bytes, map.blocks[index]!);
      if (node.level === 0) return visitRecords(node, undefined, record);
      visitChildren(node, undefined, (child) => {
        if (map.find(Number(child), Infinity) < 0) throw damaged(`object map: no object ${child} found`);
      });
    });
  }

  #fileExtents(): VisitRecord {
    const { blockBytes } = this.#contents.container;
    const claim = (start: number, blocks: number) => this.#claims.file(start, blocks);
    return (view, key, keyBytes, value, valueBytes) => {
      if (keyBytes < 8) throw damaged(`file-system tree: key of ${keyBytes} bytes found`);
      if (kindOf(view, key) !== KIND.fileExtent) return;
      readFileExtent(view, key, keyBytes, value, valueBytes, blockBytes, claim);
    };
  }

  /** A sealed volume has its file extents in a tree of their own. */
  async #sealedExtents({ sb, number }: Volume, root: number): Promise<void> {
    const { container } = this.#contents;
    const { transaction } = container.sb;
    mustBePhysical(`file extents of volume ${nameOf(sb)}`, sb.fileExtentTreeType);
    const tree = {
      name: `file extents of volume ${nameOf(sb)}`,
      root,
      subtype: TYPE.fileExtentTree,
      transaction,
    };
    const claim = (start: number, blocks: number) => this.#claims.file(start, blocks);
    await walkTree(container, tree, {
      node: (block) => this.#own("file-system tree", block, 1, number),
      record: (view, key, keyBytes, value, valueBytes) =>
        readFileExtent(view, key, keyBytes, value, valueBytes, container.blockBytes, claim),
    });
  }
}
