/**
 * Changes that are not in the log yet. They are written with the next flush, in their order:
 *
 *   masks and dooms        at any time: what they speak of lies in the image since long
 *   everything else        after a flush of the image: it says that the image holds something else now, and a mask that
 *                          was lifted too early would show what lay there before
 *
 * Masks may be written before the others only where they have no range in common with them.
 */
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import { entryAt, inRecords } from "./journal.ts";
import type { LogEntry, LogRecord, RecordKind } from "./log.ts";

interface Change {
  readonly kind: RecordKind;
  readonly entry: LogEntry;
}

export class Pending {
  #changes: Change[] = [];

  get count(): number {
    return this.#changes.length;
  }

  add(kind: RecordKind, range: Extent, time = 0, flags = 0): void {
    const last = this.#changes.at(-1);
    const joins = last?.kind === kind && last.entry.time === time && last.entry.flags === flags;
    if (joins && last.entry.end === range.start) {
      this.#changes[this.#changes.length - 1] = { kind, entry: { ...last.entry, end: range.end } };
    } else this.#changes.push({ kind, entry: entryAt(range, time, flags) });
  }

  /** Whether the image must be flushed before these changes may be written. */
  get needsImage(): boolean {
    return this.#changes.some(({ kind }) => kind !== "mask" && kind !== "doom");
  }

  /** Whether masks, or `ranges`, have bytes in common with changes that must wait for the image. */
  areEntangled(ranges: readonly Extent[]): boolean {
    const [masks, others] = [true, false].map((isMask) =>
      this.#changes.filter(({ kind }) => (kind === "mask") === isMask).map(({ entry }) => entry),
    );
    if (others!.length === 0) return false;
    return ExtentSet.from([...masks!, ...ranges]).intersect(ExtentSet.from(others!)).count > 0;
  }

  /** Takes everything, or the masks alone. */
  take(what: "all" | "masks"): readonly Change[] {
    const taken = this.#changes.filter(({ kind }) => what === "all" || kind === "mask");
    this.#changes = what === "all" ? [] : this.#changes.filter(({ kind }) => kind !== "mask");
    return taken;
  }

  /** Gives back what could not be written. */
  putBack(changes: readonly Change[]): void {
    this.#changes = [...changes, ...this.#changes];
  }
}

/** Neighbours of one kind share a record. */
export function recordsFor(changes: readonly Change[]): LogRecord[] {
  const records: LogRecord[] = [];
  let first = 0;
  for (let i = 1; i <= changes.length; i++) {
    const { kind } = changes[first]!;
    if (changes[i]?.kind === kind) continue;
    records.push(
      ...inRecords(
        kind,
        changes.slice(first, i).map(({ entry }) => entry),
      ),
    );
    first = i;
  }
  return records;
}
