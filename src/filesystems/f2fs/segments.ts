/**
 * free(): the segment information table (SIT) tells of every block of the main area whether it is valid.
 *
 *   SIT block   55 × | valid blocks, type | 512 bits | time |        two copies; the checkpoint's bitmap picks
 *   journal     up to 6 entries of segments that were changed last
 *
 * The highest bit of a byte comes first. What the earlier of the two checkpoints calls valid is kept, too: it is what
 * the guest goes back to when the newer one is damaged (H4).
 */
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import type { BlockDevice } from "../../device/device.ts";
import { readScattered } from "../reading.ts";
import { unlessDamaged } from "../refused.ts";
import { hasBit, JOURNAL_BYTES, type Checkpoint } from "./checkpoint.ts";
import { contradiction, damaged } from "./refused.ts";
import { BLOCK_BYTES, SEGMENT_BLOCKS, type Superblock } from "./superblock.ts";

const ENTRY_BYTES = 74;
const ENTRIES = Math.floor(BLOCK_BYTES / ENTRY_BYTES);
const BITMAP_BYTES = SEGMENT_BLOCKS / 8;
const BITMAP_WORDS = BITMAP_BYTES / 4;
const VALID_MASK = 0x3ff;
const JOURNAL_ENTRY_BYTES = 4 + ENTRY_BYTES;
const JOURNAL_ENTRIES = Math.floor((JOURNAL_BYTES - 2) / JOURNAL_ENTRY_BYTES);

/** The bits of all segments, one after the other. */
async function readTable(device: BlockDevice, sb: Superblock, checkpoint: Checkpoint): Promise<Uint8Array> {
  const valid = new Uint8Array(sb.mainSegments * BITMAP_BYTES);
  const words = wordsOf(valid);
  const journalled = journalOf(checkpoint, sb);
  let total = 0;
  const take = (segment: number, view: DataView, at: number) => {
    const bitmap = new Uint8Array(view.buffer, view.byteOffset + at + 2, BITMAP_BYTES);
    valid.set(bitmap, segment * BITMAP_BYTES);
    const [found, expected] = [ones(words, segment * BITMAP_WORDS), view.getUint16(at, true) & VALID_MASK];
    if (found !== expected) {
      throw contradiction(`segment ${segment}: ${found} valid blocks found, ${expected} expected`);
    }
    total += found;
  };
  const blocks = Math.ceil(sb.mainSegments / ENTRIES);
  const half = (sb.sitSegments / 2) * SEGMENT_BLOCKS;
  if (blocks > half) throw damaged(`SIT: ${blocks} blocks found in an area of ${half}`);
  const positions = Float64Array.from(
    { length: blocks },
    (_, index) => sb.sit + index + (hasBit(checkpoint.sitBitmap, index) ? half : 0),
  );
  await readScattered(device, BLOCK_BYTES, positions, (index, bytes) => {
    const view = viewOf(bytes);
    const first = index * ENTRIES;
    for (let segment = first; segment < Math.min(first + ENTRIES, sb.mainSegments); segment++) {
      if (!journalled.has(segment)) take(segment, view, (segment - first) * ENTRY_BYTES);
    }
  });
  for (const [segment, at] of journalled) take(segment, checkpoint.sitJournal, at);
  if (total !== checkpoint.fields.validBlocks) {
    throw contradiction(`SIT: ${total} valid blocks found, ${checkpoint.fields.validBlocks} expected`);
  }
  return valid;
}

/** Segments whose entry stands in the journal, and where. */
function journalOf({ sitJournal }: Checkpoint, sb: Superblock): Map<number, number> {
  const count = sitJournal.getUint16(0, true);
  if (count > JOURNAL_ENTRIES)
    throw damaged(`SIT journal: ${count} entries found, at most ${JOURNAL_ENTRIES} expected`);
  const entries = new Map<number, number>();
  for (let index = 0; index < count; index++) {
    const at = 2 + index * JOURNAL_ENTRY_BYTES;
    const segment = sitJournal.getUint32(at, true);
    if (segment >= sb.mainSegments || entries.has(segment)) {
      throw damaged(`SIT journal: segment ${segment} found, of ${sb.mainSegments}, each once`);
    }
    entries.set(segment, at + 4);
  }
  return entries;
}

/** The free blocks of the main area, in bytes. @throws Refused */
export async function freeExtents(
  device: BlockDevice,
  sb: Superblock,
  newest: Checkpoint,
  earlier: Checkpoint | undefined,
): Promise<ExtentSet> {
  const valid = await readTable(device, sb, newest);
  const before = earlier && (await unlessDamaged(readTable(device, sb, earlier)));
  if (before !== undefined) {
    const [words, then] = [wordsOf(valid), wordsOf(before)];
    for (let at = 0; at < words.length; at++) words[at]! |= then[at]!;
  }
  const free = new ExtentBuilder(sb.mainSegments);
  let start = -1;
  const end = valid.length * 8;
  for (let block = 0; block <= end;) {
    const byte = block < end ? valid[block >>> 3]! : 0xff;
    const isWhole = (block & 7) === 0;
    if (isWhole && block < end && byte === (start < 0 ? 0xff : 0)) {
      block += 8;
      continue;
    }
    const isFree = block < end && !hasBit(valid, block);
    if (isFree && start < 0) start = block;
    if (!isFree && start >= 0) {
      free.add((sb.main + start) * BLOCK_BYTES, (sb.main + block) * BLOCK_BYTES);
      start = -1;
    }
    block++;
  }
  return free.build();
}

const wordsOf = (bytes: Uint8Array) => new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);

/** How many bits are set in the bitmap of a segment. */
function ones(words: Int32Array, from: number): number {
  let count = 0;
  for (let at = from; at < from + BITMAP_WORDS; at++) {
    const word = words[at]!;
    const pairs = word - ((word >>> 1) & 0x55555555);
    const fours = (pairs & 0x33333333) + ((pairs >>> 2) & 0x33333333);
    count += Math.imul((fours + (fours >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
  }
  return count;
}
