/**
 * The two trees of free space of each AG: the allocation map's claim.
 *
 *   by block:  | start u32, blocks u32 | …   ascending by start
 *   by size:   | start u32, blocks u32 | …   the same records, ascending by length, then by start
 *
 * The blocks of the AGFL are in neither, and count as used. Blocks that a file will get (delayed allocation) exist in
 * memory only; blocks that a transaction is still to free wait in the log, which must be empty.
 */
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice } from "../../device/device.ts";
import { unlessDamaged } from "../refused.ts";
import { hasFeature2 } from "./features.ts";
import { readHeader, type AgHeader, type Volume } from "./headers.ts";
import { contradiction, damaged } from "./refused.ts";
import { agLength, type Superblock } from "./superblock.ts";
import { readTree } from "./trees.ts";

/**
 * The free blocks in bytes. @throws Refused where the trees are damaged, or differ from each other or from the counts
 * @param sum "stale": no transaction changes the superblock's, the kernel counts anew where it replayed a log
 */
export async function freeExtents(volume: Volume, sum: "right" | "stale" = "right"): Promise<ExtentSet> {
  const { sb, ags } = volume;
  const free = new ExtentBuilder();
  let total = 0;
  for (const [ag, header] of ags.entries()) {
    const records = await readByBlock(volume, ag, header);
    checkCounts(ag, header, records);
    await compareBySize(volume, ag, header, records);
    addAll(sb, ag, records, free);
    total += header.freeBlocks + header.list.length + (hasFeature2(sb, "lazy-count") ? header.treeBlocks : 0);
  }
  if (sum === "right" && total !== sb.freeBlocks) {
    throw contradiction(`superblock: ${sb.freeBlocks} free blocks found, ${total} expected`);
  }
  return free.build();
}

/** What the trees by block call free before a log is replayed. An AG in which they are torn counts as used. */
export async function freeBefore(device: BlockDevice, sb: Superblock): Promise<ExtentSet> {
  const free = new ExtentBuilder();
  for (let ag = 0; ag < sb.agCount; ag++) {
    const records = await unlessDamaged(readTorn(device, sb, ag));
    if (records !== undefined) addAll(sb, ag, records, free);
  }
  return free.build();
}

async function readTorn(device: BlockDevice, sb: Superblock, ag: number): Promise<Uint32Array> {
  const header = await readHeader(device, sb, ag);
  return readByBlock({ device, sb, ags: [] }, ag, header);
}

function addAll(sb: Superblock, ag: number, records: Uint32Array, free: ExtentBuilder): void {
  const base = ag * sb.agBlocks;
  for (let i = 0; i < records.length; i += 2) {
    const start = base + records[i]!;
    free.add(start * sb.blockBytes, (start + records[i + 1]!) * sb.blockBytes);
  }
}

/** @returns start and blocks of each record, in turn */
async function readByBlock(volume: Volume, ag: number, header: AgHeader): Promise<Uint32Array> {
  const { sb } = volume;
  const leaves: Uint32Array[] = [];
  let end = sb.headerBlocks;
  await readTree(volume, ag, "byBlock", header.byBlock, {
    leaf(view, at, count) {
      const records = wordsOf(view, at, count);
      for (let i = 0; i < records.length; i += 2) {
        const [start, blocks] = [records[i]!, records[i + 1]!];
        if (start < end || blocks === 0 || start + blocks > agLength(sb, ag)) {
          throw damaged(`free space of AG ${ag}: ${blocks} blocks at ${start} found, behind ${end} expected`);
        }
        end = start + blocks;
      }
      leaves.push(records);
    },
  });
  return joined(leaves);
}

function checkCounts(ag: number, header: AgHeader, records: Uint32Array): void {
  const sum = records.reduce((blocks, word, index) => (index % 2 === 1 ? blocks + word : blocks), 0);
  if (sum !== header.freeBlocks) {
    throw contradiction(`AGF of AG ${ag}: ${header.freeBlocks} free blocks found, ${sum} expected`);
  }
  for (const block of header.list) {
    const index = lastUpTo(records, block);
    if (index >= 0 && block < records[index]! + records[index + 1]!) {
      throw contradiction(`AG ${ag}: block ${block} is in the AGFL and free`);
    }
  }
}

/** Both trees hold the same: as many records, each other than the one before, each found in the first tree. */
async function compareBySize(
  volume: Volume,
  ag: number,
  header: AgHeader,
  records: Uint32Array,
): Promise<void> {
  let [start, blocks, found] = [0, 0, 0];
  await readTree(volume, ag, "bySize", header.bySize, {
    leaf(view, at, count) {
      const words = wordsOf(view, at, count);
      for (let i = 0; i < words.length; i += 2) {
        const isNext = words[i + 1]! > blocks || (words[i + 1] === blocks && words[i]! > start);
        [start, blocks] = [words[i]!, words[i + 1]!];
        const index = lastUpTo(records, start);
        if (!isNext || records[index] !== start || records[index + 1] !== blocks) {
          throw contradiction(
            `free space of AG ${ag}: ${blocks} blocks at ${start} only in the tree by size, or out of order`,
          );
        }
      }
      found += count;
    },
  });
  if (found !== records.length / 2 || blocks !== header.longest) {
    throw contradiction(
      `free space of AG ${ag}: ${found} pieces up to ${blocks} blocks by size, ` +
        `${records.length / 2} by block, at most ${header.longest} by the AGF`,
    );
  }
}

function wordsOf(view: DataView, at: number, count: number): Uint32Array {
  const words = new Uint32Array(count * 2);
  for (let i = 0; i < words.length; i++) words[i] = view.getUint32(at + i * 4);
  return words;
}

function joined(parts: readonly Uint32Array[]): Uint32Array {
  const all = new Uint32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Where the last record lies whose start is not behind `block`; below 0 where there is none. */
function lastUpTo(records: Uint32Array, block: number): number {
  let low = 0;
  let high = records.length / 2;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (records[middle * 2]! <= block) low = middle + 1;
    else high = middle;
  }
  return (low - 1) * 2;
}
