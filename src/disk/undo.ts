/**
 * Undo: what a guard still holds comes back, into the image or into a new overlay above it.
 *
 *   look → choose (since, last) → confirm → restore, batch by batch → seal
 *   --to   image (as it is) ← overlay: what comes back, and zeros where the guest sees zeros
 *
 * Whatever interrupts it, the same command once more does the rest (`live/guard/restore.ts`).
 */
import path from "node:path";
import { ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice, WritableDevice } from "../device/device.ts";
import { Borrowed } from "../device/filter.ts";
import { DiskError } from "../error.ts";
import { realPath, removeFile } from "../host/changes.ts";
import { inUse } from "../host/inuse.ts";
import { identityAt } from "../host/medium.ts";
import { hostSource } from "../host/source.ts";
import type { Guard } from "../live/guard.ts";
import { type Piece, ZEROS } from "../live/guard/pieces.ts";
import { replay } from "../live/guard/replay.ts";
import { type Choice, lastBurst, offered, oldBytes } from "../live/guard/restore.ts";
import { stale } from "../live/guard/stamp.ts";
import { causeOf, GuardState } from "../live/guard/state.ts";
import { type GuardView, guardPathOf, type OpenGuard, openGuard, removeGuard, viewGuard } from "./guarded.ts";
import { formatNamed, openImage, openWritable, parentsOf, sourceOf } from "./open.ts";
import type { OpenOptions, Progress } from "./results.ts";
import { requireSafe } from "./safe.ts";
import { requireTestedHost } from "./survey.ts";

export type Cause = "trim" | "zero" | "write";

export interface UndoOptions extends OpenOptions {
  /** Takes back what happened at this time or later, in milliseconds since 1970. */
  readonly since?: number;
  /** Takes back the last burst of changes. */
  readonly last?: boolean;
  /** Into a new qcow2 overlay of that name; the image stays as it is. */
  readonly to?: string;
  /** Also where the guest has written something else since. */
  readonly overWrites?: boolean;
  /** Takes nothing back, and gives up whatever the guard holds. */
  readonly forget?: boolean;
  readonly dryRun?: boolean;
  /** Asked once, with the plan in hand; false leaves everything as it is. */
  readonly confirm?: (plan: Undone) => Promise<boolean>;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
}

/** Changes that followed each other without a long pause. */
export interface Burst {
  /** In ISO 8601. */
  readonly from: string;
  readonly to: string;
  /** Bytes of each cause that can be taken back. */
  readonly trimBytes: number;
  readonly zeroBytes: number;
  readonly writeBytes: number;
}

export interface Undone {
  readonly path: string;
  readonly applied: boolean;
  /** What the guard held was given up. */
  readonly forgotten: boolean;
  /** Since when things were taken back; null: nothing was chosen. */
  readonly since: string | null;
  readonly destination: string | null;
  /** Everything that the guard holds. */
  readonly guardedBytes: number;
  /** What comes back, or came. */
  readonly restoredBytes: number;
  /** Of what was asked for, bytes that the guest has written over since: they stay. */
  readonly writtenBytes: number;
  readonly bursts: readonly Burst[];
  /** What comes back: the first of them. */
  readonly ranges: readonly {
    readonly start: number;
    readonly bytes: number;
    readonly time: string;
    readonly cause: Cause;
  }[];
  /** Why the guard may not fit the image; null: it does. */
  readonly doubt: string | null;
}

const EMPTY = { state: new GuardState(), doubt: undefined };
const RANGES_MAX = 10_000;
const BURST_PAUSE_SECONDS = 10;

/**
 * @throws DiskError `usage` where there is no guard, `refused` where it does not fit the image, `busy` while it is served,
 * `corrupt` for a damaged log, `io`
 */
export async function undo(file: string, options: UndoOptions = {}): Promise<Undone> {
  requireOne(options);
  if (identityAt(guardPathOf(file)) === undefined) throw noGuard();
  if (options.forget) return await forget(file, options);
  const { plan, choice } = await look(file, options);
  if (choice === undefined || options.dryRun || plan.restoredBytes === 0) return plan;
  requireTestedHost(options);
  if (plan.doubt !== null && !options.allow?.guard) throw stale(plan.doubt);
  if (options.to === undefined) return await restoreInPlace(file, options, choice);
  if (options.confirm && !(await options.confirm(plan))) return plan;
  await restoreAside(file, options.to, options, choice);
  return { ...plan, applied: true };
}

