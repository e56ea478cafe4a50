/**
 * The boot sector of a FAT filesystem: its parameter block says where everything lies.
 *
 *   | boot sector, reserved | FAT | FAT copy | root directory of FAT12/16 | cluster 2 | 3 | …  | rest |
 *
 * Many boot loaders look like a boot sector, and NTFS, exFAT and BitLocker begin like one; so all of the block must be
 * plausible. Microsoft's FAT specification tells the width by the number of clusters; FAT32 is told by its larger
 * block here, as all drivers do, since EFI system partitions are often FAT32 with fewer clusters.
 *
 * Specification: "FAT: General Overview of On-Disk Format" 1.03, also ECMA-107 for FAT12/16.
 */
import { ascii, raw, skip, struct, u16le, u32le, u8, viewOf, type Decoded } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { FIRST_CLUSTER, type EntryBits } from "../allocation-table.ts";
import { Refused } from "../refused.ts";
import { contradiction, damaged } from "./damage.ts";

export const BOOT_BYTES = 512;

export const BootSector = struct({
  jump: raw(3),
  oem: ascii(8),
  sectorBytes: u16le,
  clusterSectors: u8,
  reservedSectors: u16le,
  fats: u8,
  rootEntries: u16le,
  sectors16: u16le,
  media: u8,
  fatSectors16: u16le,
  geometry: skip(8),
  sectors32: u32le,
});

const identity = {
  drive: u8,
  state: u8,
  signature: u8,
  serial: u32le,
  label: raw(11),
  type: ascii(8),
};

/** What follows for FAT12 and FAT16. */
export const Fat16Part = struct(identity);

/** What follows for FAT32. */
export const Fat32Part = struct({
  fatSectors32: u32le,
  flags: u16le,
  version: u16le,
  rootCluster: u32le,
  infoSector: u16le,
  backupSector: u16le,
  reserved: skip(12),
  ...identity,
});

export interface Geometry {
  readonly bits: EntryBits & (12 | 16 | 28);
  readonly sectorBytes: number;
  readonly clusterBytes: number;
  readonly fats: number;
  readonly fatAt: number;
  /** Of one copy. */
  readonly fatBytes: number;
  /** The root directory of FAT12/16; empty for FAT32. */
  readonly rootAt: number;
  readonly rootBytes: number;
  /** First cluster of the root directory of FAT32, else 0. */
  readonly rootCluster: number;
  readonly heapAt: number;
  readonly clusters: number;
  /** Of the whole filesystem. */
  readonly bytes: number;
  readonly media: number;
  readonly backupSector: number;
  readonly state: number;
  readonly serial: number | undefined;
  readonly bootLabel: Uint8Array;
}

const ROOT_ENTRY_BYTES = 32;
/** As fsck.fat; more are recognised, and refused. */
const FATS_MAX = 2;
const SIGNATURES: ReadonlySet<number> = new Set([0x28, 0x29]);
/** Entries of the allocation table from 0x0ffffff7 on have another meaning. */
const CLUSTERS_MAX: Readonly<Record<Geometry["bits"], number>> = { 12: 4084, 16: 65524, 28: 0x0ffffff5 };
const FOREIGN_OEM: ReadonlySet<string> = new Set(["NTFS    ", "EXFAT   ", "-FVE-FS-", "ReFS"]);
/** BitLocker To Go shows a FAT32 that holds only a program to unlock it. */
const BITLOCKER_TO_GO_AT = 424;
const BITLOCKER = Buffer.from("3bd66749292ed84a8399f6a339e3d001", "hex");

/** Whether the first sector is that of a FAT filesystem. Must not throw on any content. */
export function isPlausible(bytes: Uint8Array): boolean {
  const boot = BootSector.decode(bytes);
  const view = viewOf(bytes);
  const { sectorBytes, clusterSectors, media } = boot;
  const jumps = (boot.jump[0] === 0xeb && boot.jump[2] === 0x90) || boot.jump[0] === 0xe9;
  const isBitLocker = BITLOCKER.equals(bytes.subarray(BITLOCKER_TO_GO_AT, BITLOCKER_TO_GO_AT + 16));
  return (
    jumps &&
    view.getUint16(510, true) === 0xaa55 &&
    !FOREIGN_OEM.has(boot.oem) &&
    !isBitLocker &&
    [512, 1024, 2048, 4096].includes(sectorBytes) &&
    clusterSectors > 0 &&
    (clusterSectors & (clusterSectors - 1)) === 0 &&
    boot.reservedSectors > 0 &&
    boot.fats > 0 &&
    (media === 0xf0 || media >= 0xf8) &&
    (boot.sectors16 !== 0 || boot.sectors32 !== 0) &&
    (boot.fatSectors16 !== 0) === (boot.rootEntries !== 0) &&
    (boot.fatSectors16 !== 0 || view.getUint32(BootSector.bytes, true) !== 0)
  );
}

