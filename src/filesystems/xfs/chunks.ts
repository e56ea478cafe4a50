/**
 * The trees of inodes of an AG: 64 inodes that lie together are a chunk, and a record.
 *
 *   record:  | first inode u32 | holes u16, inodes u8, free u8 (or free u32) | free u64: bit i is inode i |
 *
 * A bit of `holes` stands for four inodes whose blocks belong to somebody else (sparse inodes). The tree of free inodes
 * repeats the records that have any free.
 */
import { hasIncompat } from "./features.ts";
import type { Volume } from "./headers.ts";
import { contradiction, damaged } from "./refused.ts";
import { agLength, type Superblock } from "./superblock.ts";
import { readTree } from "./trees.ts";

export const CHUNK_INODES = 64;
const RECORD_WORDS = 4;

/** Chunks in order, as columns. Two words each of `free` and `holes`: inodes 0 to 31, then 32 to 63. */
export interface Chunks {
  readonly count: number;
  readonly first: Uint32Array;
  readonly free: Uint32Array;
  readonly holes: Uint32Array;
}

/** @throws Refused when the trees are damaged, or differ from each other or from the AGI */
export async function readChunks(
  volume: Volume,
  ag: number,
  block: (tree: "inodes" | "freeInodes", block: number) => void = () => {},
): Promise<Chunks> {
  const { sb } = volume;
  const header = volume.ags[ag]!;
  const records = await readRecords(volume, ag, "inodes", (at) => block("inodes", at));
  const chunks = decodeAll(sb, ag, records);
  const [inodes, free] = totals(chunks);
  if (inodes !== header.inodeCount || free !== header.freeInodeCount) {
    throw contradiction(
      `AGI of AG ${ag}: ${header.freeInodeCount} of ${header.inodeCount} inodes free found, ` +
        `${free} of ${inodes} expected`,
    );
  }
  if (header.freeInodes.levels > 0) {
    const repeated = await readRecords(volume, ag, "freeInodes", (at) => block("freeInodes", at));
    compareFree(ag, records, chunks, repeated);
  }
  return chunks;
}

async function readRecords(
  volume: Volume,
  ag: number,
  tree: "inodes" | "freeInodes",
  block: (block: number) => void,
): Promise<Uint32Array> {
  const leaves: Uint32Array[] = [];
  let length = 0;
  await readTree(volume, ag, tree, volume.ags[ag]![tree], {
    block,
    leaf(view, at, count) {
      const words = new Uint32Array(count * RECORD_WORDS);
      for (let i = 0; i < words.length; i++) words[i] = view.getUint32(at + i * 4);
      leaves.push(words);
      length += words.length;
    },
  });
  const records = new Uint32Array(length);
  for (let i = 0, at = 0; i < leaves.length; at += leaves[i++]!.length) records.set(leaves[i]!, at);
  return records;
}

function decodeAll(sb: Superblock, ag: number, records: Uint32Array): Chunks {
  const count = records.length / RECORD_WORDS;
  const isSparse = hasIncompat(sb, "sparse");
  const chunks: Chunks = {
    count,
    first: new Uint32Array(count),
    free: new Uint32Array(count * 2),
    holes: new Uint32Array(count * 2),
  };
  const grain = Math.min(CHUNK_INODES, sb.inodesPerBlock);
  const end = agLength(sb, ag) * sb.inodesPerBlock;
  let next = sb.headerBlocks * sb.inodesPerBlock;
  for (let i = 0; i < count; i++) {
    const at = i * RECORD_WORDS;
    const [first, counts] = [records[at]!, records[at + 1]!];
    const holes = isSparse ? counts >>> 16 : 0;
    const present = CHUNK_INODES - 4 * ones(holes);
    chunks.first[i] = first;
    chunks.free.set([records[at + 3]!, records[at + 2]!], i * 2);
    chunks.holes.set([spread(holes & 0xff), spread(holes >>> 8)], i * 2);
    const free = freeIn(chunks, i);
    const isCounted = isSparse
      ? free === (counts & 0xff) && present === ((counts >>> 8) & 0xff)
      : free === counts;
    if (first < next || first + CHUNK_INODES > end || first % grain !== 0 || !isCounted) {
      throw damaged(
        `tree of inodes of AG ${ag}: a chunk at ${first} with counts 0x${counts.toString(16)} found, ` +
          `behind ${next} with ${free} of ${present} free expected`,
      );
    }
    next = first + CHUNK_INODES;
  }
  return chunks;
}

function totals(chunks: Chunks): [inodes: number, free: number] {
  let [holes, free] = [0, 0];
  for (let i = 0; i < chunks.count; i++) {
    holes += ones(chunks.holes[i * 2]!) + ones(chunks.holes[i * 2 + 1]!);
    free += freeIn(chunks, i);
  }
  return [chunks.count * CHUNK_INODES - holes, free];
}

function freeIn({ free, holes }: Chunks, i: number): number {
  return ones(free[i * 2]! & ~holes[i * 2]!) + ones(free[i * 2 + 1]! & ~holes[i * 2 + 1]!);
}

function compareFree(ag: number, records: Uint32Array, chunks: Chunks, repeated: Uint32Array): void {
  let at = 0;
  for (let i = 0; i < chunks.count; i++) {
    if (freeIn(chunks, i) === 0) continue;
    for (let word = 0; word < RECORD_WORDS; word++, at++) {
      if (repeated[at] === records[i * RECORD_WORDS + word]) continue;
      throw contradiction(
        `tree of free inodes of AG ${ag}: it differs about the chunk at ${chunks.first[i]}`,
      );
    }
  }
  if (at !== repeated.length) {
    throw contradiction(
      `tree of free inodes of AG ${ag}: ${repeated.length / RECORD_WORDS} chunks found, ${at / RECORD_WORDS} expected`,
    );
  }
}

/** Each of eight bits four times. */
function spread(bits: number): number {
  let word = 0;
  for (let bit = 0; bit < 8; bit++) if ((bits >>> bit) & 1) word |= 0xf << (bit * 4);
  return word;
}

/** How many bits of a word are set. */
function ones(word: number): number {
  let bits = word - ((word >>> 1) & 0x55555555);
  bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
  return Math.imul((bits + (bits >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}
