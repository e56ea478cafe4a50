/**
 * Decryption of sectors, as dm-crypt does it: AES in the modes XTS and CBC.
 *
 *   XTS   mask of block j of a sector = E(key 2, IV) · x^j in GF(2^128)     plain = D(key 1, cipher ⊕ mask) ⊕ mask
 *   CBC   mask of block j of a sector = IV for the first, else cipher block j - 1     plain = D(key, cipher) ⊕ mask
 *
 *   IV    plain      the sector's number, its low 32 bits, little-endian
 *         plain64    the sector's number, 64 bits
 *         essiv:H    E(H(key), plain64)
 *
 * A cipher object of Node for each sector costs more than the sector. Here all blocks of a chunk pass through AES in
 * one call, as if in ECB mode, and the masks are laid over them in 32-bit words.
 *
 * Sectors are numbered in units of 512 bytes whatever their length (dm-crypt without `iv_large_sectors`, which LUKS
 * never sets). Specifications: IEEE 1619-2007 for XTS; the kernel's `dm-crypt` documentation for the names.
 */
import { type Cipheriv, createCipheriv, createDecipheriv, type Decipheriv } from "node:crypto";
import { assert, DiskError } from "../../error.ts";
import { digest, hashNamed } from "./hash.ts";

const BLOCK_BYTES = 16;
const BLOCK_WORDS = 4;
export const IV_UNIT_BYTES = 512;
/** What is decrypted in one call: small enough for the processor's cache. */
const CHUNK_BYTES = 128 * 1024;

export interface CipherSpec {
  /** As the header has it: `aes-xts-plain64`. */
  readonly name: string;
  readonly mode: "xts" | "cbc";
  readonly iv: "plain" | "plain64" | "essiv";
  /** OpenSSL's name of the hash of `essiv`. */
  readonly ivHash: string;
}

/**
 * @param name `cipher-mode-iv`, as the header has it
 * @throws DiskError `unsupported` for what is not vouched for
 */
export function cipherNamed(name: string, keyBytes: number): CipherSpec {
  const [, mode, iv, hash] = /^aes-(xts|cbc)-(plain64|plain|essiv)(?::(.+))?$/.exec(name) ?? [];
  if (mode === undefined || (iv === "essiv") !== (hash !== undefined) || (iv === "essiv" && mode === "xts")) {
    throw new DiskError("unsupported", `the cipher ${JSON.stringify(name)} is not known`, {
      code: "luks-cipher",
    });
  }
  const halves = mode === "xts" ? 2 : 1;
  if (![16, 24, 32].includes(keyBytes / halves)) {
    throw new DiskError("corrupt", `${name} has a key of ${keyBytes} bytes`, { code: "luks-key-length" });
  }
  const ivHash = hash === undefined ? "" : hashNamed(hash);
  if (ivHash !== "" && ![16, 24, 32].includes(digest(ivHash).length)) {
    throw new DiskError("unsupported", `the hash of ${name} gives no key of AES`, { code: "luks-cipher" });
  }
  return { name, mode: mode as CipherSpec["mode"], iv: iv as CipherSpec["iv"], ivHash };
}

export class SectorCipher {
  readonly sectorBytes: number;
  readonly #spec: CipherSpec;
  readonly #blocks: Decipheriv;
  /** Makes of a sector's number what its masks begin with; absent where that is the number itself. */
  readonly #ivs: Cipheriv | undefined;
  readonly #masks: Int32Array;
  readonly #words: Int32Array;

  constructor(spec: CipherSpec, key: Uint8Array, sectorBytes: number) {
    assert(CHUNK_BYTES % sectorBytes === 0 && sectorBytes % IV_UNIT_BYTES === 0, "sectors of dm-crypt");
    this.sectorBytes = sectorBytes;
    this.#spec = spec;
    const half = spec.mode === "xts" ? key.length / 2 : key.length;
    this.#blocks = withoutPadding(createDecipheriv(aes(half), key.subarray(0, half), null));
    const ivKey =
      spec.mode === "xts" ? key.subarray(half) : spec.iv === "essiv" ? digest(spec.ivHash, key) : undefined;
    this.#ivs = ivKey && withoutPadding(createCipheriv(aes(ivKey.length), ivKey, null));
    this.#masks = new Int32Array(CHUNK_BYTES / 4);
    this.#words = new Int32Array(CHUNK_BYTES / 4);
  }

