/**
 * exFAT: the allocation bitmap's claim, the walk over the tree of directories, and who owns what.
 *
 *   exfat.ts                 the door: what FileSystem asks for
 *   exfat/boot-region.ts     where everything lies, checksums, whether it was left clean
 *   exfat/root.ts            the bitmap, the up-case table and the label, which the root directory names
 *   exfat/entry-sets.ts      directories
 *   exfat/tree.ts            the tree that names are looked up in          exfat/up-case.ts: how they are compared
 *   allocation-table.ts, cluster-chains.ts, cluster-walk.ts, cluster-tree.ts: what FAT has as well
 *
 * "exFAT file system specification" of Microsoft; fsck.exfat is the judge in the tests.
 */
import { ExtentSet } from "../bytes/extents.ts";
import { serialText } from "../bytes/struct.ts";
import { printable } from "../bytes/text.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import { AllocationTable } from "./allocation-table.ts";
import { gridBytes, type ClusterHeap, type Holding } from "./cluster-chains.ts";
import { TreeNames } from "./cluster-tree.ts";
import { TreeWalker, type Found } from "./cluster-walk.ts";
import {
  BootSector,
  checkFlags,
  checkRegions,
  isPlausible,
  readGeometry,
  type Geometry,
} from "./exfat/boot-region.ts";
import { damaged, HINT } from "./exfat/damage.ts";
import { ATTRIBUTE, DIRECTORY_BYTES_MAX, SetScan, type Stream } from "./exfat/entry-sets.ts";
import { freeClusters, readSystem, type System } from "./exfat/root.ts";
import { rootHolding, treeOf } from "./exfat/tree.ts";
import type { FileSystem, FileSystemReader, OwnerDescription, Visit } from "./filesystem.ts";
import { Door } from "./door.ts";

export const exfat: FileSystemReader = {
  name: "exfat",

  async probe(member) {
    return member.bytes >= BootSector.bytes && isPlausible(await readBytes(member, 0, BootSector.bytes));
  },

  async open([device]) {
    const filesystem = new ExfatFileSystem(device!);
    await filesystem.open();
    return filesystem;
  },
};

/** Owners of what is no file. */
const OWNER = { boot: -1, table: -2, rest: -3, bitmap: -4, upCase: -5 };

const STRUCTURES: ReadonlyMap<number, string> = new Map([
  [OWNER.boot, "boot regions"],
  [OWNER.table, "allocation table"],
  [OWNER.rest, "sectors behind the last cluster"],
  [OWNER.bitmap, "allocation bitmap"],
  [OWNER.upCase, "up-case table"],
]);

class ExfatFileSystem extends Door implements FileSystem {
  readonly name = "exfat";
  readonly witness = { map: "bitmap", walk: "tree walk" };
  readonly #device: BlockDevice;
  #geometry: Geometry | undefined;
  #heap: ClusterHeap | undefined;
  #system: System | undefined;

  constructor(device: BlockDevice) {
    super();
    this.#device = device;
  }

  get label(): string {
    return printable(this.#system?.label ?? "");
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
    const device = this.#device;
    const geometry = await this.guarded(async () => (this.#geometry = await readGeometry(device)));
    if (geometry === undefined) return;
    await this.guarded(async () => {
      checkFlags(device, geometry);
      await checkRegions(device, geometry);
    });
    if (geometry.bytes > device.bytes) return;
    const { fatAt: at, clusters, heapAt, clusterBytes } = geometry;
    const table = new AllocationTable(device, { at, clusters, bits: 32 });
    const heap = (this.#heap = { device, table, heapAt, clusterBytes, hint: HINT });
    await this.guarded(async () => {
      const system = (this.#system = await readSystem(heap, rootHolding(geometry)));
      this.owners = new TreeNames(treeOf(heap, geometry, system.upCase));
    });
  }

  async free(): Promise<readonly ExtentSet[]> {
    const [heap, system] = [this.#heap, this.#system];
    const free = await this.guarded(async () => {
      if (heap === undefined || system === undefined || this.refusal !== undefined) return ExtentSet.EMPTY;
      return freeClusters(heap, system);
    });
    return [free ?? ExtentSet.EMPTY];
  }

  async walk(visit: Visit): Promise<void> {
    const [heap, geometry, system] = [this.#heap, this.#geometry, this.#system];
    if (heap === undefined || geometry === undefined || system === undefined) return;
    await this.guarded(() => walk(heap, geometry, system, visit));
  }

  override async describe(owner: number): Promise<OwnerDescription> {
    const own = STRUCTURES.get(owner);
    if (own !== undefined) return { kind: "metadata", name: own };
    return await super.describe(owner);
  }
}

async function walk(heap: ClusterHeap, geometry: Geometry, system: System, visit: Visit): Promise<void> {
  const { fatAt, heapAt, bytes, rootCluster } = geometry;
  const walker = new TreeWalker({
    heap,
    directoryBytesMax: DIRECTORY_BYTES_MAX,
    visit,
    scan(self, _parent, found) {
      const where = `directory in cluster ${self}`;
      return new SetScan(where, self === rootCluster, system.upCase, sinkOf(heap, where, found));
    },
  });
  // The gaps around the table are nobody's, and stay.
  walker.visitFixed(0, fatAt, OWNER.boot);
  walker.visitFixed(fatAt, heapAt, OWNER.table);
  walker.visitFixed(heapAt + heap.table.clusters * heap.clusterBytes, bytes, OWNER.rest);
  await walker.claimOwn(system.bitmap, OWNER.bitmap);
  await walker.claimOwn(system.upCaseTable, OWNER.upCase);
  await walker.walkFrom(rootHolding(geometry));
}

function sinkOf(heap: ClusterHeap, where: string, found: Found) {
  return {
    file(_set: Uint8Array, stream: Stream, attributes: number) {
      if ((attributes & ATTRIBUTE.directory) !== 0) {
        checkDirectory(heap, where, stream);
        found("directory", stream);
      } else if (stream.first !== 0 || stream.bytes !== 0) {
        found("file", stream);
      }
    },
    extra: (holding: Holding) => found("file", holding),
    system: () => {},
  };
}

function checkDirectory({ clusterBytes }: ClusterHeap, where: string, { bytes, validBytes }: Stream): void {
  const isWhole = bytes > 0 && bytes % clusterBytes === 0 && bytes <= DIRECTORY_BYTES_MAX;
  if (!isWhole || validBytes !== bytes) {
    throw damaged(`${where}: a directory of ${bytes} bytes, ${validBytes} valid, found`);
  }
}
