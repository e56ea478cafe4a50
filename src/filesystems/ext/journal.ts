/**
 * JBD2, the journal of ext3 and ext4: a ring of blocks behind a superblock. Everything is big-endian.
 *
 *   | superblock | … | descriptor 7 | data | data | revoke 7 | commit 7 | descriptor 8 | data | commit 8 | …    |
 *   0            first                                                                                   last
 *                    ^ s_start, s_sequence = 7
 *
 * What the blocks of the ring are stands in `journal-blocks.ts`. Linux Documentation/filesystems/ext4/journal.rst.
 */
import { crc32c } from "../../bytes/checksum.ts";
import { raw, skip, struct, u32be, u8, uuidText } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import { INCOMPAT, RO_COMPAT } from "./features.ts";
import { Refused } from "../refused.ts";
import type { JournalExtent, JournalledFileSystem } from "./replay.ts";
import { MAGIC, SUPERBLOCK_AT, SuperblockLayout } from "./superblock.ts";

export const JOURNAL_MAGIC = 0xc03b3998;

export const JournalSuperblock = struct({
  magic: u32be,
  type: u32be,
  headerSequence: u32be,
  blockBytes: u32be,
  /** Blocks of the journal, the superblock and the fast-commit area counted. */
  blockCount: u32be,
  /** First block of the ring. */
  first: u32be,
  /** The transaction that `start` begins with. */
  sequence: u32be,
  /** First block of the log that still matters; 0: the log is empty. */
  start: u32be,
  /** Why the guest's kernel gave the journal up; 0: it did not. */
  errno: u32be,
  compat: u32be,
  incompat: u32be,
  roCompat: u32be,
  uuid: raw(16),
  userCount: u32be,
  dynamicSuperblock: u32be,
  transactionBlocksMax: u32be,
  transactionDataMax: u32be,
  checksumType: u8,
  padding: skip(3),
  fastCommitBlocks: u32be,
  head: u32be,
  reserved: skip(160),
  checksum: u32be,
  users: raw(48 * 16),
});

const FEATURE_CHECKSUM_V1 = 1;
const FEATURE = {
  revoke: 1,
  wide: 2,
  asyncCommit: 4,
  checksumV2: 8,
  checksumV3: 16,
  fastCommit: 32,
} as const;
const FEATURES_KNOWN = Object.values(FEATURE).reduce((all, flag) => all | flag, 0);
const CHECKSUM_CRC32C = 4;
const FAST_COMMIT_BLOCKS_DEFAULT = 256;
const SUPERBLOCK_V1 = 3;
const SUPERBLOCK_V2 = 4;
const USERS_MAX = 48;
/** 4 GiB of 4 KiB blocks, four times what mke2fs makes by itself: keeps the memory of a replay bounded (H24). */
const JOURNAL_BLOCKS_MAX = 2 ** 20;
const READ_AHEAD_BYTES = 256 * 1024;

export type ChecksumVersion = 0 | 1 | 2 | 3;

/** The hint of every refusal that a guest or e2fsck can cure. */
const CLEAN_HINT = "start the guest and shut it down cleanly, or run e2fsck on the volume";

export function damaged(message: string, code = "journal-corrupt"): Refused {
  return new Refused(code, message, CLEAN_HINT);
}

export function unsupported(message: string, code = "journal-unsupported"): Refused {
  return new Refused(code, message, CLEAN_HINT);
}

/** An opened journal. Its blocks are counted as its superblock counts them. */
export interface Journal {
  readonly device: BlockDevice;
  readonly blockBytes: number;
  /** The ring is `[first, last)`. */
  readonly first: number;
  readonly last: number;
  /** The fast-commit area is `[last, end)`; empty without that feature. */
  readonly end: number;
  readonly start: number;
  readonly sequence: number;
  readonly checksums: ChecksumVersion;
  /** What the checksums v2 and v3 start from. */
  readonly seed: number;
  /** Block numbers have 64 bits. */
  readonly wide: boolean;
  readonly hasFastCommit: boolean;
  /** Where block `block` lies on `device`, in bytes. */
  offset(block: number): number;
  /** The content of a block: valid until the next call. */
  read(block: number): Promise<Uint8Array>;
}

