/**
 * free(): what the bitmaps of the newest checkpoint call free, less what earlier ones still need.
 *
 *   checkpoint   771  772  773  774  775  776      whoever finds the newest damaged goes back to the one before
 *                └── maps still whole ───┘  └ bitmaps, all of them
 *
 * The free queues keep most of what earlier checkpoints need marked as in use; what they let go while the earlier map
 * is still whole is kept here (H4). Maps are replaced oldest first, so that the first one that is not whole ends it.
 */
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import { readScattered } from "../reading.ts";
import { unlessDamaged } from "../refused.ts";
import { readCheckpoint, type Container } from "./checkpoint.ts";
import { contradiction } from "./refused.ts";
import {
  blocksOf,
  readChunks,
  readSpaceManager,
  visitQueues,
  type Chunks,
  type SpaceManager,
} from "./spaceman.ts";

/** The free blocks in bytes. @throws Refused */
export async function freeExtents(container: Container): Promise<ExtentSet> {
  const manager = await readSpaceManager(container);
  const chunks = await readChunks(container, manager);
  const all = Array.from(chunks.free.keys());
  const free = await freeOfChunks(container, manager, chunks, all);
  const queued = new ExtentBuilder();
  const { blockBytes } = container;
  await visitQueues(container, manager, (start, blocks) => {
    queued.add(start * blockBytes, (start + blocks) * blockBytes);
  });
  const contested = free.intersect(queued.build());
  if (contested.count > 0) {
    throw contradiction(`free queue: block ${contested.start(0) / blockBytes} is marked free already`);
  }
  let kept = free;
  for (const sb of container.earlier) {
    const lost = await unlessDamaged(takenThen({ ...container, sb }, chunks));
    if (lost === undefined) break;
    kept = kept.subtract(lost);
  }
  return kept;
}

/** What an earlier checkpoint calls used, in the chunks that have changed since. @throws Refused where it is not whole */
async function takenThen(then: Container, now: Chunks): Promise<ExtentSet> {
  const container = { ...then, ...(await readCheckpoint(then, then.sb)) };
  const manager = await readSpaceManager(container);
  const chunks = await readChunks(container, manager);
  const changed = Array.from(chunks.free.keys()).filter(
    (chunk) => chunks.bitmap[chunk] !== now.bitmap[chunk] || chunks.free[chunk] !== now.free[chunk],
  );
  const free = await freeOfChunks(container, manager, chunks, changed);
  const whole = new ExtentBuilder(changed.length);
  const bytes = manager.blocksPerChunk * container.blockBytes;
  for (const chunk of changed) whole.add(chunk * bytes, (chunk + 1) * bytes);
  return whole.build().subtract(free);
}

/** What the bitmaps of some chunks call free. @throws Refused where the counts do not agree */
async function freeOfChunks(
  container: Container,
  manager: SpaceManager,
  chunks: Chunks,
  wanted: readonly number[],
): Promise<ExtentSet> {
  const free = new ExtentBuilder(wanted.length);
  const { blockBytes } = container;
  const mapped: number[] = [];
  const check = (chunk: number, found: number) => {
    if (found === chunks.free[chunk]) return;
    throw contradiction(
      `bitmap of chunk ${chunk}: ${found} free blocks found, ${chunks.free[chunk]} expected`,
    );
  };
  const add = (chunk: number, start: number, end: number) => {
    const base = chunk * manager.blocksPerChunk;
    free.add((base + start) * blockBytes, (base + end) * blockBytes);
  };
  for (const chunk of wanted) {
    if (chunks.bitmap[chunk] !== 0) {
      mapped.push(chunk);
      continue;
    }
    const blocks = blocksOf(container, manager, chunk);
    add(chunk, 0, blocks);
    check(chunk, blocks);
  }
  const positions = Float64Array.from(mapped, (chunk) => chunks.bitmap[chunk]!);
  await readScattered(container.device, blockBytes, positions, (index, bitmap) => {
    const chunk = mapped[index]!;
    let found = 0;
    clearRuns(bitmap, blocksOf(container, manager, chunk), (start, end) => {
      found += end - start;
      add(chunk, start, end);
    });
    check(chunk, found);
  });
  return free.build();
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
