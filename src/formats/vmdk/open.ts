/**
 * From the file that the user names to the disk: its descriptor, its parent and its parts.
 *
 *   "KDMV"                     the only extent, with the descriptor inside
 *   "# Disk DescriptorFile"    the descriptor; every extent is a file beside it (H22)
 *   "COWD", seSparse           an extent of some disk: its descriptor lies elsewhere
 *
 * Specification: VMware, Virtual Disk Format 5.0, "Layout Basics".
 */
import { ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes, type ReadableFile, type Run } from "../../device/device.ts";
import { slice } from "../../device/slice.ts";
import { DiskError } from "../../error.ts";
import { checkBlocks } from "../blocks/check.ts";
import { BlockDisk } from "../blocks/disk.ts";
import type { BlockLayout } from "../blocks/layout.ts";
import type { Finding, Image, OpenParent, Reference } from "../format.ts";
import { CompressedDisk } from "./compressed.ts";
import { damaged } from "../blocks/damaged.ts";
import { mustLieInside, quoted } from "./damaged.ts";
import {
  type Descriptor,
  DESCRIPTOR_BYTES_MAX,
  type ExtentLine,
  isDescriptor,
  NO_PARENT,
  parseDescriptor,
  SECTOR_BYTES,
  SECTORS_MAX,
} from "./descriptor.ts";
import { COWD_MAGIC, openCowd, openSeSparse, SESPARSE_MAGIC } from "./esx.ts";
import { openFlat } from "./flat.ts";
import { NO_TABLES, type Part } from "./part.ts";
import { MAGIC, readSparseHeader, type SparseHeader } from "./sparse-header.ts";
import { openSparse, readGrainTables } from "./sparse.ts";

/** A disk's files, opened. */
export interface VmdkDisk<F extends ReadableFile> {
  readonly descriptor: Descriptor;
  /** Where the descriptor lies in the file "", and how many bytes it may take; undefined: it is all of the file. */
  readonly room: { readonly at: number; readonly bytes: number } | undefined;
  readonly files: ReadonlyMap<string, F>;
  readonly parts: readonly Part[];
  readonly parent: Image | undefined;
}

/** Of disks, not of extents. A type that is not here is refused by its name. */
const CREATE_TYPES = new Set([
  "monolithicSparse",
  "monolithicFlat",
  "twoGbMaxExtentSparse",
  "twoGbMaxExtentFlat",
  "streamOptimized",
  "custom",
  "vmfs",
  "vmfsThin",
  "vmfsEagerZeroedThick",
  "vmfsPreallocated",
  "vmfsSparse",
  "seSparse",
]);

export type Kind = "sparse" | "descriptor" | "COWD" | "seSparse";

/** What a file is, by its first bytes. */
export async function kindOf(file: BlockDevice): Promise<Kind | undefined> {
  if (file.bytes < 8) return undefined;
  const head = await readBytes(file, 0, Math.min(file.bytes, SECTOR_BYTES));
  const magic = Buffer.from(head.subarray(0, 4)).toString("latin1");
  if (magic === MAGIC) return "sparse";
  if (magic === COWD_MAGIC) return "COWD";
  const view = viewOf(head);
  if (view.getUint32(0, true) === SESPARSE_MAGIC && view.getUint32(4, true) === 0) return "seSparse";
  return file.bytes <= DESCRIPTOR_BYTES_MAX && isDescriptor(head) ? "descriptor" : undefined;
}

interface Described {
  readonly descriptor: Descriptor;
  readonly room: VmdkDisk<ReadableFile>["room"];
  readonly header: SparseHeader | undefined;
}

/**
 * The descriptor, with the header of the extent that it lies in; undefined for an extent that has none.
 * @throws DiskError `corrupt`, `unsupported`
 */
export async function findDescriptor(file: BlockDevice): Promise<Described | undefined> {
  const kind = await kindOf(file);
  if (kind === "COWD" || kind === "seSparse") return undefined;
  if (kind === "descriptor") {
    const descriptor = parseDescriptor(await readBytes(file, 0, file.bytes));
    return { descriptor, room: undefined, header: undefined };
  }
  const header = await readSparseHeader(file);
  const { descriptorAt: at, descriptorBytes: bytes } = header;
  mustLieInside(file, "descriptor", at, bytes);
  const text = await readBytes(file, at, bytes);
  // QEMU leaves room for a descriptor in the extents of a split disk, too.
  if (bytes === 0 || text[0] === 0) return undefined;
  return { descriptor: parseDescriptor(text), room: { at, bytes }, header };
}

function extentAlone(): DiskError {
  return new DiskError("unsupported", "this is an extent, a part of a disk", {
    code: "extent",
    hint: "name the small .vmdk file that describes the disk instead",
  });
}

