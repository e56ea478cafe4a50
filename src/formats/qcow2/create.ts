/**
 * Makes a new image: every cluster from the first to the last is in use exactly once.
 *
 *   | header | refcount table | refcount blocks | L1 table | L2 tables | clusters |
 *                                                           preallocation=metadata only
 *
 * The options are those of `qemu-img create -o`. Specification: QEMU's docs/interop/qcow2.txt.
 */
import { parseBytes } from "../../bytes/sizes.ts";
import { viewOf } from "../../bytes/struct.ts";
import type { HostFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { CreateOptions } from "../format.ts";
import { quoted } from "./corrupt.ts";
import { ExtensionType, FeatureName } from "./extensions.ts";
import { Autoclear, Compatible, COMPRESSION_AT, HeaderV2, HeaderV3, Incompatible, MAGIC } from "./header.ts";
import { writeRefcount } from "./refcounts.ts";
import { COPIED_HIGH } from "./tables.ts";

const L1_BYTES_MAX = 32 * 2 ** 20;
const V3_HEADER_BYTES = COMPRESSION_AT + 8;

/** What `-o` asked for, understood. */
export interface Qcow2Options {
  readonly virtualBytes: number;
  readonly version: 2 | 3;
  readonly clusterBits: number;
  readonly refcountOrder: number;
  readonly lazyRefcounts: boolean;
  readonly extendedL2: boolean;
  readonly compression: "zlib" | "zstd";
  readonly backing: { readonly name: string; readonly format: string } | undefined;
  readonly dataFile: { readonly name: string; readonly isRaw: boolean } | undefined;
  /** L2 tables and clusters are allocated, holding nothing. */
  readonly preallocated: boolean;
}

/** @throws DiskError `usage` naming the option */
export function parseOptions({ virtualBytes, options }: CreateOptions): Qcow2Options {
  const left = new Map(Object.entries(options));
  const take = (name: string) => {
    const value = left.get(name);
    left.delete(name);
    return value;
  };
  const flag = (name: string) => choice(name, take(name), { off: false, on: true }) ?? false;
  const clusterBytes = sizeOf("cluster_size", take("cluster_size") ?? "65536");
  const refcountBits = Number(take("refcount_bits") ?? "16");
  const backingName = take("backing_file");
  const backingFormat = take("backing_fmt");
  const dataName = take("data_file");
  const isRaw = flag("data_file_raw");
  const parsed: Qcow2Options = {
    virtualBytes: Math.ceil(virtualBytes / 512) * 512,
    version: choice("compat", take("compat"), { "0.10": 2, v2: 2, "1.1": 3, v3: 3 }) ?? 3,
    clusterBits: Math.log2(clusterBytes),
    refcountOrder: Math.log2(refcountBits),
    lazyRefcounts: flag("lazy_refcounts"),
    extendedL2: flag("extended_l2"),
    compression:
      choice("compression_type", take("compression_type"), { zlib: "zlib", zstd: "zstd" }) ?? "zlib",
    backing: backing(backingName, backingFormat),
    dataFile: dataName === undefined ? undefined : { name: dataName, isRaw },
    // A raw data file is the disk itself only where every cluster has its own place in it.
    preallocated: choice("preallocation", take("preallocation"), { off: false, metadata: true }) ?? isRaw,
  };
  for (const name of left.keys()) throw new DiskError("usage", `qcow2 has no option ${quoted(name)}`);
  refuseContradictions(parsed, { clusterBytes, refcountBits, isRaw });
  return parsed;
}

function choice<T>(
  name: string,
  value: string | undefined,
  values: Readonly<Record<string, T>>,
): T | undefined {
  if (value === undefined) return undefined;
  if (Object.hasOwn(values, value)) return values[value];
  throw new DiskError("usage", `${name} ${quoted(value)}: expected ${Object.keys(values).join(" or ")}`);
}

function sizeOf(name: string, value: string): number {
  const bytes = parseBytes(value);
  if (bytes !== undefined) return bytes;
  throw new DiskError("usage", `${name} ${quoted(value)}: expected bytes, or a number with k or M`);
}

function backing(name: string | undefined, format: string | undefined): Qcow2Options["backing"] {
  if (name === undefined && format === undefined) return undefined;
  if (name === undefined) throw new DiskError("usage", "backing_fmt without backing_file");
  if (format === undefined) {
    throw new DiskError("usage", "backing_file without backing_fmt", {
      hint: "name its format: it is never guessed",
    });
  }
  return { name, format };
}

function refuseContradictions(
  options: Qcow2Options,
  asked: { readonly clusterBytes: number; readonly refcountBits: number; readonly isRaw: boolean },
): void {
  const usage = (condition: boolean, message: string) => {
    if (condition) throw new DiskError("usage", message);
  };
  const { clusterBits, refcountOrder, version, dataFile } = options;
  usage(
    !Number.isInteger(clusterBits) || clusterBits < 9 || clusterBits > 21,
    `cluster_size ${asked.clusterBytes}: expected a power of two from 512 to 2M`,
  );
  usage(
    !Number.isInteger(refcountOrder) || refcountOrder < 0 || refcountOrder > 6,
    `refcount_bits ${asked.refcountBits}: expected a power of two up to 64`,
  );
  usage(options.extendedL2 && clusterBits < 14, "extended_l2 needs a cluster_size of 16k or more");
  const needs3 = { refcount_bits: refcountOrder !== 4, lazy_refcounts: options.lazyRefcounts };
  const more3 = { extended_l2: options.extendedL2, compression_type: options.compression !== "zlib" };
  for (const [name, isSet] of Object.entries({ ...needs3, ...more3, data_file: dataFile !== undefined })) {
    usage(version === 2 && isSet, `${name} needs compat=1.1`);
  }
  usage(asked.isRaw && dataFile === undefined, "data_file_raw without data_file");
  usage(asked.isRaw && options.backing !== undefined, "data_file_raw and backing_file exclude each other");
  usage(
    options.preallocated && options.backing !== undefined && !options.extendedL2,
    "preallocation above a backing file needs extended_l2",
  );
}

/** Where everything lies, in clusters. */
interface Layout {
  readonly tableClusters: number;
  readonly blocks: number;
  readonly l1At: number;
  readonly l1Entries: number;
  readonly l2At: number;
  readonly l2Tables: number;
  readonly dataAt: number;
  /** Guest clusters with a place. */
  readonly dataClusters: number;
  readonly total: number;
}

function layOut(options: Qcow2Options): Layout {
  const clusterBytes = 2 ** options.clusterBits;
  const guestClusters = Math.ceil(options.virtualBytes / clusterBytes);
  const l1Entries = Math.ceil(guestClusters / (clusterBytes / (options.extendedL2 ? 16 : 8)));
  if (l1Entries * 8 > L1_BYTES_MAX) {
    throw new DiskError("usage", `a disk of ${options.virtualBytes} bytes needs a larger cluster_size`);
  }
  const l1Clusters = Math.ceil((l1Entries * 8) / clusterBytes);
  const l2Tables = options.preallocated ? l1Entries : 0;
  const dataClusters = options.preallocated ? guestClusters : 0;
  const others = 1 + l1Clusters + l2Tables + (options.dataFile ? 0 : dataClusters);
  const blockEntries = (clusterBytes * 8) / 2 ** options.refcountOrder;
  let tableClusters = 1;
  let blocks = 1;
  // Blocks count the clusters of blocks too: more of them, until they suffice.
  for (;;) {
    const needed = Math.ceil((others + tableClusters + blocks) / blockEntries);
    const neededTable = Math.ceil((needed * 8) / clusterBytes);
    if (needed <= blocks && neededTable <= tableClusters) break;
    blocks = Math.max(blocks, needed);
    tableClusters = Math.max(tableClusters, neededTable);
  }
  const l1At = 1 + tableClusters + blocks;
  const l2At = l1At + l1Clusters;
  const dataAt = l2At + l2Tables;
  const total = others + tableClusters + blocks;
  return { tableClusters, blocks, l1At, l1Entries, l2At, l2Tables, dataAt, dataClusters, total };
}

/** An image that can be made. */
export interface Draft {
  readonly options: Qcow2Options;
  readonly layout: Layout;
  /** The first cluster. */
  readonly header: Uint8Array;
}

/** @throws DiskError `usage` when the format has no room for it */
export function draftImage(options: Qcow2Options): Draft {
  const layout = layOut(options);
  return { options, layout, header: encodeHeader(options, layout) };
}

/** Writes a new image into an empty file. An external data file is the caller's business. */
export async function writeNewImage(file: HostFile, { options, layout, header }: Draft): Promise<void> {
  const clusterBytes = header.length;
  // Holes read as zeros: only what is not zero is written.
  await file.truncate(layout.total * clusterBytes);
  await writeRefcounts(file, options, layout);
  await writeOffsets(
    file,
    layout.l1At * clusterBytes,
    layout.l2Tables,
    layout.l2At * clusterBytes,
    options,
    8,
  );
  const dataAt = options.dataFile ? 0 : layout.dataAt * clusterBytes;
  const entryBytes = options.extendedL2 ? 16 : 8;
  await writeOffsets(file, layout.l2At * clusterBytes, layout.dataClusters, dataAt, options, entryBytes);
  await file.flush();
  // The header comes last: until then it is no image.
  await file.write(0, header);
  await file.flush();
}

const CHUNK_ENTRIES = 65536;

/** Writes `count` entries from `at` on that refer to cluster after cluster, each of them alone. */
async function writeOffsets(
  file: HostFile,
  at: number,
  count: number,
  firstOffset: number,
  options: Qcow2Options,
  entryBytes: 8 | 16,
): Promise<void> {
  for (let first = 0; first < count; first += CHUNK_ENTRIES) {
    const chunk = new Uint8Array(Math.min(CHUNK_ENTRIES, count - first) * entryBytes);
    const view = viewOf(chunk);
    for (let i = 0; i * entryBytes < chunk.length; i++) {
      const offset = firstOffset + (first + i) * 2 ** options.clusterBits;
      view.setUint32(i * entryBytes, (COPIED_HIGH | Math.floor(offset / 2 ** 32)) >>> 0);
      view.setUint32(i * entryBytes + 4, offset % 2 ** 32);
    }
    await file.write(at + first * entryBytes, chunk);
  }
}

async function writeRefcounts(file: HostFile, options: Qcow2Options, layout: Layout): Promise<void> {
  const clusterBytes = 2 ** options.clusterBits;
  const blocksAt = (1 + layout.tableClusters) * clusterBytes;
  const table = new Uint8Array(layout.blocks * 8);
  const blockEntries = (clusterBytes * 8) / 2 ** options.refcountOrder;
  for (let block = 0; block < layout.blocks; block++) {
    viewOf(table).setBigUint64(block * 8, BigInt(blocksAt + block * clusterBytes));
    const counts = viewOf(new Uint8Array(clusterBytes));
    const used = Math.min(blockEntries, layout.total - block * blockEntries);
    for (let i = 0; i < used; i++) writeRefcount(counts, options.refcountOrder, i, 1);
    await file.write(blocksAt + block * clusterBytes, new Uint8Array(counts.buffer));
  }
  await file.write(clusterBytes, table);
}

function encodeHeader(options: Qcow2Options, layout: Layout): Uint8Array {
  const clusterBytes = 2 ** options.clusterBits;
  const headerBytes = options.version === 2 ? HeaderV2.bytes : V3_HEADER_BYTES;
  const name = Buffer.from(options.backing?.name ?? "", "utf8");
  const extensions = encodeExtensions(options, clusterBytes - headerBytes - name.length);
  const backingAt = headerBytes + extensions.length;
  if (name.length > 1023 || backingAt + name.length > clusterBytes) {
    throw new DiskError("usage", `backing_file: a name of ${name.length} bytes does not fit`);
  }
  const header = new Uint8Array(clusterBytes);
  HeaderV2.encode(
    {
      magic: MAGIC,
      version: options.version,
      backingAt: name.length === 0 ? 0n : BigInt(backingAt),
      backingBytes: name.length,
      clusterBits: options.clusterBits,
      virtualBytes: BigInt(options.virtualBytes),
      l1Entries: layout.l1Entries,
      l1At: BigInt(layout.l1At * clusterBytes),
      refcountTableAt: BigInt(clusterBytes),
      refcountTableClusters: layout.tableClusters,
    },
    header,
  );
  if (options.version === 3) {
    HeaderV3.encode(
      { ...featuresOf(options), refcountOrder: options.refcountOrder, headerBytes },
      header,
      HeaderV2.bytes,
    );
    header[COMPRESSION_AT] = options.compression === "zstd" ? 1 : 0;
  }
  header.set(extensions, headerBytes);
  header.set(name, backingAt);
  return header;
}

function featuresOf(options: Qcow2Options): { incompatible: bigint; compatible: bigint; autoclear: bigint } {
  const bit = (isSet: boolean, value: bigint) => (isSet ? value : 0n);
  return {
    incompatible:
      bit(options.dataFile !== undefined, Incompatible.externalData) |
      bit(options.compression !== "zlib", Incompatible.compression) |
      bit(options.extendedL2, Incompatible.extendedL2),
    compatible: bit(options.lazyRefcounts, Compatible.lazyRefcounts),
    autoclear: bit(options.dataFile?.isRaw ?? false, Autoclear.rawExternalData),
  };
}

/** The features that we know, for programs that do not: they name what they refuse. */
const FEATURE_NAMES: readonly (readonly [kind: number, bit: number, name: string])[] = [
  [0, 0, "dirty bit"],
  [0, 1, "corrupt bit"],
  [0, 2, "external data file"],
  [0, 3, "compression type"],
  [0, 4, "extended L2 entries"],
  [1, 0, "lazy refcounts"],
  [2, 0, "bitmaps"],
  [2, 1, "raw external data"],
];

/** The extensions with their end marker; the names of features only where `roomBytes` suffice. */
function encodeExtensions(options: Qcow2Options, roomBytes: number): Uint8Array {
  const extensions: Uint8Array[] = [];
  if (options.backing)
    extensions.push(encodeExtension(ExtensionType.backingFormat, text(options.backing.format)));
  if (options.dataFile)
    extensions.push(encodeExtension(ExtensionType.dataFileName, text(options.dataFile.name)));
  const end = new Uint8Array(8);
  if (options.version === 3) {
    const names = new Uint8Array(FEATURE_NAMES.length * FeatureName.bytes);
    FEATURE_NAMES.forEach(([kind, bit, name], i) => {
      FeatureName.encode({ kind, bit, name }, names, i * FeatureName.bytes);
    });
    const extension = encodeExtension(ExtensionType.featureNames, names);
    const others = Buffer.concat(extensions).length + end.length;
    if (others + extension.length <= roomBytes) extensions.push(extension);
  }
  const all = Buffer.concat([...extensions, end]);
  if (all.length > roomBytes)
    throw new DiskError("usage", "the names of the files do not fit into one cluster");
  return all;
}

function encodeExtension(type: number, data: Uint8Array): Uint8Array {
  const extension = new Uint8Array(8 + Math.ceil(data.length / 8) * 8);
  viewOf(extension).setUint32(0, type);
  viewOf(extension).setUint32(4, data.length);
  extension.set(data, 8);
  return extension;
}

function text(value: string): Uint8Array {
  return Buffer.from(value, "utf8");
}
