/**
 * Sets of byte ranges: sorted, disjoint, merged, immutable, half-open.
 *
 *   packed: | start 0 | end 0 | start 1 | end 1 | …      Float64Array, 16 bytes an extent
 *
 * Every operation is one linear pass over the packed arrays, so that ten million extents stay at 160 MB and a
 * fraction of a second. Offsets are numbers up to 2^53 - 1.
 */
import { assert } from "../error.ts";

/** A half-open range `[start, end)` in bytes. */
export interface Extent {
  readonly start: number;
  readonly end: number;
}

export class ExtentSet implements Iterable<Extent> {
  static readonly EMPTY = new ExtentSet(new Float64Array(0));

  /** Sorted, disjoint and merged pairs; at least as long as needed and never written again. */
  readonly #packed: Float64Array;
  #bytes: number | undefined;

  private constructor(packed: Float64Array) {
    this.#packed = packed;
  }

  /** The set of any extents, in any order, overlapping or not. */
  static of(...extents: readonly Extent[]): ExtentSet {
    return ExtentSet.from(extents);
  }

  static from(extents: Iterable<Extent>): ExtentSet {
    const builder = new ExtentBuilder();
    for (const { start, end } of extents) builder.add(start, end);
    return builder.build();
  }

  /** Takes over pairs that the caller knows to be sorted, disjoint, merged and not empty. */
  static fromSorted(packed: Float64Array): ExtentSet {
    assert(packed.length % 2 === 0, "pairs");
    return packed.length === 0 ? ExtentSet.EMPTY : new ExtentSet(packed);
  }

  /** How many extents. */
  get count(): number {
    return this.#packed.length / 2;
  }

  /** How many bytes in all. */
  get bytes(): number {
    if (this.#bytes === undefined) {
      let bytes = 0;
      for (let i = 0; i < this.#packed.length; i += 2) bytes += this.#packed[i + 1]! - this.#packed[i]!;
      this.#bytes = bytes;
    }
    return this.#bytes;
  }

  /** Start of extent number `index`. For loops that must not make an object an extent. */
  start(index: number): number {
    return this.#packed[index * 2]!;
  }

  /** End of extent number `index`. */
  end(index: number): number {
    return this.#packed[index * 2 + 1]!;
  }

  /** Number of the first extent that ends after `at`; `count` where there is none. */
  seek(at: number): number {
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.end(middle) <= at) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  has(at: number): boolean {
    const index = this.seek(at);
    return index < this.count && this.start(index) <= at;
  }

  /** Whether the whole of `range` is in the set. An empty range always is. */
  covers(range: Extent): boolean {
    if (range.start >= range.end) return true;
    const index = this.seek(range.start);
    return index < this.count && this.start(index) <= range.start && this.end(index) >= range.end;
  }

  /** Whether any byte of `range` is in the set. */
  touches(range: Extent): boolean {
    if (range.start >= range.end) return false;
    const index = this.seek(range.start);
    return index < this.count && this.start(index) < range.end;
  }

  /** The part of the set inside `range`. */
  within(range: Extent): ExtentSet {
    const first = this.seek(range.start);
    let last = this.seek(range.end);
    if (last < this.count && this.start(last) < range.end) last++;
    if (first >= last || range.start >= range.end) return ExtentSet.EMPTY;
    const isAll = last - first === this.count;
    if (isAll && range.start <= this.start(0) && this.end(last - 1) <= range.end) return this;
    const packed = this.#packed.slice(first * 2, last * 2);
    packed[0] = Math.max(packed[0]!, range.start);
    packed[packed.length - 1] = Math.min(packed[packed.length - 1]!, range.end);
    return ExtentSet.fromSorted(packed);
  }

  union(other: ExtentSet): ExtentSet {
    if (this.count === 0) return other;
    if (other.count === 0) return this;
    const out = new ExtentBuilder(this.count + other.count);
    let i = 0;
    let j = 0;
    while (i < this.count || j < other.count) {
      if (j === other.count || (i < this.count && this.start(i) <= other.start(j))) {
        out.add(this.start(i), this.end(i));
        i++;
      } else {
        out.add(other.start(j), other.end(j));
        j++;
      }
    }
    return out.build();
  }

  intersect(other: ExtentSet): ExtentSet {
    const out = new ExtentBuilder(this.count + other.count);
    let i = 0;
    let j = 0;
    while (i < this.count && j < other.count) {
      const start = Math.max(this.start(i), other.start(j));
      const end = Math.min(this.end(i), other.end(j));
      if (start < end) out.add(start, end);
      if (this.end(i) <= other.end(j)) i++;
      else j++;
    }
    return out.build();
  }

  subtract(other: ExtentSet): ExtentSet {
    if (other.count === 0 || this.count === 0) return this;
    const out = new ExtentBuilder(this.count);
    let j = 0;
    for (let i = 0; i < this.count; i++) {
      let at = this.start(i);
      const end = this.end(i);
      while (j < other.count && other.end(j) <= at) j++;
      for (let k = j; k < other.count && other.start(k) < end; k++) {
        if (other.start(k) > at) out.add(at, other.start(k));
        at = Math.max(at, other.end(k));
      }
      if (at < end) out.add(at, end);
    }
    return out.build();
  }

  /** Every extent moved by `by` bytes, which may be negative. */
  shift(by: number): ExtentSet {
    if (by === 0 || this.count === 0) return this;
    const packed = this.#packed.slice();
    for (let i = 0; i < packed.length; i++) packed[i]! += by;
    return ExtentSet.fromSorted(packed);
  }

  /** Starts rounded up and ends down to multiples of `grain` bytes: for what is free (H10). */
  alignInward(grain: number): ExtentSet {
    return this.#aligned(
      (start) => Math.ceil(start / grain) * grain,
      (end) => Math.floor(end / grain) * grain,
    );
  }

