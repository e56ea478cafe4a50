/**
 * Sets the CRC-32C of every superblock and node of a small Btrfs right again.
 */
import { crc32c } from "../../src/bytes/checksum.ts";
import { viewOf } from "../../src/bytes/struct.ts";
import { SUPERBLOCK_AT, SuperblockLayout } from "../../src/filesystems/btrfs/superblock.ts";

const FSID_AT = 32;
const SECTOR_BYTES = 4096;

/** Where nodes begin: what carries the UUID of the filesystem. */
export function* nodesOf(bytes: Uint8Array): Generator<number> {
  const fsid = Buffer.from(bytes.subarray(SUPERBLOCK_AT + FSID_AT, SUPERBLOCK_AT + FSID_AT + 16));
  for (let at = 0; at + SECTOR_BYTES <= bytes.length; at += SECTOR_BYTES) {
    if (at !== SUPERBLOCK_AT && fsid.equals(bytes.subarray(at + FSID_AT, at + FSID_AT + 16))) yield at;
  }
}

export function fixChecksums(bytes: Uint8Array): void {
  if (bytes.length < SUPERBLOCK_AT + SuperblockLayout.bytes) return;
  const nodeBytes = viewOf(bytes).getUint32(SUPERBLOCK_AT + SuperblockLayout.at.nodeBytes, true);
  for (const at of nodesOf(bytes)) if (at + nodeBytes <= bytes.length) fix(bytes, at, nodeBytes);
  fix(bytes, SUPERBLOCK_AT, SuperblockLayout.bytes);
}

function fix(bytes: Uint8Array, at: number, length: number): void {
  if (length <= FSID_AT) return;
  viewOf(bytes).setUint32(at, ~crc32c(0xffffffff, bytes, at + FSID_AT, at + length), true);
}

/** Up to where a volume was written, in whole nodes of any length. */
export function usedLength(bytes: Uint8Array): number {
  return Math.ceil((bytes.findLastIndex((byte) => byte !== 0) + 1) / 65_536) * 65_536;
}
