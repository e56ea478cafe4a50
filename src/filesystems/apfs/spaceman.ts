/**
 * The space manager: which blocks of the container are in use. It serves all volumes and all snapshots.
 *
 *   space manager → (address blocks →) chunk-info blocks → one bitmap a chunk         bit 1: in use; no bitmap: all free
 *                 └ free queues: blocks given up lately, still in use until no checkpoint needs them
 *
 * Bitmaps, chunk-info and address blocks lie in the internal pool, a stretch that counts as used. Bitmaps have no
 * checksum; their counts of free blocks must agree. "Space Manager" of the Apple File System Reference.
 */
import { ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import { skip, struct, u32le, u64le, viewOf, bits64le } from "../../bytes/struct.ts";
import { readScattered } from "../reading.ts";
import { readEphemeral, type Container } from "./checkpoint.ts";
import { checkRange, looseU64, OBJECT_BYTES, STORAGE, TYPE, verifyObject } from "./objects.ts";
import { contradiction, damaged, unknown } from "./refused.ts";
import { walkEphemeralTree } from "./tree.ts";

const Device = {
  blocks: u64le,
  chunks: u64le,
  infoBlocks: u32le,
  addressBlocks: u32le,
  freeBlocks: u64le,
  addressesAt: u32le,
  reserved: skip(12),
};
const DeviceLayout = struct(Device);
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
const QUEUE_NAMES = ["free queue of the internal pool", "free queue", "free queue of the second tier"];
const MAIN_QUEUE = 1;

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
  const object = await readEphemeral(
    container,
    "space manager",
    container.sb.spaceManager,
    TYPE.spaceManager,
  );
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

/** What the bitmaps call free, in bytes, less what waits in the free queues. @throws Refused */
export async function freeExtents(container: Container): Promise<ExtentSet> {
  const manager = await readSpaceManager(container);
  const chunks = await readChunks(container, manager);
  const free = await freeOfChunks(container, manager, chunks);
  return free.subtract(await queued(container, manager));
}

interface Chunks {
  readonly free: Uint32Array;
  /** 0: all of the chunk is free. */
  readonly bitmap: Float64Array;
}

async function readChunks(container: Container, manager: SpaceManager): Promise<Chunks> {
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
  return chunks;
}

function blocksOf(container: Container, manager: SpaceManager, chunk: number): number {
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

async function freeOfChunks(container: Container, manager: SpaceManager, chunks: Chunks): Promise<ExtentSet> {
  const free = new ExtentBuilder(manager.device.chunks);
  const { blockBytes } = container;
  const mapped: number[] = [];
  let total = 0;
  const add = (chunk: number, start: number, end: number) => {
    const base = chunk * manager.blocksPerChunk;
    free.add((base + start) * blockBytes, (base + end) * blockBytes);
  };
  const count = (chunk: number, found: number) => {
    total += found;
    if (found !== chunks.free[chunk]) {
      throw contradiction(
        `bitmap of chunk ${chunk}: ${found} free blocks found, ${chunks.free[chunk]} expected`,
      );
    }
  };
  for (let chunk = 0; chunk < chunks.bitmap.length; chunk++) {
    if (chunks.bitmap[chunk] !== 0) {
      mapped.push(chunk);
      continue;
    }
    const blocks = blocksOf(container, manager, chunk);
    add(chunk, 0, blocks);
    count(chunk, blocks);
  }
  const positions = Float64Array.from(mapped, (chunk) => chunks.bitmap[chunk]!);
  await readScattered(container.device, blockBytes, positions, (index, bitmap) => {
    const chunk = mapped[index]!;
    let found = 0;
    clearRuns(bitmap, blocksOf(container, manager, chunk), (start, end) => {
      found += end - start;
      add(chunk, start, end);
    });
    count(chunk, found);
  });
  if (total !== manager.device.freeBlocks) {
    throw contradiction(`space manager: ${total} free blocks found, ${manager.device.freeBlocks} expected`);
  }
  return free.build();
}

/** Blocks that recent checkpoints need and the newest does not: the bitmaps call them used until they leave the queue. */
async function queued(container: Container, manager: SpaceManager): Promise<ExtentSet> {
  const waiting = new ExtentBuilder();
  for (let index = 0; index < QUEUE_NAMES.length; index++) {
    const name = QUEUE_NAMES[index]!;
    const queue = QueueLayout.decode(manager.object, QUEUES_AT + index * QueueLayout.bytes);
    if (index > MAIN_QUEUE && queue.tree !== 0) throw unknown(`${name}: a queue of a Fusion drive found`);
    if (queue.tree === 0) continue;
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
        waiting.add(start * container.blockBytes, (start + blocks) * container.blockBytes);
      },
    );
    if (total !== queue.blocks)
      throw contradiction(`${name}: ${total} blocks found, ${queue.blocks} expected`);
  }
  return waiting.build();
}

/** Calls `found` for every run of clear bits among the first `bits`, a word at a time. */
function clearRuns(bitmap: Uint8Array, bits: number, found: (start: number, end: number) => void): void {
  const words = new Int32Array(bitmap.buffer, bitmap.byteOffset, Math.ceil(bits / 32));
  let start = -1;
  for (let at = 0; at < bits;) {
    const word = words[at >>> 5]! ^ (start < 0 ? -1 : 0);
    const wanted = word & (-1 << (at & 31));
    if (wanted === 0) {
      at = ((at >>> 5) + 1) * 32;
      continue;
    }
    at = (at >>> 5) * 32 + 31 - Math.clz32(wanted & -wanted);
    if (at >= bits) break;
    if (start >= 0) found(start, at);
    start = start < 0 ? at : -1;
  }
  if (start >= 0) found(start, bits);
}