function requireOne({ since, last, forget, to, overWrites }: UndoOptions): void {
  const ways = [since !== undefined, last === true, forget === true].filter(Boolean).length;
  if (ways > 1) throw new DiskError("usage", "since, last and forget exclude each other");
  if (ways === 1 && !(forget && (to !== undefined || overWrites))) return;
  if (to === undefined && !overWrites) return;
  throw new DiskError("usage", "nothing says what to take back", { hint: "--since 10:42, or --last" });
}

function noGuard(): DiskError {
  return new DiskError("usage", "nothing of this image is guarded", {
    code: "no-guard",
    hint: "only what was served with --guard-for can be taken back",
  });
}

interface Looked {
  readonly plan: Undone;
  /** Undefined: nothing was chosen. */
  readonly choice: Choice | undefined;
}

/** Reads only, and takes no lock. */
async function look(file: string, options: UndoOptions): Promise<Looked> {
  await using image = await openImage(sourceOf(file, options), options);
  const view = await viewGuard(file, image);
  if (view === undefined && !options.forget) throw noGuard();
  if (view === undefined) return { plan: planOf(file, EMPTY, options, undefined), choice: undefined };
  if (view.doubt !== undefined && view.state.isEmpty && !options.forget)
    throw new DiskError("corrupt", view.doubt, {
      code: "guard-damaged",
      hint: "ullage undo --forget gives up what it held",
    });
  const choice = choiceOf(view.state, options);
  return { plan: planOf(file, view, options, choice), choice };
}

function choiceOf(state: GuardState, options: UndoOptions): Choice | undefined {
  const since = options.last ? lastBurst(state, BURST_PAUSE_SECONDS) : secondsOf(options.since);
  return since === undefined ? undefined : { since, overWrites: options.overWrites ?? false };
}

const secondsOf = (time: number | undefined): number | undefined =>
  time === undefined ? undefined : Math.max(0, Math.floor(time / 1000));

const isoOf = (seconds: number): string => new Date(Math.min(seconds, 8e12) * 1000).toISOString();

function planOf(
  file: string,
  { state, doubt }: Pick<GuardView, "state" | "doubt">,
  options: UndoOptions,
  choice: Choice | undefined,
): Undone {
  const pieces = choice === undefined ? [] : offered(state, choice);
  const asked = choice === undefined ? [] : offered(state, { ...choice, overWrites: true });
  const bytesOf = (all: readonly Piece[]): number =>
    all.reduce((sum, { start, end }) => sum + end - start, 0);
  return {
    path: file,
    applied: false,
    forgotten: false,
    since: choice === undefined ? null : isoOf(choice.since),
    destination: options.to ?? null,
    guardedBytes: state.bytes,
    restoredBytes: bytesOf(pieces),
    writtenBytes: choice?.overWrites ? 0 : ExtentSet.from(asked).subtract(ExtentSet.from(pieces)).bytes,
    bursts: burstsOf(state),
    ranges: pieces.slice(0, RANGES_MAX).map((piece) => ({
      start: piece.start,
      bytes: piece.end - piece.start,
      time: isoOf(piece.time),
      cause: causeOf(piece),
    })),
    doubt: doubt ?? null,
  };
}

function burstsOf(state: GuardState): Burst[] {
  const sums = new Map<number, Record<Cause, number>>();
  for (const piece of [...state.tops, ...state.under]) {
    const sum = sums.get(piece.time) ?? { trim: 0, zero: 0, write: 0 };
    sum[causeOf(piece)] += piece.end - piece.start;
    sums.set(piece.time, sum);
  }
  const bursts: { from: number; to: number; sum: Record<Cause, number> }[] = [];
  for (const [time, sum] of [...sums].sort(([a], [b]) => a - b)) {
    const last = bursts.at(-1);
    if (last === undefined || time - last.to > BURST_PAUSE_SECONDS) {
      bursts.push({ from: time, to: time, sum: { ...sum } });
      continue;
    }
    last.to = time;
    for (const cause of ["trim", "zero", "write"] as const) last.sum[cause] += sum[cause];
  }
  return bursts.map(({ from, to, sum }) => ({
    from: isoOf(from),
    to: isoOf(to),
    trimBytes: sum.trim,
    zeroBytes: sum.zero,
    writeBytes: sum.write,
  }));
}

