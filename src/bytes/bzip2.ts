/**
 * Unpacks bzip2, within bounds: images pack chunks with it.
 *
 *   BZh9 | block | block | … | end, checksum of all         bits, the most significant first
 *
 *   block   Huffman codes → move-to-front and runs of zeros → Burrows-Wheeler → runs of equal bytes → bytes, CRC-32
 *
 * The format has no specification but its program; described in Joe Tsai's "BZIP2: Format Specification".
 */
import { DiskError } from "../error.ts";

const BLOCK = 0x3141_5926_5359;
const END = 0x1772_4538_5090;
const BLOCK_UNIT_BYTES = 100_000;
const GROUP_SYMBOLS = 50;
const CODE_BITS_MAX = 20;
/** Enough for the largest block; more were written by mistake, and are passed over. */
const SELECTORS_MAX = 18_002;
const RUN_A = 0;
const RUN_B = 1;

/** @throws DiskError `corrupt`, also when there are more than `bytesMax` bytes */
export function bunzip2(packed: Uint8Array, bytesMax: number): Uint8Array {
  const bits = new Bits(packed);
  if (bits.take(24) !== 0x42_5a_68) throw wrong("it does not begin with BZh");
  const level = bits.take(8) - 0x30;
  if (level < 1 || level > 9) throw wrong(`level ${level}`);
  const out = new Output(bytesMax);
  let sum = 0;
  for (;;) {
    const magic = bits.take(24) * 2 ** 24 + bits.take(24);
    const expected = bits.take(16) * 2 ** 16 + bits.take(16);
    if (magic === END) {
      if (expected !== sum) throw wrong("the checksum of all blocks does not match");
      return out.bytes.subarray(0, out.length);
    }
    if (magic !== BLOCK) throw wrong("neither a block nor the end");
    const found = readBlock(bits, level * BLOCK_UNIT_BYTES, out);
    if (found !== expected) throw wrong("the checksum of a block does not match");
    sum = (((sum << 1) | (sum >>> 31)) ^ expected) >>> 0;
  }
}

function wrong(why: string): DiskError {
  return new DiskError("corrupt", `bzip2: ${why}`);
}

class Bits {
  readonly #from: Uint8Array;
  #at = 0;
  /** Bits taken from `#from` and not yet given out: the lowest `#held` bits. */
  #word = 0;
  #held = 0;

  constructor(from: Uint8Array) {
    this.#from = from;
  }

  /** The next `count` bits, at most 24. */
  take(count: number): number {
    while (this.#held < count) {
      const byte = this.#from[this.#at++];
      if (byte === undefined) throw wrong("it is cut short");
      this.#word = ((this.#word << 8) | byte) >>> 0;
      this.#held += 8;
    }
    this.#held -= count;
    const value = this.#word >>> this.#held;
    this.#word &= 2 ** this.#held - 1;
    return value;
  }
}

/** What was unpacked, after the last stage: four equal bytes are followed by how often more they stand there. */
class Output {
  readonly bytes: Uint8Array;
  length = 0;
  crc = -1;
  #equal = 0;
  #last = -1;

  constructor(bytesMax: number) {
    this.bytes = new Uint8Array(bytesMax);
  }

  beginBlock(): void {
    this.crc = -1;
    this.#equal = 0;
    this.#last = -1;
  }

  push(byte: number): void {
    if (this.#equal === 4) {
      this.#emit(this.#last, byte);
      this.#equal = 0;
      this.#last = -1;
      return;
    }
    this.#equal = byte === this.#last ? this.#equal + 1 : 1;
    this.#last = byte;
    this.#emit(byte, 1);
  }

  #emit(byte: number, count: number): void {
    if (this.length + count > this.bytes.length) throw wrong(`more than ${this.bytes.length} bytes`);
    for (let i = 0; i < count; i++) {
      this.bytes[this.length++] = byte;
      this.crc = (this.crc << 8) ^ CRC_TABLE[((this.crc >>> 24) ^ byte) & 0xff]!;
    }
  }
}

/** The polynomial of CRC-32 with the most significant bit first, as only bzip2 uses it. */
const CRC_TABLE = Int32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte << 24;
  for (let bit = 0; bit < 8; bit++) crc = crc < 0 ? (crc << 1) ^ 0x04c1_1db7 : crc << 1;
  return crc;
});

/** @returns the checksum of what the block holds */
function readBlock(bits: Bits, bytesMax: number, out: Output): number {
  if (bits.take(1) === 1) throw wrong("a randomised block, which no program has written since 1997");
  const origin = bits.take(24);
  const used = usedBytes(bits);
  const tables = bits.take(3);
  if (tables < 2 || tables > 6) throw wrong(`${tables} Huffman tables`);
  const selectors = readSelectors(bits, tables);
  const codes = Array.from({ length: tables }, () => readCode(bits, used.length + 2));
  const { links, length } = readSymbols(bits, { used, selectors, codes, bytesMax });
  if (length === 0 || origin >= length) throw wrong("its origin lies outside of the block");
  out.beginBlock();
  untangle(links, length, origin, out);
  return ~out.crc >>> 0;
}

