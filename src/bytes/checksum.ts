/**
 * The checksums that disks use.
 *
 * - `crc32c`: Castagnoli, reflected polynomial 0x82f63b78; ext4, JBD2, XFS, Btrfs, VHDX.
 * - `crc16`: ANSI, reflected polynomial 0xa001; ext4's `gdt_csum`.
 * - `crc32`: IEEE; GPT, LVM2.
 *
 * All continue from a seed and leave inversions to the caller, as the specifications write them down.
 */
import { crc32 as ieee } from "node:zlib";

const SLICES = 8;

/** Slicing-by-8 tables: `table[k * 256 + b]` is byte `b` followed by `k` zero bytes. */
function slicingTable(polynomial: number): Int32Array {
  const table = new Int32Array(SLICES * 256);
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ polynomial : crc >>> 1;
    table[byte] = crc;
  }
  for (let i = 256; i < table.length; i++) {
    const crc = table[i - 256]!;
    table[i] = (crc >>> 8) ^ table[crc & 0xff]!;
  }
  return table;
}

const CASTAGNOLI = slicingTable(0x82f63b78);
const ANSI = slicingTable(0xa001);

/**
 * CRC-32C of `bytes[start, end)`, continued from `seed`, without any inversion: ext4 starts from `0xffffffff` and
 * stores the result as it is; others invert both.
 */
export function crc32c(seed: number, bytes: Uint8Array, start = 0, end = bytes.length): number {
  const t = CASTAGNOLI;
  let crc = seed | 0;
  let at = start;
  for (; at < end && ((bytes.byteOffset + at) & 3) !== 0; at++)
    crc = (crc >>> 8) ^ t[(crc ^ bytes[at]!) & 0xff]!;
  const pairs = (end - at) >>> 3;
  if (pairs > 0) {
    const words = new Int32Array(bytes.buffer, bytes.byteOffset + at, pairs * 2);
    for (let i = 0; i < words.length; i += 2) {
      const low = crc ^ words[i]!;
      const high = words[i + 1]!;
      crc =
        t[0x700 + (low & 0xff)]! ^
        t[0x600 + ((low >>> 8) & 0xff)]! ^
        t[0x500 + ((low >>> 16) & 0xff)]! ^
        t[0x400 + (low >>> 24)]! ^
        t[0x300 + (high & 0xff)]! ^
        t[0x200 + ((high >>> 8) & 0xff)]! ^
        t[0x100 + ((high >>> 16) & 0xff)]! ^
        t[high >>> 24]!;
    }
    at += pairs * 8;
  }
  for (; at < end; at++) crc = (crc >>> 8) ^ t[(crc ^ bytes[at]!) & 0xff]!;
  return crc >>> 0;
}

/** CRC-16 (ANSI) of `bytes[start, end)`, continued from `seed`, without inversion. */
export function crc16(seed: number, bytes: Uint8Array, start = 0, end = bytes.length): number {
  let crc = seed & 0xffff;
  for (let at = start; at < end; at++) crc = (crc >>> 8) ^ ANSI[(crc ^ bytes[at]!) & 0xff]!;
  return crc & 0xffff;
}

/** The usual CRC-32 with both inversions (zlib's), continued from the value of the bytes before. */
export function crc32(bytes: Uint8Array, before = 0): number {
  return ieee(bytes, before);
}

/** What a byte of zeros does to each bit of a CRC-32 that is not inverted. */
const ZERO_BYTE = Int32Array.from({ length: 32 }, (_, bit) => {
  let crc = 1 << bit;
  for (let step = 0; step < 8; step++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

function applied(change: Int32Array, crc: number): number {
  let sum = 0;
  for (let bit = 0; bit < 32; bit++) if ((crc >>> bit) & 1) sum ^= change[bit]!;
  return sum;
}

/** `crc32` of so many zeros, continued from `seed`, in as many steps as their number has bits. */
export function crc32OfZeros(bytes: number, seed = 0): number {
  let crc = ~seed;
  let change = ZERO_BYTE;
  for (let rest = bytes; rest > 0; rest = Math.floor(rest / 2)) {
    if (rest % 2 === 1) crc = applied(change, crc);
    const once = change;
    change = once.map((column) => applied(once, column));
  }
  return ~crc >>> 0;
}