/** What is not chosen stays guarded. */
const KEEPING = { forMs: Infinity, maxBytes: Infinity };

/** With the image locked and the guard open; then both are closed, and the guard is told what the image looks like. */
async function locked<T>(file: string, options: UndoOptions, work: (guard: Guard) => Promise<T>): Promise<T> {
  let opened: OpenGuard | undefined;
  await using stack = new AsyncDisposableStack();
  stack.defer(async () => await opened?.seal());
  const disk = stack.use(await openWritable(file, { ...options, withGuard: true }));
  await requireSafe(disk, options);
  opened = await openGuard(disk, new Borrowed(disk.image), KEEPING);
  stack.use(opened.guard);
  return await work(opened.guard);
}

function restoreInPlace(file: string, options: UndoOptions, choice: Choice): Promise<Undone> {
  return locked(file, options, async (guard) => {
    const plan = planOf(file, { state: guard.state, doubt: undefined }, options, choice);
    if (options.confirm && !(await options.confirm(plan))) return plan;
    await guard.restore(choice, (doneBytes) => {
      options.onProgress?.({ phase: "restoring", doneBytes, totalBytes: plan.restoredBytes });
      options.signal?.throwIfAborted();
    });
    return { ...plan, applied: true };
  });
}

async function forget(file: string, options: UndoOptions): Promise<Undone> {
  const { plan } = await look(file, options);
  if (options.dryRun || (options.confirm && !(await options.confirm(plan)))) return plan;
  requireTestedHost(options);
  if (plan.doubt === null || (options.allow?.guard && plan.guardedBytes > 0)) {
    await locked(file, options, (guard) => guard.forget());
  } else {
    // Somebody else may have written to the image: nothing is zeroed, for the bytes may be his.
    await using _ = await openWritable(file, { ...options, withGuard: true });
    removeGuard(file);
  }
  return { ...plan, applied: true, forgotten: true };
}

/** A new overlay above the image, which shows the disk as its guest saw it, with what comes back. */
async function restoreAside(file: string, to: string, options: UndoOptions, choice: Choice): Promise<void> {
  if (await inUse(file)) {
    throw new DiskError("busy", "the image is in use: what is built on it would not stay as it is", {
      code: "locked",
      hint: "stop the server first",
    });
  }
  await using image = await openImage(sourceOf(file, options), options);
  await using log = await hostSource(guardPathOf(file)).open();
  const found = await replay(log);
  if (found === undefined) throw noGuard();
  const base = realPath(file);
  const outside = [...(options.allow?.outside ?? []), path.dirname(base)];
  const source = sourceOf(to, { allow: { outside } });
  const backing = path.relative(realPath(path.dirname(path.resolve(to))), base);
  const asked = {
    virtualBytes: image.bytes,
    options: { backing_file: backing, backing_fmt: image.format },
  };
  const overlay = await formatNamed("qcow2").create!(source, asked, parentsOf(source));
  try {
    await fill(overlay, image, log, {
      state: found.state,
      pieces: offered(found.state, choice),
      ...(options.signal && { signal: options.signal }),
    });
    await overlay[Symbol.asyncDispose]();
  } catch (error) {
    removeFile(to);
    await overlay[Symbol.asyncDispose]();
    throw error;
  }
}

interface Filling {
  readonly state: GuardState;
  /** What comes back. */
  readonly pieces: readonly Piece[];
  readonly signal?: AbortSignal;
}

async function fill(
  overlay: WritableDevice,
  image: BlockDevice,
  log: BlockDevice,
  { state, pieces, signal }: Filling,
): Promise<void> {
  for (const range of state.hidden().subtract(ExtentSet.from(pieces))) await overlay.zero(range);
  for (const piece of pieces) {
    signal?.throwIfAborted();
    if (piece.flags & ZEROS) await overlay.zero(piece);
    else {
      for await (const { at, data } of oldBytes(piece, image, log)) {
        signal?.throwIfAborted();
        await overlay.write(at, data);
      }
    }
  }
  await overlay.flush();
}
