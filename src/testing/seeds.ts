/**
 * Randomness that replays: a test draws from `new Random(seed)`, names its seed when it fails, and `SEED=n` brings
 * the same draw back.
 */

/** The seeds a test runs with: `count` of them from `first`, or only that of the environment's `SEED`. */
export function seeds(count: number, first = 1): number[] {
  const fixed = process.env["SEED"];
  if (fixed !== undefined) return [Number(fixed)];
  return Array.from({ length: count }, (_, i) => first + i);
}

/** A small generator (mulberry32): 2^32 states, enough for choosing operations. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** An integer in `[0, end)`; `end` up to 2^53. */
  below(end: number): number {
    return Math.floor(((this.#word() * 0x200000 + (this.#word() >>> 11)) / 2 ** 53) * end);
  }

  /** An integer in `[start, end)`. */
  between(start: number, end: number): number {
    return start + this.below(end - start);
  }

  /** True once in `times`. */
  oneIn(times: number): boolean {
    return this.below(times) === 0;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }

  /** Fills `into` with bytes of which every aligned four are different from zero. */
  fill(into: Uint8Array): Uint8Array {
    for (let at = 0; at < into.length; at++) {
      into[at] = (at & 3) === 0 ? 1 + this.below(255) : this.#word() >>> 24;
    }
    return into;
  }

  bytes(count: number): Uint8Array {
    return this.fill(new Uint8Array(count));
  }

  #word(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let word = this.#state;
    word = Math.imul(word ^ (word >>> 15), word | 1);
    word ^= word + Math.imul(word ^ (word >>> 7), word | 61);
    return (word ^ (word >>> 14)) >>> 0;
  }
}