  /** Starts rounded down and ends up to multiples of `grain` bytes: for what is used. */
  alignOutward(grain: number): ExtentSet {
    return this.#aligned(
      (start) => Math.floor(start / grain) * grain,
      (end) => Math.ceil(end / grain) * grain,
    );
  }

  #aligned(roundStart: (start: number) => number, roundEnd: (end: number) => number): ExtentSet {
    let aligned = 0;
    while (aligned < this.count && this.#isFixed(aligned, roundStart, roundEnd)) aligned++;
    if (aligned === this.count) return this;
    const out = new ExtentBuilder(this.count);
    for (let i = 0; i < this.count; i++) {
      const start = roundStart(this.start(i));
      const end = roundEnd(this.end(i));
      if (start < end) out.add(start, end);
    }
    return out.build();
  }

  #isFixed(index: number, roundStart: (start: number) => number, roundEnd: (end: number) => number): boolean {
    const start = this.start(index);
    const end = this.end(index);
    return roundStart(start) === start && roundEnd(end) === end;
  }

  /** The extents that are at least `bytes` long. */
  atLeast(bytes: number): ExtentSet {
    let kept = 0;
    while (kept < this.count && this.end(kept) - this.start(kept) >= bytes) kept++;
    if (kept === this.count) return this;
    const out = new ExtentBuilder(this.count);
    for (let i = 0; i < this.count; i++) {
      if (this.end(i) - this.start(i) >= bytes) out.add(this.start(i), this.end(i));
    }
    return out.build();
  }

  /** Numbers of the spans, each `spanBytes` long and counted from 0, that the set touches: ascending, each once. */
  *spans(spanBytes: number): Generator<number> {
    let next = 0;
    for (let i = 0; i < this.count; i++) {
      const end = Math.ceil(this.end(i) / spanBytes);
      for (let span = Math.max(next, Math.floor(this.start(i) / spanBytes)); span < end; span++) yield span;
      next = end;
    }
  }

  equals(other: ExtentSet): boolean {
    return this.count === other.count && this.#packed.every((value, i) => value === other.#packed[i]);
  }

  *[Symbol.iterator](): Iterator<Extent> {
    for (let i = 0; i < this.count; i++) yield { start: this.start(i), end: this.end(i) };
  }
}

/** Collects ranges into an `ExtentSet`; in ascending order it is linear, otherwise it sorts once at the end. */
export class ExtentBuilder {
  #packed: Float64Array;
  #length = 0;
  #sorted = true;
  /** The array belongs to a set that was built from it. */
  #isShared = false;

  /** @param expected how many extents to make room for at first */
  constructor(expected = 16) {
    this.#packed = new Float64Array(Math.max(2, expected * 2));
  }

  /** Adds `[start, end)`; an empty range adds nothing. */
  add(start: number, end: number): void {
    if (!(start >= 0 && end >= start && end <= Number.MAX_SAFE_INTEGER))
      assert(false, `extent ${start}-${end}`);
    if (start === end) return;
    if (this.#isShared) {
      this.#packed = this.#packed.slice();
      this.#isShared = false;
    }
    if (this.#length > 0 && this.#sorted) {
      const last = this.#length - 1;
      if (start < this.#packed[last - 1]!) this.#sorted = false;
      else if (start <= this.#packed[last]!) {
        if (end > this.#packed[last]!) this.#packed[last] = end;
        return;
      }
    }
    if (this.#length === this.#packed.length) {
      const larger = new Float64Array(Math.max(2, this.#length * 2));
      larger.set(this.#packed);
      this.#packed = larger;
    }
    this.#packed[this.#length++] = start;
    this.#packed[this.#length++] = end;
  }

  /** The set of what was added so far; the builder keeps no room beside it. */
  build(): ExtentSet {
    if (!this.#sorted) this.#packed = this.#merged();
    else if (this.#length < this.#packed.length) this.#packed = this.#packed.slice(0, this.#length);
    this.#length = this.#packed.length;
    this.#sorted = true;
    this.#isShared = true;
    return ExtentSet.fromSorted(this.#packed);
  }

  #merged(): Float64Array {
    const count = this.#length / 2;
    const order = new Uint32Array(count);
    for (let i = 0; i < count; i++) order[i] = i;
    const packed = this.#packed;
    order.sort((a, b) => packed[a * 2]! - packed[b * 2]!);
    const out = new ExtentBuilder(count);
    for (const i of order) out.add(packed[i * 2]!, packed[i * 2 + 1]!);
    return out.#packed.slice(0, out.#length);
  }
}
