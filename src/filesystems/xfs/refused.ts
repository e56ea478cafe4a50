/** What is found wrong with an XFS filesystem, and what its user can do about it. */
import { crc32c } from "../../bytes/checksum.ts";
import { findings } from "../refused.ts";

export const { damaged, badChecksum, contradiction } = findings(
  "run xfs_repair on it in the guest, then try again",
);

const ZEROS = new Uint8Array(4);

/** The CRC-32C of `bytes[start, end)`, its own four bytes at `field` taken as zeros. */
export function checksumOf(bytes: Uint8Array, field: number, start = 0, end = bytes.length): number {
  const before = crc32c(0xffffffff, bytes, start, field);
  return ~crc32c(crc32c(before, ZEROS), bytes, field + 4, end) >>> 0;
}

/** @throws Refused when the checksum stored (little-endian, alone in XFS) at `field` is wrong */
export function verifyChecksum(
  structure: () => string,
  bytes: Uint8Array,
  field: number,
  start = 0,
  end = bytes.length,
): void {
  const [a, b, c, d] = [bytes[field]!, bytes[field + 1]!, bytes[field + 2]!, bytes[field + 3]!];
  const found = (a | (b << 8) | (c << 16) | (d << 24)) >>> 0;
  const expected = checksumOf(bytes, field, start, end);
  if (found !== expected) throw badChecksum(structure(), found, expected);
}
