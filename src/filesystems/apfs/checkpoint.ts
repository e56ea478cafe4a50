/**
 * The newest checkpoint, and where its ephemeral objects lie.
 *
 *   descriptor area (ring)   … | map | map | superblock | …       `descriptorIndex`, `descriptorLength`
 *   data area (ring)         … | space manager | reaper | free queue | …
 *
 * A superblock is written last, behind a flush: the valid one with the highest transaction is the state of the
 * container, and what it names must be whole. There is no journal. "Checkpoints" of the Apple File System Reference.
 */
import { struct, u32le, u64le, skip, viewOf } from "../../bytes/struct.ts";
import type { BlockDevice } from "../../device/device.ts";
import {
  checkRange,
  hasValidChecksum,
  looseU64,
  OBJECT_BYTES,
  readBlocks,
  STORAGE,
  TYPE,
  typeOf,
  verifyChecksum,
  verifyObject,
  type Area,
} from "./objects.ts";
import { damaged, unknown } from "./refused.ts";
import {
  checkContainer,
  MAGIC,
  readFirstSuperblock,
  SuperblockLayout,
  type Superblock,
} from "./superblock.ts";

const DESCRIPTOR_BLOCKS_MAX = 1 << 14;
/** More earlier checkpoints than this are never whole. */
const EARLIER_MAX = 64;
const OBJECT_BYTES_MAX = 1 << 22;
const READ_BLOCKS = 64;
/** Set in a number of blocks: the area is no stretch but a tree of them. */
const FRAGMENTED = 0x80000000;
const MAP_LAST = 1;

const MappingLayout = struct({
  type: u32le,
  subtype: u32le,
  bytes: u32le,
  pad: u32le,
  volume: skip(8),
  id: u64le,
  block: u64le,
});

export interface Ephemeral {
  readonly type: number;
  readonly subtype: number;
  readonly bytes: number;
  readonly block: number;
}

/** A container as of one checkpoint. */
export interface Container extends Area {
  readonly sb: Superblock;
  readonly descriptorBase: number;
  readonly dataBase: number;
  readonly ephemerals: ReadonlyMap<number, Ephemeral>;
  /** The copy in block 0 is older: the guest was not shut down in order. */
  readonly isBehind: boolean;
  /** Superblocks of earlier checkpoints that are still in the ring, the newest first. */
  readonly earlier: readonly Superblock[];
}

/** @throws Refused */
export async function openContainer(device: BlockDevice): Promise<Container> {
  const first = await readFirstSuperblock(device);
  verifyObject(first.bytes, 0, {
    type: TYPE.containerSuperblock,
    id: 1,
    storage: STORAGE.ephemeral,
    transaction: Number.MAX_SAFE_INTEGER,
  });
  const copy = SuperblockLayout.decode(first.bytes);
  const { base, blocks } = ring(
    first.area,
    "checkpoint descriptor area",
    copy.descriptorBase,
    copy.descriptorBlocks,
  );
  if (blocks > DESCRIPTOR_BLOCKS_MAX) {
    throw unknown(
      `checkpoint descriptor area: ${blocks} blocks found, at most ${DESCRIPTOR_BLOCKS_MAX} expected`,
    );
  }
  const found = await superblocksOf(first.area, base, blocks);
  const [newest, ...earlier] = found.sort((a, b) => b.transaction - a.transaction);
  if (newest === undefined) throw damaged("checkpoint descriptor area: no valid superblock found");
  if (newest.transaction < copy.transaction) {
    throw damaged(`block 0: transaction ${copy.transaction} found, at most ${newest.transaction} expected`);
  }
  checkContainer(newest, first.area);
  const area = { ...first.area, blocks: newest.blocks };
  return {
    ...area,
    ...(await readCheckpoint(area, newest)),
    isBehind: copy.transaction < newest.transaction,
    earlier: earlier.slice(0, EARLIER_MAX),
  };
}

/** The container as of the checkpoint of `sb`. @throws Refused where it is not whole */
export async function readCheckpoint(
  area: Area,
  sb: Superblock,
): Promise<Pick<Container, "sb" | "descriptorBase" | "dataBase" | "ephemerals">> {
  const descriptors = ring(area, "checkpoint descriptor area", sb.descriptorBase, sb.descriptorBlocks);
  const data = ring(area, "checkpoint data area", sb.dataBase, sb.dataBlocks);
  const ephemerals = new Map<number, Ephemeral>();
  const maps = sb.descriptorLength - 1;
  if (maps < 1 || maps >= descriptors.blocks || sb.descriptorIndex >= descriptors.blocks) {
    throw damaged(`superblock: checkpoint of ${sb.descriptorLength} blocks at ${sb.descriptorIndex} found`);
  }
  for (let index = 0; index < maps; index++) {
    const block = descriptors.base + ((sb.descriptorIndex + index) % descriptors.blocks);
    const bytes = await readBlocks(area, "checkpoint map", block, 1);
    verifyChecksum(bytes, block);
    readMap(bytes, block, sb, index === maps - 1, (id, ephemeral) => {
      const end = ephemeral.block + Math.ceil(ephemeral.bytes / area.blockBytes);
      if (ephemeral.block < data.base || end > data.base + data.blocks) {
        throw damaged(
          `checkpoint map in block ${block}: object at ${ephemeral.block} is not in the data area`,
        );
      }
      if (ephemerals.has(id)) throw damaged(`checkpoint map in block ${block}: object ${id} found twice`);
      ephemerals.set(id, ephemeral);
    });
  }
  return { sb, descriptorBase: descriptors.base, dataBase: data.base, ephemerals };
}