/** The files that a disk names. */
export function referencesOf({ extents, parentName, parentCid }: Descriptor, isAlone: boolean): Reference[] {
  const names = isAlone ? [] : new Set(extents.flatMap(({ file }) => file ?? []));
  const data = Array.from(names, (name): Reference => ({ role: "data", name, format: undefined }));
  if (parentName === undefined || parentCid === NO_PARENT) return data;
  return [{ role: "backing", name: parentName, format: "vmdk", id: parentCid }, ...data];
}

/**
 * @param openExtent opens another file; it is closed by whoever closes the disk, also where this throws
 * @throws DiskError `corrupt`, `unsupported`, `refused`
 */
export async function openDisk<F extends ReadableFile>(
  file: F,
  openExtent: (name: string) => Promise<F>,
  openParent: OpenParent,
): Promise<VmdkDisk<F>> {
  const described = await findDescriptor(file);
  if (described === undefined) throw extentAlone();
  const { descriptor, room, header } = described;
  const { createType, extents } = descriptor;
  if (!CREATE_TYPES.has(createType)) {
    throw new DiskError("unsupported", `disks of type ${quoted(createType)} are not supported`);
  }
  const files = new Map([["", file]]);
  const fileOf = async (name: string): Promise<F> => {
    const known = files.get(name);
    if (known !== undefined) return known;
    if (name === "") throw new DiskError("corrupt", "descriptor: an extent has no file name");
    const opened = await openExtent(name);
    files.set(name, opened);
    return opened;
  };
  const parent = await parentOf(descriptor, openParent);
  try {
    if (header !== undefined && (extents.length !== 1 || extents[0]!.type !== "SPARSE")) {
      throw new DiskError(
        "unsupported",
        `a descriptor inside of an extent lists ${extents.length} extents, expected one`,
      );
    }
    if (extents.length === 0) throw new DiskError("corrupt", "descriptor: it lists no extent");
    const sectors = extents.reduce((sum, line) => sum + line.sectors, 0);
    if (sectors > SECTORS_MAX) {
      throw new DiskError("unsupported", `a disk of ${sectors} sectors; at most ${SECTORS_MAX}`);
    }
    const parts: Part[] = [];
    const taken = await takenBy(header === undefined ? file : undefined);
    let start = 0;
    for (const line of extents) {
      const bytes = line.sectors * SECTOR_BYTES;
      const below = parent && sliceOf(parent, start, bytes);
      parts.push(
        await openPart(line, header === undefined ? fileOf : async () => file, below, header !== undefined),
      );
      await refuseSharing(parts.at(-1)!, files, taken);
      start += bytes;
    }
    return { descriptor, room, files, parts, parent };
  } catch (error) {
    await parent?.[Symbol.asyncDispose]();
    throw error;
  }
}

/** What of each file is somebody's, by its identity. */
type Taken = Map<string, ExtentSet>;

const WHOLE = { start: 0, end: Number.MAX_SAFE_INTEGER };

async function takenBy(descriptorFile: ReadableFile | undefined): Promise<Taken> {
  if (descriptorFile === undefined) return new Map();
  return new Map([[(await descriptorFile.stat()).identity, ExtentSet.of(WHOLE)]]);
}

/**
 * What one extent frees must not be another one's, nor the descriptor's, by whatever names. Asked of each extent before
 * the next one is opened: thousands of lines that name one file would each hold its tables.
 * @throws DiskError `corrupt`
 */
async function refuseSharing(
  { fileName, held = WHOLE }: Part,
  files: ReadonlyMap<string, ReadableFile>,
  taken: Taken,
): Promise<void> {
  if (fileName === undefined) return;
  const { identity } = await files.get(fileName)!.stat();
  const before = taken.get(identity) ?? ExtentSet.EMPTY;
  if (before.touches(held)) {
    throw new DiskError(
      "corrupt",
      `extent ${quoted(fileName)} lies over another one, or over the descriptor`,
    );
  }
  taken.set(identity, before.union(ExtentSet.of(held)));
}

/** The part of the parent behind an extent, as far as it reaches. */
function sliceOf(parent: Image, start: number, bytes: number): BlockDevice | undefined {
  const end = Math.min(parent.bytes, start + bytes);
  return start < end ? slice(parent, { start, end }) : undefined;
}

async function parentOf(
  { parentName, parentCid }: Descriptor,
  openParent: OpenParent,
): Promise<Image | undefined> {
  if (parentName === undefined && parentCid === NO_PARENT) return undefined;
  if (parentName === undefined || parentCid === NO_PARENT) {
    const found = `parentCID=${parentCid} and ${parentName === undefined ? "no" : "a"} parentFileNameHint`;
    throw new DiskError("corrupt", `descriptor: ${found}, expected both or neither`);
  }
  const parent = await openParent(parentName, "vmdk");
  if (parent.identifiers?.includes(parentCid)) return parent;
  await parent[Symbol.asyncDispose]();
  const found = parent.identifiers?.join() ?? "none";
  throw new DiskError("refused", `parent ${quoted(parentName)}: its CID is ${found}, expected ${parentCid}`, {
    code: "parent-changed",
    hint: "the parent was written to since the image was built on it, or is another disk; restore it from a copy",
  });
}