/** @throws Refused when the journal cannot be trusted */
export async function openJournal(filesystem: JournalledFileSystem): Promise<Journal> {
  const { blockBytes, journal: place } = filesystem;
  const onDevice = place.kind === "device";
  const device = onDevice ? place.device : filesystem.device;
  if (onDevice) await checkDevice(device, place.journalUuid);
  const blocks = onDevice ? wholeDevice(device, blockBytes) : new Mapping(place.extents, device, blockBytes);
  const superblockAt = onDevice ? Math.floor(1024 / blockBytes) + 1 : 0;
  if (blocks.count <= superblockAt) throw damaged(`the journal has only ${blocks.count} blocks`);
  const bytes = await readBytes(device, blocks.offset(superblockAt), JournalSuperblock.bytes);
  const superblock = JournalSuperblock.decode(bytes);
  const { incompat } = checkSuperblock(superblock, bytes, {
    blockBytes,
    blockCount: blocks.count,
    superblockAt,
  });
  if (onDevice) checkUser(superblock, filesystem.uuid);
  const hasFastCommit = (incompat & FEATURE.fastCommit) !== 0;
  const fastCommitBlocks = hasFastCommit ? superblock.fastCommitBlocks || FAST_COMMIT_BLOCKS_DEFAULT : 0;
  const last = superblock.blockCount - fastCommitBlocks;
  const { first, start } = superblock;
  if (start !== 0 && (start < first || start >= last)) {
    throw damaged(`the journal starts at block ${start}, outside its ring ${first}-${last}`);
  }
  return {
    device,
    blockBytes,
    first,
    last,
    end: superblock.blockCount,
    start,
    sequence: superblock.sequence,
    checksums: checksumVersion(superblock),
    seed: crc32c(0xffffffff, superblock.uuid),
    wide: (incompat & FEATURE.wide) !== 0,
    hasFastCommit,
    offset: (block) => blocks.offset(block),
    read: readAhead(device, blocks, blockBytes),
  };
}

type Superblock = ReturnType<typeof JournalSuperblock.decode>;

function checkSuperblock(
  superblock: Superblock,
  bytes: Uint8Array,
  real: { readonly blockBytes: number; readonly blockCount: number; readonly superblockAt: number },
): Superblock {
  const { magic, type, blockBytes, blockCount, first } = superblock;
  if (magic !== JOURNAL_MAGIC) {
    throw damaged(`the journal's superblock begins with ${hex(magic)}, expected ${hex(JOURNAL_MAGIC)}`);
  }
  if (type !== SUPERBLOCK_V1 && type !== SUPERBLOCK_V2) {
    throw damaged(`the journal's superblock is of type ${type}, expected 3 or 4`);
  }
  if (type === SUPERBLOCK_V1) Object.assign(superblock, { compat: 0, incompat: 0, roCompat: 0 });
  checkFeatures(superblock);
  if (checksumVersion(superblock) >= 2) {
    const expected = checksumWithout(0xffffffff, bytes, JournalSuperblock.at.checksum);
    if (superblock.checksumType !== CHECKSUM_CRC32C) {
      throw unsupported(
        `the journal's checksums are of type ${superblock.checksumType}, expected 4, CRC-32C`,
      );
    }
    if (superblock.checksum !== expected) throw badChecksum("superblock", superblock.checksum, expected);
  }
  if (blockBytes !== real.blockBytes) {
    throw damaged(
      `the journal's blocks have ${blockBytes} bytes, those of the filesystem ${real.blockBytes}`,
    );
  }
  if (blockCount > real.blockCount) {
    throw damaged(`the journal claims ${blockCount} blocks and has ${real.blockCount}`);
  }
  if (superblock.start !== 0 && blockCount > JOURNAL_BLOCKS_MAX) {
    throw unsupported(`the journal has ${blockCount} blocks; up to ${JOURNAL_BLOCKS_MAX} are supported`);
  }
  if (first <= real.superblockAt || first >= blockCount) {
    throw damaged(`the journal's ring begins at block ${first} of ${blockCount}`);
  }
  if (superblock.errno !== 0) {
    throw damaged(
      `the guest's kernel gave the journal up with error ${superblock.errno | 0}`,
      "journal-error",
    );
  }
  return superblock;
}

function checkFeatures(superblock: Superblock): void {
  const { compat, incompat, roCompat } = superblock;
  const unknown = [compat & ~FEATURE_CHECKSUM_V1, incompat & ~FEATURES_KNOWN, roCompat].map(
    (bits) => bits >>> 0,
  );
  if (unknown.some((bits) => bits !== 0)) {
    throw unsupported(`the journal has unknown features: ${unknown.map(hex).join(", ")}`);
  }
  const versions = [
    compat & FEATURE_CHECKSUM_V1,
    incompat & FEATURE.checksumV2,
    incompat & FEATURE.checksumV3,
  ];
  if (versions.filter((flag) => flag !== 0).length > 1) {
    throw damaged("the journal claims more than one version of checksums");
  }
  if ((incompat & FEATURE.asyncCommit) !== 0 && superblock.start !== 0) {
    throw unsupported("the journal was written with asynchronous commits");
  }
}

function checksumVersion({ compat, incompat }: Superblock): ChecksumVersion {
  if ((incompat & FEATURE.checksumV3) !== 0) return 3;
  if ((incompat & FEATURE.checksumV2) !== 0) return 2;
  return (compat & FEATURE_CHECKSUM_V1) === 0 ? 0 : 1;
}

