/**
 * The boot sector: where the master file table lies, and in which units everything is counted.
 *
 *   | boot sector, loader: 8 KiB | clusters … $MFT … $MFTMirr …  | odd sectors | backup boot sector |
 *   0                                            clusters * clusterBytes       sectors * sectorBytes
 *
 * The field `sectors` leaves out the last sector of the partition, which holds the backup. Sizes above 128 sectors
 * per cluster, and records smaller than a cluster, are written as negative powers of two.
 *
 * libyal/libfsntfs documentation, "The volume header"; ntfs-3g layout.h.
 */
import { bits64le, raw, skip, struct, u16le, u64le, u8 } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { Refused } from "../refused.ts";
import { damaged } from "./refused.ts";

export const BootLayout = struct({
  jump: skip(3),
  name: raw(8),
  sectorBytes: u16le,
  sectorsPerCluster: u8,
  reserved: skip(26),
  sectors: u64le,
  mftCluster: u64le,
  mirrorCluster: u64le,
  recordSize: u8,
  reserved2: skip(3),
  indexSize: u8,
  reserved3: skip(3),
  serial: bits64le,
  checksum: skip(4),
});

export const NAME = "NTFS    ";
export const NAME_AT = 3;
/** `$Boot` is this long in every version, and the header of shadow copies lies in it. */
export const BOOT_BYTES = 8192;
const SIGNATURE_AT = 510;
const CLUSTER_BYTES_MAX = 2 ** 21;
const RECORD_BYTES_MAX = 4096;
const INDEX_BYTES_MAX = 65_536;

export interface Geometry {
  readonly sectorBytes: number;
  readonly clusterBytes: number;
  /** Length of a record of the master file table. */
  readonly recordBytes: number;
  /** Where the backup boot sector begins. */
  readonly backupAt: number;
  readonly clusters: number;
  readonly mftCluster: number;
  readonly mirrorCluster: number;
  readonly serial: bigint;
}

/** @throws Refused for what is no boot sector of this device */
export async function readBoot(device: BlockDevice): Promise<Geometry> {
  const sector = await readBytes(device, 0, 512);
  if (sector[SIGNATURE_AT] !== 0x55 || sector[SIGNATURE_AT + 1] !== 0xaa) {
    throw damaged(
      `boot sector: ${sector[SIGNATURE_AT]}, ${sector[SIGNATURE_AT + 1]} found at 510, 55 AA expected`,
    );
  }
  const boot = BootLayout.decode(sector);
  const { sectorBytes } = boot;
  if (![512, 1024, 2048, 4096].includes(sectorBytes)) throw impossible("bytes per sector", sectorBytes);
  const clusterBytes = sectorsPerCluster(boot.sectorsPerCluster) * sectorBytes;
  if (clusterBytes > CLUSTER_BYTES_MAX) throw impossible("bytes per cluster", clusterBytes);
  const recordBytes = recordLength("MFT record", boot.recordSize, clusterBytes, RECORD_BYTES_MAX);
  recordLength("index record", boot.indexSize, clusterBytes, INDEX_BYTES_MAX);
  const backupAt = boot.sectors * sectorBytes;
  if (backupAt > device.bytes) {
    throw new Refused(
      "truncated",
      `the filesystem has ${backupAt} bytes, the device only ${device.bytes}`,
      "the image or the partition was cut: restore its size",
    );
  }
  if (backupAt < BOOT_BYTES) throw impossible("sectors", boot.sectors);
  const clusters = Math.floor(backupAt / clusterBytes);
  const { mftCluster, mirrorCluster } = boot;
  for (const [name, cluster] of [
    ["$MFT", mftCluster],
    ["$MFTMirr", mirrorCluster],
  ] as const) {
    if (cluster >= clusters) throw impossible(`cluster of ${name} among ${clusters}`, cluster);
  }
  const { serial } = boot;
  return { sectorBytes, clusterBytes, recordBytes, backupAt, clusters, mftCluster, mirrorCluster, serial };
}

function impossible(field: string, value: number) {
  return damaged(`boot sector: ${field}: ${value} found`);
}

function sectorsPerCluster(code: number): number {
  const sectors = code > 0x80 ? 2 ** (256 - code) : code;
  if (sectors === 0 || !Number.isInteger(Math.log2(sectors))) throw impossible("sectors per cluster", code);
  return sectors;
}

/** Clusters when positive, else the negative power of two of bytes. */
function recordLength(name: string, code: number, clusterBytes: number, bytesMax: number): number {
  const bytes = code >= 0x80 ? 2 ** (256 - code) : code * clusterBytes;
  if (bytes < 512 || bytes > bytesMax || !Number.isInteger(Math.log2(bytes))) {
    throw impossible(`length of an ${name}`, code);
  }
  return bytes;
}
