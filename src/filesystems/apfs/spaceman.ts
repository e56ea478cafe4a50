/**
 * The space manager: which blocks of the container are in use. It serves all volumes and all snapshots.
 *
 *   space manager → (address blocks →) chunk-info blocks → one bitmap a chunk         bit 1: in use; no bitmap: all free
 *                 └ free queues: blocks given up lately, still in use until no checkpoint needs them
 *
 * Bitmaps, chunk-info and address blocks lie in the internal pool, a stretch that counts as used. Bitmaps have no
 * checksum; their counts of free blocks must agree. "Space Manager" of the Apple File System Reference.
 */
import { skip, struct, u32le, u64le, viewOf, bits64le } from "../../bytes/struct.ts";
import { readScattered } from "../reading.ts";
import { readEphemeral, type Container } from "./checkpoint.ts";
import { checkRange, looseU64, OBJECT_BYTES, STORAGE, TYPE, verifyObject } from "./objects.ts";
import { contradiction, damaged, unknown } from "./refused.ts";
import { walkEphemeralTree } from "./tree.ts";

const DeviceLayout = struct({
  blocks: u64le,
  chunks: u64le,
  infoBlocks: u32le,
  addressBlocks: u32le,
  freeBlocks: u64le,
  addressesAt: u32le,
  reserved: skip(12),
});
const QueueLayout = struct({ blocks: u64le, tree: u64le, oldest: u64le, nodesMax: skip(16) });
const DEVICES_AT = 48;
const QUEUES_AT = 200;

const SpaceLayout = struct({
  header: skip(OBJECT_BYTES),
  blockBytes: u32le,
  blocksPerChunk: u32le,
  chunksPerInfo: u32le,
  infosPerAddress: u32le,
  devices: skip(2 * DeviceLayout.bytes),
  flags: u32le,
  transactions: u32le,
  poolBlocks: u64le,
  poolBitmapBlocks: u32le,
  poolBitmapsBlocks: u32le,
  poolBitmapsBase: u64le,
  poolBase: u64le,
  reserve: bits64le,
  reserveAllocated: bits64le,
  queues: skip(3 * QueueLayout.bytes),
});

const FLAG_VERSIONED = 1;
const COUNT_MASK = 0xfffff;
const ChunkLayout = struct({
  transaction: u64le,
  start: u64le,
  blocks: u32le,
  freeBlocks: u32le,
  bitmap: u64le,
});
const CHUNKS_AT = OBJECT_BYTES + 8;
const CHUNKS_MAX = 1 << 24;
const QUEUES = 3;
/** Only a Fusion drive has the queue of a second tier. */
const QUEUE_OF_TIER_2 = 2;

/** The stretches that belong to the space manager itself. */
export interface Pool {
  readonly base: number;
  readonly blocks: number;
  readonly bitmapsBase: number;
  readonly bitmapsBlocks: number;
}

export type SpaceManager = ReturnType<typeof SpaceLayout.decode> & {
  readonly object: Uint8Array;
  readonly device: ReturnType<typeof DeviceLayout.decode>;
  readonly pool: Pool;
};

/** @throws Refused */
export async function readSpaceManager(container: Container): Promise<SpaceManager> {
  const { spaceManager } = container.sb;
  const { bytes: object } = await readEphemeral(container, "space manager", spaceManager, TYPE.spaceManager);
  const fields = SpaceLayout.decode(object);
  const { blockBytes } = container;
  const device = DeviceLayout.decode(object, DEVICES_AT);
  const tier2 = DeviceLayout.decode(object, DEVICES_AT + DeviceLayout.bytes);
  if ((fields.flags & ~FLAG_VERSIONED) !== 0) throw unknown(`space manager: flags ${fields.flags} found`);
  if (tier2.blocks !== 0 || tier2.infoBlocks !== 0)
    throw unknown("space manager: a second tier (Fusion) found");
  const chunksPerInfo = Math.floor((blockBytes - CHUNKS_AT) / ChunkLayout.bytes);
  const infosPerAddress = Math.floor((blockBytes - CHUNKS_AT) / 8);
  const chunks = Math.ceil(container.blocks / (blockBytes * 8));
  const expected = {
    blockBytes,
    blocksPerChunk: blockBytes * 8,
    chunksPerInfo,
    infosPerAddress,
    blocks: container.blocks,
    chunks,
    infoBlocks: Math.ceil(chunks / chunksPerInfo),
  };
  for (const [name, wanted] of Object.entries(expected)) {
    const found = { ...fields, ...device }[name as keyof typeof expected];
    if (found !== wanted) throw damaged(`space manager: ${name} ${found} found, ${wanted} expected`);
  }
  if (chunks > CHUNKS_MAX)
    throw unknown(`space manager: ${chunks} chunks found, at most ${CHUNKS_MAX} expected`);
  const pool: Pool = {
    base: fields.poolBase,
    blocks: fields.poolBlocks,
    bitmapsBase: fields.poolBitmapsBase,
    bitmapsBlocks: fields.poolBitmapsBlocks,
  };
  checkRange(container, "internal pool", pool.base, pool.blocks);
  checkRange(container, "bitmaps of the internal pool", pool.bitmapsBase, pool.bitmapsBlocks);
  return { ...fields, object, device, pool };
}

export interface Chunks {
  readonly free: Uint32Array;
  /** 0: all of the chunk is free. */
  readonly bitmap: Float64Array;
}

