/**
 * Tables that were changed in memory, and which of their sectors the file does not hold yet.
 *
 *   table   | 512 | 512 | 512 | …        a changed table stays in its cache until it is written
 *                   ^ changed
 */
import { ExtentBuilder } from "../../bytes/extents.ts";
import { bytesOf } from "../../bytes/struct.ts";
import type { HostFile } from "../../device/device.ts";
import { SECTOR_BYTES } from "../../reclaim/differences.ts";
import type { CachedTable } from "./cache.ts";

/** The cache that the tables are in. */
export interface Pins {
  pin(at: number): void;
  unpin(at: number): void;
}

export class ChangedTables {
  readonly #file: HostFile;
  readonly #pins: Pins;
  readonly #sectors = new Map<CachedTable, Set<number>>();

  constructor(file: HostFile, pins: Pins) {
    this.#file = file;
    this.#pins = pins;
  }

  get count(): number {
    return this.#sectors.size;
  }

  /** Bytes `[start, end)` of the table were changed. */
  touch(table: CachedTable, start: number, end: number): void {
    const sectors = this.keep(table);
    for (let at = start - (start % SECTOR_BYTES); at < end; at += SECTOR_BYTES) sectors.add(at);
  }

  /** Keeps a table whose entries will be changed. */
  keep(table: CachedTable): Set<number> {
    let sectors = this.#sectors.get(table);
    if (sectors === undefined) {
      sectors = new Set();
      this.#sectors.set(table, sectors);
      this.#pins.pin(table.at);
    }
    return sectors;
  }

  async write(): Promise<void> {
    for (const [table, sectors] of this.#sectors) {
      await writeSectors(this.#file, table, sectors);
      this.#pins.unpin(table.at);
    }
    this.#sectors.clear();
  }
}

/** Writes sectors of a table to its place, those that follow each other in one piece. */
export async function writeSectors(
  file: HostFile,
  table: { readonly at: number; readonly view: DataView },
  sectors: ReadonlySet<number>,
): Promise<void> {
  const bytes = bytesOf(table.view);
  const runs = new ExtentBuilder();
  for (const start of sectors) runs.add(start, Math.min(start + SECTOR_BYTES, bytes.length));
  for (const { start, end } of runs.build()) await file.write(table.at + start, bytes.subarray(start, end));
}
