/**
 * Makes a new disk: the descriptor and its extents, empty.
 *
 *   monolithicSparse       disk.vmdk, with the descriptor inside
 *   monolithicFlat         disk.vmdk, disk-flat.vmdk
 *   twoGbMaxExtentSparse   disk.vmdk, disk-s001.vmdk, disk-s002.vmdk …
 *   twoGbMaxExtentFlat     disk.vmdk, disk-f001.vmdk, disk-f002.vmdk …
 *   streamOptimized        disk.vmdk, written from the first grain to the last (`stream-writer`)
 *
 * The options are those of `qemu-img create -o`.
 * Specification: VMware, Virtual Disk Format 5.0.
 */
import { randomBytes } from "node:crypto";
import type { HostFile } from "../../device/device.ts";
import type { Source } from "../../device/source.ts";
import { DiskError } from "../../error.ts";
import type { CreateOptions } from "../format.ts";
import { quoted } from "./damaged.ts";
import { NO_PARENT, SECTOR_BYTES, SECTORS_MAX } from "./descriptor.ts";
import { Flag, ENTRIES_PER_TABLE, LINE_ENDS, MAGIC, SparseExtentHeader } from "./sparse-header.ts";

const SUBFORMATS = [
  "monolithicSparse",
  "monolithicFlat",
  "twoGbMaxExtentSparse",
  "twoGbMaxExtentFlat",
  "streamOptimized",
] as const;
const ADAPTERS = ["ide", "buslogic", "lsilogic", "legacyESX"] as const;

/** VMware's own, and QEMU's. */
export const GRAIN_SECTORS = 128;
export const DESCRIPTOR_SECTORS = 20;
const SPLIT_SECTORS = 2 ** 31 / SECTOR_BYTES;

/** What `-o` asked for, understood. */
export interface VmdkOptions {
  readonly sectors: number;
  readonly subformat: (typeof SUBFORMATS)[number];
  readonly adapterType: (typeof ADAPTERS)[number];
  readonly hwversion: string;
  readonly toolsversion: string;
  readonly zeroedGrains: boolean;
  readonly backingName: string | undefined;
}

/** @throws DiskError `usage` naming the option */
export function parseOptions({ virtualBytes, options }: CreateOptions): VmdkOptions {
  const left = new Map(Object.entries(options));
  const take = (name: string): string | undefined => {
    const value = left.get(name);
    left.delete(name);
    return value;
  };
  const number = (name: string, otherwise: string): string => {
    const value = take(name) ?? otherwise;
    if (/^\d{1,10}$/.test(value)) return value;
    throw new DiskError("usage", `${name} ${quoted(value)}: expected a number`);
  };
  choice("backing_fmt", take("backing_fmt") ?? "vmdk", ["vmdk"]);
  const parsed: VmdkOptions = {
    sectors: Math.ceil(virtualBytes / SECTOR_BYTES),
    subformat: choice("subformat", take("subformat") ?? "monolithicSparse", SUBFORMATS),
    adapterType: choice("adapter_type", take("adapter_type") ?? "ide", ADAPTERS),
    hwversion: number("hwversion", "4"),
    toolsversion: number("toolsversion", "2147483647"),
    zeroedGrains: choice("zeroed_grain", take("zeroed_grain") ?? "off", ["on", "off"]) === "on",
    backingName: take("backing_file"),
  };
  for (const name of left.keys()) throw new DiskError("usage", `vmdk has no option ${quoted(name)}`);
  refuseContradictions(parsed);
  return parsed;
}

function choice<T extends string>(name: string, value: string, values: readonly T[]): T {
  const found = values.find((each) => each === value);
  if (found !== undefined) return found;
  throw new DiskError("usage", `${name} ${quoted(value)}: expected ${values.join(" or ")}`);
}

