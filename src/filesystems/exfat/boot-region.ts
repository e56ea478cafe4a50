/**
 * The boot region of exFAT, twice: where everything lies, and a checksum over it.
 *
 *   sector   | 0: parameters | 1-8: boot code | 9, 10 | 11: checksum, repeated | 12-23: the same again |
 *   volume   | boot regions | gap | FAT | gap | cluster 2 | 3 | … | rest |
 *
 * Three bytes change while the volume is used, and are in no checksum: the flags and the percentage in use. The backup
 * keeps them as they were. Section 3 of the exFAT specification.
 */
import { ascii, raw, skip, struct, u16le, u32le, u64le, u8, viewOf } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { FIRST_CLUSTER } from "../allocation-table.ts";
import { Refused } from "../refused.ts";
import { badChecksum, contradiction, damaged } from "./damage.ts";

export const BootSector = struct({
  jump: raw(3),
  name: ascii(8),
  zero: skip(53),
  partitionOffset: skip(8),
  sectors: u64le,
  fatOffset: u32le,
  fatLength: u32le,
  heapOffset: u32le,
  clusters: u32le,
  rootCluster: u32le,
  serial: u32le,
  revision: u16le,
  flags: u16le,
  sectorShift: u8,
  clusterShift: u8,
  fats: u8,
  drive: u8,
  percentInUse: u8,
  reserved: skip(7),
  bootCode: skip(390),
  signature: u16le,
});

export interface Geometry {
  readonly sectorBytes: number;
  readonly clusterBytes: number;
  readonly fatAt: number;
  readonly heapAt: number;
  readonly clusters: number;
  readonly rootCluster: number;
  readonly bytes: number;
  readonly serial: number;
  readonly flags: number;
}

const NAME = "EXFAT   ";
const REGION_SECTORS = 12;
const REVISION = 0x0100;
const CLUSTERS_MAX = 2 ** 32 - 11;
const CLUSTER_SHIFT_MAX = 25;
const FLAG = { secondFat: 1, dirty: 2, mediaFailure: 4, clearToZero: 8 };

/** Whether the first sector is that of exFAT. Must not throw on any content. */
export function isPlausible(bytes: Uint8Array): boolean {
  const nameAt = BootSector.at.name;
  const isNamed = Buffer.from(bytes.buffer, bytes.byteOffset + nameAt, 8).toString("latin1") === NAME;
  return isNamed && viewOf(bytes).getUint16(BootSector.at.signature, true) === 0xaa55;
}

/** @throws Refused */
export async function readGeometry(device: BlockDevice): Promise<Geometry> {
  const bytes = await readBytes(device, 0, BootSector.bytes);
  const boot = BootSector.decode(bytes);
  const { sectorShift, clusterShift } = boot;
  if (sectorShift < 9 || sectorShift > 12 || sectorShift + clusterShift > CLUSTER_SHIFT_MAX) {
    throw damaged(
      `boot sector: sectors of 2^${sectorShift} bytes, clusters of 2^${clusterShift} sectors found`,
    );
  }
  if (bytes.subarray(BootSector.at.zero, BootSector.at.partitionOffset).some((byte) => byte !== 0)) {
    throw damaged("boot sector: bytes between 11 and 64 found, zeros expected");
  }
  checkVersion(boot.revision, boot.fats);
  const sectorBytes = 2 ** sectorShift;
  const clusterSectors = 2 ** clusterShift;
  const { fatOffset, fatLength, heapOffset, clusters, rootCluster } = boot;
  const places = [
    2 * REGION_SECTORS <= fatOffset && fatOffset + fatLength <= heapOffset,
    (clusters + FIRST_CLUSTER) * 4 <= fatLength * sectorBytes,
    clusters >= 1 && clusters <= CLUSTERS_MAX && heapOffset + clusters * clusterSectors <= boot.sectors,
    rootCluster >= FIRST_CLUSTER && rootCluster < clusters + FIRST_CLUSTER,
    boot.sectors * sectorBytes <= Number.MAX_SAFE_INTEGER,
  ];
  if (places.includes(false)) {
    throw damaged(
      `boot sector: table at sector ${fatOffset}+${fatLength}, ${clusters} clusters from ${heapOffset}, root in ` +
        `${rootCluster}, all in ${boot.sectors} sectors found: they do not fit`,
    );
  }
  return {
    sectorBytes,
    clusterBytes: sectorBytes * clusterSectors,
    fatAt: fatOffset * sectorBytes,
    heapAt: heapOffset * sectorBytes,
    clusters,
    rootCluster,
    bytes: boot.sectors * sectorBytes,
    serial: boot.serial,
    flags: boot.flags,
  };
}

function checkVersion(revision: number, fats: number): void {
  if (revision !== REVISION) {
    throw unvouched(`boot sector: revision 0x${revision.toString(16)} found, 0x100 expected`);
  }
  if (fats !== 1) {
    throw unvouched(`boot sector: ${fats} allocation tables found, 1 expected: TexFAT is not read`);
  }
}

function unvouched(message: string): Refused {
  return new Refused("feature-unsupported", message, "trim inside the guest");
}

/** @throws Refused when the volume is cut, or was not left clean */
export function checkFlags(device: BlockDevice, { bytes, flags }: Geometry): void {
  const found = `boot sector: volume flags 0x${flags.toString(16)}`;
  if (bytes > device.bytes) {
    throw new Refused(
      "truncated",
      `the filesystem has ${bytes} bytes, the device only ${device.bytes}`,
      "the image or the partition was cut: restore its size",
    );
  }
  if ((flags & FLAG.dirty) !== 0) {
    throw new Refused(
      "not-clean",
      `${found}: the volume was not unmounted`,
      "boot the guest and shut it down cleanly, or run chkdsk or fsck.exfat",
    );
  }
  if ((flags & FLAG.mediaFailure) !== 0) {
    const hint = "run chkdsk /r on it in the guest, then try again";
    throw new Refused("error-state", `${found}: the medium has failed`, hint);
  }
  if ((flags & ~FLAG.clearToZero) !== 0) throw unvouched(`${found} found, 0 expected`);
}

/** Bytes of the boot sector that say where everything lies. */
const PARAMETERS = { start: 64, end: 106 };

/** @throws Refused when one of the regions does not match its checksum, or the two say different things */
export async function checkRegions(device: BlockDevice, { sectorBytes }: Geometry): Promise<void> {
  const regionBytes = REGION_SECTORS * sectorBytes;
  const bytes = await readBytes(device, 0, 2 * regionBytes);
  const regions = [bytes.subarray(0, regionBytes), bytes.subarray(regionBytes)] as const;
  for (const [index, region] of regions.entries()) {
    const name = index === 0 ? "boot region" : "backup boot region";
    const expected = regionChecksum(region, regionBytes - sectorBytes);
    const view = viewOf(region);
    for (let at = regionBytes - sectorBytes; at < regionBytes; at += 4) {
      const found = view.getUint32(at, true);
      if (found !== expected) throw badChecksum(name, found, expected);
    }
  }
  const [main, backup] = regions.map((region) =>
    Buffer.from(region.subarray(PARAMETERS.start, PARAMETERS.end)),
  );
  if (!main!.equals(backup!)) throw contradiction("the boot region and its backup differ");
}

/** Of the first `end` bytes, without the flags and the percentage. */
export function regionChecksum(region: Uint8Array, end: number): number {
  let sum = 0;
  for (let at = 0; at < end; at++) {
    if (at === 106 || at === 107 || at === 112) continue;
    sum = (((sum << 31) | (sum >>> 1)) + region[at]!) | 0;
  }
  return sum >>> 0;
}
