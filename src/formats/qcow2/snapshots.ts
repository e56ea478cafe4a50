/**
 * Internal snapshots: a table of entries of variable length, each with an L1 table of its own. What they refer to
 * stays in use whatever the active disk says; refcounts see to that.
 *
 *   | L1 offset, L1 entries, lengths, time, clock, state length, extra length | extra data | id | name | to 8 bytes |
 *     40 bytes                                                                  v3: 16 or more
 *
 * Specification: qcow2.txt, "Snapshots". The limits are QEMU's (H23).
 */
import { bits64be, skip, struct, u16be, u32be, viewOf } from "../../bytes/struct.ts";
import { readBytes, type ReadableFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { corrupt, quoted, tableAt } from "./corrupt.ts";
import type { Header } from "./header.ts";

/** Of one L1 table. */
export const L1_ENTRIES_MAX = (32 * 2 ** 20) / 8;
const EXTRA_BYTES_MAX = 1024;
const TABLE_BYTES_MAX = 64 * 2 ** 20;

const Entry = struct({
  l1At: bits64be,
  l1Entries: u32be,
  idBytes: u16be,
  nameBytes: u16be,
  time: skip(8),
  clock: skip(8),
  stateBytes: u32be,
  extraBytes: u32be,
});

export interface SnapshotEntry {
  /** File offset of the entry, which begins with the offset of its L1 table. */
  readonly entryAt: number;
  readonly id: string;
  readonly name: string;
  readonly l1At: number;
  readonly l1Entries: number;
  /** Length of the snapshot's disk in bytes. */
  readonly virtualBytes: number;
  /** Length of a saved machine state, which lies behind the disk; 0: none. */
  readonly stateBytes: number;
  /** Length of the extra data in the table; version 3 asks for at least 16. */
  readonly extraBytes: number;
}

export interface SnapshotTable {
  readonly entries: readonly SnapshotEntry[];
  /** Length of the whole table. */
  readonly bytes: number;
}

/**
 * The snapshot table. The L1 tables are not looked at: `checkedSnapshot` does that.
 * @throws DiskError `corrupt`
 */
export async function readSnapshots(file: ReadableFile, header: Header): Promise<SnapshotTable> {
  const entries: SnapshotEntry[] = [];
  const tableEnd = Math.min(file.bytes, header.snapshotsAt + TABLE_BYTES_MAX);
  let at = header.snapshotsAt;
  for (let index = 0; index < header.snapshotCount; index++) {
    const structure = `snapshot table entry ${index}`;
    if (at + Entry.bytes > tableEnd)
      throw corrupt(structure, at, "the end of the table", "an entry of 40 bytes");
    const fixed = Entry.decode(await readBytes(file, at, Entry.bytes));
    const { extraBytes, idBytes, nameBytes } = fixed;
    if (extraBytes > EXTRA_BYTES_MAX) {
      throw corrupt(structure, at, `${extraBytes} bytes of extra data`, `at most ${EXTRA_BYTES_MAX}`);
    }
    const tailBytes = extraBytes + idBytes + nameBytes;
    if (at + Entry.bytes + tailBytes > tableEnd) {
      throw corrupt(structure, at, `${tailBytes} bytes of data`, "the end of the table behind them");
    }
    const tail = await readBytes(file, at + Entry.bytes, tailBytes);
    const view = viewOf(tail);
    const text = (start: number, bytes: number) =>
      Buffer.from(tail.subarray(start, start + bytes)).toString("utf8");
    entries.push({
      entryAt: at,
      id: text(extraBytes, idBytes),
      name: text(extraBytes + idBytes, nameBytes),
      l1At: fixed.l1Entries === 0 ? 0 : Number(fixed.l1At), // an empty table lies nowhere, whatever its offset says
      l1Entries: fixed.l1Entries,
      virtualBytes: extraBytes >= 16 ? Number(view.getBigUint64(8)) : header.virtualBytes,
      stateBytes: extraBytes >= 8 ? Number(view.getBigUint64(0)) : fixed.stateBytes,
      extraBytes,
    });
    at += Math.ceil((Entry.bytes + tailBytes) / 8) * 8;
  }
  return { entries, bytes: at - header.snapshotsAt };
}

/** One L1 table, which several entries may name. */
export interface SnapshotL1 {
  readonly entry: SnapshotEntry;
  readonly times: number;
  /** It lies in part on the one before: whoever followed both would read the same bytes again and again (H24). */
  readonly overlaps: boolean;
}

/** The L1 tables of snapshots, ascending, equal ones once. */
export function distinctL1s(entries: readonly SnapshotEntry[]): SnapshotL1[] {
  const sorted = entries
    .filter(({ l1Entries }) => l1Entries > 0)
    .sort((a, b) => a.l1At - b.l1At || b.l1Entries - a.l1Entries);
  const distinct: SnapshotL1[] = [];
  let end = 0;
  for (const entry of sorted) {
    const last = distinct.at(-1);
    if (last?.entry.l1At === entry.l1At && last.entry.l1Entries === entry.l1Entries) {
      distinct[distinct.length - 1] = { ...last, times: last.times + 1 };
      continue;
    }
    distinct.push({ entry, times: 1, overlaps: entry.l1At < end });
    end = Math.max(end, entry.l1At + entry.l1Entries * 8);
  }
  return distinct;
}

/** Checks that the L1 table of a snapshot can be one. @throws DiskError `corrupt`, `unsupported` */
export function checkedSnapshot(file: ReadableFile, header: Header, entry: SnapshotEntry): void {
  const structure = `L1 table of snapshot ${quoted(entry.name)}`;
  if (entry.l1Entries > L1_ENTRIES_MAX) {
    throw corrupt(structure, entry.l1At, `${entry.l1Entries} entries`, `at most ${L1_ENTRIES_MAX}`);
  }
  if (entry.virtualBytes > Number.MAX_SAFE_INTEGER) {
    throw new DiskError("unsupported", `snapshot ${quoted(entry.name)} is a disk past 8 PiB`);
  }
  tableAt(file, header.clusterBytes, structure, entry.l1At, entry.l1Entries * 8);
}
