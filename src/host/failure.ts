/**
 * From the host's error codes to the kinds of `DiskError`: one table for Node's own errors and for native calls.
 */
import { DiskError, type ErrorKind } from "../error.ts";

interface Meaning {
  readonly kind: ErrorKind;
  readonly text: string;
  readonly code?: string;
}

const MEANINGS: Readonly<Record<string, Meaning>> = {
  ENOENT: { kind: "io", text: "there is no such file", code: "not-found" },
  ENOTDIR: { kind: "io", text: "a part of the path is not a directory", code: "not-found" },
  EACCES: { kind: "io", text: "permission denied", code: "permission" },
  EPERM: { kind: "io", text: "operation not permitted", code: "permission" },
  EROFS: { kind: "io", text: "the host's filesystem is read-only", code: "read-only" },
  ENOSPC: { kind: "io", text: "no space left on the host", code: "no-space" },
  EDQUOT: { kind: "io", text: "the quota on the host is exhausted", code: "no-space" },
  EIO: { kind: "io", text: "the medium failed" },
  EFBIG: { kind: "io", text: "the file would be too large for the host" },
  EEXIST: { kind: "usage", text: "it exists already", code: "exists" },
  EISDIR: { kind: "usage", text: "it is a directory", code: "directory" },
  ELOOP: { kind: "refused", text: "it is a symbolic link", code: "outside" },
  EBUSY: { kind: "busy", text: "the host uses it (mounted, or held by another driver)" },
  ETXTBSY: { kind: "busy", text: "the host uses it as swap space or as a program" },
  ENOTSUP: { kind: "unsupported", text: "the host's filesystem does not support this", code: "no-holes" },
};

/** The `code` of an error of Node or of a native call. */
export function codeOf(error: unknown): string | undefined {
  return error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : undefined;
}

/**
 * @param doing what failed, with path and offset: `disk.raw: read of 4096 bytes at 512`
 * @throws the error itself when the host did not cause it
 */
export function hostError(error: unknown, doing: string): DiskError {
  const code = codeOf(error);
  if (error instanceof DiskError) return error;
  if (code === undefined || !/^E[A-Z0-9]+$/.test(code)) throw error;
  const meaning = MEANINGS[code];
  return new DiskError(meaning?.kind ?? "io", `${doing}: ${meaning?.text ?? "failed"} (${code})`, {
    ...(meaning?.code !== undefined && { code: meaning.code }),
    cause: error,
  });
}
