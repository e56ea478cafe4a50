/**
 * FAT12, FAT16 and FAT32: the allocation table's claim, the walk over the tree of directories, and who owns what.
 *
 *   fat.ts                  the door: what FileSystem asks for
 *   fat/boot-sector.ts      whether it is FAT, and where everything lies
 *   fat/state.ts            clean, and all copies of the table alike          fat/hibernation.ts
 *   fat/directory.ts        entries and long names          fat/tree.ts: the tree that names are looked up in
 *   allocation-table.ts, cluster-chains.ts, cluster-walk.ts, cluster-tree.ts: what exFAT has as well
 *
 * "FAT: General Overview of On-Disk Format" 1.03 of Microsoft is the specification; fsck.fat is the judge in the tests.
 */
import { ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import { serialText } from "../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import { AllocationTable } from "./allocation-table.ts";
import { clusterAt, gridBytes, type ClusterHeap } from "./cluster-chains.ts";
import { TreeNames } from "./cluster-tree.ts";
import { TreeWalker } from "./cluster-walk.ts";
import { BOOT_BYTES, checkBackup, isPlausible, readGeometry, type Geometry } from "./fat/boot-sector.ts";
import { HINT } from "./fat/damage.ts";
import { ClusterScan, DIRECTORY_BYTES_MAX } from "./fat/directory.ts";
import { checkHibernation } from "./fat/hibernation.ts";
import { checkState, compareCopies } from "./fat/state.ts";
import { labelOf, rootHolding, treeOf } from "./fat/tree.ts";
import { unlessDamaged } from "./refused.ts";
import type { FileSystem, FileSystemReader, OwnerDescription, Visit } from "./filesystem.ts";
import { Door } from "./door.ts";

export const fat: FileSystemReader = {
  name: "fat",

  async probe(member) {
    return member.bytes >= BOOT_BYTES && isPlausible(await readBytes(member, 0, BOOT_BYTES));
  },

  async open([device]) {
    const filesystem = new FatFileSystem(device!);
    await filesystem.open();
    return filesystem;
  },
};

/** Owners of what is not in clusters. */
const OWNER = { reserved: -1, table: -2, root: -3, rest: -4 };

class FatFileSystem extends Door implements FileSystem {
  readonly witness = { map: "FAT", walk: "tree walk" };
  label = "";
  readonly #device: BlockDevice;
  #geometry: Geometry | undefined;
  #heap: ClusterHeap | undefined;

  constructor(device: BlockDevice) {
    super();
    this.#device = device;
  }

  get name(): string {
    const bits = this.#geometry?.bits;
    return bits === undefined ? "fat" : `fat${bits === 28 ? 32 : bits}`;
  }

  get uuid(): string {
    return serialText(this.#geometry?.serial);
  }

  get blockBytes(): number {
    return this.#heap === undefined ? 512 : gridBytes(this.#heap);
  }

  get bytes(): number {
    return Math.min(this.#geometry?.bytes ?? this.#device.bytes, this.#device.bytes);
  }

  async open(): Promise<void> {
    await this.guarded(async () => {
      const geometry = (this.#geometry = await readGeometry(this.#device));
      const { fatAt: at, clusters, bits, heapAt, clusterBytes } = geometry;
      if (geometry.bytes <= this.#device.bytes) {
        const table = new AllocationTable(this.#device, { at, clusters, bits });
        this.#heap = { device: this.#device, table, heapAt, clusterBytes, hint: HINT };
        const names = new TreeNames(treeOf(this.#heap, geometry));
        this.owners = names;
        this.label = (await unlessDamaged(labelOf(this.#heap, geometry))) ?? "";
        await checkHibernation(this.#device, names);
      }
      await checkState(this.#device, geometry);
      await checkBackup(this.#device, geometry);
      await compareCopies(this.#device, geometry);
    });
  }

  async free(): Promise<readonly ExtentSet[]> {
    const heap = this.#heap;
    const free = await this.guarded(async () => {
      if (heap === undefined || this.refusal !== undefined) return ExtentSet.EMPTY;
      const builder = new ExtentBuilder();
      await heap.table.freeRuns(HINT, (start, end) =>
        builder.add(clusterAt(heap, start), clusterAt(heap, end)),
      );
      return builder.build();
    });
    return [free ?? ExtentSet.EMPTY];
  }

  async walk(visit: Visit): Promise<void> {
    const [heap, geometry] = [this.#heap, this.#geometry];
    if (heap !== undefined && geometry !== undefined) {
      await this.guarded(() => walk(heap, geometry, visit));
    }
  }

  override async describe(owner: number): Promise<OwnerDescription> {
    if (owner === OWNER.root) return { kind: "directory", name: "root directory", path: "/" };
    const own = STRUCTURES.get(owner);
    if (own !== undefined) return { kind: "metadata", name: own };
    return await super.describe(owner);
  }
}

const STRUCTURES: ReadonlyMap<number, string> = new Map([
  [OWNER.reserved, "boot sector and reserved sectors"],
  [OWNER.table, "allocation table"],
  [OWNER.rest, "sectors behind the last cluster"],
]);

async function walk(heap: ClusterHeap, geometry: Geometry, visit: Visit): Promise<void> {
  const { fatAt, rootAt, rootBytes, heapAt, bytes } = geometry;
  const walker = new TreeWalker({
    heap,
    directoryBytesMax: DIRECTORY_BYTES_MAX,
    visit,
    scan: (self, parent, found) => new ClusterScan(geometry, self, parent, found),
  });
  walker.visitFixed(0, fatAt, OWNER.reserved);
  walker.visitFixed(fatAt, rootAt, OWNER.table);
  walker.visitFixed(rootAt, heapAt, OWNER.root);
  walker.visitFixed(heapAt + heap.table.clusters * heap.clusterBytes, bytes, OWNER.rest);
  if (rootBytes === 0) return walker.walkFrom(rootHolding(geometry));
  return walker.walkOutside(async (found) => {
    new ClusterScan(geometry, 0, 0, found).next(await readBytes(heap.device, rootAt, rootBytes));
  });
}
