/**
 * Counters of a served disk: requests by kind, how long they took, alarms.
 *
 *   latency   buckets of microseconds: [0,1) [1,2) [2,4) [4,8) …      counted, never sampled
 */

export const KINDS = ["read", "write", "flush", "trim", "zero", "cache", "status"] as const;
export type Kind = (typeof KINDS)[number];

export interface KindCounters {
  requests: number;
  /** Of requests that went well. */
  bytes: number;
  errors: number;
}

/** Something that the disk's owner should look at. */
export interface Alarm {
  /** Milliseconds since 1970. */
  readonly at: number;
  /** A stable word for scripts. */
  readonly code: string;
  readonly message: string;
}

const BUCKETS = 32;
const ALARMS_MAX = 100;

export class Meter {
  readonly kinds: Readonly<Record<Kind, KindCounters>>;
  connections = 0;
  readonly #latency = new Float64Array(BUCKETS);
  readonly #alarms: Alarm[] = [];

  constructor() {
    const counters = KINDS.map((kind) => [kind, { requests: 0, bytes: 0, errors: 0 }] as const);
    this.kinds = Object.fromEntries(counters) as Record<Kind, KindCounters>;
  }

  count(kind: Kind, bytes: number, milliseconds: number, isError: boolean): void {
    const counters = this.kinds[kind];
    counters.requests++;
    if (isError) counters.errors++;
    else counters.bytes += bytes;
    const bucket = 32 - Math.clz32(milliseconds * 1000);
    this.#latency[Math.min(bucket, BUCKETS - 1)]!++;
  }

  alarm(alarm: Alarm): void {
    this.#alarms.push(alarm);
    if (this.#alarms.length > ALARMS_MAX) this.#alarms.shift();
  }

  /** The latest ones. */
  get alarms(): readonly Alarm[] {
    return this.#alarms;
  }

  /** Requests by latency: bucket i holds those below 2^i microseconds that no bucket before it holds. */
  get latency(): readonly number[] {
    return [...this.#latency];
  }

  /** Microseconds that a share of all requests stayed below. */
  percentile(share: number): number {
    const total = this.#latency.reduce((sum, count) => sum + count, 0);
    let seen = 0;
    for (const [bucket, count] of this.#latency.entries()) {
      seen += count;
      if (total > 0 && seen >= total * share) return 2 ** bucket;
    }
    return 0;
  }
}
