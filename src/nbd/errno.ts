/**
 * From failures to the few numbers that NBD knows.
 */
import { DiskError, type ErrorKind } from "../error.ts";
import { CMD_FLAG, ERRNO } from "./protocol.ts";
import type { Request } from "./request.ts";

const ERRORS: Readonly<Record<ErrorKind, number>> = {
  usage: ERRNO.EINVAL,
  corrupt: ERRNO.EIO,
  unsupported: ERRNO.ENOTSUP,
  refused: ERRNO.EPERM,
  busy: ERRNO.EIO,
  io: ERRNO.EIO,
  interrupted: ERRNO.ESHUTDOWN,
};

/** Failures that have a name, among them those that somebody wished for. */
const NAMED: Readonly<Record<string, number | undefined>> = { ...ERRNO, "no-space": ERRNO.ENOSPC };

/** A bug of ours is the client's EIO, too. ENOTSUP says one thing alone: that zeros would not be fast. */
export function errnoOf(error: unknown, { flags }: Request): number {
  if (!(error instanceof DiskError)) return ERRNO.EIO;
  const named = NAMED[error.code ?? ""];
  if (named !== undefined) return named;
  if (error.kind === "unsupported" && (flags & CMD_FLAG.FAST_ZERO) === 0) return ERRNO.EINVAL;
  return ERRORS[error.kind];
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
