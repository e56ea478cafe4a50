/**
 * A hosted sparse extent that is written in place: grains under two grain directories with tables of their own, which
 * say the same.
 *
 *   | header | descriptor | redundant directory, tables | directory, tables | pad | grain | grain | …
 *                                                                                 ^ overHead
 *
 * The directory counts and the redundant one is its copy. A crash may leave them different: then the copy is made
 * anew before anything else is changed.
 * Specification: VMware, Virtual Disk Format 5.0, "Hosted Sparse Extents".
 */
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes, type ReadableFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { Plan, Step } from "../../reclaim/plan.ts";
import { batched } from "../../reclaim/batched.ts";
import { checkBlocks } from "../blocks/check.ts";
import { BlockDisk } from "../blocks/disk.ts";
import type { BlockLayout } from "../blocks/layout.ts";
import { planBlocks, planLeaks } from "../blocks/plan.ts";
import { ABSENT, BlockTable, SLOTS_MAX, ZERO } from "../blocks/table.ts";
import type { Finding } from "../format.ts";
import { hex } from "../blocks/damaged.ts";
import { mustLieInside } from "./damaged.ts";
import { SECTOR_BYTES } from "./descriptor.ts";
import { coveredBy, type Directory, readDirectory, tableAt, tablesOf, wildEntry } from "./grains.ts";
import type { Part } from "./part.ts";
import { ENTRIES_PER_TABLE, type SparseHeader } from "./sparse-header.ts";

const TABLE_BYTES = ENTRIES_PER_TABLE * 4;
/** The entry of a grain that reads as zeros. */
const ZEROED = 1;

export interface SparseExtent<F extends ReadableFile> extends Part {
  readonly fileName: string;
  readonly device: BlockDisk;
  readonly layout: BlockLayout<F>;
  /** Steps that make the redundant tables a copy again. */
  mend(): AsyncGenerator<readonly Step[]>;
}

/** @throws DiskError `corrupt`, `unsupported` */
export async function openSparse<F extends ReadableFile>(
  { file, fileName, type }: { file: F; fileName: string; type: string },
  header: SparseHeader,
  parent: BlockDevice | undefined,
): Promise<SparseExtent<F>> {
  const { overheadBytes, hasZeroedGrains } = header;
  mustLieInside(file, "overHead of the sparse extent", overheadBytes, 0);
  const { primary, copy, damage } = await directoriesOf(file, header);
  const directories = copy === undefined ? [primary] : [primary, copy];
  const head = headOf(header);
  const table = await readEntries(file, primary, header);
  const layout: BlockLayout<F> = {
    fileName,
    file,
    bytes: header.sectors * SECTOR_BYTES,
    parent,
    blockBytes: header.grainSectors * SECTOR_BYTES,
    headBytes: 0,
    baseBytes: 0,
    unitBytes: SECTOR_BYTES,
    table,
    entries: {
      copies: directories.length,
      bytes: 4,
      at(block, number) {
        const at = directories[number]!.tables[Math.floor(block / ENTRIES_PER_TABLE)]!;
        return at === 0 ? -1 : at + (block % ENTRIES_PER_TABLE) * 4;
      },
      write: (view, at, _block, slot) => view.setUint32(at, entryOf(slot), true),
    },
    freed: hasZeroedGrains ? ZERO : parent === undefined ? ABSENT : undefined,
    blocksStartBytes: Math.max(SECTOR_BYTES, overheadBytes),
    fixed: coveredBy(directories).union(ExtentSet.from(head)),
    tailBytes: 0,
    endAlignBytes: SECTOR_BYTES,
    structureAt: (at) => structureAt(at, head, directories),
  };
  return new Sparse({ type, layout, header, copy, damage });
}

/** The table of an extent that is only read. @throws DiskError `corrupt` */
export async function readGrainTables(
  file: ReadableFile,
  header: SparseHeader,
): Promise<{ table: BlockTable; tableBytes: number; describe: (fileOffset: number) => string | undefined }> {
  const { primary } = await directoriesOf(file, { ...header, redundantAt: undefined });
  const head = headOf(header);
  return {
    table: await readEntries(file, primary, header),
    tableBytes: coveredBy([primary]).union(ExtentSet.from(head)).bytes,
    describe: (at) => structureAt(at, head, [primary]),
  };
}

