/**
 * The checkpoint: two packs in turn, of which the one with the higher version counts.
 *
 *   pack   | head | payload | orphans | summaries of data | summaries of nodes | head again |
 *
 * The head tells which copy of each block of SIT and NAT counts; changes too few for a block stand in journals beside
 * the summaries. Documentation/filesystems/f2fs.rst of Linux.
 */
import { skip, struct, u32le, u64le, viewOf } from "../../bytes/struct.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { unlessDamaged } from "../refused.ts";
import { damaged, notClean, unknown } from "./refused.ts";
import { BLOCK_BYTES, checksumOf, SEGMENT_BLOCKS, type Superblock } from "./superblock.ts";

export const CheckpointLayout = struct({
  version: u64le,
  userBlocks: u64le,
  validBlocks: u64le,
  reservedSegments: u32le,
  spareSegments: u32le,
  freeSegments: u32le,
  nodeSegments: skip(4 * 8),
  nodeOffsets: skip(2 * 8),
  dataSegments: skip(4 * 8),
  dataOffsets: skip(2 * 8),
  flags: u32le,
  blocks: u32le,
  summaries: u32le,
  validNodes: u32le,
  validInodes: u32le,
  nextNode: u32le,
  sitBitmapBytes: u32le,
  natBitmapBytes: u32le,
  checksumOffset: u32le,
  elapsed: skip(8),
  allocation: skip(16),
});

export const FLAG = {
  unmounted: 0x1,
  orphans: 0x2,
  compact: 0x4,
  error: 0x8,
  fsck: 0x10,
  quotaFsck: 0x800,
  disabled: 0x1000,
  disabledQuick: 0x2000,
  resizing: 0x4000,
  largeNatBitmap: 0x400,
} as const;
/** Fast boot, recovery by CRC or not, bits of NAT, trimmed: they change nothing of what is read here. */
const HARMLESS = 0x20 | 0x40 | 0x80 | 0x100 | 0x200;
const KNOWN = HARMLESS | Object.values(FLAG).reduce((all: number, bit) => all | bit, 0);

const SUMMARY_JOURNAL_AT = 512 * 7;
export const JOURNAL_BYTES = 507;
/** Where a journal is, among the summaries: that of NAT with hot data, that of SIT with cold data. */
const NAT_SUMMARY = 0;
const SIT_SUMMARY = 2;
const SUMMARIES = 6;
const NODE_SEGMENTS_AT = 36;
const NODE_OFFSETS_AT = 68;
const WARM_NODE = 1;

export interface Checkpoint {
  readonly fields: ReturnType<typeof CheckpointLayout.decode>;
  readonly sitBitmap: Uint8Array;
  readonly natBitmap: Uint8Array;
  readonly sitJournal: DataView;
  readonly natJournal: DataView;
  /** Where the log of nodes would go on. */
  readonly nextNodeBlock: number;
}

/** The newer checkpoint, and the older one where it is whole. @throws Refused */
export async function readCheckpoints(
  device: BlockDevice,
  sb: Superblock,
): Promise<{ readonly newest: Checkpoint; readonly earlier: Checkpoint | undefined }> {
  const first = await unlessDamaged(readPack(device, sb, sb.cp));
  const second = await unlessDamaged(readPack(device, sb, sb.cp + SEGMENT_BLOCKS));
  const isSecond =
    second !== undefined && (first === undefined || second.fields.version > first.fields.version);
  const [newest, earlier] = isSecond ? [second, first] : [first, second];
  if (newest === undefined) throw damaged("checkpoint: neither of the two packs is whole");
  return { newest, earlier };
}

/** @throws Refused where it is not that of a clean unmount */
export function checkState({ fields: { flags } }: Checkpoint): void {
  const has = (flag: keyof typeof FLAG) => (flags & FLAG[flag]) !== 0;
  if ((flags & ~KNOWN) !== 0)
    throw unknown(`checkpoint: flags 0x${(flags & ~KNOWN).toString(16)} are not known`);
  if (has("error") || has("fsck") || has("quotaFsck")) throw notClean("the guest wants it checked");
  if (has("disabled") || has("disabledQuick")) throw notClean("checkpoints are switched off");
  if (has("resizing")) throw notClean("the volume is being resized");
  if (!has("unmounted")) throw notClean("the guest has it mounted, or was not shut down");
}

async function readPack(device: BlockDevice, sb: Superblock, start: number): Promise<Checkpoint> {
  const head = await readHead(device, start);
  const fields = CheckpointLayout.decode(head);
  const { blocks, summaries } = fields;
  if (blocks < 3 + sb.payload || blocks > SEGMENT_BLOCKS || summaries <= sb.payload || summaries >= blocks) {
    throw damaged(`checkpoint in block ${start}: ${blocks} blocks with summaries at ${summaries} found`);
  }
  const foot = CheckpointLayout.decode(await readHead(device, start + blocks - 1));
  if (foot.version !== fields.version) {
    throw damaged(`checkpoint in block ${start}: versions ${fields.version} and ${foot.version} found`);
  }
  const pack = await readBytes(device, start * BLOCK_BYTES, blocks * BLOCK_BYTES);
  return { fields, ...bitmapsOf(pack, sb, fields, start), ...journalsOf(pack, fields), ...logOf(pack, sb) };
}