function refuseContradictions({ sectors, subformat, zeroedGrains, backingName }: VmdkOptions): void {
  if (sectors < 1 || sectors > SECTORS_MAX) {
    throw new DiskError("usage", `a disk of ${sectors} sectors: expected 1 to ${SECTORS_MAX}`);
  }
  if (backingName !== undefined && /["\r\n\0]/.test(backingName)) {
    throw new DiskError("usage", `backing_file ${quoted(backingName)}: the descriptor cannot hold that name`);
  }
  const isSparse = subformat === "monolithicSparse" || subformat === "twoGbMaxExtentSparse";
  if (isSparse) return;
  if (zeroedGrains) throw new DiskError("usage", `${subformat} has no zeroed_grain`);
  if (backingName !== undefined) throw new DiskError("usage", `${subformat} has no backing_file`);
}

export interface NewExtent {
  readonly name: string;
  readonly sectors: number;
}

/** The files besides the descriptor's. @param imageName the path of the image, or its name */
export function extentsOf({ subformat, sectors }: VmdkOptions, imageName: string): NewExtent[] {
  const image = imageName.slice(Math.max(imageName.lastIndexOf("/"), imageName.lastIndexOf("\\")) + 1);
  const stem = image.replace(/\.vmdk$/i, "");
  if (subformat === "monolithicFlat") return [{ name: `${stem}-flat.vmdk`, sectors }];
  if (!subformat.startsWith("twoGb")) return [{ name: image, sectors }];
  const letter = subformat === "twoGbMaxExtentFlat" ? "f" : "s";
  return Array.from({ length: Math.ceil(sectors / SPLIT_SECTORS) }, (_, i) => ({
    name: `${stem}-${letter}${String(i + 1).padStart(3, "0")}.vmdk`,
    sectors: Math.min(SPLIT_SECTORS, sectors - i * SPLIT_SECTORS),
  }));
}

/** Any but those that stand for "none" and "never written". */
export function newCid(): string {
  return (randomBytes(4).readUInt32LE() >>> 1).toString(16).padStart(8, "0");
}

/** @param parentCid of the backing file */
export function descriptorText(
  options: VmdkOptions,
  extents: readonly NewExtent[],
  parentCid: string | undefined,
): Buffer {
  const { subformat, adapterType, hwversion, toolsversion, sectors, backingName } = options;
  const isFlat = subformat.endsWith("Flat");
  const heads = adapterType === "ide" ? 16 : 255;
  const text = [
    "# Disk DescriptorFile",
    "version=1",
    'encoding="UTF-8"',
    `CID=${newCid()}`,
    `parentCID=${parentCid ?? NO_PARENT}`,
    `createType="${subformat}"`,
    ...(backingName === undefined ? [] : [`parentFileNameHint="${backingName}"`]),
    "",
    "# Extent description",
    ...extents.map(
      ({ name, sectors: count }) =>
        `RW ${count} ${isFlat ? "FLAT" : "SPARSE"} "${name}"${isFlat ? " 0" : ""}`,
    ),
    "",
    "# The Disk Data Base",
    "#DDB",
    "",
    `ddb.virtualHWVersion = "${hwversion}"`,
    `ddb.geometry.cylinders = "${Math.floor(sectors / (63 * heads))}"`,
    `ddb.geometry.heads = "${heads}"`,
    'ddb.geometry.sectors = "63"',
    `ddb.adapterType = "${adapterType}"`,
    `ddb.toolsVersion = "${toolsversion}"`,
    "",
  ].join("\n");
  const bytes = Buffer.from(text, "utf8");
  if (subformat.startsWith("twoGb") || isFlat || bytes.length <= DESCRIPTOR_SECTORS * SECTOR_BYTES)
    return bytes;
  throw new DiskError(
    "usage",
    `the descriptor would have ${bytes.length} bytes, with the name of the backing file`,
  );
}

/** Writes a hosted sparse extent without a grain, on an empty file. */
export async function writeSparseExtent(
  file: HostFile,
  {
    sectors,
    zeroedGrains,
    descriptor,
  }: { sectors: number; zeroedGrains: boolean; descriptor: Buffer | undefined },
): Promise<void> {
  const tables = Math.ceil(sectors / GRAIN_SECTORS / ENTRIES_PER_TABLE);
  const directorySectors = Math.ceil((tables * 4) / SECTOR_BYTES);
  const tableSectors = (ENTRIES_PER_TABLE * 4) / SECTOR_BYTES;
  const rgdOffset = descriptor === undefined ? 1 : 1 + DESCRIPTOR_SECTORS;
  const gdOffset = rgdOffset + directorySectors + tables * tableSectors;
  const end = gdOffset + directorySectors + tables * tableSectors;
  const overHead = Math.ceil(end / GRAIN_SECTORS) * GRAIN_SECTORS;
  const header = Buffer.alloc(SECTOR_BYTES);
  SparseExtentHeader.encode(
    {
      magicNumber: MAGIC,
      version: zeroedGrains ? 2 : 1,
      flags: Flag.lineEnds | Flag.redundant | (zeroedGrains ? Flag.zeroedGrains : 0),
      capacity: sectors,
      grainSize: GRAIN_SECTORS,
      descriptorOffset: descriptor === undefined ? 0 : 1,
      descriptorSize: descriptor === undefined ? 0 : DESCRIPTOR_SECTORS,
      numGTEsPerGT: ENTRIES_PER_TABLE,
      rgdOffset: BigInt(rgdOffset),
      gdOffset: BigInt(gdOffset),
      overHead,
      uncleanShutdown: 0,
      lineEnds: LINE_ENDS,
      compressAlgorithm: 0,
    },
    header,
  );
  await file.truncate(overHead * SECTOR_BYTES);
  await file.write(0, header);
  if (descriptor !== undefined) await file.write(SECTOR_BYTES, descriptor);
  for (const start of [rgdOffset, gdOffset]) {
    const directory = Buffer.alloc(tables * 4);
    for (let i = 0; i < tables; i++)
      directory.writeUInt32LE(start + directorySectors + i * tableSectors, i * 4);
    await file.write(start * SECTOR_BYTES, directory);
  }
}

/** Makes the files of a disk that is written in place: "" is the descriptor's. What it made is in `files`, also when it throws. */
export async function writeNewDisk(
  source: Source,
  options: VmdkOptions,
  parentCid: string | undefined,
  files: Map<string, HostFile>,
): Promise<void> {
  const extents = extentsOf(options, source.name);
  const descriptor = descriptorText(options, extents, parentCid);
  if (!source.create) throw new DiskError("unsupported", `${source.name}: no file can be made here`);
  const main = await source.create();
  files.set("", main);
  const { subformat, sectors, zeroedGrains } = options;
  if (subformat === "monolithicSparse") {
    await writeSparseExtent(main, { sectors, zeroedGrains, descriptor });
    return;
  }
  if (!source.createBeside)
    throw new DiskError("unsupported", `${source.name}: no files can be made beside it`);
  for (const { name, sectors: count } of extents) {
    const file = await source.createBeside(name);
    files.set(name, file);
    if (subformat.endsWith("Flat")) await file.truncate(count * SECTOR_BYTES);
    else await writeSparseExtent(file, { sectors: count, zeroedGrains, descriptor: undefined });
  }
  await main.write(0, descriptor);
}
