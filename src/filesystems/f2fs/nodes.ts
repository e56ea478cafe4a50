/**
 * The node address table (NAT): in which block each node lies, and to which inode it belongs.
 *
 *   NAT block   455 × | version | inode | block |      two copies, segment by segment in turn; the checkpoint's bitmap picks
 *   journal     up to 38 entries that were changed last
 */
import { viewOf } from "../../bytes/struct.ts";
import type { BlockDevice } from "../../device/device.ts";
import { readScattered } from "../reading.ts";
import { hasBit, JOURNAL_BYTES, type Checkpoint } from "./checkpoint.ts";
import { damaged, unknown } from "./refused.ts";
import { BLOCK_BYTES, SEGMENT_BLOCKS, type Superblock } from "./superblock.ts";

const ENTRY_BYTES = 9;
const ENTRIES = Math.floor(BLOCK_BYTES / ENTRY_BYTES);
const JOURNAL_ENTRY_BYTES = 4 + ENTRY_BYTES;
const JOURNAL_ENTRIES = Math.floor((JOURNAL_BYTES - 2) / JOURNAL_ENTRY_BYTES);
const NODES_MAX = 1 << 25;
/** Given out, and not written yet. */
const NEW_BLOCK = 0xffffffff;

/** By node id; block 0 is none. */
export interface NodeTable {
  readonly blocks: Uint32Array;
  readonly inodes: Uint32Array;
}

/** @throws Refused */
export async function readNodeTable(
  device: BlockDevice,
  sb: Superblock,
  checkpoint: Checkpoint,
): Promise<NodeTable> {
  const count = (sb.natSegments / 2) * SEGMENT_BLOCKS;
  if (count * ENTRIES > NODES_MAX)
    throw unknown(`NAT: ${count} blocks found, for more than ${NODES_MAX} nodes`);
  const table = { blocks: new Uint32Array(count * ENTRIES), inodes: new Uint32Array(count * ENTRIES) };
  const take = (node: number, view: DataView, at: number) => {
    const block = view.getUint32(at + 5, true);
    table.inodes[node] = view.getUint32(at + 1, true);
    table.blocks[node] = block === NEW_BLOCK ? 0 : block;
  };
  const positions = Float64Array.from({ length: count }, (_, index) => {
    const inSegment = index % SEGMENT_BLOCKS;
    const pair = sb.nat + (index - inSegment) * 2;
    return pair + inSegment + (hasBit(checkpoint.natBitmap, index) ? SEGMENT_BLOCKS : 0);
  });
  await readScattered(device, BLOCK_BYTES, positions, (index, bytes) => {
    const view = viewOf(bytes);
    for (let entry = 0; entry < ENTRIES; entry++) take(index * ENTRIES + entry, view, entry * ENTRY_BYTES);
  });
  const { natJournal } = checkpoint;
  const entries = natJournal.getUint16(0, true);
  if (entries > JOURNAL_ENTRIES) throw damaged(`NAT journal: ${entries} entries found, at most 38 expected`);
  for (let index = 0; index < entries; index++) {
    const at = 2 + index * JOURNAL_ENTRY_BYTES;
    const node = natJournal.getUint32(at, true);
    if (node >= table.blocks.length)
      throw damaged(`NAT journal: node ${node} of ${table.blocks.length} found`);
    take(node, natJournal, at + 4);
  }
  // The volume's own caches of nodes and of metadata are inodes without a node.
  table.blocks[sb.nodeInode] = 0;
  table.blocks[sb.metaInode] = 0;
  return table;
}
