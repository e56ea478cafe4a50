/**
 * The header of a Parallels expandable image, and its block allocation table. All numbers are little-endian.
 *
 *   | header: 64 bytes | BAT: 4 bytes a cluster | padding | cluster | cluster | …
 *   0                  64                                 data_off
 *
 *   WithoutFreeSpace   entries are sectors of 512 bytes; data_off may be 0: the next sector behind the BAT
 *   WithouFreSpacExt   entries are clusters; data_off is a multiple of the cluster
 *
 * Specification: QEMU's docs/interop/parallels.txt, "Header" and "BAT". The limits that it leaves open are QEMU's.
 */
import { ascii, struct, u32le, u64le } from "../../bytes/struct.ts";
import { readBytes, type ReadableFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";

export const SECTOR_BYTES = 512;
export const MAGIC_SECTORS = "WithoutFreeSpace";
export const MAGIC_CLUSTERS = "WithouFreSpacExt";
export const VERSION = 2;
/** Marks of the field `in_use`. Zero is that of software that does not know the format extension. */
export const InUse = { open: 0x746f6e59, closed: 0x312e3276, old: 0 } as const;
export const EMPTY_IMAGE = 1;
export const BAT_ENTRY_BYTES = 4;

/** QEMU's: more would overflow its arithmetic. */
const TRACKS_MAX = Math.floor(0x7fff_ffff / 513);
const BAT_ENTRIES_MAX = Math.floor(0x7fff_ffff / BAT_ENTRY_BYTES);

export const Header = struct({
  magic: ascii(16),
  version: u32le,
  heads: u32le,
  cylinders: u32le,
  tracks: u32le,
  nb_bat_entries: u32le,
  nb_sectors: u64le,
  in_use: u32le,
  data_off: u32le,
  flags: u32le,
  ext_off: u64le,
});

export interface Geometry {
  /** 1: the BAT counts sectors; 2: it counts clusters. */
  readonly version: 1 | 2;
  readonly bytes: number;
  readonly clusterBytes: number;
  readonly entries: number;
  /** File offset of the first cluster. */
  readonly dataAt: number;
  /** What an entry of the BAT counts, in bytes. */
  readonly entryUnitBytes: number;
  /** File offset of the format extension; 0: there is none. */
  readonly extensionAt: number;
  readonly inUse: number;
  readonly flags: number;
}

export async function hasMagic(file: ReadableFile): Promise<boolean> {
  if (file.bytes < Header.bytes) return false;
  const { magic } = Header.decode(withoutNumbers(await readBytes(file, 0, MAGIC_SECTORS.length)));
  return magic === MAGIC_SECTORS || magic === MAGIC_CLUSTERS;
}

/** The magic alone, as a header whose numbers are zero. */
function withoutNumbers(magic: Uint8Array): Uint8Array {
  const header = new Uint8Array(Header.bytes);
  header.set(magic);
  return header;
}

export function corrupt(what: string, at: number, found: string | number, expected: string): DiskError {
  return new DiskError("corrupt", `Parallels ${what} at ${at}: found ${found}, expected ${expected}`, {
    hint: "qemu-img check -r all may repair a copy",
  });
}

/** @throws DiskError `corrupt`, `unsupported` */
export async function readGeometry(file: ReadableFile): Promise<Geometry> {
  if (file.bytes < Header.bytes) {
    throw corrupt("header", 0, `${file.bytes} bytes`, `${Header.bytes} bytes`);
  }
  const header = Header.decode(await readBytes(file, 0, Header.bytes));
  const version = header.magic === MAGIC_SECTORS ? 1 : 2;
  if (version === 2 && header.magic !== MAGIC_CLUSTERS) {
    throw corrupt("header: magic", 0, "other bytes", `${MAGIC_SECTORS} or ${MAGIC_CLUSTERS}`);
  }
  if (header.version !== VERSION) {
    throw new DiskError(
      "unsupported",
      `Parallels header: version ${header.version}, only ${VERSION} is known`,
    );
  }
  const { tracks, nb_bat_entries: entries } = header;
  if (tracks === 0 || tracks > TRACKS_MAX) {
    throw corrupt("header: tracks", Header.at.tracks, tracks, `1 to ${TRACKS_MAX} sectors`);
  }
  if (entries > BAT_ENTRIES_MAX) {
    throw corrupt("header: nb_bat_entries", Header.at.nb_bat_entries, entries, `at most ${BAT_ENTRIES_MAX}`);
  }
  const sectors = version === 1 ? header.nb_sectors % 2 ** 32 : header.nb_sectors;
  if (Math.ceil(sectors / tracks) > entries) {
    throw corrupt("header: nb_bat_entries", Header.at.nb_bat_entries, entries, `${sectors} sectors covered`);
  }
  const clusterBytes = tracks * SECTOR_BYTES;
  return {
    version,
    bytes: sectors * SECTOR_BYTES,
    clusterBytes,
    entries: Math.ceil(sectors / tracks),
    dataAt: dataStart(header, version, file),
    entryUnitBytes: version === 1 ? SECTOR_BYTES : clusterBytes,
    extensionAt: extensionStart(header.ext_off),
    inUse: header.in_use,
    flags: header.flags,
  };
}

type RawHeader = ReturnType<typeof Header.decode>;

function dataStart(header: RawHeader, version: 1 | 2, file: ReadableFile): number {
  const batEnd = Header.bytes + header.nb_bat_entries * BAT_ENTRY_BYTES;
  if (batEnd > file.bytes) {
    throw corrupt(
      "BAT",
      Header.bytes,
      `an end at ${batEnd}`,
      `an end inside the file of ${file.bytes} bytes`,
    );
  }
  if (version === 1 && header.data_off === 0) return Math.ceil(batEnd / SECTOR_BYTES) * SECTOR_BYTES;
  const at = header.data_off * SECTOR_BYTES;
  if (at < batEnd) {
    throw corrupt(
      "header: data_off",
      Header.at.data_off,
      header.data_off,
      `a place behind the BAT, ${batEnd}`,
    );
  }
  if (version === 2 && header.data_off % header.tracks !== 0) {
    throw corrupt("header: data_off", Header.at.data_off, header.data_off, `a multiple of ${header.tracks}`);
  }
  return at;
}

function extensionStart(sector: number): number {
  if (sector <= Number.MAX_SAFE_INTEGER / SECTOR_BYTES) return sector * SECTOR_BYTES;
  throw corrupt("header: ext_off", Header.at.ext_off, sector, "a sector below 8 PiB");
}