/** An external journal is an ext device of its own kind; a wrong one would bring foreign blocks back. */
async function checkDevice(device: BlockDevice, journalUuid: Uint8Array): Promise<void> {
  if (device.bytes < SUPERBLOCK_AT + SuperblockLayout.bytes) throw damaged("the journal device is too short");
  const bytes = await readBytes(device, SUPERBLOCK_AT, SuperblockLayout.bytes);
  const { magic, incompat, roCompat, uuid, checksum } = SuperblockLayout.decode(bytes);
  if (magic !== MAGIC || (incompat & INCOMPAT.journal_dev) === 0) {
    throw damaged("the journal device has no ext superblock of a journal", "journal-missing");
  }
  const expected = crc32c(0xffffffff, bytes, 0, SuperblockLayout.at.checksum);
  if ((roCompat & RO_COMPAT.metadata_csum) !== 0 && checksum !== expected) {
    throw badChecksum("device's superblock", checksum, expected);
  }
  if (Buffer.compare(uuid, journalUuid) !== 0) {
    throw damaged(
      `the journal device is ${uuidText(uuid)}, expected ${uuidText(journalUuid)}`,
      "journal-missing",
    );
  }
}

function checkUser({ users, userCount }: Superblock, uuid: Uint8Array): void {
  for (let i = 0; i < Math.min(userCount, USERS_MAX); i++) {
    if (Buffer.compare(users.subarray(i * 16, i * 16 + 16), uuid) === 0) return;
  }
  throw damaged(`the journal device does not serve the filesystem ${uuidText(uuid)}`, "journal-missing");
}

interface Blocks {
  readonly count: number;
  /** Where a block lies, in bytes. */
  offset(block: number): number;
  /** How many blocks from `block` on lie behind each other. */
  contiguous(block: number): number;
}

function wholeDevice(device: BlockDevice, blockBytes: number): Blocks {
  const count = Math.floor(device.bytes / blockBytes);
  return { count, offset: (block) => block * blockBytes, contiguous: (block) => count - block };
}

/** The blocks of the journal's inode: gapless from 0, and on the device. */
class Mapping implements Blocks {
  readonly count: number;
  readonly #extents: readonly JournalExtent[];
  readonly #blockBytes: number;

  constructor(extents: readonly JournalExtent[], device: BlockDevice, blockBytes: number) {
    let count = 0;
    for (const { logical, start, blocks } of extents) {
      if (logical !== count) throw damaged(`the journal's inode has no block ${count}`);
      if ((start + blocks) * blockBytes > device.bytes) {
        throw damaged(`blocks ${start}-${start + blocks} of the journal lie behind the device`);
      }
      count += blocks;
    }
    this.count = count;
    this.#extents = extents;
    this.#blockBytes = blockBytes;
  }

  offset(block: number): number {
    const { logical, start } = this.#find(block);
    return (start + block - logical) * this.#blockBytes;
  }

  contiguous(block: number): number {
    const { logical, blocks } = this.#find(block);
    return logical + blocks - block;
  }

  #find(block: number): JournalExtent {
    let low = 0;
    let high = this.#extents.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (this.#extents[middle]!.logical <= block) low = middle;
      else high = middle - 1;
    }
    return this.#extents[low]!;
  }
}

/** Reads block by block through a window, as a log is read. */
function readAhead(
  device: BlockDevice,
  blocks: Blocks,
  blockBytes: number,
): (block: number) => Promise<Uint8Array> {
  const window = new Uint8Array(Math.max(READ_AHEAD_BYTES, blockBytes));
  let start = 0;
  let end = 0;
  return async (block) => {
    if (block < start || block >= end) {
      end = start = 0;
      const count = Math.min(window.length / blockBytes, blocks.contiguous(block), blocks.count - block);
      await device.read(blocks.offset(block), window.subarray(0, count * blockBytes));
      start = block;
      end = block + count;
    }
    return window.subarray((block - start) * blockBytes, (block - start + 1) * blockBytes);
  };
}

/** A CRC-32C over a structure whose own field of four bytes counts as zero. */
export function checksumWithout(seed: number, bytes: Uint8Array, fieldAt: number): number {
  const before = crc32c(seed, bytes, 0, fieldAt);
  return crc32c(crc32c(before, new Uint8Array(4)), bytes, fieldAt + 4);
}

export function badChecksum(name: string, found: number, expected: number): Refused {
  return damaged(
    `the journal's ${name} has the checksum ${hex(found)}, expected ${hex(expected)}`,
    "journal-checksum",
  );
}

function hex(word: number): string {
  return `0x${(word >>> 0).toString(16)}`;
}