/** Header and descriptor. */
function headOf({ descriptorAt, descriptorBytes }: SparseHeader): Extent[] {
  return [
    { start: 0, end: SECTOR_BYTES },
    { start: descriptorAt, end: descriptorAt + descriptorBytes },
  ];
}

/** Both directories; of the redundant one its damage, which is in nobody's way as long as nothing is written. */
async function directoriesOf(
  file: ReadableFile,
  header: SparseHeader,
): Promise<{ primary: Directory; copy: Directory | undefined; damage: string | undefined }> {
  const count = Math.ceil(header.sectors / header.grainSectors / ENTRIES_PER_TABLE);
  const read = (name: string, at: number) =>
    readDirectory(file, { name, at, count, tableBytes: TABLE_BYTES });
  const primary = await read("grain directory", header.directoryAt);
  coveredBy([primary]);
  if (header.redundantAt === undefined) return { primary, copy: undefined, damage: undefined };
  try {
    const copy = await read("redundant grain directory", header.redundantAt);
    coveredBy([primary, copy]);
    const number = copy.tables.findIndex((at, i) => (at === 0) !== (primary.tables[i] === 0));
    if (number < 0) return { primary, copy, damage: undefined };
    return { primary, copy: undefined, damage: `grain table ${number} stands in one grain directory only` };
  } catch (error) {
    if (!(error instanceof DiskError) || error.kind !== "corrupt") throw error;
    return { primary, copy: undefined, damage: error.message };
  }
}

async function readEntries(
  file: ReadableFile,
  directory: Directory,
  { sectors, grainSectors, hasZeroedGrains }: SparseHeader,
): Promise<BlockTable> {
  const table = new BlockTable(Math.ceil(sectors / grainSectors));
  for await (const { number, view } of tablesOf(file, directory)) {
    const first = number * ENTRIES_PER_TABLE;
    const count = Math.min(ENTRIES_PER_TABLE, table.blocks - first);
    for (let i = 0; i < count; i++) {
      const entry = view.getUint32(i * 4, true);
      if (entry === 0) continue;
      if (entry >= SLOTS_MAX) throw wildEntry(first + i, entry);
      table.set(first + i, entry === ZEROED && hasZeroedGrains ? ZERO : entry);
    }
  }
  return table;
}

function entryOf(slot: number): number {
  return slot === ABSENT ? 0 : slot === ZERO ? ZEROED : slot;
}

/** Numbers of the tables that do not say what `table` says. */
async function tablesThatDiffer(
  file: ReadableFile,
  copy: Directory | undefined,
  table: BlockTable,
): Promise<number[]> {
  const stale: number[] = [];
  if (copy === undefined) return stale;
  for await (const { number, view } of tablesOf(file, copy)) {
    const first = number * ENTRIES_PER_TABLE;
    const count = Math.min(ENTRIES_PER_TABLE, table.blocks - first);
    for (let i = 0; i < count; i++) {
      if (view.getUint32(i * 4, true) === entryOf(table.get(first + i))) continue;
      stale.push(number);
      break;
    }
  }
  return stale;
}

function structureAt(
  at: number,
  [header, descriptor]: readonly Extent[],
  directories: readonly Directory[],
): string | undefined {
  if (at < header!.end) return "header";
  if (at >= descriptor!.start && at < descriptor!.end) return "descriptor";
  for (const directory of directories) {
    const found = tableAt(directory, at);
    if (found !== undefined) return found;
  }
  return undefined;
}

interface Opened<F extends ReadableFile> {
  readonly type: string;
  readonly layout: BlockLayout<F>;
  readonly header: SparseHeader;
  readonly copy: Directory | undefined;
  /** What is wrong with the redundant directory as a whole. */
  readonly damage: string | undefined;
}

