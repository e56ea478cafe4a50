/**
 * Images with a guard beside them: what their guest sees, and who may write to them.
 *
 *   disk.qcow2                   the image: masked ranges still hold their old bytes
 *   disk.qcow2.ullage-guard      the guard's log
 *
 * Readers see the masks, so that a survey counts what the guest does. Writers are refused while the guard holds
 * something: only who opens the guard as well (`serve --guard-for`, `undo`) may write to the image.
 */
import path from "node:path";
import type { ExtentSet } from "../bytes/extents.ts";
import type { HostFile, ReadableFile, WritableDevice } from "../device/device.ts";
import { replace } from "../device/replace.ts";
import { DiskError } from "../error.ts";
import type { Image } from "../formats/format.ts";
import {
  type LastChange,
  lastChangeBelow,
  lastChangeOf,
  protectLike,
  realPath,
  realPathOf,
  removeFile,
} from "../host/changes.ts";
import { identityAt } from "../host/medium.ts";
import { hostSource } from "../host/source.ts";
import { Guard, type GuardOptions } from "../live/guard.ts";
import { maskedRuns, readMasked } from "../live/guard/masked.ts";
import { HIDDEN, type PieceList } from "../live/guard/pieces.ts";
import { type Replayed, replay } from "../live/guard/replay.ts";
import { type FileStamp, whyStale } from "../live/guard/stamp.ts";
import { GuardState } from "../live/guard/state.ts";
import type { Disk } from "./open.ts";
import type { GuardReport } from "./results.ts";

/** Whatever link the image was named by. @throws DiskError `io` where there is no image */
export function guardPathOf(file: string): string {
  return `${realPath(file)}.ullage-guard`;
}

/** What lies beside an image that is only read. */
export interface GuardView {
  readonly path: string;
  readonly state: GuardState;
  /** Why nothing of it is believed, and nothing masked; undefined: it fits. */
  readonly doubt: string | undefined;
}

/** What of the image is read as zeros though it holds old bytes. */
export function maskedBy(view: GuardView | undefined): ExtentSet {
  return (view === undefined || view.doubt !== undefined ? new GuardState() : view.state).hidden();
}

export function guardReport(view: GuardView | undefined): GuardReport | null {
  if (view === undefined) return null;
  const { bytes, hiddenBytes } = view.state;
  return {
    guardedBytes: bytes,
    maskedBytes: hiddenBytes,
    savedBytes: bytes - hiddenBytes,
    doubt: view.doubt ?? null,
  };
}

/** @returns undefined where nothing is guarded. @throws DiskError `io` */
export async function viewGuard(file: string, image: Image): Promise<GuardView | undefined> {
  const place = guardPathOf(file);
  if (identityAt(place) === undefined) return undefined;
  await using log = await hostSource(place).open();
  const found = await replayOrDoubt(log);
  if (found === undefined) return undefined;
  if (typeof found === "string") return { path: place, state: new GuardState(), doubt: found };
  if (found.state.isEmpty) return undefined;
  return { path: place, state: found.state, doubt: doubtAbout(found, image, stamper(file, image)()) };
}

function doubtAbout(
  { header, stamp }: Replayed,
  image: Image,
  files: readonly FileStamp[] | undefined,
): string | undefined {
  if (header.diskBytes !== image.bytes)
    return `its disk had ${header.diskBytes} bytes, and has ${image.bytes}`;
  return whyStale(stamp, files);
}

async function replayOrDoubt(log: ReadableFile): Promise<Replayed | string | undefined> {
  try {
    return await replay(log);
  } catch (error) {
    if (error instanceof DiskError && error.kind !== "io") return error.message;
    throw error;
  }
}

/**
 * Writers that know nothing of the guard would destroy what it keeps in the image.
 * @throws DiskError `refused` while a guard holds something of it, or nobody knows whether it does
 */
export async function refuseGuarded(file: string): Promise<void> {
  const place = guardPathOf(file);
  if (identityAt(place) === undefined) return;
  await using log = await hostSource(place).open();
  const found = await replayOrDoubt(log);
  if (found === undefined || (typeof found !== "string" && found.state.isEmpty)) return;
  const why = typeof found === "string" ? `; what it holds is not known: ${found}` : "";
  throw new DiskError("refused", `a guard holds what was freed, so that it can be taken back${why}`, {
    code: "guarded",
    hint: "ullage undo shows it; serve --guard-for goes on with it; ullage undo --forget gives it up",
  });
}

