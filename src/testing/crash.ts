/**
 * Every state in which a crash may leave an image's files.
 *
 *   write A  write B  flush  punch C  write D  | crash
 *   durable: A B             pending: C D         states: {}, {C}, {D}, {C D}, and all parts of C and D
 *
 * What we assume of media (docs/ARCHITECTURE.md): a flush makes everything before it durable; what was not flushed
 * survives in any subset; an aligned sector of 512 bytes is written whole or not at all; a punch happens for any
 * subset of its host blocks; a truncation happens or not.
 *
 * All states before a flush are subsets of what is pending at that flush, so each window is enumerated once: all
 * subsets where they are few, otherwise the orderly ones and a sample drawn from the seed.
 */
import type { Extent } from "../bytes/extents.ts";
import type { Random } from "./seeds.ts";
import { type Operation, SimulatedFile } from "./simulated-file.ts";

export type Files = ReadonlyMap<string, SimulatedFile>;

export interface CrashState {
  readonly files: Map<string, SimulatedFile>;
  /** So many operations of the trace were begun. */
  readonly operations: number;
  /** Where the crash was and what survived it: for the message of a failing test. */
  readonly label: string;
}

export interface CrashOptions {
  readonly random: Random;
  /** At most so many states for each flush. Default 64. */
  readonly statesPerFlush?: number;
}

const SECTOR_BYTES = 512;
/** An operation is torn into at most so many parts. */
const PARTS_MAX = 256;

/** An operation that is not yet durable, torn into the parts that may survive alone. */
interface Pending {
  readonly index: number;
  readonly operation: Operation;
  readonly parts: readonly Operation[];
}

/** Copies of `files` that record what is done to them, in one common order. */
export function recording(files: Files): { files: Map<string, SimulatedFile>; trace: Operation[] } {
  const trace: Operation[] = [];
  const copies = new Map<string, SimulatedFile>();
  for (const [name, file] of files) copies.set(name, file.fork({ name, trace }));
  return { files: copies, trace };
}

/** The states in which a crash during `trace`, which began with `files`, may leave them; also that after all of it. */
export async function* crashStates(
  files: Files,
  trace: readonly Operation[],
  options: CrashOptions,
): AsyncGenerator<CrashState> {
  const durable = forkAll(files);
  let pending: Pending[] = [];
  for (const [index, operation] of trace.entries()) {
    if (operation.op !== "flush") {
      pending.push({ index, operation, parts: partsOf(operation, fileOf(durable, operation).blockBytes) });
      continue;
    }
    yield* statesOf(durable, pending, index, options);
    for (const done of pending) {
      if (done.operation.file === operation.file) await applyTo(durable, done.operation);
    }
    pending = pending.filter((other) => other.operation.file !== operation.file);
  }
  yield* statesOf(durable, pending, trace.length, options);
}

async function* statesOf(
  durable: Files,
  pending: readonly Pending[],
  operations: number,
  options: CrashOptions,
): AsyncGenerator<CrashState> {
  for (const survivors of choices(pending, options.random, options.statesPerFlush ?? 64)) {
    const files = forkAll(durable);
    const label: string[] = [];
    for (const [i, { index, operation, parts }] of pending.entries()) {
      const survived = survivors[i]!;
      if (survived.length === 0) continue;
      if (survived.length === parts.length) await applyTo(files, operation);
      else for (const part of survived) await applyTo(files, parts[part]!);
      const whole = survived.length === parts.length;
      label.push(`${index} ${operation.op}${whole ? "" : ` parts ${survived.join(",")} of ${parts.length}`}`);
    }
    const last = pending.at(-1)?.index;
    yield {
      files,
      operations,
      label: `crash ${last === undefined ? "at a flush" : `by operation ${last}`}; survived: ${label.join("; ") || "nothing"}`,
    };
  }
}

/** For every pending operation the numbers of the parts that survive. */
type Choice = readonly (readonly number[])[];

