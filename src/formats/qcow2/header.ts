/**
 * The header of a qcow2 image: the whole first cluster. All numbers are big-endian.
 *
 *   | header: 72 bytes (v2), 104 or more (v3) | extensions: type, length, data, to 8 bytes | backing name | zeros |
 *   0                                     header_length                             backing_file_offset   cluster
 *
 * Specification: QEMU's docs/interop/qcow2.txt, "Header" and "Header extensions". The limits that the format leaves
 * open are those of QEMU (H23).
 */
import { bits64be, struct, u32be, type Decoded } from "../../bytes/struct.ts";
import { readBytes, type ReadableFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { corrupt, hex, type Stretch, tableAt } from "./corrupt.ts";
import {
  type Extension,
  ExtensionType,
  featureNames,
  one,
  readBitmapsExtension,
  readCryptoHeader,
  readExtensions,
  textOf,
} from "./extensions.ts";

export { corrupt, hex, quoted, tableAt, type Stretch } from "./corrupt.ts";
export { ExtensionType } from "./extensions.ts";

export const MAGIC = 0x514649fb;
const L1_BYTES_MAX = 32 * 2 ** 20;
const REFCOUNT_TABLE_BYTES_MAX = 8 * 2 ** 20;
const SNAPSHOTS_MAX = 65536;
const BACKING_NAME_BYTES_MAX = 1023;
/** Subclusters of one cluster with extended L2 entries. */
export const SUBCLUSTERS = 32;

/** The fields of both versions. */
export const HeaderV2 = struct({
  magic: u32be,
  version: u32be,
  backingAt: bits64be,
  backingBytes: u32be,
  clusterBits: u32be,
  virtualBytes: bits64be,
  cryptMethod: u32be,
  l1Entries: u32be,
  l1At: bits64be,
  refcountTableAt: bits64be,
  refcountTableClusters: u32be,
  snapshotCount: u32be,
  snapshotsAt: bits64be,
});

/** What version 3 adds, at offset 72. The compression type lies at 104, where `headerBytes` reaches that far. */
export const HeaderV3 = struct({
  incompatible: bits64be,
  compatible: bits64be,
  autoclear: bits64be,
  refcountOrder: u32be,
  headerBytes: u32be,
});

/** Where the feature words lie in the file, for patches. */
export const INCOMPATIBLE_AT = HeaderV2.bytes + HeaderV3.at.incompatible;
export const COMPATIBLE_AT = HeaderV2.bytes + HeaderV3.at.compatible;
export const AUTOCLEAR_AT = HeaderV2.bytes + HeaderV3.at.autoclear;
export const COMPRESSION_AT = HeaderV2.bytes + HeaderV3.bytes;

export const Incompatible = {
  dirty: 1n << 0n,
  corrupt: 1n << 1n,
  externalData: 1n << 2n,
  compression: 1n << 3n,
  extendedL2: 1n << 4n,
} as const;
export const Compatible = { lazyRefcounts: 1n << 0n } as const;
export const Autoclear = { bitmaps: 1n << 0n, rawExternalData: 1n << 1n } as const;

const INCOMPATIBLE_KNOWN = Object.values(Incompatible).reduce((all, bit) => all | bit, 0n);

/** The header, validated, with what follows from it. Immutable: a writer opens the image anew or patches the file. */
export interface Header {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  readonly clusterBytes: number;
  /** Length of the guest's disk in bytes: whole sectors, as a guest sees it. */
  readonly virtualBytes: number;

  /** 16 with extended L2, else 8. */
  readonly l2EntryBytes: 8 | 16;
  /** Entries of one L2 table, which is one cluster. */
  readonly l2Entries: number;
  /** Guest bytes under one L1 entry. */
  readonly l2SpanBytes: number;
  /** Guest bytes under one bit of an extended L2 entry; without them a whole cluster. */
  readonly subclusterBytes: number;

  readonly l1At: number;
  readonly l1Entries: number;
  readonly refcountTableAt: number;
  readonly refcountTableClusters: number;
  /** Width of a reference count: 2^order bits. */
  readonly refcountOrder: number;
  readonly snapshotsAt: number;
  readonly snapshotCount: number;

  readonly encryption: "none" | "aes" | "luks";
  readonly compression: "zlib" | "zstd";
  /** The feature words as they lie on disk, unknown bits included; 0 in version 2. */
  readonly incompatible: bigint;
  readonly compatible: bigint;
  readonly autoclear: bigint;
  /** Refcounts may be too low (lazy refcounts, not closed). */
  readonly dirty: boolean;
  /** Somebody found the image inconsistent: it must not be written. */
  readonly corrupt: boolean;
  readonly externalData: boolean;
  /** The external file is the guest's disk byte by byte. */
  readonly rawExternalData: boolean;
  readonly extendedL2: boolean;

  readonly backing: { readonly name: string; readonly format: string | undefined } | undefined;
  readonly dataFileName: string | undefined;
  /** Where LUKS keeps its header and key slots in the file. */
  readonly cryptoHeader: Stretch | undefined;
  /** The extension of persistent bitmaps, whether or not its autoclear bit still vouches for it. */
  readonly bitmaps: (Stretch & { readonly count: number }) | undefined;
  /** Length of the fixed part in bytes; the extensions follow. */
  readonly headerBytes: number;
  readonly extensions: readonly Extension[];
}

/** Whether `file` starts as a qcow2 image does, whatever follows. */
export async function hasMagic(file: ReadableFile): Promise<boolean> {
  if (file.bytes < HeaderV2.bytes) return false;
  const { magic, version } = HeaderV2.decode(await readBytes(file, 0, HeaderV2.bytes));
  return magic === MAGIC && version >= 2;
}

/**
 * Reads and validates the header.
 * @throws DiskError `corrupt`, or `unsupported` where a feature is not known
 */
export async function readHeader(file: ReadableFile): Promise<Header> {
  if (file.bytes < HeaderV2.bytes) throw corrupt("qcow2 header", 0, `${file.bytes} bytes`, `at least 72`);
  const v2 = HeaderV2.decode(await readBytes(file, 0, HeaderV2.bytes));
  if (v2.magic !== MAGIC) throw corrupt("qcow2 magic", 0, hex(v2.magic), hex(MAGIC));
  if (v2.version !== 2 && v2.version !== 3) {
    throw new DiskError("unsupported", `qcow2 version ${v2.version}: only 2 and 3 are supported`);
  }
  if (v2.clusterBits < 9 || v2.clusterBits > 21) {
    throw corrupt("cluster_bits", HeaderV2.at.clusterBits, v2.clusterBits, "9 to 21");
  }
  const cluster = await readBytes(file, 0, Math.min(file.bytes, 2 ** v2.clusterBits));
  return validated(file, v2, v2.version, cluster);
}

interface Features {
  readonly incompatible: bigint;
  readonly compatible: bigint;
  readonly autoclear: bigint;
  readonly refcountOrder: number;
  readonly headerBytes: number;
}

const V2_FEATURES: Features = {
  incompatible: 0n,
  compatible: 0n,
  autoclear: 0n,
  refcountOrder: 4,
  headerBytes: HeaderV2.bytes,
};

function validated(
  file: ReadableFile,
  v2: Decoded<typeof HeaderV2.fields>,
  version: 2 | 3,
  cluster: Uint8Array,
): Header {
  const clusterBytes = 2 ** v2.clusterBits;
  const features = version === 2 ? V2_FEATURES : readFeatures(cluster, clusterBytes);
  const backingAt = Number(v2.backingAt);
  if (backingAt > clusterBytes) {
    throw corrupt("backing_file_offset", HeaderV2.at.backingAt, backingAt, `at most ${clusterBytes}`);
  }
  const extensions = readExtensions(cluster, features.headerBytes, backingAt || clusterBytes);
  refuseUnknown(features.incompatible, cluster, extensions);
  const extendedL2 = (features.incompatible & Incompatible.extendedL2) !== 0n;
  if (extendedL2 && clusterBytes < SUBCLUSTERS * 512) {
    throw corrupt(
      "cluster_bits",
      HeaderV2.at.clusterBits,
      v2.clusterBits,
      "at least 14 with extended L2 entries",
    );
  }
  const l2EntryBytes = extendedL2 ? 16 : 8;
  const l2Entries = clusterBytes / l2EntryBytes;
  const virtualBytes = wholeSectors(v2.virtualBytes);
  const crypto = one(extensions, ExtensionType.cryptoHeader);
  const bitmaps = one(extensions, ExtensionType.bitmaps);
  return {
    version,
    clusterBits: v2.clusterBits,
    clusterBytes,
    virtualBytes,
    l2EntryBytes,
    l2Entries,
    l2SpanBytes: l2Entries * clusterBytes,
    subclusterBytes: extendedL2 ? clusterBytes / SUBCLUSTERS : clusterBytes,
    ...readTables(file, v2, clusterBytes, Math.ceil(virtualBytes / (l2Entries * clusterBytes))),
    refcountOrder: features.refcountOrder,
    encryption: encryptionOf(v2.cryptMethod),
    compression: compressionOf(cluster, features),
    incompatible: features.incompatible,
    compatible: features.compatible,
    autoclear: features.autoclear,
    dirty: (features.incompatible & Incompatible.dirty) !== 0n,
    corrupt: (features.incompatible & Incompatible.corrupt) !== 0n,
    externalData: (features.incompatible & Incompatible.externalData) !== 0n,
    rawExternalData: (features.autoclear & Autoclear.rawExternalData) !== 0n,
    extendedL2,
    backing: readBacking(cluster, backingAt, v2.backingBytes, extensions),
    dataFileName: textOf(cluster, one(extensions, ExtensionType.dataFileName)),
    cryptoHeader: crypto && readCryptoHeader(cluster, crypto),
    bitmaps: bitmaps && readBitmapsExtension(cluster, bitmaps),
    headerBytes: features.headerBytes,
    extensions,
  };
}

/** A guest sees whole sectors only; QEMU cuts the rest off as well. */
function wholeSectors(virtualBytes: bigint): number {
  if (virtualBytes > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new DiskError("unsupported", `a disk of ${virtualBytes} bytes is past 8 PiB`);
  }
  return Math.floor(Number(virtualBytes) / 512) * 512;
}

function readFeatures(cluster: Uint8Array, clusterBytes: number): Features {
  const v3 = HeaderV3.decode(cluster, HeaderV2.bytes);
  const { headerBytes, refcountOrder } = v3;
  if (headerBytes < COMPRESSION_AT || headerBytes > clusterBytes || headerBytes > cluster.length) {
    const at = HeaderV2.bytes + HeaderV3.at.headerBytes;
    throw corrupt(
      "header_length",
      at,
      headerBytes,
      `${COMPRESSION_AT} to ${Math.min(clusterBytes, cluster.length)}`,
    );
  }
  if (refcountOrder > 6) {
    throw corrupt("refcount_order", HeaderV2.bytes + HeaderV3.at.refcountOrder, refcountOrder, "0 to 6");
  }
  return v3;
}

/** An unknown incompatible feature means that nothing here can be understood (H17). */
function refuseUnknown(incompatible: bigint, cluster: Uint8Array, extensions: readonly Extension[]): void {
  const unknown = incompatible & ~INCOMPATIBLE_KNOWN;
  if (unknown === 0n) return;
  const listed = featureNames(unknown, cluster, extensions).join(", ");
  throw new DiskError("unsupported", `qcow2 incompatible features are not known: ${listed}`, {
    code: "unknown-feature",
    hint: "use a newer version, or convert the image with the tool that made it",
  });
}

function encryptionOf(method: number): Header["encryption"] {
  if (method === 0) return "none";
  if (method === 1) return "aes";
  if (method === 2) return "luks";
  throw new DiskError("unsupported", `qcow2 encryption method ${method} is not known: expected 0, 1 or 2`);
}

function compressionOf(cluster: Uint8Array, features: Features): Header["compression"] {
  const type = features.headerBytes > COMPRESSION_AT ? cluster[COMPRESSION_AT]! : 0;
  const flagged = (features.incompatible & Incompatible.compression) !== 0n;
  if (flagged !== (type !== 0)) {
    throw corrupt(
      "compression_type",
      COMPRESSION_AT,
      type,
      flagged ? "not 0, for its feature bit is set" : "0",
    );
  }
  if (type === 0) return "zlib";
  if (type === 1) return "zstd";
  throw new DiskError(
    "unsupported",
    `qcow2 compression type ${type} is not known: expected 0 (zlib) or 1 (zstd)`,
  );
}

type TableFields = Pick<
  Header,
  "l1At" | "l1Entries" | "refcountTableAt" | "refcountTableClusters" | "snapshotsAt" | "snapshotCount"
>;

/** Where the three top tables lie, within QEMU's limits (H23). */
function readTables(
  file: ReadableFile,
  v2: Decoded<typeof HeaderV2.fields>,
  clusterBytes: number,
  l1EntriesMin: number,
): TableFields {
  const { l1Entries, refcountTableClusters, snapshotCount } = v2;
  const at = HeaderV2.at;
  if (l1Entries > L1_BYTES_MAX / 8)
    throw corrupt("l1_size", at.l1Entries, l1Entries, `at most ${L1_BYTES_MAX / 8}`);
  if (l1Entries < l1EntriesMin) throw corrupt("l1_size", at.l1Entries, l1Entries, `at least ${l1EntriesMin}`);
  const refcountClustersMax = REFCOUNT_TABLE_BYTES_MAX / clusterBytes;
  if (refcountTableClusters > refcountClustersMax || refcountTableClusters === 0) {
    const expected = `1 to ${refcountClustersMax}`;
    throw corrupt("refcount_table_clusters", at.refcountTableClusters, refcountTableClusters, expected);
  }
  if (snapshotCount > SNAPSHOTS_MAX) {
    throw corrupt("nb_snapshots", at.snapshotCount, snapshotCount, `at most ${SNAPSHOTS_MAX}`);
  }
  const refcountTableBytes = refcountTableClusters * clusterBytes;
  return {
    l1At: tableAt(file, clusterBytes, "L1 table", Number(v2.l1At), l1Entries * 8),
    l1Entries,
    refcountTableAt: tableAt(
      file,
      clusterBytes,
      "refcount table",
      Number(v2.refcountTableAt),
      refcountTableBytes,
    ),
    refcountTableClusters,
    snapshotsAt: tableAt(file, clusterBytes, "snapshot table", Number(v2.snapshotsAt), snapshotCount && 1),
    snapshotCount,
  };
}

function readBacking(
  cluster: Uint8Array,
  at: number,
  bytes: number,
  extensions: readonly Extension[],
): Header["backing"] {
  if (at === 0 || bytes === 0) return undefined;
  const max = Math.min(BACKING_NAME_BYTES_MAX, cluster.length - at);
  if (bytes > max) throw corrupt("backing_file_size", HeaderV2.at.backingBytes, bytes, `at most ${max}`);
  const format = textOf(cluster, one(extensions, ExtensionType.backingFormat));
  return { name: textOf(cluster, { at, bytes })!, format: format === "" ? undefined : format };
}
