/**
 * What both versions of LUKS say, in one shape.
 *
 *   passphrase ── KDF, salt ── key of a slot ── area of the slot ── AF merge ── volume key ── digest says: right
 */
import type { Extent } from "../../bytes/extents.ts";
import { type CipherSpec, IV_UNIT_BYTES } from "./cipher.ts";

/** Into which the AF splitter spreads a volume key; cryptsetup takes no other number. */
export const STRIPES = 4000;

export interface Header {
  readonly version: 1 | 2;
  readonly uuid: string;
  readonly label: string;
  readonly cipher: CipherSpec;
  readonly keyBytes: number;
  readonly sectorBytes: number;
  /** Where the ciphertext begins on the device that holds it. */
  readonly payloadAt: number;
  /** Undefined: to the end of the device. */
  readonly payloadBytes: number | undefined;
  readonly slots: readonly Slot[];
  readonly digest: Digest;
  /** Where the header, its copy and the key slots lie. */
  readonly regions: readonly (Extent & { readonly name: string })[];
  readonly notes: readonly string[];
}

/** A copy of the volume key, encrypted by a passphrase. */
export interface Slot {
  readonly name: string;
  readonly area: Extent;
  readonly cipher: CipherSpec;
  /** Of the key that encrypts the area. */
  readonly areaKeyBytes: number;
  /** Of the AF splitter; OpenSSL's name. */
  readonly stripesHash: string;
  readonly kdf: Kdf;
}

export type Kdf =
  | {
      readonly type: "pbkdf2";
      /** OpenSSL's name. */
      readonly hash: string;
      readonly iterations: number;
      readonly salt: Uint8Array;
    }
  | {
      readonly type: "argon2i" | "argon2id";
      readonly passes: number;
      readonly memoryKiB: number;
      readonly lanes: number;
      readonly salt: Uint8Array;
    };

/** PBKDF2 of the volume key. */
export interface Digest {
  /** OpenSSL's name. */
  readonly hash: string;
  readonly iterations: number;
  readonly salt: Uint8Array;
  readonly value: Uint8Array;
}

/** Length of a key's stripes in whole sectors. */
export function areaBytes(keyBytes: number): number {
  return Math.ceil((STRIPES * keyBytes) / IV_UNIT_BYTES) * IV_UNIT_BYTES;
}