function* choices(pending: readonly Pending[], random: Random, limit: number): Generator<Choice> {
  const counts = pending.map(({ parts }) => parts.length);
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (2 ** total <= limit) {
    for (let mask = 0; mask < 2 ** total; mask++)
      yield chosenBy(counts, (part) => ((mask >>> part) & 1) === 1);
    return;
  }
  const seen = new Set<string>();
  for (let i = 0; i < limit; i++) {
    const choice = i < 2 ? chosenBy(counts, () => i === 1) : sample(counts, random);
    const key = choice.join(";");
    if (!seen.has(key)) yield choice;
    seen.add(key);
  }
}

/** One of the orders that break things: cut off in the middle, one missing, one early, or anything. */
function sample(counts: readonly number[], random: Random): Choice {
  const chosen = random.below(counts.length);
  const torn = random.below(3);
  const partSurvives = (): boolean => (torn === 0 ? false : torn === 1 ? true : random.oneIn(2));
  switch (random.below(4)) {
    case 0:
      return chosenBy(counts, (_, operation) => (operation === chosen ? partSurvives() : operation < chosen));
    case 1:
      return chosenBy(counts, (_, operation) =>
        operation === chosen ? torn === 2 && random.oneIn(2) : true,
      );
    case 2:
      return chosenBy(counts, (_, operation) => operation === chosen && (torn < 2 || random.oneIn(2)));
    default: {
      const odds = random.pick([2, 3, 10]);
      const rareSurvive = random.oneIn(2);
      return chosenBy(counts, () => random.oneIn(odds) === rareSurvive);
    }
  }
}

function chosenBy(counts: readonly number[], survives: (part: number, operation: number) => boolean): Choice {
  let number = 0;
  return counts.map((count, operation) => {
    const survived: number[] = [];
    for (let part = 0; part < count; part++) if (survives(number++, operation)) survived.push(part);
    return survived;
  });
}

/** What of an operation may survive alone: sectors of a write or zero, host blocks of a punch. */
function partsOf(operation: Operation, blockBytes: number): readonly Operation[] {
  switch (operation.op) {
    case "write": {
      const { at, data } = operation;
      return pieces({ start: at, end: at + data.length }, SECTOR_BYTES).map((piece) => ({
        ...operation,
        at: piece.start,
        data: data.subarray(piece.start - at, piece.end - at),
      }));
    }
    case "punch":
      return pieces(operation.range, blockBytes).map((range) => ({ ...operation, range }));
    case "zero":
      return pieces(operation.range, SECTOR_BYTES).map((range) => ({ ...operation, range }));
    default:
      return [operation];
  }
}

/** `range` cut at multiples of `grain` bytes, or of a larger multiple where that would be too many. */
function pieces({ start, end }: Extent, grain: number): Extent[] {
  const step = grain * Math.max(1, Math.ceil((end - start) / grain / PARTS_MAX));
  const cut: Extent[] = [];
  for (let at = start; at < end;) {
    const next = Math.min(end, (Math.floor(at / step) + 1) * step);
    cut.push({ start: at, end: next });
    at = next;
  }
  return cut;
}

/** Does what the trace says; an operation that a lost one should have made room for grows the file first. */
async function applyTo(files: Map<string, SimulatedFile>, operation: Operation): Promise<void> {
  const file = fileOf(files, operation);
  switch (operation.op) {
    case "write":
      return file.write(operation.at, operation.data);
    case "punch":
    case "zero": {
      const end = Math.min(operation.range.end, file.bytes);
      if (operation.range.start < end) await file[operation.op]({ start: operation.range.start, end });
      return;
    }
    case "truncate":
      return file.truncate(operation.bytes);
    case "flush":
      return file.flush();
  }
}

function forkAll(files: Files): Map<string, SimulatedFile> {
  return new Map(Array.from(files, ([name, file]) => [name, file.fork()]));
}

/** A file that the trace made is empty until a change of it survives. */
function fileOf(files: Map<string, SimulatedFile>, { file: name }: Operation): SimulatedFile {
  const file = files.get(name) ?? new SimulatedFile(0, { name });
  files.set(name, file);
  return file;
}
