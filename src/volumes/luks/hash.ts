/**
 * The hashes that LUKS headers name, as `node:crypto` knows them. What is not listed here is refused by its name.
 */
import { createHash, getHashes } from "node:crypto";
import { DiskError } from "../../error.ts";

/** LUKS's name, and OpenSSL's. */
export const HASHES: Readonly<Record<string, string>> = {
  sha1: "sha1",
  sha224: "sha224",
  sha256: "sha256",
  sha384: "sha384",
  sha512: "sha512",
  "sha3-224": "sha3-224",
  "sha3-256": "sha3-256",
  "sha3-384": "sha3-384",
  "sha3-512": "sha3-512",
  ripemd160: "ripemd160",
  "blake2b-512": "blake2b512",
  "blake2s-256": "blake2s256",
  sm3: "sm3",
};

/** The name by which `node:crypto` has it. @throws DiskError `unsupported` */
export function hashNamed(name: string): string {
  const known = Object.hasOwn(HASHES, name) ? HASHES[name]! : "";
  if (known !== "" && getHashes().includes(known)) return known;
  throw new DiskError("unsupported", `the hash ${JSON.stringify(name)} is not known`, { code: "luks-hash" });
}

/** @param hash OpenSSL's name */
export function digest(hash: string, ...parts: readonly Uint8Array[]): Buffer {
  const state = createHash(hash);
  for (const part of parts) state.update(part);
  return state.digest();
}
