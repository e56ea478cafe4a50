/**
 * The four checksums of metadata. Each lies in the first 32 bytes of a superblock or node, and covers what follows.
 */
import { hash } from "node:crypto";
import { blake2b } from "../../bytes/blake2b.ts";
import { crc32c } from "../../bytes/checksum.ts";
import { viewOf } from "../../bytes/struct.ts";
import { xxhash64 } from "../../bytes/xxhash64.ts";
import { unsupported } from "./refused.ts";

const FIELD_BYTES = 32;

export interface Checksum {
  readonly name: string;
  /** Whether the checksum at the start of `bytes` is that of what follows it. */
  matches(bytes: Uint8Array): boolean;
}

const digest = (name: string, of: (bytes: Uint8Array) => Uint8Array): Checksum => ({
  name,
  matches: (bytes) => Buffer.from(of(bytes.subarray(FIELD_BYTES))).equals(bytes.subarray(0, FIELD_BYTES)),
});

const CHECKSUMS: readonly Checksum[] = [
  {
    name: "crc32c",
    matches: (bytes) => viewOf(bytes).getUint32(0, true) === ~crc32c(0xffffffff, bytes, FIELD_BYTES) >>> 0,
  },
  {
    name: "xxhash64",
    matches(bytes) {
      const { high, low } = xxhash64(bytes.subarray(FIELD_BYTES));
      const view = viewOf(bytes);
      return view.getUint32(0, true) === low && view.getUint32(4, true) === high;
    },
  },
  digest("sha256", (bytes) => hash("sha256", bytes, "buffer")),
  digest("blake2b", (bytes) => blake2b(bytes, FIELD_BYTES)),
];

/** @throws Refused for a type that is not known */
export function checksumOf(type: number): Checksum {
  const checksum = CHECKSUMS[type];
  if (checksum === undefined) throw unsupported(`superblock: checksums of type ${type}`);
  return checksum;
}