/** @throws DiskError `corrupt`, `unsupported` */
async function openPart<F extends ReadableFile>(
  line: ExtentLine,
  fileOf: (name: string) => Promise<F>,
  parent: BlockDevice | undefined,
  isAlone: boolean,
): Promise<Part> {
  const { type, access, sectors, startSectors } = line;
  const bytes = sectors * SECTOR_BYTES;
  if (type === "ZERO") return zeroPart(bytes);
  if (access === "NOACCESS") throw new DiskError("unsupported", `extent ${nameOf(line)}: NOACCESS`);
  if (!["FLAT", "VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE"].includes(type)) {
    throw new DiskError("unsupported", `extent ${nameOf(line)}: its type ${quoted(type)} is not supported`, {
      hint: "a raw device is reclaimed by trim inside of the guest",
    });
  }
  const fileName = isAlone ? "" : (line.file ?? "");
  const file = await fileOf(fileName);
  const part =
    type === "FLAT" || type === "VMFS"
      ? await openFlat({ file, fileName, type, at: startSectors * SECTOR_BYTES, bytes })
      : await openMapped(file, fileName, type, parent);
  if (part.device.bytes !== bytes) {
    throw damaged(
      `capacity of extent ${nameOf(line)}`,
      0,
      part.device.bytes / SECTOR_BYTES,
      `${sectors} sectors`,
    );
  }
  if (access === "RW" || part.refusal) return part;
  return Object.assign(part, {
    refusal: new DiskError("refused", `extent ${nameOf(line)} is read-only: ${access}`),
  });
}

const nameOf = ({ file, type }: ExtentLine): string => quoted(file ?? type);

async function openMapped<F extends ReadableFile>(
  file: F,
  fileName: string,
  type: string,
  parent: BlockDevice | undefined,
): Promise<Part> {
  const kind = await kindOf(file);
  if (kind === "COWD") return readOnlyPart("COWD", await openCowd(file, fileName, parent));
  if (kind === "seSparse") return readOnlyPart("seSparse", await openSeSparse(file, fileName, parent));
  const header = await readSparseHeader(file);
  if (!header.isCompressed) return openSparse({ file, fileName, type }, header, parent);
  const { table, tableBytes, describe } = await readGrainTables(file, header);
  const device = new CompressedDisk({
    file,
    bytes: header.sectors * SECTOR_BYTES,
    grainBytes: header.grainSectors * SECTOR_BYTES,
    hasMarkers: header.hasMarkers,
    table,
    parent,
  });
  return {
    ...NO_TABLES,
    type,
    fileName,
    device,
    grainBytes: header.grainSectors * SECTOR_BYTES,
    refusal: neverWritten("streamOptimized"),
    tableBytes,
    check: () => device.check(),
    plan: () => Promise.reject(neverWritten("streamOptimized")),
    describe,
  };
}

function neverWritten(kind: string): DiskError {
  return new DiskError("unsupported", `${kind} extents are only read`, {
    code: "read-only-format",
    hint: "convert the image to another format, and reclaim that",
  });
}

function readOnlyPart(kind: string, layout: BlockLayout): Part {
  return {
    ...NO_TABLES,
    type: kind,
    fileName: layout.fileName,
    device: new BlockDisk(layout),
    grainBytes: layout.blockBytes,
    refusal: neverWritten(kind),
    tableBytes: layout.fixed.bytes,
    check: () => errorsOf(layout),
    plan: () => Promise.reject(neverWritten(kind)),
    describe: (at) => layout.structureAt(at),
  };
}

/** No leaks: what a free grain is, seSparse keeps in a map that nothing else needs, and nobody gives it back. */
async function* errorsOf(layout: BlockLayout): AsyncGenerator<Finding> {
  for await (const finding of checkBlocks(layout)) if (finding.kind === "error") yield finding;
}

/** An extent without a file: zeros, which stay. */
function zeroPart(bytes: number): Part {
  const device: BlockDevice = {
    bytes,
    async read(_at, into) {
      into.fill(0);
    },
    async *map({ start, end }) {
      if (start < end) yield [{ start, end, kind: "zero", shared: false, depth: 0 }] satisfies Run[];
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
  const nothing = NO_TABLES.planLeaks;
  return {
    ...NO_TABLES,
    type: "ZERO",
    fileName: undefined,
    device,
    grainBytes: bytes,
    refusal: undefined,
    plan: nothing,
  };
}
