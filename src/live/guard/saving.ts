/**
 * Old bytes on their way from the image into the log, in records of bounded size.
 */
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice } from "../../device/device.ts";
import type { LogEntry } from "./log.ts";
import { cut, DOOMED, HIDDEN, type Piece } from "./pieces.ts";
import type { Vault } from "./vault.ts";

/** Of one record; the whole of it is checked when a part is restored. */
const RECORD_BYTES_MAX = 1024 * 1024;
const RECORD_ENTRIES_MAX = 4096;
/** What is held in memory at once. */
const GROUP_BYTES = 8 * 1024 * 1024;

export interface Saved extends Extent {
  readonly time: number;
  readonly flags: number;
}

/** What lies in the image behind a mask in `range` goes to the log, durably. */
export async function saveTops(vault: Vault, below: BlockDevice, range: Extent): Promise<void> {
  const unsaved = [...vault.state.tops.within(range)].filter(isUnsaved).map((piece) => cut(piece, range));
  await save(vault, below, unsaved);
}

export function isUnsaved({ block, flags }: Piece): boolean {
  return block === undefined && (flags & HIDDEN) !== 0 && (flags & DOOMED) === 0;
}

/** As much of the beginning as there is room for. */
export function fitting(data: ExtentSet, room: number): ExtentSet {
  const ranges: Extent[] = [];
  let bytes = 0;
  for (const range of data) {
    bytes += range.end - range.start;
    if (bytes > room) break;
    ranges.push(range);
  }
  return ExtentSet.from(ranges);
}

/** The bytes of these ranges, as `below` holds them. */
export async function save(vault: Vault, below: BlockDevice, pieces: readonly Saved[]): Promise<void> {
  let group: { readonly entries: readonly LogEntry[]; readonly data: Uint8Array }[] = [];
  let bytes = 0;
  for (const { entries, dataBytes } of recordsFor(pieces)) {
    const data = new Uint8Array(dataBytes);
    for (const { start, end, at } of entries) await below.read(start, data.subarray(at, at + end - start));
    group.push({ entries, data });
    bytes += dataBytes;
    if (bytes < GROUP_BYTES) continue;
    await vault.save(group);
    [group, bytes] = [[], 0];
  }
  if (group.length > 0) await vault.save(group);
}

function* recordsFor(pieces: readonly Saved[]): Generator<{ entries: LogEntry[]; dataBytes: number }> {
  let entries: LogEntry[] = [];
  let dataBytes = 0;
  for (const { start, end, time, flags } of pieces) {
    for (let at = start; at < end;) {
      const stop = Math.min(end, at + RECORD_BYTES_MAX - dataBytes);
      entries.push({ start: at, end: stop, time, flags, word: 0, at: dataBytes });
      dataBytes += stop - at;
      at = stop;
      if (dataBytes < RECORD_BYTES_MAX && entries.length < RECORD_ENTRIES_MAX) continue;
      yield { entries, dataBytes };
      [entries, dataBytes] = [[], 0];
    }
  }
  if (entries.length > 0) yield { entries, dataBytes };
}
