/**
 * A new Parallels image: a header, a BAT of zeros, no clusters. Clusters are aligned in the file, as the header says.
 */
import { parseBytes } from "../../bytes/sizes.ts";
import type { HostFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { CreateOptions } from "../format.ts";
import { BAT_ENTRY_BYTES, Header, InUse, MAGIC_CLUSTERS, SECTOR_BYTES, VERSION } from "./header.ts";

const CLUSTER_BYTES = 2 ** 20;
const CLUSTER_BYTES_MIN = 4096;
const CLUSTER_BYTES_MAX = 64 * 2 ** 20;
/** More entries of the BAT would not be read by QEMU. */
const ENTRIES_MAX = 2 ** 29 - 1;
/** Geometry that QEMU states of every image that it makes. */
const HEADS = 16;
const SECTORS_PER_TRACK = 32;

export interface Draft {
  readonly bytes: number;
  readonly clusterBytes: number;
}

/** @throws DiskError `usage` */
export function draftOf({ virtualBytes, options }: CreateOptions): Draft {
  const { cluster_size: size = String(CLUSTER_BYTES), ...rest } = options;
  const [unknown] = Object.keys(rest);
  if (unknown !== undefined) throw new DiskError("usage", `parallels images have no option ${unknown}`);
  const clusterBytes = parseBytes(size) ?? 0;
  const isPower = Number.isInteger(Math.log2(clusterBytes));
  if (!isPower || clusterBytes < CLUSTER_BYTES_MIN || clusterBytes > CLUSTER_BYTES_MAX) {
    throw new DiskError("usage", `cluster_size is ${size}; expected a power of two from 4096 to 67108864`);
  }
  if (virtualBytes % SECTOR_BYTES !== 0) {
    throw new DiskError("usage", `a parallels disk of ${virtualBytes} bytes: expected whole sectors of 512`);
  }
  if (Math.ceil(virtualBytes / clusterBytes) > ENTRIES_MAX) {
    throw new DiskError("usage", `${virtualBytes} bytes need more than ${ENTRIES_MAX} clusters`, {
      hint: "a larger cluster_size",
    });
  }
  return { bytes: virtualBytes, clusterBytes };
}

export async function writeNew(file: HostFile, { bytes, clusterBytes }: Draft): Promise<void> {
  const entries = Math.ceil(bytes / clusterBytes);
  const dataAt = Math.ceil((Header.bytes + entries * BAT_ENTRY_BYTES) / clusterBytes) * clusterBytes;
  await file.truncate(dataAt);
  const header = new Uint8Array(Header.bytes);
  Header.encode(
    {
      magic: MAGIC_CLUSTERS,
      version: VERSION,
      heads: HEADS,
      cylinders: Math.min(0xffff_ffff, Math.floor(bytes / SECTOR_BYTES / HEADS / SECTORS_PER_TRACK)),
      tracks: clusterBytes / SECTOR_BYTES,
      nb_bat_entries: entries,
      nb_sectors: bytes / SECTOR_BYTES,
      in_use: InUse.old,
      data_off: dataAt / SECTOR_BYTES,
    },
    header,
  );
  await file.write(0, header);
  await file.flush();
}