/** @throws Refused */
export async function readGeometry(device: BlockDevice): Promise<Geometry> {
  const bytes = await readBytes(device, 0, BOOT_BYTES);
  const boot = BootSector.decode(bytes);
  const { sectorBytes, reservedSectors, fats, rootEntries } = boot;
  if (boot.sectors16 !== 0 && boot.sectors32 !== 0 && boot.sectors16 !== boot.sectors32) {
    throw damaged(`boot sector: ${boot.sectors16} and ${boot.sectors32} sectors found, one number expected`);
  }
  if (fats > FATS_MAX) throw unvouched(`boot sector: ${fats} allocation tables found, at most 2 expected`);
  const sectors = boot.sectors16 || boot.sectors32;
  const large = boot.fatSectors16 === 0 ? Fat32Part.decode(bytes, BootSector.bytes) : undefined;
  const part = large ?? Fat16Part.decode(bytes, BootSector.bytes);
  if (large !== undefined) checkFat32(large);
  const fatSectors = large?.fatSectors32 ?? boot.fatSectors16;
  const rootSectors = (rootEntries * ROOT_ENTRY_BYTES) / sectorBytes;
  if (!Number.isInteger(rootSectors)) {
    throw damaged(
      `boot sector: ${rootEntries} root entries found, whole sectors of ${sectorBytes} bytes expected`,
    );
  }
  const heapSector = reservedSectors + fats * fatSectors + rootSectors;
  const clusters = Math.floor((sectors - heapSector) / boot.clusterSectors);
  if (clusters < 1) throw damaged(`boot sector: ${sectors} sectors found, more than ${heapSector} expected`);
  const bits = large !== undefined ? 28 : clusters <= CLUSTERS_MAX[12] ? 12 : 16;
  const isIdentified = SIGNATURES.has(part.signature);
  const geometry: Geometry = {
    bits,
    sectorBytes,
    clusterBytes: sectorBytes * boot.clusterSectors,
    fats,
    fatAt: reservedSectors * sectorBytes,
    fatBytes: fatSectors * sectorBytes,
    rootAt: (reservedSectors + fats * fatSectors) * sectorBytes,
    rootBytes: rootEntries * ROOT_ENTRY_BYTES,
    rootCluster: large?.rootCluster ?? 0,
    heapAt: heapSector * sectorBytes,
    clusters,
    bytes: sectors * sectorBytes,
    media: boot.media,
    backupSector: large?.backupSector ?? 0,
    state: part.state,
    serial: isIdentified ? part.serial : undefined,
    bootLabel: isIdentified ? part.label : new Uint8Array(0),
  };
  checkSizes(geometry);
  return geometry;
}

function checkFat32({ version, flags }: Decoded<(typeof Fat32Part)["fields"]>): void {
  if (version !== 0) {
    throw unvouched(`boot sector: FAT32 version 0x${version.toString(16)} found, 0 expected`);
  }
  // Bit 7: only the copy that the lowest bits name is kept, which Linux does not heed. Else they mean nothing.
  if ((flags & 0xfff0) !== 0) {
    throw unvouched(`boot sector: FAT flags 0x${flags.toString(16)} found, mirrored copies expected`);
  }
}

function unvouched(message: string): Refused {
  return new Refused("feature-unsupported", message, "trim inside the guest");
}

function checkSizes({ bits, clusters, fatBytes, rootCluster }: Geometry): void {
  if (clusters > CLUSTERS_MAX[bits]) {
    throw damaged(`boot sector: ${clusters} clusters found, at most ${CLUSTERS_MAX[bits]} expected`);
  }
  const entries = Math.floor((fatBytes * 8) / (bits === 28 ? 32 : bits));
  if (entries < clusters + FIRST_CLUSTER) {
    throw damaged(`boot sector: a table of ${entries} entries found for ${clusters} clusters`);
  }
  if (bits === 28 && (rootCluster < FIRST_CLUSTER || rootCluster >= clusters + FIRST_CLUSTER)) {
    throw damaged(`boot sector: root directory in cluster ${rootCluster} of ${clusters} found`);
  }
}

/** Bytes of the boot sector that say where everything lies; between them stands where the partition is on its disk. */
const PARAMETERS = [
  { start: 11, end: 24 },
  { start: 32, end: 48 },
] as const;

/**
 * Who finds the boot sector damaged takes its backup; they must say the same. Some tools never write one.
 * @throws Refused
 */
export async function checkBackup(device: BlockDevice, geometry: Geometry): Promise<void> {
  const at = geometry.backupSector * geometry.sectorBytes;
  if (at === 0 || geometry.backupSector === 0xffff) return;
  if (at + BOOT_BYTES > geometry.fatAt) {
    throw damaged(
      `boot sector: backup in sector ${geometry.backupSector} found, in the reserved ones expected`,
    );
  }
  const [primary, backup] = [await readBytes(device, 0, BOOT_BYTES), await readBytes(device, at, BOOT_BYTES)];
  const differs = PARAMETERS.some(
    ({ start, end }) => Buffer.compare(primary.subarray(start, end), backup.subarray(start, end)) !== 0,
  );
  if (differs && isPlausible(backup)) {
    throw contradiction(`the boot sector and its backup in sector ${geometry.backupSector} differ`);
  }
}