/** The image as its guest sees it. */
export function masked<I extends Image>(image: I, tops: PieceList): I {
  const read: Image["read"] = (at, into) => readMasked(image, tops, at, into);
  const map: Image["map"] = (range) => maskedRuns(image.map(range), tops);
  const locate: Image["locate"] = (at, bytes, access) => {
    const [first] = [...tops.within({ start: at, end: at + bytes })].filter(({ flags }) => flags & HIDDEN);
    const end = Math.min(at + bytes, first?.start ?? Infinity);
    return end <= at ? undefined : image.locate?.(at, end - at, access);
  };
  const replaced: Readonly<Record<string, unknown>> = { read, map, locate };
  return replace(image, (name) => replaced[String(name)] as ReturnType<Parameters<typeof replace>[1]>);
}

/**
 * Tells, also after the image was closed, what its files look like; undefined where that cannot be told, or where others
 * lie in their places by now.
 */
export function stamper(file: string, { files }: Image): () => readonly FileStamp[] | undefined {
  const named = (name: string, change: LastChange): FileStamp => ({ name, ...change });
  const first = files.get("");
  const folder = realPath(file);
  const isBundle = first !== undefined && realPathOf(first)?.startsWith(`${folder}${path.sep}`);
  const places = isBundle
    ? [["", folder] as const]
    : Array.from(files, ([name, each]) => [name, realPathOf(each)] as const);
  const known = places.map(([name, place]) => ({ name, place, identity: place && identityAt(place) }));
  return () => {
    const stamps: FileStamp[] = [];
    for (const { name, place, identity } of known) {
      if (place === undefined || identityAt(place) !== identity) return undefined;
      stamps.push(named(name, isBundle ? lastChangeBelow(place) : lastChangeOf(place)));
    }
    return stamps;
  };
}

/** A guard over an image that somebody opened for writing. */
export interface OpenGuard {
  readonly guard: Guard;
  /** After the guard and the image were closed: what the image looks like now is written down, and the log closed. */
  seal(): Promise<void>;
}

/**
 * Opens the guard of an image, or begins one.
 * @param device the image, or filters over it
 * @throws DiskError `refused` where somebody else wrote to the image, `corrupt` for a damaged log, `unsupported` for a
 * block device, `busy`, `io`
 */
export async function openGuard(
  { path: file, image, options }: Pick<Disk, "path" | "image" | "options">,
  device: WritableDevice,
  settings: Omit<GuardOptions, "stamp" | "isTrusted" | "granuleBytes">,
): Promise<OpenGuard> {
  if (options.window)
    throw new DiskError("usage", "a part of a file cannot be guarded: guard the whole file");
  const stamp = stamper(file, image);
  if (stamp() === undefined) {
    throw new DiskError("unsupported", "a block device cannot be guarded: it does not tell who wrote to it", {
      hint: "guard images that are files",
    });
  }
  const place = guardPathOf(file);
  const source = hostSource(place);
  const isNew = identityAt(place) === undefined;
  const log: HostFile = await (isNew ? source.create() : source.openWritable());
  try {
    if (isNew) protectLike(place, file);
    const blockBytes = await granuleOf(image);
    const guard = await Guard.open(device, log, {
      ...settings,
      granuleBytes: blockBytes,
      isTrusted: options.allow?.guard === true,
      stamp: () => Promise.resolve(stamp()),
    });
    return {
      guard,
      seal: () => guard.seal(() => removeFile(place)),
    };
  } catch (error) {
    await log[Symbol.asyncDispose]();
    throw error;
  }
}

async function granuleOf({ files }: Image): Promise<number> {
  let bytes = 512;
  for (const file of files.values()) bytes = Math.max(bytes, (await file.stat()).blockBytes);
  return bytes;
}

/** Gives up whatever the guard holds, without looking at it. */
export function removeGuard(file: string): void {
  removeFile(guardPathOf(file));
}
