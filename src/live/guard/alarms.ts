/**
 * What a guest does that a healthy one would not: told to whoever serves the disk, each kind once in a while.
 *
 *   critical   a partition table or a superblock was trimmed or zeroed
 *   share      more than a share of the disk within some minutes
 *   used       the guest's own filesystem still calls it used, after it was flushed
 *   full       the guard is full: space does not come back, or zeroes and writes are not guarded
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";

export type GuardEvent =
  | { readonly kind: "critical"; readonly name: string; readonly ranges: ExtentSet }
  | { readonly kind: "share"; readonly bytes: number; readonly withinMs: number }
  | { readonly kind: "used"; readonly ranges: ExtentSet }
  | { readonly kind: "full"; readonly what: "trim" | "zero" | "write"; readonly range: Extent };

export interface AlarmOptions {
  /** Ranges that no healthy guest trims, with what they are. */
  readonly critical?: readonly { readonly name: string; readonly ranges: ExtentSet }[];
  /** `--alarm-share 25%/10m`. */
  readonly share?: { readonly ofDisk: number; readonly withinMs: number };
  /** What of some ranges the guest's filesystems still call used; asked after a flush, now and then. */
  readonly stillUsed?: (ranges: ExtentSet) => Promise<ExtentSet>;
}

/** An alarm of one kind is not repeated before. */
const QUIET_MS = 60_000;
/** The guest's filesystems are not read more often. */
const ASK_EVERY_MS = 60_000;
/** Ranges that are remembered for the next question. */
const REMEMBERED_MAX = 100_000;

export class Alarms {
  readonly #diskBytes: number;
  readonly #options: AlarmOptions;
  readonly #tell: (event: GuardEvent) => void;
  readonly #toldAt = new Map<string, number>();
  /** What was trimmed, and when, within the time of `share`. */
  #window: { readonly at: number; bytes: number }[] = [];
  #windowBytes = 0;
  #fresh = new ExtentBuilder();
  #freshCount = 0;
  #askedAt = -Infinity;
  #isAsking = false;

  constructor(diskBytes: number, options: AlarmOptions, tell: (event: GuardEvent) => void) {
    this.#diskBytes = diskBytes;
    this.#options = options;
    this.#tell = tell;
  }

  trimmed(ranges: ExtentSet, now: number): void {
    if (ranges.count === 0) return;
    for (const { name, ranges: critical } of this.#options.critical ?? []) {
      const hit = critical.intersect(ranges);
      if (hit.count > 0) this.#once(`critical ${name}`, now, { kind: "critical", name, ranges: hit });
    }
    this.#countShare(ranges.bytes, now);
    if (this.#options.stillUsed === undefined || this.#freshCount >= REMEMBERED_MAX) return;
    for (const { start, end } of ranges) this.#fresh.add(start, end);
    this.#freshCount += ranges.count;
  }

  #countShare(bytes: number, now: number): void {
    const { share } = this.#options;
    if (share === undefined) return;
    const last = this.#window.at(-1);
    if (last !== undefined && now - last.at < share.withinMs / 100) last.bytes += bytes;
    else this.#window.push({ at: now, bytes });
    this.#windowBytes += bytes;
    while (this.#window.length > 0 && now - this.#window[0]!.at > share.withinMs)
      this.#windowBytes -= this.#window.shift()!.bytes;
    if (this.#windowBytes <= share.ofDisk * this.#diskBytes) return;
    this.#once("share", now, { kind: "share", bytes: this.#windowBytes, withinMs: share.withinMs });
  }

  full(range: Extent, what: "trim" | "zero" | "write", now: number): void {
    this.#once(`full ${what}`, now, { kind: "full", what, range });
  }

  /** The guest says that what it did is durable: its filesystems are whole, and can be asked. */
  flushed(now: number): void {
    const { stillUsed } = this.#options;
    if (stillUsed === undefined || this.#freshCount === 0 || this.#isAsking) return;
    if (now - this.#askedAt < ASK_EVERY_MS) return;
    const ranges = this.#fresh.build();
    this.#fresh = new ExtentBuilder();
    this.#freshCount = 0;
    this.#askedAt = now;
    this.#isAsking = true;
    // A filesystem that cannot be read says nothing; the next flush asks again.
    void stillUsed(ranges)
      .then((used) => {
        if (used.count > 0) this.#once("used", now, { kind: "used", ranges: used });
      })
      .catch(() => {})
      .finally(() => (this.#isAsking = false));
  }

  #once(key: string, now: number, event: GuardEvent): void {
    const last = this.#toldAt.get(key);
    if (last !== undefined && now - last < QUIET_MS) return;
    this.#toldAt.set(key, now);
    this.#tell(event);
  }
}
