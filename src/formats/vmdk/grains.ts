/**
 * Grain directory and grain tables: which sector of the file holds a grain of the disk.
 *
 *   grain directory   | table 0 | table 1 | 0 |…        a sector of the file for each table; 0: there is no such table
 *   grain table       | 0 | 1 | 128 | 256 | 0 |…        0: the parent's; 1: zeros, with flag 0x4; else the grain's sector
 *
 * Specification: VMware, Virtual Disk Format 5.0, "Grain Directories and Grain Tables".
 */
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { damaged, hex } from "../blocks/damaged.ts";
import { mustLieInside } from "./damaged.ts";
import { SECTOR_BYTES } from "./descriptor.ts";

export interface Directory {
  /** For messages: `grain directory`, `redundant grain directory`. */
  readonly name: string;
  readonly at: number;
  /** Length of a table in bytes. */
  readonly tableBytes: number;
  /** File offset of each table; 0: there is none. */
  readonly tables: Float64Array;
}

/** Reads a directory of 32-bit entries. @throws DiskError `corrupt` when a table lies outside of the file */
export async function readDirectory(
  file: BlockDevice,
  { name, at, count, tableBytes }: { name: string; at: number; count: number; tableBytes: number },
): Promise<Directory> {
  mustLieInside(file, name, at, count * 4);
  const view = viewOf(await readBytes(file, at, count * 4));
  const tables = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const table = view.getUint32(i * 4, true) * SECTOR_BYTES;
    if (table !== 0) mustLieInside(file, `grain table ${i}`, table, tableBytes);
    tables[i] = table;
  }
  return { name, at, tableBytes, tables };
}

/** What the directories and their tables cover. @throws DiskError `corrupt` when two of them overlap (H24) */
export function coveredBy(directories: readonly Directory[]): ExtentSet {
  const covered = new ExtentBuilder();
  let bytes = 0;
  const add = (at: number, length: number) => {
    covered.add(at, at + length);
    bytes += length;
  };
  for (const { at, tables, tableBytes } of directories) {
    add(at, tables.length * 4);
    for (const table of tables) if (table !== 0) add(table, tableBytes);
  }
  const set = covered.build();
  if (set.bytes !== bytes) {
    const first = directories[0]!;
    throw damaged(first.name, first.at, "tables that overlap", "each grain table on sectors of its own");
  }
  return set;
}

/** So much of neighbouring tables is read at once. */
const READ_BYTES = 1024 * 1024;

/** Reads all tables in the order of the disk; neighbours in the file are read at once. */
export async function* tablesOf(
  file: BlockDevice,
  { tables, tableBytes }: Directory,
): AsyncGenerator<{ readonly number: number; readonly view: DataView }> {
  for (let first = 0; first < tables.length;) {
    const at = tables[first]!;
    if (at === 0) {
      first++;
      continue;
    }
    let end = first + 1;
    const most = Math.max(1, Math.floor(READ_BYTES / tableBytes));
    while (end < tables.length && end - first < most && tables[end] === at + (end - first) * tableBytes)
      end++;
    const bytes = await readBytes(file, at, (end - first) * tableBytes);
    for (let number = first; number < end; number++) {
      const from = (number - first) * tableBytes;
      yield { number, view: viewOf(bytes.subarray(from, from + tableBytes)) };
    }
    first = end;
  }
}

/** Whose table a byte of the file is; for `describe`. */
export function tableAt({ at, name, tables, tableBytes }: Directory, fileOffset: number): string | undefined {
  if (fileOffset >= at && fileOffset < at + tables.length * 4) return name;
  const number = tables.findIndex(
    (table) => table !== 0 && fileOffset >= table && fileOffset < table + tableBytes,
  );
  return number < 0 ? undefined : `grain table ${number}${name.startsWith("redundant") ? ", redundant" : ""}`;
}

/** An entry that no file can have: its slot stands for something else in memory. */
export function wildEntry(block: number, entry: number): Error {
  return damaged(`grain table entry of grain ${block}`, 0, hex(entry), "a sector of the file");
}
