/**
 * What the files of the image looked like when the guard last knew: so that it notices who wrote to them meanwhile.
 *
 *   closed   after a clean stop: length and time of change are exactly those, also of a copy
 *   open     while the disk is served, renewed as it is written to: after a crash no file was changed much later, none looks
 *            older, as a backup does that was put in its place, and each is still the same file
 */
import { DiskError } from "../../error.ts";
import { damaged } from "./log.ts";

export interface FileStamp {
  readonly name: string;
  readonly bytes: number;
  /** When it was last written to, in nanoseconds since 1970. */
  readonly modified: string;
  /** Device and inode. */
  readonly identity: string;
}

export interface Stamp {
  /** When it was made, in milliseconds since 1970. */
  readonly time: number;
  readonly isClosed: boolean;
  readonly files: readonly FileStamp[];
}

/** An open stamp is renewed at least so often while the image changes. */
export const STAMP_EVERY_MS = 10_000;
/** After a crash the last change may be so much later than the last stamp. */
export const STAMP_SLACK_MS = 60_000;
/** In a millisecond. */
const NANOSECONDS = 1_000_000n;
const FILES_MAX = 100_000;

export function encodeStamp(stamp: Stamp): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(stamp));
}

/** @throws DiskError `corrupt` */
export function parseStamp(bytes: Uint8Array): Stamp {
  let found: unknown;
  try {
    found = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw damaged("a stamp is no JSON");
  }
  if (!isStamp(found)) throw damaged("a stamp is none");
  return found;
}

function isStamp(found: unknown): found is Stamp {
  if (typeof found !== "object" || found === null) return false;
  const { time, isClosed, files } = found as Partial<Record<keyof Stamp, unknown>>;
  if (typeof time !== "number" || typeof isClosed !== "boolean" || !Array.isArray(files)) return false;
  return files.length <= FILES_MAX && files.every(isFileStamp);
}

function isFileStamp(found: unknown): found is FileStamp {
  if (typeof found !== "object" || found === null) return false;
  const { name, bytes, modified, identity } = found as Partial<Record<keyof FileStamp, unknown>>;
  const isWhole = typeof name === "string" && typeof bytes === "number" && typeof identity === "string";
  return isWhole && typeof modified === "string" && /^\d{1,20}$/.test(modified);
}

/**
 * Why the image is not as the guard left it; undefined: it is.
 * @param files as they are now; undefined where that cannot be told (block devices)
 */
export function whyStale(
  stamp: Stamp | undefined,
  files: readonly FileStamp[] | undefined,
): string | undefined {
  if (stamp === undefined) return "no stamp says how the image was left";
  if (files === undefined) return "nothing tells when a block device was written to";
  if (files.length !== stamp.files.length) return "the image has other files than it had";
  for (const file of files) {
    const before = stamp.files.find(({ name }) => name === file.name);
    const what = file.name === "" ? "the image" : JSON.stringify(file.name);
    if (before === undefined) return `${what} is new`;
    if (stamp.isClosed) {
      if (before.bytes !== file.bytes) return `${what} has ${file.bytes} bytes, not ${before.bytes}`;
      if (before.modified !== file.modified) return `${what} was written to after the server had stopped`;
      continue;
    }
    if (before.identity !== file.identity) return `${what} is another file`;
    const modified = BigInt(file.modified);
    const latest = BigInt(Math.floor(stamp.time) + STAMP_SLACK_MS) * NANOSECONDS;
    // A host that loses its power may forget its last times of change: flushing a file does not keep them.
    const earliest = BigInt(before.modified) - BigInt(STAMP_SLACK_MS) * NANOSECONDS;
    if (modified < earliest) return `${what} is older than it was`;
    if (modified > latest) return `${what} was written to after the server had died`;
  }
  return undefined;
}

/** Somebody wrote to the image while the guard slept: nothing that it holds is certain. */
export function stale(why: string): DiskError {
  return new DiskError("refused", `the guard does not fit its image: ${why}`, {
    code: "guard-stale",
    hint: "if nothing else wrote to the image: --allow guard; to give up what is guarded: ullage undo --forget",
  });
}
