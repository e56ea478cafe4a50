/**
 * Virtual replay of a dirty journal (H2): what the filesystem will look like once a guest has mounted it, without
 * writing a byte.
 *
 *   scan     from s_start: every block must carry the magic and the expected sequence; a commit block ends a
 *            transaction; the first block that does not fit ends the log
 *   revoke   remembers, per block, the last transaction that took it out of the journal's hands
 *   replay   a block's last copy counts, unless its transaction is not after the one that revoked the block
 *
 * The result reads through: a block that the replay would write is redirected to its last copy in the journal.
 * Free is only what is free on `device` *and* on `overlay`, minus `writes`. A wrong checksum inside a committed
 * transaction is refused; without its commit block it is the torn end of the log.
 */
import { crc32c } from "../../bytes/checksum.ts";
import { ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../../device/device.ts";
import type { Refusal } from "../../error.ts";
import { findFastCommit } from "./fast-commit.ts";
import { INCOMPAT, RO_COMPAT } from "./features.ts";
import {
  BLOCK_TYPE,
  checkCommit,
  hasGoodData,
  hasGoodTail,
  Header,
  revokedBy,
  TAG_FLAG,
  tagsOf,
  TransactionChecksum,
} from "./journal-blocks.ts";
import { damaged, type Journal, JOURNAL_MAGIC, openJournal, unsupported } from "./journal.ts";
import { Refused } from "../refused.ts";
import { type Redirection, ReplayedDevice } from "./replayed-device.ts";
import { STATE_ERROR, SUPERBLOCK_AT, SuperblockLayout } from "./superblock.ts";

/** A run of the journal inode's blocks; all numbers count filesystem blocks. */
export interface JournalExtent {
  readonly logical: number;
  readonly start: number;
  readonly blocks: number;
}

/** Where the journal lies. */
export type JournalPlace =
  | {
      /** In inode 8 (or `s_journal_inum`). */
      readonly kind: "inode";
      /** Ascending by `logical`. */
      readonly extents: readonly JournalExtent[];
    }
  | {
      /** A journal device of its own. */
      readonly kind: "device";
      readonly device: BlockDevice;
      /** `s_journal_uuid` of the filesystem: the device's own `s_uuid` must equal it. */
      readonly journalUuid: Uint8Array;
    };

export interface JournalledFileSystem {
  /** Member 0, from the start of the filesystem. A journal may have grown it: its length bounds what is written. */
  readonly device: BlockDevice;
  readonly blockBytes: number;
  /** `s_uuid` of the filesystem: an external journal must list it among its users. */
  readonly uuid: Uint8Array;
  readonly journal: JournalPlace;
}

export interface Replay {
  /**
   * Member 0 as it reads after the replay. The superblock has `needs_recovery` cleared and its checksum set anew
   * (only where it was right before), and keeps the error bit of the superblock from before the replay.
   */
  readonly overlay: BlockDevice;
  /** Bytes of member 0 that a replay writes, whole blocks, and the superblock's block in any case. */
  readonly writes: ExtentSet;
  /** For people: `journal: 12 transactions with 340 blocks replayed in memory`. */
  readonly notes: readonly string[];
}

/** More revoked blocks than any sane journal lists; bounds the memory (H24). */
const REVOKED_MAX = 2 ** 21;

/** Replays virtually, or says why not. @throws DiskError of the devices; what the guest wrote causes a `Refusal` */
export async function replayJournal(filesystem: JournalledFileSystem): Promise<Replay | Refusal> {
  try {
    const journal = await openJournal(filesystem);
    const log = await scan(journal);
    if (journal.start !== 0) await refuseFastCommit(journal, log);
    const blocks = await replay(journal, log, await revoke(journal, log), writable(filesystem));
    const redirections = {
      blockBytes: journal.blockBytes,
      journal: journal.device,
      escapedBytes: MAGIC_BYTES,
      blocks,
    };
    const replayed = new ReplayedDevice(filesystem.device, redirections);
    const patch = await cleanSuperblock(filesystem.device, replayed);
    const overlay = new ReplayedDevice(filesystem.device, redirections, patch);
    const note = `journal: ${log.transactions} transactions with ${blocks.size} blocks replayed in memory`;
    return { overlay, writes: overlay.writes, notes: [note] };
  } catch (error) {
    if (error instanceof Refused) return error.refusal;
    throw error;
  }
}

/**
 * Whether the log is empty, as it must be where `needs_recovery` is not set: a kernel throws such a log away, and
 * e2fsck replays it. @throws DiskError of the devices
 */
export async function isJournalEmpty(filesystem: JournalledFileSystem): Promise<boolean | Refusal> {
  try {
    return (await openJournal(filesystem)).start === 0;
  } catch (error) {
    if (error instanceof Refused) return error.refusal;
    throw error;
  }
}

export function isRefusal(result: object): result is Refusal {
  return "code" in result && "hint" in result;
}

const MAGIC_BYTES = new Uint8Array(4);
viewOf(MAGIC_BYTES).setUint32(0, JOURNAL_MAGIC);

/** A descriptor or revoke block of a committed transaction. */
interface LogBlock {
  readonly type: number;
  readonly at: number;
  readonly sequence: number;
}

interface Log {
  readonly blocks: readonly LogBlock[];
  /** The transaction after the last committed one. */
  readonly end: number;
  readonly transactions: number;
  /** The log runs over the end of the ring. */
  readonly wraps: boolean;
}

/** Walks the ring block by block; never further than once around. */
class Cursor {
  at: number;
  #steps = 0;
  readonly #journal: Journal;

  constructor(journal: Journal, at: number) {
    this.#journal = journal;
    this.at = at;
  }

  get wraps(): boolean {
    return this.#steps > this.#journal.last - this.#journal.start;
  }

  /** Whether the whole ring has been walked. */
  get isRound(): boolean {
    return this.#steps >= this.#journal.last - this.#journal.first;
  }

  step(blocks = 1): void {
    const { first, last } = this.#journal;
    this.#steps += blocks;
    if (this.#steps > last - first) {
      throw damaged(`the log at block ${this.at} of the journal runs into its own start`);
    }
    this.at += blocks;
    if (this.at >= last) this.at -= last - first;
  }
}

/** Finds the committed transactions. */
async function scan(journal: Journal): Promise<Log> {
  const blocks: LogBlock[] = [];
  let sequence = journal.sequence;
  if (journal.start === 0) return { blocks, end: sequence, transactions: 0, wraps: false };
  const cursor = new Cursor(journal, journal.start);
  let committed = 0;
  let wraps = false;
  let suspect: Refused | undefined;
  let checksum = new TransactionChecksum();
  while (!cursor.isRound) {
    const at = cursor.at;
    const block = await journal.read(at);
    const header = Header.decode(block);
    if (header.magic !== JOURNAL_MAGIC || header.sequence !== sequence) break;
    cursor.step();
    if (header.type === BLOCK_TYPE.commit) {
      if (suspect !== undefined) throw suspect;
      checkCommit(journal, block, checksum);
      checksum = new TransactionChecksum();
      sequence = (sequence + 1) >>> 0;
      committed = blocks.length;
      wraps = cursor.wraps;
    } else if (header.type === BLOCK_TYPE.descriptor || header.type === BLOCK_TYPE.revoke) {
      if (!hasGoodTail(journal, block)) {
        suspect ??= damaged(`block ${at} of the journal has a wrong checksum`, "journal-checksum");
      }
      blocks.push({ type: header.type, at, sequence });
      if (header.type === BLOCK_TYPE.descriptor) await skipData(journal, cursor, block, checksum);
    } else {
      throw damaged(`block ${at} of the journal is of type ${header.type}, expected 1, 2 or 5`);
    }
  }
  const transactions = (sequence - journal.sequence) >>> 0;
  if (cursor.isRound && transactions === 0)
    throw damaged("the log fills the journal without any commit block");
  return { blocks: blocks.slice(0, committed), end: sequence, transactions, wraps };
}

/** Steps over the data blocks of a descriptor, and adds them to the checksum v1. */
async function skipData(
  journal: Journal,
  cursor: Cursor,
  descriptor: Uint8Array,
  checksum: TransactionChecksum,
): Promise<void> {
  const { length } = tagsOf(journal, descriptor);
  if (journal.checksums !== 1) return cursor.step(length);
  checksum.add(descriptor);
  for (let i = 0; i < length; i++) {
    checksum.add(await journal.read(cursor.at));
    cursor.step();
  }
}

/** Fast commits are not understood; and where a log with them wraps, kernels and e2fsck have disagreed. */
async function refuseFastCommit(journal: Journal, log: Log): Promise<void> {
  if (journal.hasFastCommit && log.wraps) {
    throw unsupported("the log wraps around, and the journal has a fast-commit area", "fast-commit");
  }
  const found = await findFastCommit(journal, log.end);
  if (found !== undefined) {
    throw unsupported(
      `block ${found} of the journal holds a fast commit after transaction ${log.end - 1}`,
      "fast-commit",
    );
  }
}

/** Whether transaction `a` is after `b`; numbers wrap at 2^32. */
function isAfter(a: number, b: number): boolean {
  return ((a - b) | 0) > 0;
}

/** By block of the filesystem: the last transaction that revoked it. */
async function revoke(journal: Journal, log: Log): Promise<Map<number, number>> {
  const revoked = new Map<number, number>();
  for (const { type, at, sequence } of log.blocks) {
    if (type !== BLOCK_TYPE.revoke) continue;
    for (const block of revokedBy(journal, await journal.read(at))) revoked.set(block, sequence);
    if (revoked.size > REVOKED_MAX) throw unsupported(`the journal revokes more than ${REVOKED_MAX} blocks`);
  }
  return revoked;
}

/** What a replay may write: the whole device but the journal itself, which would read what it wrote. */
function writable({ device, blockBytes, journal }: JournalledFileSystem): ExtentSet {
  const all = ExtentSet.of({ start: 0, end: device.bytes }).alignInward(blockBytes);
  if (journal.kind === "device") return all;
  const own = journal.extents.map(({ start, blocks }) => ({
    start: start * blockBytes,
    end: (start + blocks) * blockBytes,
  }));
  return all.subtract(ExtentSet.from(own));
}

/** Where the last valid copy of each block lies. */
async function replay(
  journal: Journal,
  log: Log,
  revoked: ReadonlyMap<number, number>,
  allowed: ExtentSet,
): Promise<Map<number, Redirection>> {
  const redirections = new Map<number, Redirection>();
  for (const { type, at, sequence } of log.blocks) {
    if (type !== BLOCK_TYPE.descriptor) continue;
    const cursor = new Cursor(journal, at);
    for (const tag of tagsOf(journal, await journal.read(at))) {
      cursor.step();
      const revokedIn = revoked.get(tag.block);
      if (revokedIn !== undefined && !isAfter(sequence, revokedIn)) continue;
      if (!allowed.has(tag.block * journal.blockBytes)) {
        throw damaged(
          `block ${at} of the journal writes to block ${tag.block}, which is not the filesystem's`,
        );
      }
      if ((tag.flags & ~TAG_FLAGS_KNOWN) !== 0) {
        throw unsupported(`block ${at} of the journal has a tag with flags 0x${tag.flags.toString(16)}`);
      }
      if (journal.checksums >= 2 && !hasGoodData(journal, tag, sequence, await journal.read(cursor.at))) {
        throw damaged(`block ${cursor.at} of the journal has a wrong checksum`, "journal-checksum");
      }
      const escaped = (tag.flags & TAG_FLAG.escaped) !== 0;
      redirections.set(tag.block, { from: journal.offset(cursor.at), escaped });
    }
  }
  return redirections;
}

const TAG_FLAGS_KNOWN = TAG_FLAG.escaped | TAG_FLAG.sameUuid | TAG_FLAG.last;

/** The superblock as a kernel leaves it after a replay. */
async function cleanSuperblock(
  before: BlockDevice,
  replayed: BlockDevice,
): Promise<{ at: number; bytes: Uint8Array }> {
  const bytes = await readBytes(replayed, SUPERBLOCK_AT, SuperblockLayout.bytes);
  const old = SuperblockLayout.decode(await readBytes(before, SUPERBLOCK_AT, SuperblockLayout.bytes));
  const { incompat, roCompat, state, checksum } = SuperblockLayout.decode(bytes);
  const checksumOf = () => crc32c(0xffffffff, bytes, 0, SuperblockLayout.at.checksum);
  const wasGood = (roCompat & RO_COMPAT.metadata_csum) !== 0 && checksum === checksumOf();
  SuperblockLayout.encode(
    { incompat: (incompat & ~INCOMPAT.needs_recovery) >>> 0, state: state | (old.state & STATE_ERROR) },
    bytes,
  );
  if (wasGood) SuperblockLayout.encode({ checksum: checksumOf() }, bytes);
  return { at: SUPERBLOCK_AT, bytes };
}
