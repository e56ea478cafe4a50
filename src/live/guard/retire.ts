/**
 * How guarded bytes leave the image: because their time is over, or because the guest was promised zeros, and other tools
 * are to read them as well.
 *
 *   expire   lock → doom, durable → zero, discard → release (pending) → flush
 *   settle   lock → save, durable → zero, discard → settle  (pending) → flush
 *
 * Zeros come first, because a discard may leave old bytes, and what was masked must never be seen again.
 */
import type { Extent } from "../../bytes/extents.ts";
import type { WritableDevice } from "../../device/device.ts";
import { cut, HIDDEN, KEEP, type Piece, PROMISED } from "./pieces.ts";
import { saveTops } from "./saving.ts";
import type { Vault } from "./vault.ts";

/** What is zeroed at once while others wait for it. */
const BATCH_PIECES = 64;
const BATCH_BYTES = 256 * 1024 * 1024;
/** What is saved at once while others wait for it. */
const SETTLE_BYTES = 4 * 1024 * 1024;

/**
 * Lets go of everything up to that second, oldest first.
 * @param onBatch called now and then, for it may take long
 * @returns the bytes of the disk that were zeroed
 */
export async function expire(
  vault: Vault,
  below: WritableDevice,
  upTo: number,
  onBatch: () => Promise<void>,
): Promise<number> {
  const { state } = vault;
  if (state.oldest > upTo) return 0;
  const due = [...state.tops].filter(({ time }) => time <= upTo).sort((a, b) => a.time - b.time);
  let bytes = 0;
  for (const batch of batches(due, BATCH_BYTES)) {
    await locked(vault, batch, async (ranges) => {
      const pieces = ranges.flatMap((range) =>
        [...state.tops.within(range)].map((piece) => cut(piece, range)).filter(({ time }) => time <= upTo),
      );
      const hidden = pieces.filter(({ flags }) => flags & HIDDEN);
      if (hidden.length > 0) await vault.doom(hidden);
      for (const piece of pieces) {
        if (piece.flags & HIDDEN) await empty(below, piece);
        state.release(piece);
        vault.pending.add("release", { start: piece.start, end: piece.end });
        bytes += piece.end - piece.start;
      }
    });
    await vault.commit();
    await onBatch();
  }
  if (state.under.some(({ time }) => time <= upTo)) {
    state.expireUnder(upTo);
    vault.pending.add("expire", { start: 0, end: below.bytes }, upTo);
    await vault.commit();
  }
  state.findOldest();
  return bytes;
}

/** Where the guest was promised zeros, the image holds them: up to about `bytesMax` of it. */
export async function settle(
  vault: Vault,
  below: WritableDevice,
  onBatch: () => Promise<void>,
  bytesMax = Infinity,
): Promise<void> {
  const { state } = vault;
  if (state.promisedBytes === 0) return;
  const promised = [...state.tops].filter(({ flags }) => flags & HIDDEN && flags & PROMISED);
  let bytes = 0;
  for (const batch of batches(promised, SETTLE_BYTES)) {
    if (bytes >= bytesMax) break;
    bytes += batch.reduce((sum, { start, end }) => sum + end - start, 0);
    await locked(vault, batch, async (ranges) => {
      for (const range of ranges) {
        await saveTops(vault, below, range);
        for (const piece of [...state.tops.within(range)].map((each) => cut(each, range))) {
          if ((piece.flags & HIDDEN) === 0) continue;
          await empty(below, piece);
          state.settle(piece);
          vault.pending.add("settle", { start: piece.start, end: piece.end });
        }
      }
    });
    await onBatch();
  }
  if (bytes > 0) await vault.commit();
}

async function empty(below: WritableDevice, { start, end, flags }: Piece): Promise<void> {
  const keep = (flags & KEEP) !== 0;
  await below.zero({ start, end }, { keep });
  if (!keep) await below.discard({ start, end });
}

/** In groups of bounded size; a piece that is too long is cut. */
function* batches(pieces: readonly Piece[], bytesMax: number): Generator<readonly Extent[]> {
  let batch: Extent[] = [];
  let bytes = 0;
  for (const { start, end } of pieces) {
    for (let at = start; at < end;) {
      const stop = Math.min(end, at + bytesMax - bytes);
      batch.push({ start: at, end: stop });
      bytes += stop - at;
      at = stop;
      if (bytes < bytesMax && batch.length < BATCH_PIECES) continue;
      yield batch;
      [batch, bytes] = [[], 0];
    }
  }
  if (batch.length > 0) yield batch;
}

async function locked(
  vault: Vault,
  ranges: readonly Extent[],
  work: (ranges: readonly Extent[]) => Promise<void>,
): Promise<void> {
  const release = await vault.locks.take(...ranges);
  try {
    await work(ranges);
  } finally {
    release();
  }
}
