/**
 * The blocks of a journal's ring.
 *
 *   a block of the log's own:  | magic | type | sequence | … | checksum of the block (v2, v3) |
 *   descriptor:                | header | tag | uuid | tag | tag | … |: where each following data block belongs
 *   revoke:                    | header | used bytes | block | block | … |: blocks that older transactions must not bring back
 *   commit:                    | header | checksum | time |: the transaction counts
 *
 *   tag, v3:     | block u32 | flags u32 | block high u32 | checksum u32 |
 *   tag, others: | block u32 | checksum u16 | flags u16 | block high u32, if 64-bit | 2 bytes, if v2 |
 *
 * A data block that begins with the magic is stored with zeros in its place and an ESCAPE flag in its tag.
 */
import { crc32c } from "../../bytes/checksum.ts";
import { skip, struct, u32be, u8, viewOf } from "../../bytes/struct.ts";
import { badChecksum, checksumWithout, damaged, type Journal } from "./journal.ts";

export const BLOCK_TYPE = { descriptor: 1, commit: 2, revoke: 5 } as const;

export const TAG_FLAG = { escaped: 1, sameUuid: 2, deleted: 4, last: 8 } as const;

/** Opens every block of the log's own. */
export const Header = struct({ magic: u32be, type: u32be, sequence: u32be });

export const CommitBlock = struct({
  header: skip(Header.bytes),
  checksumType: u8,
  checksumBytes: u8,
  padding: skip(2),
  checksum: u32be,
});

/** A revoke block: `usedBytes` counts this header and the block numbers behind it. */
export const RevokeHeader = struct({ header: skip(Header.bytes), usedBytes: u32be });

export interface Tag {
  /** Block of the filesystem. */
  readonly block: number;
  readonly flags: number;
  readonly checksum: number;
}

/** Tags of a descriptor block, up to the one with the LAST flag or the end of the block. */
export function tagsOf(journal: Journal, descriptor: Uint8Array): Tag[] {
  const { checksums, wide, blockBytes } = journal;
  const tagBytes = checksums === 3 ? 16 : 8 + (wide ? 4 : 0) + (checksums === 2 ? 2 : 0);
  const end = blockBytes - (checksums >= 2 ? 4 : 0);
  const view = viewOf(descriptor);
  const tags: Tag[] = [];
  for (let at = Header.bytes; at + tagBytes <= end;) {
    const flags = checksums === 3 ? view.getUint32(at + 4) : view.getUint16(at + 6);
    const high = wide ? view.getUint32(at + 8) : 0;
    const checksum = checksums === 3 ? view.getUint32(at + 12) : view.getUint16(at + 4);
    tags.push({ block: high * 2 ** 32 + view.getUint32(at), flags, checksum });
    if ((flags & TAG_FLAG.last) !== 0) break;
    at += tagBytes + ((flags & TAG_FLAG.sameUuid) === 0 ? 16 : 0);
  }
  return tags;
}

/** Whether the checksum at the end of a descriptor or revoke block is right; true where the journal has none. */
export function hasGoodTail(journal: Journal, block: Uint8Array): boolean {
  if (journal.checksums < 2) return true;
  const at = journal.blockBytes - 4;
  return viewOf(block).getUint32(at) === checksumWithout(journal.seed, block, at);
}

/** Whether a data block is the one that its tag was written for; asked of v2 and v3 only. */
export function hasGoodData(journal: Journal, tag: Tag, sequence: number, data: Uint8Array): boolean {
  const number = new Uint8Array(4);
  viewOf(number).setUint32(0, sequence);
  const checksum = crc32c(crc32c(journal.seed, number), data);
  return tag.checksum === (journal.checksums === 3 ? checksum : checksum & 0xffff);
}

/** Block numbers that a revoke block of this journal lists. @throws Refused when it claims more than a block holds */
export function* revokedBy(journal: Journal, block: Uint8Array): Iterable<number> {
  const { usedBytes } = RevokeHeader.decode(block);
  const room = journal.blockBytes - (journal.checksums >= 2 ? 4 : 0);
  if (usedBytes > room || usedBytes < RevokeHeader.bytes) {
    throw damaged(
      `a revoke block of the journal claims ${usedBytes} bytes, ${RevokeHeader.bytes}-${room} expected`,
    );
  }
  const view = viewOf(block);
  const step = journal.wide ? 8 : 4;
  for (let at = RevokeHeader.bytes; at + step <= usedBytes; at += step) {
    yield journal.wide ? view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4) : view.getUint32(at);
  }
}

/** Checks what a commit block says of itself (v2, v3) or of its transaction (v1). @throws Refused */
export function checkCommit(journal: Journal, block: Uint8Array, transaction: TransactionChecksum): void {
  const { checksum, checksumType, checksumBytes } = CommitBlock.decode(block);
  if (journal.checksums === 1) {
    const isUnused = checksumType === 0 && checksumBytes === 0 && checksum === 0;
    const isCrc32 = checksumType === CHECKSUM_CRC32 && checksumBytes === 4;
    if (!isUnused && !(isCrc32 && checksum === transaction.value)) {
      throw badChecksum("transaction", checksum, transaction.value);
    }
  } else if (journal.checksums >= 2) {
    const expected = checksumWithout(journal.seed, block, CommitBlock.at.checksum);
    if (checksum !== expected) throw badChecksum("commit block", checksum, expected);
  }
}

const CHECKSUM_CRC32 = 1;

/** Bit-by-bit reversed to zlib's: CRC-32 with the polynomial 0x04c11db7, most significant bit first. */
const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte << 24;
  for (let bit = 0; bit < 8; bit++) crc = crc < 0 ? (crc << 1) ^ 0x04c11db7 : crc << 1;
  return crc;
});

/** The checksum v1 of a transaction: over its descriptor blocks and the data blocks behind each, in their order. */
export class TransactionChecksum {
  #crc = -1;

  get value(): number {
    return this.#crc >>> 0;
  }

  add(block: Uint8Array): void {
    let crc = this.#crc;
    for (let at = 0; at < block.length; at++) crc = (crc << 8) ^ TABLE[(crc >>> 24) ^ block[at]!]!;
    this.#crc = crc;
  }
}
