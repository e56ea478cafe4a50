/**
 * FAT12, FAT16 and FAT32: the allocation table's claim, the walk over the tree of directories, and who owns what.
 *
 *   fat.ts                  the door: what FileSystem asks for
 *   fat/boot-sector.ts      whether it is FAT, and where everything lies
 *   fat/state.ts            clean, and all copies of the table alike
 *   fat/directory.ts        entries and long names
 *   allocation-table.ts, cluster-chains.ts, cluster-walk.ts, cluster-tree.ts: what exFAT has as well
 *
 * "FAT: General Overview of On-Disk Format" 1.03 of Microsoft is the specification; fsck.fat is the judge in the tests.
 */
import { ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import { printable } from "../bytes/text.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import { AllocationTable } from "./allocation-table.ts";
import { serialText } from "../bytes/struct.ts";
import { clusterAt, contentOf, gridBytes, type ClusterHeap, type Holding } from "./cluster-chains.ts";
import { TreeNames, type Tree } from "./cluster-tree.ts";
import { TreeWalker } from "./cluster-walk.ts";
import { BOOT_BYTES, checkBackup, isPlausible, readGeometry, type Geometry } from "./fat/boot-sector.ts";
import { HINT } from "./fat/damage.ts";
import {
  ATTRIBUTE,
  ClusterScan,
  DIRECTORY_BYTES_MAX,
  labelText,
  NameScan,
  shortText,
} from "./fat/directory.ts";
import { checkState, compareCopies } from "./fat/state.ts";
import { Guarded, unlessDamaged } from "./refused.ts";
import type {
  FileSystem,
  FileSystemReader,
  FoundFile,
  ListedFile,
  OwnerDescription,
  Visit,
} from "./filesystem.ts";

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

class FatFileSystem extends Guarded implements FileSystem {
  readonly witness = { map: "allocation table", walk: "directory tree" };
  label = "";
  readonly #device: BlockDevice;
  #geometry: Geometry | undefined;
  #heap: ClusterHeap | undefined;
  #names: TreeNames | undefined;

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
        const tree = treeOf(this.#heap, geometry);
        this.#names = new TreeNames(tree);
        this.label = (await unlessDamaged(labelOf(this.#heap, geometry))) ?? "";
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
      await heap.table.freeRuns((start, end) => builder.add(clusterAt(heap, start), clusterAt(heap, end)));
      return builder.build();
    });
    return [free ?? ExtentSet.EMPTY];
  }

  async walk(visit: Visit): Promise<void> {
    const [heap, geometry] = [this.#heap, this.#geometry];
    if (heap !== undefined && geometry !== undefined) {
      await this.guarded(() => walk(heap, geometry, this.blockBytes, visit));
    }
  }

  async describe(owner: number): Promise<OwnerDescription> {
    if (owner === OWNER.root) return { kind: "directory", name: "root directory", path: "/" };
    const own = STRUCTURES.get(owner);
    if (own !== undefined) return { kind: "metadata", name: own };
    return (await this.#names?.describe(owner)) ?? { kind: "unknown", name: `owner ${owner}` };
  }

  async find(path: string): Promise<FoundFile | undefined> {
    return this.#names?.find(path);
  }

  async list(path: string): Promise<readonly ListedFile[] | undefined> {
    return this.#names?.list(path);
  }
}

const STRUCTURES: ReadonlyMap<number, string> = new Map([
  [OWNER.reserved, "boot sector and reserved sectors"],
  [OWNER.table, "allocation table"],
  [OWNER.rest, "sectors behind the last cluster"],
]);

async function walk(heap: ClusterHeap, geometry: Geometry, grid: number, visit: Visit): Promise<void> {
  const { fatAt, rootAt, rootBytes, heapAt, bytes } = geometry;
  const outward = (start: number, end: number, owner: number) => {
    const from = Math.floor(start / grid) * grid;
    const to = Math.ceil(end / grid) * grid;
    if (from < to) visit(0, from, to, owner);
  };
  outward(0, fatAt, OWNER.reserved);
  outward(fatAt, rootAt, OWNER.table);
  outward(rootAt, heapAt, OWNER.root);
  outward(heapAt + heap.table.clusters * heap.clusterBytes, bytes, OWNER.rest);
  const walker = new TreeWalker({
    heap,
    directoryBytesMax: DIRECTORY_BYTES_MAX,
    visit,
    scan: (self, parent, found) => new ClusterScan(geometry, self, parent, found),
  });
  if (rootBytes === 0) return walker.walkFrom(rootHolding(geometry));
  return walker.walkOutside(async (found) => {
    new ClusterScan(geometry, 0, 0, found).next(await readBytes(heap.device, rootAt, rootBytes));
  });
}

function rootHolding({ rootCluster }: Geometry) {
  return { first: rootCluster, bytes: undefined, isContiguous: false };
}

/** The pieces of a directory; the root of FAT12/16 has no cluster. */
async function* piecesOf(
  heap: ClusterHeap,
  geometry: Geometry,
  directory: Holding,
): AsyncGenerator<Uint8Array> {
  if (directory.first === 0) yield await readBytes(heap.device, geometry.rootAt, geometry.rootBytes);
  else yield* contentOf(heap, directory, DIRECTORY_BYTES_MAX);
}

function treeOf(heap: ClusterHeap, geometry: Geometry): Tree {
  const root = { ...rootHolding(geometry), name: "", shortName: "", isDirectory: true, validBytes: 0 };
  return {
    heap,
    root,
    directoryBytesMax: DIRECTORY_BYTES_MAX,
    folded: (name) => name.toUpperCase(),
    async *entries(directory) {
      const scan = new NameScan(geometry.bits);
      for await (const piece of piecesOf(heap, geometry, directory)) {
        for (const entry of scan.next(piece)) {
          const { attributes, first, bytes } = entry;
          const shortName = shortText(entry);
          if ((attributes & ATTRIBUTE.label) !== 0 || shortName === "." || shortName === "..") continue;
          const isDirectory = (attributes & ATTRIBUTE.directory) !== 0;
          const name = entry.longName === "" ? shortName : printable(entry.longName).replaceAll("/", "\\x2f");
          yield {
            name,
            shortName: entry.longName === "" ? "" : shortName,
            isDirectory,
            first,
            bytes: isDirectory ? undefined : bytes,
            validBytes: bytes,
            isContiguous: false,
          };
        }
      }
    },
  };
}

const NO_NAME = "NO NAME    ";

/** The label in the root directory is the guest's; that of the boot sector may be old. */
async function labelOf(heap: ClusterHeap, geometry: Geometry): Promise<string> {
  const scan = new NameScan(geometry.bits);
  for await (const piece of piecesOf(heap, geometry, rootHolding(geometry))) {
    for (const { attributes, shortName } of scan.next(piece)) {
      if (attributes === ATTRIBUTE.label || attributes === (ATTRIBUTE.label | ATTRIBUTE.archive)) {
        return labelText(shortName);
      }
    }
  }
  const label = Buffer.from(geometry.bootLabel).toString("latin1");
  return label === NO_NAME ? "" : labelText(geometry.bootLabel);
}
