/**
 * A request of the transmission phase: parsed, and judged before anything is touched (H29).
 *
 * The judge is one table and one function: which commands may carry which flags, which of them write, and what is wrong with
 * one whose range does not lie inside the export.
 */
import type { Session } from "./export.ts";
import {
  CMD,
  CMD_FLAG,
  DF_BYTES_MIN,
  ERRNO,
  EXTENDED_REQUEST_MAGIC,
  ProtocolBreach,
  REQUEST_MAGIC,
} from "./protocol.ts";

/** One object for all requests of a connection: it is copied where a request is not done at once. */
export interface Request {
  command: number;
  flags: number;
  /** The client's name for it, in two halves. */
  cookieHigh: number;
  cookieLow: number;
  /** As it came: past 2^53 `offset` is only about that. */
  offsetHigh: number;
  offsetLow: number;
  offset: number;
  bytes: number;
}

export function emptyRequest(): Request {
  const position = { offsetHigh: 0, offsetLow: 0, offset: 0, bytes: 0 };
  return { command: 0, flags: 0, cookieHigh: 0, cookieLow: 0, ...position };
}

/** Reads a header into `request`. @throws ProtocolBreach where it has not its magic */
export function parseRequest(view: DataView, at: number, extended: boolean, request: Request): void {
  if (view.getUint32(at) !== (extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC)) {
    throw new ProtocolBreach("a request without its magic");
  }
  request.flags = view.getUint16(at + 4);
  request.command = view.getUint16(at + 6);
  request.cookieHigh = view.getUint32(at + 8);
  request.cookieLow = view.getUint32(at + 12);
  request.offsetHigh = view.getUint32(at + 16);
  request.offsetLow = view.getUint32(at + 20);
  request.offset = request.offsetHigh * 2 ** 32 + request.offsetLow;
  request.bytes = view.getUint32(at + 24);
  if (extended) request.bytes = request.bytes * 2 ** 32 + view.getUint32(at + 28);
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
