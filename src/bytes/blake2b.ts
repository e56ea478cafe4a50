/**
 * BLAKE2b without a key, of any digest length: RFC 7693. A 64-bit number is two words of 32 bits, the low one first.
 *
 *   state: 8 numbers   + 128 bytes of message → 16 numbers mixed for 12 rounds → state
 */
import { viewOf } from "./struct.ts";

const BLOCK_BYTES = 128;
const ROUNDS = 12;

/** Low word, high word, of each of the eight. */
const START = Int32Array.of(
  0xf3bcc908,
  0x6a09e667,
  0x84caa73b,
  0xbb67ae85,
  0xfe94f82b,
  0x3c6ef372,
  0x5f1d36f1,
  0xa54ff53a, //
  0xade682d1,
  0x510e527f,
  0x2b3e6c1f,
  0x9b05688c,
  0xfb41bd6b,
  0x1f83d9ab,
  0x137e2179,
  0x5be0cd19,
);

const ORDER = Uint8Array.from(
  [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
  ].flat(),
);

/** Columns, then diagonals: the four numbers that each step mixes. */
const STEPS = Uint8Array.from(
  [
    [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15],
    [0, 5, 10, 15, 1, 6, 11, 12, 2, 7, 8, 13, 3, 4, 9, 14],
  ].flat(),
);

const v = new Int32Array(32);
const m = new Int32Array(32);

export function blake2b(bytes: Uint8Array, digestBytes: number): Uint8Array {
  const state = START.slice();
  state[0]! ^= 0x01010000 ^ digestBytes;
  const view = viewOf(bytes);
  const blocks = Math.max(1, Math.ceil(bytes.length / BLOCK_BYTES));
  for (let block = 0; block < blocks; block++) {
    const at = block * BLOCK_BYTES;
    if (block < blocks - 1) {
      for (let i = 0; i < 32; i++) m[i] = view.getInt32(at + i * 4, true);
      compress(state, at + BLOCK_BYTES, false);
    } else {
      const last = new Uint8Array(BLOCK_BYTES);
      last.set(bytes.subarray(at));
      for (let i = 0; i < 32; i++) m[i] = viewOf(last).getInt32(i * 4, true);
      compress(state, bytes.length, true);
    }
  }
  const digest = new Uint8Array(64);
  state.forEach((word, i) => viewOf(digest).setInt32(i * 4, word, true));
  return digest.subarray(0, digestBytes);
}

function compress(state: Int32Array, eaten: number, isLast: boolean): void {
  v.set(state);
  v.set(START, 16);
  v[24]! ^= eaten | 0;
  v[25]! ^= Math.floor(eaten / 2 ** 32);
  if (isLast) {
    v[28]! ^= -1;
    v[29]! ^= -1;
  }
  for (let round = 0; round < ROUNDS; round++) {
    const order = (round % 10) * 16;
    for (let step = 0; step < 8; step++) {
      const x = ORDER[order + step * 2]! * 2;
      const y = ORDER[order + step * 2 + 1]! * 2;
      mix(
        STEPS[step * 4]! * 2,
        STEPS[step * 4 + 1]! * 2,
        STEPS[step * 4 + 2]! * 2,
        STEPS[step * 4 + 3]! * 2,
        x,
        y,
      );
    }
  }
  for (let i = 0; i < 16; i++) state[i]! ^= v[i]! ^ v[i + 16]!;
}

/** Mixes the numbers at `a`, `b`, `c`, `d` of `v` with those at `x` and `y` of `m`. */
function mix(a: number, b: number, c: number, d: number, x: number, y: number): void {
  half(a, b, c, d, m[x]!, m[x + 1]!, 0, 24);
  half(a, b, c, d, m[y]!, m[y + 1]!, 16, 63);
}

/** Half a mixing; the last two numbers say by how much it turns to the right. */
function half(
  a: number,
  b: number,
  c: number,
  d: number,
  low: number,
  high: number,
  turnD: number,
  turnB: number,
): void {
  let sum = (v[a]! >>> 0) + (v[b]! >>> 0) + (low >>> 0);
  const aLow = sum | 0;
  const aHigh = (v[a + 1]! + v[b + 1]! + high + ((sum / 0x100000000) | 0)) | 0;
  v[a] = aLow;
  v[a + 1] = aHigh;
  let one = v[d]! ^ aLow;
  let other = v[d + 1]! ^ aHigh;
  // Here 0 stands for 32: the halves change places.
  const dLow = turnD === 0 ? other : (one >>> turnD) | (other << (32 - turnD));
  const dHigh = turnD === 0 ? one : (other >>> turnD) | (one << (32 - turnD));
  v[d] = dLow;
  v[d + 1] = dHigh;
  sum = (v[c]! >>> 0) + (dLow >>> 0);
  const cLow = sum | 0;
  const cHigh = (v[c + 1]! + dHigh + (sum > 0xffffffff ? 1 : 0)) | 0;
  v[c] = cLow;
  v[c + 1] = cHigh;
  one = v[b]! ^ cLow;
  other = v[b + 1]! ^ cHigh;
  // To the right by 63 is to the left by 1.
  v[b] = turnB === 63 ? (one << 1) | (other >>> 31) : (one >>> turnB) | (other << (32 - turnB));
  v[b + 1] = turnB === 63 ? (other << 1) | (one >>> 31) : (other >>> turnB) | (one << (32 - turnB));
}
