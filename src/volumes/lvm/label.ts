/**
 * What makes a device an LVM2 physical volume: a label in one of its first four sectors, which leads to the areas.
 *
 *   | 0 | label + PV header |  …  | metadata area |  …  | data area: physical extents …     | metadata area? |
 *         sector 0, 1, 2 or 3
 *
 *   label:      "LABELONE", own sector, CRC of all that follows it, offset of the PV header, "LVM2 001"
 *   PV header:  UUID, device size, { offset, size }… 0 0 (data areas), { offset, size }… 0 0 (metadata areas)
 *   extension:  version, flags, { offset, size }… 0 0 (boot loader areas)
 *
 * Integers are little-endian; sectors are of 512 bytes on every medium. Source: LVM2, lib/format_text/layout.h.
 */
import { crc32 } from "../../bytes/checksum.ts";
import type { Extent } from "../../bytes/extents.ts";
import { ascii, struct, u32le, u64le } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";

export const SECTOR_BYTES = 512;
const LABEL_SECTORS = 4;
const SIGNATURE = "LABELONE";
const TYPE = "LVM2 001";

export const Label = struct({
  signature: ascii(8),
  sector: u64le,
  crc: u32le,
  headerOffset: u32le,
  type: ascii(8),
});

export const PvHeader = struct({ uuid: ascii(32), deviceBytes: u64le });
const Area = struct({ offset: u64le, bytes: u64le });
const Extension = struct({ version: u32le, flags: u32le });

export interface PhysicalVolume {
  /** Without the dashes that the text form has. */
  readonly uuid: string;
  readonly deviceBytes: number;
  readonly label: Extent;
  /** Where the physical extents lie. `end` 0 in the header means the end of the device. */
  readonly dataAreas: readonly Extent[];
  readonly metadataAreas: readonly Extent[];
  readonly bootAreas: readonly Extent[];
}

/** LVM's checksum: CRC-32 from its own initial value, without the last inversion. */
export function lvmCrc(bytes: Uint8Array): number {
  return ~crc32(bytes, ~0xf597a6cf >>> 0) >>> 0;
}

/** Sectors that begin with the signature and type of a label, whether valid or not. */
export async function labelSectors(disk: BlockDevice): Promise<readonly number[]> {
  const sectors: number[] = [];
  for (let sector = 0; sector < LABEL_SECTORS; sector++) {
    const at = sector * SECTOR_BYTES;
    if (at + SECTOR_BYTES > disk.bytes) break;
    const text = Buffer.from(await readBytes(disk, at, Label.bytes)).toString("latin1");
    if (text.startsWith(SIGNATURE) && text.startsWith(TYPE, Label.at.type)) sectors.push(sector);
  }
  return sectors;
}

/** @throws DiskError `corrupt` */
export async function readLabel(disk: BlockDevice): Promise<PhysicalVolume> {
  const [sector, second] = await labelSectors(disk);
  if (sector === undefined) throw new DiskError("corrupt", "no LVM label in the first four sectors");
  if (second !== undefined) throw new DiskError("corrupt", `LVM labels in sectors ${sector} and ${second}`);
  const at = sector * SECTOR_BYTES;
  const bytes = await readBytes(disk, at, SECTOR_BYTES);
  const label = Label.decode(bytes);
  const found = lvmCrc(bytes.subarray(Label.at.headerOffset));
  if (found !== label.crc) throw broken(at, `has CRC ${found}, expected ${label.crc}`);
  if (label.sector !== sector) throw broken(at, `says it is in sector ${label.sector}`);
  if (label.headerOffset < Label.bytes) throw broken(at, `has its PV header at ${label.headerOffset}`);
  return decodePvHeader(bytes, label.headerOffset, at);
}

function decodePvHeader(bytes: Uint8Array, headerOffset: number, at: number): PhysicalVolume {
  const { uuid, deviceBytes } = PvHeader.decode(bytes, headerOffset);
  const data = readAreas(bytes, headerOffset + PvHeader.bytes);
  const metadata = readAreas(bytes, data.next);
  const common = { uuid, deviceBytes, label: { start: at, end: at + SECTOR_BYTES } };
  const found = { dataAreas: data.areas, metadataAreas: metadata.areas };
  const { version } = Extension.decode(bytes, metadata.next);
  if (version === 0) return { ...common, ...found, bootAreas: [] };
  return { ...common, ...found, bootAreas: readAreas(bytes, metadata.next + Extension.bytes).areas };
}

/** A list that ends with an area of zeros. Only a data area may have the length 0: up to the end of the device. */
function readAreas(bytes: Uint8Array, from: number): { areas: Extent[]; next: number } {
  const areas: Extent[] = [];
  for (let at = from; ; at += Area.bytes) {
    const area = Area.decode(bytes, at);
    if (area.offset === 0) return { areas, next: at + Area.bytes };
    areas.push({ start: area.offset, end: area.bytes === 0 ? 0 : area.offset + area.bytes });
  }
}

function broken(at: number, what: string): DiskError {
  return new DiskError("corrupt", `LVM label at ${at} ${what}`);
}
