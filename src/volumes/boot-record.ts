/**
 * The 512 bytes that a master boot record and every extended boot record consist of.
 *
 *   0          440          446      462      478      494      510
 *   | boot code | disk id, 0 | entry 0 | entry 1 | entry 2 | entry 3 | 55 AA |
 *
 *   entry:  0 flag   1 CHS   4 type   5 CHS   8 first sector   12 sectors
 *
 * The same two bytes 55 AA end the boot sector of FAT, exFAT and NTFS, whose code lies where the entries would be.
 * There is no checksum, so a table is believed only when all that could speak against it does not.
 */
import { skip, struct, u32le, u8 } from "../bytes/struct.ts";
import type { BlockDevice } from "../device/device.ts";
import { readBytes } from "../device/device.ts";

/** All positions in MBRs count these, whatever the medium: the one exception cannot be told (see `mbr.ts`). */
export const SECTOR_BYTES = 512;
const ENTRIES_AT = 446;
const ENTRIES = 4;

export const TYPE_PROTECTIVE = 0xee;
const TYPES_EXTENDED: ReadonlySet<number> = new Set([0x05, 0x0f, 0x85]);

const Entry = struct({
  flag: u8,
  firstChs: skip(3),
  type: u8,
  lastChs: skip(3),
  firstSector: u32le,
  sectors: u32le,
});

export interface MbrEntry {
  /** Position in the table, from 0. */
  readonly slot: number;
  readonly type: number;
  readonly firstSector: number;
  readonly sectors: number;
}

export function isExtended(entry: MbrEntry): boolean {
  return TYPES_EXTENDED.has(entry.type);
}

/** The used entries of a boot record at byte `at`; undefined where there is none. */
export async function readEntries(disk: BlockDevice, at: number): Promise<readonly MbrEntry[] | undefined> {
  if (at + SECTOR_BYTES > disk.bytes) return undefined;
  const sector = await readBytes(disk, at, SECTOR_BYTES);
  return isFilesystemBootSector(sector) ? undefined : entriesOf(sector);
}

/** The used entries, those with a length; undefined where the sector is no boot record. */
function entriesOf(sector: Uint8Array): MbrEntry[] | undefined {
  if (sector[510] !== 0x55 || sector[511] !== 0xaa) return undefined;
  const used: MbrEntry[] = [];
  for (let slot = 0; slot < ENTRIES; slot++) {
    const { flag, type, firstSector, sectors } = Entry.decode(sector, ENTRIES_AT + slot * Entry.bytes);
    if (flag !== 0 && flag !== 0x80) return undefined;
    if (sectors === 0) continue;
    if (firstSector === 0) return undefined;
    used.push({ slot, type, firstSector, sectors });
  }
  return used;
}

/** Names of filesystems, and where they stand in their boot sectors. */
const BOOT_SECTOR_NAMES: readonly (readonly [number, string])[] = [
  [3, "NTFS    "],
  [3, "EXFAT   "],
  [3, "ReFS\0\0\0\0"],
  [3, "-FVE-FS-"],
  [54, "FAT"],
  [82, "FAT32"],
  [3, "IBM "],
];

function isFilesystemBootSector(sector: Uint8Array): boolean {
  const text = Buffer.from(sector).toString("latin1");
  return BOOT_SECTOR_NAMES.some(([at, name]) => text.startsWith(name, at)) || hasBiosParameterBlock(sector);
}

/** The oldest FAT volumes have no name; their parameter block gives them away. */
function hasBiosParameterBlock(sector: Uint8Array): boolean {
  const jumps = sector[0] === 0xe9 || (sector[0] === 0xeb && sector[2] === 0x90);
  const bytesPerSector = sector[11]! | (sector[12]! << 8);
  const sectorsPerCluster = sector[13]!;
  const fats = sector[16]!;
  const media = sector[21]!;
  return (
    jumps &&
    [512, 1024, 2048, 4096].includes(bytesPerSector) &&
    sectorsPerCluster !== 0 &&
    (sectorsPerCluster & (sectorsPerCluster - 1)) === 0 &&
    (fats === 1 || fats === 2) &&
    (media === 0xf0 || media >= 0xf8)
  );
}
