/**
 * The region table: where the BAT and the metadata lie. Two copies, either of which will do.
 *
 *   | "regi", checksum, count | GUID, offset, length, required | GUID, … |
 *
 * Specification: [MS-VHDX] 2.2.3.
 */
import type { Extent } from "../../bytes/extents.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { Header } from "./header.ts";
import {
  checksumOf,
  corrupt,
  MIB,
  Region,
  REGION_TABLE_BYTES,
  REGION_TABLES_AT,
  RegionTableEntry,
  RegionTableHeader,
  TABLE_ENTRIES_MAX,
} from "./structures.ts";

export interface NamedExtent extends Extent {
  /** For messages: `BAT`. */
  readonly name: string;
}

export interface Regions {
  readonly bat: Extent;
  readonly metadata: Extent;
  /** The log and all regions, with those that nobody here knows. Ascending. */
  readonly all: readonly NamedExtent[];
}

/** @throws DiskError `corrupt`; `unsupported` for a region that must be understood */
export async function readRegions(file: BlockDevice, header: Header): Promise<Regions> {
  const table = await readTable(file);
  const { entryCount } = RegionTableHeader.decode(table);
  const regions = new Map<string, NamedExtent>();
  for (let i = 0; i < entryCount; i++) {
    const at = RegionTableHeader.bytes + i * RegionTableEntry.bytes;
    const { guid, fileOffset, length, required } = RegionTableEntry.decode(table, at);
    const name = guid === Region.bat ? "BAT" : guid === Region.metadata ? "metadata" : `region ${guid}`;
    if (name.startsWith("region") && (required & 1) !== 0) {
      throw new DiskError("unsupported", `${name} is required and not known`);
    }
    if (regions.has(guid))
      throw corrupt("region table", REGION_TABLES_AT[0], `${name} twice`, "each region once");
    regions.set(guid, regionAt(file, name, fileOffset, length));
  }
  const [bat, metadata] = [regions.get(Region.bat), regions.get(Region.metadata)];
  if (!bat || !metadata) {
    throw corrupt(
      "region table",
      REGION_TABLES_AT[0],
      `no ${bat ? "metadata" : "BAT"}`,
      "a BAT and metadata",
    );
  }
  const { logOffset, logLength } = header;
  const log = logLength === 0 ? [] : [regionAt(file, "log", logOffset, logLength)];
  const all = [...regions.values(), ...log]
    .filter(({ start, end }) => start < end)
    .sort((a, b) => a.start - b.start);
  for (const [i, { start, name }] of all.entries()) {
    const before = all[i - 1];
    if (before && before.end > start) {
      throw corrupt(name, start, `${before.name} up to ${before.end}`, "regions that do not overlap");
    }
  }
  return { bat, metadata, all };
}

/** Places of copies that do not say what the first whole one says. */
export async function damagedTables(file: BlockDevice): Promise<readonly number[]> {
  const right = await readTable(file);
  const places: number[] = [];
  for (const at of REGION_TABLES_AT) {
    const table = await wholeTable(file, at);
    if (table === undefined || Buffer.compare(table, right) !== 0) places.push(at);
  }
  return places;
}

async function wholeTable(file: BlockDevice, at: number): Promise<Uint8Array | undefined> {
  if (at + REGION_TABLE_BYTES > file.bytes) return undefined;
  const table = await readBytes(file, at, REGION_TABLE_BYTES);
  const { signature, checksum } = RegionTableHeader.decode(table);
  return signature === "regi" && checksum === checksumOf(table) ? table : undefined;
}

async function readTable(file: BlockDevice): Promise<Uint8Array> {
  for (const at of REGION_TABLES_AT) {
    const table = await wholeTable(file, at);
    if (table === undefined) continue;
    const { entryCount } = RegionTableHeader.decode(table);
    if (entryCount > TABLE_ENTRIES_MAX) {
      throw corrupt("EntryCount of region table", at, entryCount, `at most ${TABLE_ENTRIES_MAX}`);
    }
    return table;
  }
  throw corrupt(
    "region tables",
    REGION_TABLES_AT[0],
    "no valid one of two",
    "a signature and a checksum that are right",
  );
}

function regionAt(file: BlockDevice, name: string, at: number, bytes: number): NamedExtent {
  if (at % MIB !== 0 || bytes % MIB !== 0)
    throw corrupt(name, at, `${bytes} bytes`, "whole MiB at whole MiB");
  if (at < MIB) throw corrupt(name, at, "a place in the header section", "one behind it");
  if (at + bytes > file.bytes)
    throw corrupt(name, at, `${bytes} bytes`, `its end inside of the file, at ${file.bytes}`);
  return { name, start: at, end: at + bytes };
}
