/**
 * Taking back: what would come back, and bringing it back.
 *
 *   a masked range       its mask is lifted: one record, nothing is copied
 *   a saved range        its old bytes are written into the image, flushed, and then released
 *
 * A byte that was written since it was trimmed or zeroed is left alone, unless `overWrites` asks for what it held at
 * that time: the earliest that the guard has of it. Whatever stops this, it can be done again: until its record is
 * durable nothing is released, and what lies in the image behind a mask is saved before anything is written there. What
 * has rotten in the log does not keep back the rest.
 */
import { crc32c } from "../../bytes/checksum.ts";
import type { Extent } from "../../bytes/extents.ts";
import { type BlockDevice, readBytes, type WritableDevice } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { damaged } from "./log.ts";
import { type Block, cut, DOOMED, HIDDEN, type Piece, PieceList, ZEROS } from "./pieces.ts";
import { saveTops } from "./saving.ts";
import type { GuardState } from "./state.ts";
import type { Vault } from "./vault.ts";

export interface Choice {
  /** What happened in this second or later, in seconds since 1970. */
  readonly since: number;
  /** Also where the guest has written something else since. */
  readonly overWrites: boolean;
}

/** What would come back, in the order of the disk. */
export function offered(state: GuardState, { since, overWrites }: Choice): Piece[] {
  const chosen = new PieceList();
  if (overWrites) for (const piece of state.under) if (piece.time >= since) fill(chosen, piece);
  for (const piece of state.tops)
    if (piece.time >= since && (piece.flags & DOOMED) === 0) fill(chosen, piece);
  return [...chosen];
}

/** Takes a piece where none was taken: those that happened first come first. */
function fill(chosen: PieceList, piece: Piece): void {
  chosen.rewrite(piece, {
    piece: (taken) => taken,
    gap: (start, end) => cut(piece, { start, end }),
  });
}

/** The second in which the last burst of changes began: one after another without a pause of `pauseSeconds`. */
export function lastBurst(state: GuardState, pauseSeconds = 10): number | undefined {
  const times = [...new Set([...state.tops, ...state.under].map(({ time }) => time))].sort((a, b) => b - a);
  let began = times[0];
  for (const time of times) {
    if (began! - time > pauseSeconds) break;
    began = time;
  }
  return began;
}

/** The old bytes of a piece, in batches that fit into memory. @throws DiskError `corrupt`, `io` */
export async function* oldBytes(
  piece: Piece,
  image: BlockDevice,
  log: BlockDevice,
): AsyncGenerator<{ readonly at: number; readonly data: Uint8Array }> {
  const { start, end, block, offset } = piece;
  if (block !== undefined) {
    const whole = await readBlock(log, block);
    yield { at: start, data: whole.subarray(offset, offset + end - start) };
    return;
  }
  for (let at = start; at < end; at += COPY_BYTES)
    yield { at, data: await readBytes(image, at, Math.min(COPY_BYTES, end - at)) };
}

const COPY_BYTES = 1024 * 1024;

async function readBlock(log: BlockDevice, { at, bytes, crc }: Block): Promise<Uint8Array> {
  if (at + bytes > log.bytes) throw damaged(`saved bytes at ${at} lie behind its end`);
  const data = await readBytes(log, at, bytes);
  if (crc32c(0, data) !== crc) throw damaged(`the checksum of the saved bytes at ${at} is wrong`);
  return data;
}

/** So much is written between two flushes. */
const BATCH_BYTES = 64 * 1024 * 1024;

/**
 * @param onPiece called now and then, for it may take long
 * @param onProgress told how many bytes are back; may throw to stop
 */
export async function restore(
  vault: Vault,
  below: WritableDevice,
  log: BlockDevice,
  choice: Choice,
  onPiece: () => Promise<void>,
  onProgress: (bytes: number) => void = () => {},
): Promise<void> {
  let done = 0;
  let batch: Piece[] = [];
  let bytes = 0;
  let rotten: DiskError | undefined;
  const commit = async (): Promise<void> => {
    for (const piece of batch) letGo(vault, piece, choice);
    await vault.commit();
    done += bytes;
    [batch, bytes] = [[], 0];
    onProgress(done);
  };
  for (const piece of offered(vault.state, choice)) {
    await onPiece();
    try {
      await writeBack(vault, below, log, piece);
    } catch (error) {
      if (!(error instanceof DiskError) || error.kind !== "corrupt") throw error;
      rotten ??= error;
      continue;
    }
    batch.push(piece);
    bytes += piece.end - piece.start;
    if (bytes >= BATCH_BYTES) await commit();
  }
  await commit();
  if (rotten !== undefined) throw lossOf(rotten);
}

function lossOf(cause: DiskError): DiskError {
  return new DiskError("corrupt", `not everything came back: ${cause.message}`, {
    code: "guard-damaged",
    hint: "all that is whole came back; what is not stays guarded, as it is",
    cause,
  });
}

async function writeBack(vault: Vault, below: WritableDevice, log: BlockDevice, piece: Piece): Promise<void> {
  const range: Extent = { start: piece.start, end: piece.end };
  if (piece.flags & ZEROS) {
    await saveTops(vault, below, range);
    return await below.zero(range);
  }
  if (piece.block === undefined) return;
  await saveTops(vault, below, range);
  for await (const { at, data } of oldBytes(piece, below, log)) await below.write(at, data);
}

function letGo(vault: Vault, { start, end, flags, block }: Piece, { since, overWrites }: Choice): void {
  const range = { start, end };
  const isMasked = flags & HIDDEN && block === undefined;
  if (!overWrites || isMasked) {
    vault.state.release(range);
    vault.pending.add("release", range);
  } else {
    vault.state.release(range, since);
    vault.pending.add("release", range, since, 1);
  }
}