async function readHead(device: BlockDevice, block: number): Promise<Uint8Array> {
  const bytes = await readBytes(device, block * BLOCK_BYTES, BLOCK_BYTES);
  const { checksumOffset } = CheckpointLayout.decode(bytes);
  const isInside = checksumOffset >= CheckpointLayout.bytes && checksumOffset <= BLOCK_BYTES - 4;
  if (!isInside || checksumOffset % 4 !== 0)
    throw damaged(`checkpoint in block ${block}: checksum at ${checksumOffset}`);
  const found = viewOf(bytes).getUint32(checksumOffset, true);
  let expected = checksumOf(bytes.subarray(0, checksumOffset));
  // With large bitmaps the checksum stands before them, and covers them, too.
  if (checksumOffset < BLOCK_BYTES - 4) expected = checksumOf(bytes.subarray(checksumOffset + 4), expected);
  if (found !== expected)
    throw damaged(`checkpoint in block ${block}: checksum ${found} found, ${expected} expected`);
  return bytes;
}

function bitmapsOf(
  pack: Uint8Array,
  sb: Superblock,
  { flags, sitBitmapBytes, natBitmapBytes }: Checkpoint["fields"],
  start: number,
): Pick<Checkpoint, "sitBitmap" | "natBitmap"> {
  const at = CheckpointLayout.bytes;
  const end = (1 + sb.payload) * BLOCK_BYTES;
  const take = (from: number, bytes: number) => {
    if (from + bytes > end) throw damaged(`checkpoint in block ${start}: bitmap of ${bytes} bytes found`);
    return pack.subarray(from, from + bytes);
  };
  if (sitBitmapBytes * 8 < (sb.sitSegments / 2) * SEGMENT_BLOCKS) {
    throw damaged(`checkpoint in block ${start}: bitmap of SIT of ${sitBitmapBytes} bytes found`);
  }
  if (natBitmapBytes * 8 < (sb.natSegments / 2) * SEGMENT_BLOCKS) {
    throw damaged(`checkpoint in block ${start}: bitmap of NAT of ${natBitmapBytes} bytes found`);
  }
  const [sit, nat] =
    (flags & FLAG.largeNatBitmap) !== 0
      ? [at + 4 + natBitmapBytes, at + 4]
      : sb.payload > 0
        ? [BLOCK_BYTES, at]
        : [at, at + sitBitmapBytes];
  return { sitBitmap: take(sit, sitBitmapBytes), natBitmap: take(nat, natBitmapBytes) };
}

function journalsOf(
  pack: Uint8Array,
  { flags, blocks, summaries }: Checkpoint["fields"],
): Pick<Checkpoint, "sitJournal" | "natJournal"> {
  const journal = (at: number) => {
    if (at + JOURNAL_BYTES > pack.length || at < 0) throw damaged(`checkpoint: a journal at ${at} found`);
    return viewOf(pack.subarray(at, at + JOURNAL_BYTES));
  };
  if ((flags & FLAG.compact) !== 0) {
    const at = summaries * BLOCK_BYTES;
    return { natJournal: journal(at), sitJournal: journal(at + JOURNAL_BYTES) };
  }
  const summary = (type: number) => (blocks - 1 - SUMMARIES + type) * BLOCK_BYTES + SUMMARY_JOURNAL_AT;
  return { natJournal: journal(summary(NAT_SUMMARY)), sitJournal: journal(summary(SIT_SUMMARY)) };
}

function logOf(pack: Uint8Array, sb: Superblock): Pick<Checkpoint, "nextNodeBlock"> {
  const view = viewOf(pack);
  const segment = view.getUint32(NODE_SEGMENTS_AT + WARM_NODE * 4, true);
  const offset = view.getUint16(NODE_OFFSETS_AT + WARM_NODE * 2, true);
  if (segment >= sb.mainSegments || offset > SEGMENT_BLOCKS) {
    throw damaged(`checkpoint: log of nodes in block ${offset} of segment ${segment} found`);
  }
  return { nextNodeBlock: sb.main + segment * SEGMENT_BLOCKS + offset };
}

/** Bit `index` of a bitmap of F2FS: the highest bit of a byte comes first. */
export const hasBit = (bitmap: Uint8Array, index: number): boolean =>
  ((bitmap[index >>> 3]! >>> (7 - (index & 7))) & 1) === 1;