class Sparse<F extends ReadableFile> implements SparseExtent<F> {
  readonly type: string;
  readonly fileName: string;
  readonly device: BlockDisk;
  readonly layout: BlockLayout<F>;
  readonly grainBytes: number;
  readonly tableBytes: number;
  readonly refusal: DiskError | undefined;
  readonly #opened: Opened<F>;

  constructor(opened: Opened<F>) {
    const { layout } = opened;
    this.#opened = opened;
    this.type = opened.type;
    this.fileName = layout.fileName;
    this.layout = layout;
    this.device = new BlockDisk(layout);
    this.grainBytes = layout.blockBytes;
    this.tableBytes = layout.fixed.bytes;
    this.refusal = refusalOf(opened);
  }

  async *check(): AsyncIterable<Finding> {
    const { damage } = this.#opened;
    if (damage !== undefined) yield { kind: "error", isMendable: false, count: 1, message: damage };
    const stale = await this.#stale();
    if (stale.length > 0) {
      const message = `${stale.length} redundant grain tables differ from the grain tables, the first is ${stale[0]}`;
      yield { kind: "leak", isMendable: true, count: stale.length, message };
    }
    yield* checkBlocks(this.layout);
  }

  async plan(wish: Parameters<Part["plan"]>[0]): Promise<Plan> {
    return this.#mending(await planBlocks(this.layout, wish, this.device));
  }

  async planLeaks(): Promise<Plan> {
    return this.#mending(await planLeaks(this.layout));
  }

  describe(fileOffset: number): string | undefined {
    return this.layout.structureAt(fileOffset);
  }

  async *mend(): AsyncGenerator<readonly Step[]> {
    yield* batched(this.#mendingSteps());
  }

  #stale(): Promise<number[]> {
    return tablesThatDiffer(this.layout.file, this.#opened.copy, this.layout.table);
  }

  async #mending(plan: Plan): Promise<Plan> {
    if ((await this.#stale()).length === 0) return plan;
    const mend = () => this.mend();
    return {
      ...plan,
      async *batches() {
        yield* mend();
        yield* plan.batches();
      },
    };
  }

  async *#mendingSteps(): AsyncGenerator<Step> {
    const { copy, layout } = this.#opened;
    for (const number of await this.#stale()) {
      const at = copy!.tables[number]!;
      const before = await readBytes(layout.file, at, TABLE_BYTES);
      const after = before.slice();
      const view = viewOf(after);
      const first = number * ENTRIES_PER_TABLE;
      const count = Math.min(ENTRIES_PER_TABLE, layout.table.blocks - first);
      for (let i = 0; i < count; i++) view.setUint32(i * 4, entryOf(layout.table.get(first + i)), true);
      for (let from = 0; from < TABLE_BYTES; from += SECTOR_BYTES) {
        const [old, now] = [before, after].map((bytes) => bytes.subarray(from, from + SECTOR_BYTES));
        if (Buffer.compare(old!, now!) === 0) continue;
        yield { file: layout.fileName, op: "patch", at: at + from, before: old!, after: now! };
      }
    }
  }
}

/** Why nothing may be written to the extent (H17). */
function refusalOf<F extends ReadableFile>({ header, layout, damage }: Opened<F>): DiskError | undefined {
  const where = layout.fileName === "" ? "the image" : `"${layout.fileName}"`;
  if (damage !== undefined) {
    return new DiskError("corrupt", `${where}: ${damage}`, { hint: "convert the image to a new one" });
  }
  if (header.unknownFlags !== 0) {
    return new DiskError("unsupported", `${where} has unknown flags ${hex(header.unknownFlags)}`);
  }
  if (header.version === 3) {
    return new DiskError("unsupported", `${where} has version 3: its changes are tracked elsewhere`, {
      hint: "disable changed block tracking of the virtual machine, or convert the image",
    });
  }
  if (header.isUnclean) {
    return new DiskError("refused", `${where} was not closed by who wrote to it`, {
      code: "unclean",
      hint: "start and shut down its virtual machine, or repair it with vmware-vdiskmanager -R",
    });
  }
  return undefined;
}
