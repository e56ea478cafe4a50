/**
 * A request of the transmission phase: parsed, and judged before anything is touched (H29).
 *
 * The judge is one table and one function: which commands may carry which flags, which of them write, and what is wrong with
 * one whose range does not lie inside the export.
 */
import type { Session } from "./export.ts";
import { CMD, CMD_FLAG, DF_BYTES_MIN, ERRNO } from "./protocol.ts";

/** One object for all requests of a connection: it is copied where a request is not done at once. */
export interface Request {
  command: number;
  flags: number;
  /** The client's name for it, in two halves. */
  cookieHigh: number;
  cookieLow: number;
  offset: number;
  bytes: number;
}

const { FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN } = CMD_FLAG;

/** Flags that a command may carry. FUA is allowed with all, and means nothing to those that do not write. */
const FLAGS: Readonly<Record<number, number>> = {
  [CMD.READ]: FUA | DF,
  [CMD.WRITE]: FUA | PAYLOAD_LEN,
  [CMD.FLUSH]: FUA,
  [CMD.TRIM]: FUA,
  [CMD.CACHE]: FUA,
  [CMD.WRITE_ZEROES]: FUA | NO_HOLE | FAST_ZERO,
  [CMD.BLOCK_STATUS]: FUA | REQ_ONE,
};

const WRITES = new Set<number>([CMD.WRITE, CMD.TRIM, CMD.WRITE_ZEROES]);

/** The error to answer with, or 0. */
export function judge({ command, flags, offset, bytes }: Request, session: Session): number {
  const allowed = FLAGS[command];
  const { export: disk, structured, contexts } = session;
  if (allowed === undefined || (flags & ~allowed) !== 0) return ERRNO.EINVAL;
  if ((flags & PAYLOAD_LEN) !== 0 && !session.extended) return ERRNO.EINVAL;
  if ((flags & DF) !== 0 && !structured) return ERRNO.EINVAL;
  if (command === CMD.FLUSH) return offset === 0 && bytes === 0 ? 0 : ERRNO.EINVAL;
  if (WRITES.has(command) && disk.isReadOnly) return ERRNO.EPERM;
  if (!(offset + bytes <= disk.device.bytes)) {
    return command === CMD.WRITE || command === CMD.WRITE_ZEROES ? ERRNO.ENOSPC : ERRNO.EINVAL;
  }
  if (offset % disk.blocks.minimum !== 0 || bytes % disk.blocks.minimum !== 0) return ERRNO.EINVAL;
  if (command === CMD.BLOCK_STATUS) return contexts.length > 0 && bytes > 0 ? 0 : ERRNO.EINVAL;
  const isTooLong = command === CMD.READ && bytes > Math.max(disk.blocks.maximum, DF_BYTES_MIN);
  return isTooLong ? ERRNO.EINVAL : 0;
}
