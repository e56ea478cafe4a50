/**
 * xxHash64 without bigint: a 64-bit number is two halves of 32 bits.
 *
 *   four lanes of 64 bits eat 32 bytes a round; then they are merged, the rest is eaten, and the sum is mixed
 *
 * Cyan4973/xxHash, doc/xxhash_spec.md.
 */
import { viewOf } from "./struct.ts";

/** A number that is only read. */
interface Halves {
  readonly high: number;
  readonly low: number;
}
const P1: Halves = { high: 0x9e3779b1, low: 0x85ebca87 };
const P2: Halves = { high: 0xc2b2ae3d, low: 0x27d4eb4f };
const P3: Halves = { high: 0x165667b1, low: 0x9e3779f9 };
const P4: Halves = { high: 0x85ebca77, low: 0xc2b2ae63 };
const P5: Halves = { high: 0x27d4eb2f, low: 0x165667c5 };

/** A number that is worked on in place. */
class Word {
  high = 0;
  low = 0;

  set(high: number, low: number): this {
    this.high = high | 0;
    this.low = low | 0;
    return this;
  }

  add({ high, low }: Halves): this {
    const sum = (this.low >>> 0) + (low >>> 0);
    this.high = (this.high + high + (sum > 0xffffffff ? 1 : 0)) | 0;
    this.low = sum | 0;
    return this;
  }

  multiply({ high, low }: Halves): this {
    const a0 = this.low & 0xffff;
    const a1 = this.low >>> 16;
    const b0 = low & 0xffff;
    const b1 = low >>> 16;
    const lowest = a0 * b0;
    const middle = a1 * b0 + (lowest >>> 16);
    const other = a0 * b1 + (middle & 0xffff);
    const carried = a1 * b1 + Math.floor(middle / 0x10000) + Math.floor(other / 0x10000);
    this.high = (carried + Math.imul(this.high, low) + Math.imul(this.low, high)) | 0;
    this.low = (other << 16) | (lowest & 0xffff);
    return this;
  }

  /** By 1 to 31 bits to the left. */
  rotate(bits: number): this {
    const { high, low } = this;
    this.high = (high << bits) | (low >>> (32 - bits));
    this.low = (low << bits) | (high >>> (32 - bits));
    return this;
  }

  exclusiveOr(high: number, low: number): this {
    this.high ^= high;
    this.low ^= low;
    return this;
  }

  /** Exclusive or with itself, shifted right by `bits`. */
  fold(bits: number): this {
    const { high, low } = this;
    return bits >= 32
      ? this.exclusiveOr(0, high >>> (bits - 32))
      : this.exclusiveOr(high >>> bits, (low >>> bits) | (high << (32 - bits)));
  }
}

const lanes = [new Word(), new Word(), new Word(), new Word()] as const;
const word = new Word();

/** The hash with seed 0. */
export function xxhash64(bytes: Uint8Array): { readonly high: number; readonly low: number } {
  const view = viewOf(bytes);
  const { length } = bytes;
  const sum = new Word();
  let at = 0;
  if (length >= 32) {
    lanes[0].set(P1.high, P1.low).add(P2);
    lanes[1].set(P2.high, P2.low);
    lanes[2].set(0, 0);
    lanes[3].set(~P1.high, -P1.low);
    for (; at + 32 <= length; at += 32) {
      for (let i = 0; i < 4; i++) eat(lanes[i]!, view, at + i * 8);
    }
    [1, 7, 12, 18].forEach((bits, i) => {
      const { high, low } = lanes[i]!;
      word.set(high, low).rotate(bits);
      sum.add(word);
    });
    for (const { high, low } of lanes) {
      word.set(high, low).multiply(P2).rotate(31).multiply(P1);
      sum.exclusiveOr(word.high, word.low).multiply(P1).add(P4);
    }
  } else {
    sum.set(P5.high, P5.low);
  }
  sum.add({ high: 0, low: length });
  for (; at + 8 <= length; at += 8) {
    eat(word.set(0, 0), view, at);
    sum.exclusiveOr(word.high, word.low).rotate(27).multiply(P1).add(P4);
  }
  if (at + 4 <= length) {
    word.set(0, view.getUint32(at, true)).multiply(P1);
    sum.exclusiveOr(word.high, word.low).rotate(23).multiply(P2).add(P3);
    at += 4;
  }
  for (; at < length; at++) {
    word.set(0, bytes[at]!).multiply(P5);
    sum.exclusiveOr(word.high, word.low).rotate(11).multiply(P1);
  }
  sum.fold(33).multiply(P2).fold(29).multiply(P3).fold(32);
  return { high: sum.high >>> 0, low: sum.low >>> 0 };
}

/** One round of a lane. */
function eat(lane: Word, view: DataView, at: number): void {
  product.set(view.getUint32(at + 4, true), view.getUint32(at, true)).multiply(P2);
  lane.add(product).rotate(31).multiply(P1);
}

const product = new Word();
