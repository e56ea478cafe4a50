/**
 * An image whose guest's bytes lie as they are in a stretch of one file: raw disks, fixed VHDs.
 *
 *   guest       |######|      |###|         |##|
 *   file   |at  |######| hole |###|  hole   |##| footer |      the host's own map is the mapping table
 *
 * There are no tables: to free is to punch, and there is nothing to pack.
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import type { HostFile, Place, ReadableFile, Run, Zeroing } from "../../device/device.ts";
import { assert } from "../../error.ts";
import { EMPTY_PLAN, type Plan, type Step, type Wish } from "../../reclaim/plan.ts";
import type { ClaimedPlace, Finding, Image, Snapshot, WritableImage } from "../format.ts";

/** What a format says of such an image. */
export interface FlatFacts {
  readonly format: string;
  /** File offset of the guest's first byte. */
  readonly at: number;
  /** Length of the guest's disk in bytes. */
  readonly bytes: number;
  /** The granule of holes in bytes. */
  readonly grainBytes: number;
  readonly summary: string;
  readonly details: Image["details"];
  readonly identifiers: readonly string[];
  check?(): AsyncIterable<Finding>;
  /** @throws DiskError `refused`, `unsupported` or `corrupt` when nothing may be written, nor planned (H17) */
  requireWritable?(): void;
  /** What a byte of the file outside of the guest's belongs to. */
  structureAt?(fileOffset: number): string | undefined;
}

export class FlatImage<F extends ReadableFile = ReadableFile> implements Image {
  readonly files: ReadonlyMap<string, F>;
  readonly parent = undefined;
  readonly references = [];
  readonly encrypted = false;
  protected readonly file: F;
  protected readonly facts: FlatFacts;

  constructor(file: F, facts: FlatFacts) {
    this.file = file;
    this.facts = facts;
    this.files = new Map([["", file]]);
  }

  get format(): string {
    return this.facts.format;
  }

  get bytes(): number {
    return this.facts.bytes;
  }

  get grainBytes(): number {
    return this.facts.grainBytes;
  }

  get summary(): string {
    return this.facts.summary;
  }

  get details(): Image["details"] {
    return this.facts.details;
  }

  get identifiers(): readonly string[] {
    return this.facts.identifiers;
  }

  read(at: number, into: Uint8Array): Promise<void> {
    const { start } = this.inFile({ start: at, end: at + into.length });
    return this.file.read(start, into);
  }

  map(range: Extent): AsyncIterable<readonly Run[]> {
    const { at } = this.facts;
    const runs = this.file.map(this.inFile(range));
    return at === 0 ? runs : shifted(runs, at);
  }

  locate(at: number, bytes: number, _access: "read" | "write"): Place | undefined {
    return { file: this.file, at: at + this.facts.at, bytes, isStable: true };
  }

  tableBytes(): Promise<number> {
    return Promise.resolve(Math.max(0, this.file.bytes - this.bytes));
  }

  snapshots(): Promise<readonly Snapshot[]> {
    return Promise.resolve([]);
  }

  async *check(): AsyncIterable<Finding> {
    if (this.facts.check) yield* this.facts.check();
  }

  describe(fileOffset: number): Promise<string | undefined> {
    return Promise.resolve(this.facts.structureAt?.(fileOffset));
  }

  async plan(wish: Wish): Promise<Plan> {
    this.facts.requireWritable?.();
    const blanked = this.#placesOf(wish.blank);
    if (wish.pack || !wish.punch) return planOf(ExtentSet.EMPTY, blanked);
    const { hostBlockBytes } = wish;
    const blank = blanked.alignInward(hostBlockBytes);
    const punches = (await this.#worthPunching(wish)).union(blank);
    return planOf(punches, blanked.subtract(blank));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.file[Symbol.asyncDispose]();
  }

  /** A range of the guest's disk as one of the file. */
  protected inFile({ start, end }: Extent): Extent {
    if (start < 0 || start > end || end > this.bytes) {
      assert(false, `${start}-${end} lies in ${this.bytes} bytes`);
    }
    return { start: start + this.facts.at, end: end + this.facts.at };
  }

  #placesOf(set: ExtentSet): ExtentSet {
    return set.within({ start: 0, end: this.bytes }).shift(this.facts.at);
  }

  /**
   * The free host blocks that own space of their own (H10, H35). A hole counts by its whole length: a small one that
   * lengthens an existing one costs the host no extent.
   */
  async #worthPunching({ free, hostBlockBytes, minHoleBytes }: Wish): Promise<ExtentSet> {
    const holes = new ExtentBuilder();
    const owned = new ExtentBuilder();
    for await (const runs of this.file.map(this.inFile({ start: 0, end: this.bytes }))) {
      for (const { start, end, kind, shared } of runs) {
        if (kind === "hole") holes.add(start, end);
        else if (!shared) owned.add(start, end);
      }
    }
    const aligned = this.#placesOf(free).alignInward(hostBlockBytes);
    const large =
      minHoleBytes > hostBlockBytes ? aligned.union(holes.build()).atLeast(minHoleBytes) : aligned;
    return aligned.intersect(large).intersect(owned.build()).alignInward(hostBlockBytes);
  }
}

async function* shifted(batches: AsyncIterable<readonly Run[]>, at: number): AsyncGenerator<readonly Run[]> {
  for await (const runs of batches) {
    yield runs.map((run) => ({ ...run, start: run.start - at, end: run.end - at }));
  }
}

export class WritableFlatImage extends FlatImage<HostFile> implements WritableImage {
  /** Something was written: it may be. */
  #isWritten = false;

  override locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    return access === "read" || this.#isWritten ? super.locate(at, bytes, access) : undefined;
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    this.facts.requireWritable?.();
    await this.file.write(this.inFile({ start: at, end: at + from.length }).start, from);
    this.#isWritten = true;
  }

  async claim(range: Extent): Promise<ClaimedPlace> {
    this.facts.requireWritable?.();
    return { file: this.file, at: this.inFile(range).start, bytes: range.end - range.start };
  }

  async zero(range: Extent, how?: Zeroing): Promise<void> {
    this.facts.requireWritable?.();
    await this.file.zero(this.inFile(range), how);
  }

  async discard(range: Extent): Promise<void> {
    this.facts.requireWritable?.();
    await this.file.discard(this.inFile(range));
  }

  flush(): Promise<void> {
    return this.file.flush();
  }
}

/** What `make` makes of an open file, or nothing left open. */
export async function made<F extends ReadableFile, T>(
  file: F,
  make: (file: F) => T | Promise<T>,
): Promise<T> {
  try {
    return await make(file);
  } catch (error) {
    await file[Symbol.asyncDispose]();
    throw error;
  }
}

/** So many steps share a flush; any subset of them is harmless. */
const BATCH_STEPS = 65_536;

function planOf(punches: ExtentSet, zeros: ExtentSet): Plan {
  return {
    ...EMPTY_PLAN,
    punchBytes: punches.bytes,
    punched: new Map([["", punches]]),
    async *batches() {
      yield* batched("zero", zeros);
      yield* batched("punch", punches);
    },
  };
}

function* batched(op: "punch" | "zero", ranges: ExtentSet): Generator<readonly Step[]> {
  for (let first = 0; first < ranges.count; first += BATCH_STEPS) {
    const steps: Step[] = [];
    const end = Math.min(ranges.count, first + BATCH_STEPS);
    for (let i = first; i < end; i++) {
      steps.push({ file: "", op, range: { start: ranges.start(i), end: ranges.end(i) } });
    }
    yield steps;
  }
}