function usedBytes(bits: Bits): Uint8Array {
  const rows = bits.take(16);
  const used: number[] = [];
  for (let row = 0; row < 16; row++) {
    if ((rows & (0x8000 >>> row)) === 0) continue;
    const columns = bits.take(16);
    for (let column = 0; column < 16; column++) {
      if ((columns & (0x8000 >>> column)) !== 0) used.push(row * 16 + column);
    }
  }
  if (used.length === 0) throw wrong("a block without bytes");
  return Uint8Array.from(used);
}

/** Which table the next fifty symbols are written with. */
function readSelectors(bits: Bits, tables: number): Uint8Array {
  const count = bits.take(15);
  if (count === 0) throw wrong("no selectors");
  const order = Array.from({ length: tables }, (_, table) => table);
  const selectors = new Uint8Array(Math.min(count, SELECTORS_MAX));
  for (let i = 0; i < count; i++) {
    let place = 0;
    while (bits.take(1) === 1) if (++place >= tables) throw wrong("a selector of no table");
    const [table] = order.splice(place, 1);
    order.unshift(table!);
    if (i < selectors.length) selectors[i] = table!;
  }
  return selectors;
}

/** A canonical code: the symbols by length, then by number. */
interface Code {
  /** For each length in bits: the first code that is longer, and what leads from a code to its place in `symbols`. */
  readonly limits: Int32Array;
  readonly shifts: Int32Array;
  readonly symbols: Uint16Array;
}

function readCode(bits: Bits, symbolCount: number): Code {
  const lengths = new Uint8Array(symbolCount);
  let length = bits.take(5);
  for (let symbol = 0; symbol < symbolCount; symbol++) {
    while (bits.take(1) === 1) {
      length += bits.take(1) === 1 ? -1 : 1;
      if (length < 1 || length > CODE_BITS_MAX) break;
    }
    if (length < 1 || length > CODE_BITS_MAX) throw wrong(`a code of ${length} bits`);
    lengths[symbol] = length;
  }
  const limits = new Int32Array(CODE_BITS_MAX + 1);
  const shifts = new Int32Array(CODE_BITS_MAX + 1);
  const symbols = new Uint16Array(symbolCount);
  let code = 0;
  let place = 0;
  for (let width = 1; width <= CODE_BITS_MAX; width++) {
    code *= 2;
    shifts[width] = place - code;
    for (let symbol = 0; symbol < symbolCount; symbol++) {
      if (lengths[symbol] !== width) continue;
      symbols[place++] = symbol;
      code++;
    }
    if (code > 2 ** width) throw wrong("more codes than there can be");
    limits[width] = code;
  }
  return { limits, shifts, symbols };
}

function readSymbol(bits: Bits, { limits, shifts, symbols }: Code): number {
  let code = 0;
  for (let width = 1; width <= CODE_BITS_MAX; width++) {
    code = code * 2 + bits.take(1);
    if (code < limits[width]!) return symbols[code + shifts[width]!]!;
  }
  throw wrong("a code without a symbol");
}

interface Symbols {
  readonly used: Uint8Array;
  readonly selectors: Uint8Array;
  readonly codes: readonly Code[];
  readonly bytesMax: number;
}

/** The last column of the sorted rotations, each byte in the low bits of its word. */
function readSymbols(bits: Bits, { used, selectors, codes, bytesMax }: Symbols) {
  const links = new Uint32Array(bytesMax);
  const recent = used.slice();
  const endOfBlock = used.length + 1;
  let length = 0;
  let run = 0;
  let weight = 1;
  for (let read = 0; ; read++) {
    const table = selectors[Math.floor(read / GROUP_SYMBOLS)];
    if (table === undefined) throw wrong("more symbols than selectors");
    const symbol = readSymbol(bits, codes[table]!);
    if (symbol === RUN_A || symbol === RUN_B) {
      run += weight * (symbol + 1);
      weight *= 2;
      if (run > bytesMax) throw wrong("a run longer than a block");
      continue;
    }
    if (length + run + 1 > bytesMax + (symbol === endOfBlock ? 1 : 0))
      throw wrong("a block that is too long");
    links.fill(recent[0]!, length, length + run);
    length += run;
    run = 0;
    weight = 1;
    if (symbol === endOfBlock) return { links, length };
    const byte = recent[symbol - 1]!;
    recent.copyWithin(1, 0, symbol - 1);
    recent[0] = byte;
    links[length++] = byte;
  }
}

/** Undoes the sorting: the high bits of each word are made to lead to the next byte. */
function untangle(links: Uint32Array, length: number, origin: number, out: Output): void {
  const places = new Uint32Array(257);
  for (let i = 0; i < length; i++) places[(links[i]! & 0xff) + 1]!++;
  for (let byte = 0; byte < 256; byte++) places[byte + 1]! += places[byte]!;
  for (let i = 0; i < length; i++) links[places[links[i]! & 0xff]!++]! |= i << 8;
  let at = links[origin]! >>> 8;
  for (let i = 0; i < length; i++) {
    const link = links[at]!;
    out.push(link & 0xff);
    at = link >>> 8;
  }
}
