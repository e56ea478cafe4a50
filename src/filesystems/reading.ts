/**
 * Many small reads at once: neighbours in one, a few in flight, handed over in order.
 */
import type { BlockDevice } from "../device/device.ts";

const READ_BYTES_MAX = 1 << 20;
/** Reading on is cheaper than a second read across a gap as small as this. */
const GAP_BYTES_MAX = 1 << 16;
/** A job's result is used up before the fourth job behind it starts, so that four buffers go round. */
export const IN_FLIGHT = 4;

/**
 * Reads the block at each of `positions` (block numbers, best ascending) and hands them over in the given order, with
 * the place in `positions`. The bytes belong to the receiver until it returns.
 */
export async function readScattered(
  device: BlockDevice,
  blockBytes: number,
  positions: ArrayLike<number>,
  use: (index: number, bytes: Uint8Array) => void,
): Promise<void> {
  function* batches() {
    for (let from = 0; from < positions.length;) {
      const first = positions[from]!;
      let to = from + 1;
      for (; to < positions.length; to++) {
        const gap = (positions[to]! - positions[to - 1]!) * blockBytes;
        const length = (positions[to]! - first + 1) * blockBytes;
        if (gap < 0 || gap > GAP_BYTES_MAX || length > READ_BYTES_MAX) break;
      }
      yield readBatch(from, to);
      from = to;
    }
  }
  const buffers: Uint8Array[] = [];
  let turn = 0;
  async function readBatch(from: number, to: number) {
    const length = (positions[to - 1]! - positions[from]! + 1) * blockBytes;
    const place = turn++ % IN_FLIGHT;
    if ((buffers[place]?.length ?? 0) < length) buffers[place] = new Uint8Array(length);
    const bytes = buffers[place]!.subarray(0, length);
    await device.read(positions[from]! * blockBytes, bytes);
    return { from, to, bytes };
  }
  await pipelined(batches(), ({ from, to, bytes }) => {
    for (let index = from; index < to; index++) {
      const at = (positions[index]! - positions[from]!) * blockBytes;
      use(index, bytes.subarray(at, at + blockBytes));
    }
  });
}

/** Awaits the jobs in order, a few ahead; taking one from `jobs` starts it. */
export async function pipelined<T>(
  jobs: Iterable<Promise<T>>,
  use: (result: T) => void | Promise<void>,
): Promise<void> {
  const flying: Promise<T>[] = [];
  try {
    for (const job of jobs) {
      job.catch(() => {}); // Awaited in its turn, or abandoned because one before it failed.
      flying.push(job);
      if (flying.length === IN_FLIGHT) await use(await flying.shift()!);
    }
    while (flying.length > 0) await use(await flying.shift()!);
  } finally {
    await Promise.allSettled(flying);
  }
}