  /**
   * Decrypts whole sectors in place.
   * @param number of the first one, in units of 512 bytes
   */
  decrypt(bytes: Uint8Array, number: number): void {
    assert(bytes.length % this.sectorBytes === 0, "whole sectors");
    for (let at = 0; at < bytes.length; at += CHUNK_BYTES) {
      this.#decryptChunk(bytes.subarray(at, at + CHUNK_BYTES), number + at / IV_UNIT_BYTES);
    }
  }

  #decryptChunk(chunk: Uint8Array, number: number): void {
    const masks = this.#masks;
    const words = this.#words.subarray(0, chunk.length / 4);
    const bytes = new Uint8Array(words.buffer, 0, chunk.length);
    bytes.set(chunk);
    const starts = this.#startsOf(number, chunk.length / this.sectorBytes);
    if (this.#spec.mode === "xts") {
      this.#fillXts(starts);
      for (let i = 0; i < words.length; i++) words[i]! ^= masks[i]!;
      bytes.set(this.#blocks.update(bytes));
    } else {
      this.#fillCbc(starts, words);
      bytes.set(this.#blocks.update(bytes));
    }
    for (let i = 0; i < words.length; i++) words[i]! ^= masks[i]!;
    chunk.set(bytes);
  }

  /** What the masks of `count` sectors begin with, four words each. */
  #startsOf(number: number, count: number): Int32Array {
    const ivs = new Uint8Array(count * BLOCK_BYTES);
    const view = new DataView(ivs.buffer);
    for (let i = 0; i < count; i++) {
      const sector = number + (i * this.sectorBytes) / IV_UNIT_BYTES;
      view.setUint32(i * BLOCK_BYTES, sector % 2 ** 32, true);
      if (this.#spec.iv !== "plain") view.setUint32(i * BLOCK_BYTES + 4, Math.floor(sector / 2 ** 32), true);
    }
    if (this.#ivs) ivs.set(this.#ivs.update(ivs));
    return new Int32Array(ivs.buffer);
  }

  #fillXts(starts: Int32Array): void {
    const masks = this.#masks;
    const sectorWords = this.sectorBytes / 4;
    for (let i = 0, at = 0; i < starts.length; i += BLOCK_WORDS) {
      let [a, b, c, d] = [starts[i]!, starts[i + 1]!, starts[i + 2]!, starts[i + 3]!];
      for (const end = at + sectorWords; at < end; at += BLOCK_WORDS) {
        masks[at] = a;
        masks[at + 1] = b;
        masks[at + 2] = c;
        masks[at + 3] = d;
        // Times x: a shift by one bit; what falls out comes back as x^7 + x^2 + x + 1.
        const carry = d >> 31;
        d = (d << 1) | (c >>> 31);
        c = (c << 1) | (b >>> 31);
        b = (b << 1) | (a >>> 31);
        a = (a << 1) ^ (carry & 0x87);
      }
    }
  }

  #fillCbc(starts: Int32Array, words: Int32Array): void {
    const masks = this.#masks;
    const sectorWords = this.sectorBytes / 4;
    masks.set(words.subarray(0, words.length - BLOCK_WORDS), BLOCK_WORDS);
    for (let at = 0, i = 0; at < words.length; at += sectorWords, i += BLOCK_WORDS) {
      masks.set(starts.subarray(i, i + BLOCK_WORDS), at);
    }
  }
}

function aes(keyBytes: number): string {
  return `aes-${keyBytes * 8}-ecb`;
}

function withoutPadding<C extends Cipheriv | Decipheriv>(cipher: C): C {
  cipher.setAutoPadding(false);
  return cipher;
}