function readMap(
  bytes: Uint8Array,
  block: number,
  sb: Superblock,
  isLast: boolean,
  add: (id: number, ephemeral: Ephemeral) => void,
): void {
  const view = viewOf(bytes);
  const count = view.getUint32(OBJECT_BYTES + 4, true);
  if (typeOf(view) !== TYPE.checkpointMap || view.getBigUint64(16, true) !== BigInt(sb.transaction)) {
    throw damaged(`block ${block}: no checkpoint map of transaction ${sb.transaction} found`);
  }
  const flags = view.getUint32(OBJECT_BYTES, true);
  if (flags !== (isLast ? MAP_LAST : 0)) {
    throw damaged(
      `checkpoint map in block ${block}: flags ${flags} found, ${isLast ? MAP_LAST : 0} expected`,
    );
  }
  const room = Math.floor((bytes.length - OBJECT_BYTES - 8) / MappingLayout.bytes);
  if (count > room)
    throw damaged(`checkpoint map in block ${block}: ${count} entries found, room for ${room}`);
  for (let index = 0; index < count; index++) {
    const { id, ...ephemeral } = MappingLayout.decode(bytes, OBJECT_BYTES + 8 + index * MappingLayout.bytes);
    add(id, ephemeral);
  }
}

function ring(area: Area, what: string, base: bigint, count: number): { base: number; blocks: number } {
  if (count >= FRAGMENTED || base >= 2n ** 63n) {
    throw unknown(`the ${what} is fragmented, which no container is known to be`);
  }
  if (count === 0 || base > BigInt(area.blocks)) {
    throw damaged(`${what}: ${count} blocks at ${base} found, inside of ${area.blocks} expected`);
  }
  checkRange(area, what, Number(base), count);
  return { base: Number(base), blocks: count };
}

/** Every valid superblock of the ring. */
async function superblocksOf(area: Area, base: number, blocks: number): Promise<Superblock[]> {
  const found: Superblock[] = [];
  for (let from = 0; from < blocks; from += READ_BLOCKS) {
    const count = Math.min(READ_BLOCKS, blocks - from);
    const bytes = await readBlocks(area, "checkpoint descriptor area", base + from, count);
    for (let index = 0; index < count; index++) {
      const block = bytes.subarray(index * area.blockBytes, (index + 1) * area.blockBytes);
      if (isSuperblock(block)) found.push(SuperblockLayout.decode(block));
    }
  }
  return found;
}

function isSuperblock(block: Uint8Array): boolean {
  const view = viewOf(block);
  return (
    view.getUint32(OBJECT_BYTES, true) === MAGIC &&
    typeOf(view) === TYPE.containerSuperblock &&
    hasValidChecksum(block)
  );
}

/** An object that lives in the checkpoint itself, and was written with it. @throws Refused */
export async function readEphemeral(
  container: Container,
  what: string,
  id: number,
  type: number,
  subtype = 0,
): Promise<{ readonly bytes: Uint8Array; readonly block: number }> {
  const { transaction } = container.sb;
  const mapping = container.ephemerals.get(id);
  if (mapping === undefined) throw damaged(`${what}: object ${id} is not in the checkpoint`);
  const { block, bytes: length } = mapping;
  if (length === 0 || length > OBJECT_BYTES_MAX || length % container.blockBytes !== 0) {
    throw damaged(`${what}: object of ${length} bytes found, whole blocks expected`);
  }
  const bytes = await readBlocks(container, what, block, length / container.blockBytes);
  verifyObject(bytes, block, { type, subtype, id, storage: STORAGE.ephemeral, transaction });
  const view = viewOf(bytes);
  if (view.getUint32(24, true) !== mapping.type || subtype !== mapping.subtype) {
    throw damaged(`${what} in block ${block}: not of the type that the checkpoint map says`);
  }
  if (looseU64(view, 16) !== transaction) {
    throw damaged(`${what} in block ${block}: not of transaction ${transaction}`);
  }
  return { bytes, block };
}