/** @throws Refused */
export async function readChunks(container: Container, manager: SpaceManager): Promise<Chunks> {
  const { device } = manager;
  const chunks: Chunks = { free: new Uint32Array(device.chunks), bitmap: new Float64Array(device.chunks) };
  const infos = await infoBlocks(container, manager);
  await readPoolObjects(container, manager, "chunk-info block", TYPE.chunkInfo, infos, (index, bytes) => {
    const view = viewOf(bytes);
    const first = index * manager.chunksPerInfo;
    const count = Math.min(manager.chunksPerInfo, device.chunks - first);
    checkIndex("chunk-info block", view, index, count);
    for (let chunk = first; chunk < first + count; chunk++) {
      const info = ChunkLayout.decode(bytes, CHUNKS_AT + (chunk - first) * ChunkLayout.bytes);
      const blocks = blocksOf(container, manager, chunk);
      if (info.start !== chunk * manager.blocksPerChunk || (info.blocks & COUNT_MASK) !== blocks) {
        throw damaged(`chunk ${chunk}: ${info.blocks} blocks at ${info.start} found, ${blocks} expected`);
      }
      if (info.bitmap !== 0) mustLieInPool(manager, `bitmap of chunk ${chunk}`, info.bitmap);
      chunks.bitmap[chunk] = info.bitmap;
      chunks.free[chunk] = info.freeBlocks & COUNT_MASK;
    }
  });
  const total = chunks.free.reduce((sum, free) => sum + free, 0);
  if (total !== device.freeBlocks) {
    throw contradiction(`space manager: ${total} free blocks found, ${device.freeBlocks} expected`);
  }
  return chunks;
}

export function blocksOf(container: Container, manager: SpaceManager, chunk: number): number {
  return Math.min(manager.blocksPerChunk, container.blocks - chunk * manager.blocksPerChunk);
}

/** Where the chunk-info blocks lie: listed in the space manager itself, or in address blocks. */
async function infoBlocks(container: Container, manager: SpaceManager): Promise<number[]> {
  const { device, object } = manager;
  const isDirect = device.addressBlocks === 0;
  const listed = isDirect ? device.infoBlocks : device.addressBlocks;
  if (device.addressesAt % 8 !== 0 || device.addressesAt + listed * 8 > object.length) {
    throw damaged(
      `space manager: ${listed} addresses at ${device.addressesAt} found in ${object.length} bytes`,
    );
  }
  const addresses = addressesIn(object, device.addressesAt, listed);
  if (isDirect) return addresses;
  const wanted = Math.ceil(device.infoBlocks / manager.infosPerAddress);
  if (listed !== wanted) throw damaged(`space manager: ${listed} address blocks found, ${wanted} expected`);
  const infos: number[] = [];
  await readPoolObjects(
    container,
    manager,
    "address block",
    TYPE.chunkInfoAddresses,
    addresses,
    (index, bytes) => {
      const count = Math.min(manager.infosPerAddress, device.infoBlocks - index * manager.infosPerAddress);
      checkIndex("address block", viewOf(bytes), index, count);
      infos.push(...addressesIn(bytes, CHUNKS_AT, count));
    },
  );
  return infos;
}

function addressesIn(bytes: Uint8Array, at: number, count: number): number[] {
  const view = viewOf(bytes);
  return Array.from({ length: count }, (_, index) => looseU64(view, at + index * 8));
}

function checkIndex(what: string, view: DataView, index: number, count: number): void {
  const [foundIndex, foundCount] = [
    view.getUint32(OBJECT_BYTES, true),
    view.getUint32(OBJECT_BYTES + 4, true),
  ];
  if (foundIndex === index && foundCount === count) return;
  throw damaged(`${what} ${index}: number ${foundIndex} with ${foundCount} found, ${count} expected`);
}

function mustLieInPool({ pool }: SpaceManager, what: string, block: number): void {
  if (block >= pool.base && block < pool.base + pool.blocks) return;
  throw damaged(`${what}: block ${block} found, outside of the internal pool`);
}

/** Reads physical objects of the pool and hands them over in the order of `blocks`. */
async function readPoolObjects(
  container: Container,
  manager: SpaceManager,
  what: string,
  type: number,
  blocks: readonly number[],
  use: (index: number, bytes: Uint8Array) => void,
): Promise<void> {
  for (const block of blocks) mustLieInPool(manager, what, block);
  await readScattered(container.device, container.blockBytes, blocks, (index, bytes) => {
    const block = blocks[index]!;
    const transaction = container.sb.transaction;
    verifyObject(bytes, block, { type, id: block, storage: STORAGE.physical, transaction });
    use(index, bytes);
  });
}

/**
 * The free queues: what was given up lately, and is marked as in use until it leaves its queue.
 * @throws Refused
 */
export async function visitQueues(
  container: Container,
  manager: SpaceManager,
  visit: (start: number, blocks: number) => void,
): Promise<void> {
  for (let index = 0; index < QUEUES; index++) {
    const name = `free queue ${index}`;
    const queue = QueueLayout.decode(manager.object, QUEUES_AT + index * QueueLayout.bytes);
    if (queue.tree === 0) continue;
    if (index === QUEUE_OF_TIER_2) throw unknown(`${name}: a queue of a Fusion drive found`);
    let total = 0;
    await walkEphemeralTree(
      container,
      name,
      queue.tree,
      TYPE.freeQueue,
      (view, key, keyBytes, value, valueBytes) => {
        if (keyBytes !== 16 || (valueBytes !== 8 && valueBytes !== 0)) {
          throw damaged(`${name}: record of ${keyBytes} and ${valueBytes} bytes found`);
        }
        const [start, blocks] = [looseU64(view, key + 8), valueBytes === 0 ? 1 : looseU64(view, value)];
        checkRange(container, name, start, blocks);
        total += blocks;
        visit(start, blocks);
      },
    );
    if (total !== queue.blocks)
      throw contradiction(`${name}: ${total} blocks found, ${queue.blocks} expected`);
  }
}
