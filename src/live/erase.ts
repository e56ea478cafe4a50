/**
 * Erase: what a client frees is overwritten, flushed, and only then given back.
 *
 *   TRIM ──> waiting ──> │ overwrite │ flush │ discard │ ──> gone          one flush for many TRIMs
 *              replied        the batch: others wait
 *
 *   WRITE_ZEROES ──────> │ overwrite │ flush │  zero   │ ──> replied
 *
 * - A TRIM is answered at once and carried out a little later, with its neighbours. Until then what it freed reads as
 *   zeros. A later write to it takes its range out of what waits: the new bytes lie over the old ones.
 * - Overwritten is what the host holds for the range and what is this disk's alone. What a snapshot, a reflink or a
 *   backing image holds as well, and compressed clusters, which have no place of their own, are given back as without
 *   this filter and counted as not erased.
 * - What was given back is read, and must be zeros.
 * - What cannot be overwritten is not given back, so that its old bytes are not left behind where nobody finds them.
 * - A crash before the discard leaves old bytes, the pattern or a mixture where nothing was used any more.
 * - Zeros that keep their space (NO_HOLE) are made the same way: a host may promise zeros and leave the old bytes where
 *   they are. What is overwritten is never faster than writing: FAST_ZERO is refused.
 *
 * `--erase random|zeros`
 */
import { setTimeout } from "node:timers/promises";
import { type Extent, ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import type { Place, WritableDevice, Zeroing } from "../device/device.ts";
import { Filter } from "../device/filter.ts";
import { DiskError } from "../error.ts";
import { type Held, heldOn } from "./held.ts";
import { overwrite, type Pattern, PATTERN_BYTES_MAX, type PatternName, patternOf } from "./pattern.ts";

/** TRIMs that come within this time share a flush. */
const COLLECT_MS = 20;
/** A batch covers at most so many bytes. */
const BATCH_BYTES = 128 * 1024 * 1024;
/** Where it ends inside of a range: a multiple of most images' blocks. */
const CUT_BYTES = 64 * 1024 * 1024;
/** From here on the next TRIM waits until there is room. */
const WAITING_BYTES_MAX = 4 * BATCH_BYTES;
const WAITING_EXTENTS_MAX = 4096;

export interface EraseOptions {
  readonly pattern: PatternName;
  /** Told of every batch that failed: what it was to free stays as it is. */
  readonly onFailure?: (error: unknown, bytes: number) => void;
}

/** What was done so far, in bytes of the disk. */
export interface EraseCounters {
  readonly overwrittenBytes: number;
  /** Given back, and not overwritten: a snapshot, a reflink or a backing image holds the same bytes. */
  readonly sharedBytes: number;
  readonly compressedBytes: number;
  /** Neither overwritten nor given back. */
  readonly failedBytes: number;
  /** Freed by the client, and not yet erased. */
  readonly waitingBytes: number;
  readonly flushes: number;
}

/** A WRITE_ZEROES that waits for its batch. */
interface Zeros {
  readonly range: Extent;
  readonly how: Zeroing | undefined;
  readonly done: () => void;
  readonly failed: (error: unknown) => void;
}

export class Erasing extends Filter {
  readonly #options: EraseOptions;
  readonly #pattern: Pattern;
  readonly #zeros = patternOf("zeros");
  readonly #counters = {
    overwrittenBytes: 0,
    sharedBytes: 0,
    compressedBytes: 0,
    failedBytes: 0,
    flushes: 0,
  };
  /** Freed, and in no batch yet. */
  #waiting = ExtentSet.EMPTY;
  /** In a batch, or zeros that wait for one: nobody else may touch it. */
  #held = ExtentSet.EMPTY;
  #zeroing: Zeros[] = [];
  #worker: Promise<void> | undefined;
  #turns: (() => void)[] = [];
  #isClosing = false;

  constructor(below: WritableDevice, options: EraseOptions) {
    super(below);
    this.#options = options;
    this.#pattern = patternOf(options.pattern);
  }

  get counters(): EraseCounters {
    return { ...this.#counters, waitingBytes: this.#waiting.bytes + this.#held.bytes };
  }

  /** All that waits is erased when this returns. */
  async settled(): Promise<void> {
    this.#isClosing = true;
    while (this.#worker !== undefined) await this.#worker;
    this.#isClosing = false;
  }

  override locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    const range = { start: at, end: at + bytes };
    if (this.#waiting.touches(range) || this.#held.touches(range)) return undefined;
    return super.locate(at, bytes, access);
  }

  override async read(at: number, into: Uint8Array): Promise<void> {
    const range = { start: at, end: at + into.length };
    const masked = this.#waiting.within(range).union(this.#held.within(range));
    await super.read(at, into);
    for (const { start, end } of masked) into.fill(0, start - at, end - at);
  }

  override async write(at: number, from: Uint8Array): Promise<void> {
    const range = { start: at, end: at + from.length };
    while (this.#held.touches(range)) await this.#turn();
    this.#spare(range);
    await super.write(at, from);
  }

  override async zero(range: Extent, how?: Zeroing): Promise<void> {
    if (how?.fast === true)
      throw new DiskError("unsupported", "zeros are not faster than writing: what they replace is erased");
    if (range.start >= range.end) return;
    while (this.#held.touches(range)) await this.#turn();
    this.#spare(range);
    this.#held = this.#held.union(ExtentSet.of(range));
    await new Promise<void>((done, failed) => {
      this.#zeroing.push({ range, how, done, failed });
      this.#wake();
    });
  }

  override async discard(range: Extent): Promise<void> {
    while (this.#waiting.bytes >= WAITING_BYTES_MAX || this.#waiting.count >= WAITING_EXTENTS_MAX)
      await this.#turn();
    if (range.start >= range.end) return;
    this.#waiting = this.#waiting.union(ExtentSet.of(range));
    this.#wake();
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await this.settled();
    await super[Symbol.asyncDispose]();
  }

  /** Takes `range` out of what waits: its bytes are about to change. */
  #spare(range: Extent): void {
    if (this.#waiting.touches(range)) this.#waiting = this.#waiting.subtract(ExtentSet.of(range));
  }

  /** Until a batch has ended. */
  #turn(): Promise<void> {
    return new Promise((resolve) => this.#turns.push(resolve));
  }

  #wake(): void {
    this.#worker ??= this.#work();
  }

  async #work(): Promise<void> {
    while (this.#waiting.count + this.#zeroing.length > 0) {
      const isUrgent = this.#isClosing || this.#zeroing.length > 0 || this.#waiting.bytes >= BATCH_BYTES;
      if (!isUrgent) await setTimeout(COLLECT_MS);
      await this.#batch();
    }
    // At once: who comes now finds nobody at work.
    this.#worker = undefined;
  }

  /** Whoever waits for zeros goes first, and does not share the fate of what nobody waits for. */
  async #batch(): Promise<void> {
    const zeroing = this.#zeroing;
    this.#zeroing = [];
    const zeroed = ExtentSet.from(zeroing.map(({ range }) => range));
    const freed = firstOf(this.#waiting.subtract(this.#held));
    this.#waiting = this.#waiting.subtract(freed);
    this.#held = this.#held.union(freed);
    try {
      await this.#overwrite(zeroed);
      for (const { range, how } of zeroing) await super.zero(range, how);
      for (const { done } of zeroing) done();
    } catch (error) {
      for (const { failed } of zeroing) failed(error);
    }
    this.#release(zeroed);
    try {
      await this.#free(freed);
    } catch (error) {
      this.#counters.failedBytes += freed.bytes;
      this.#options.onFailure?.(error, freed.bytes);
    }
    this.#release(freed);
  }

  #release(set: ExtentSet): void {
    this.#held = this.#held.subtract(set);
    const turns = this.#turns;
    this.#turns = [];
    for (const resolve of turns) resolve();
  }

  async #free(freed: ExtentSet): Promise<void> {
    const erased = await this.#overwrite(freed);
    for (const range of freed) await super.discard(range);
    if (this.#options.pattern !== "zeros") await this.#blank(erased);
    await this.#requireZeros(erased);
  }

  /** @returns what of `ranges` this disk alone held: all of that is durably overwritten */
  async #overwrite(ranges: ExtentSet): Promise<ExtentSet> {
    const own = new ExtentBuilder();
    for (const range of ranges) {
      for await (const held of heldOn(this.below, range)) this.#count(held, own);
    }
    const erased = own.build();
    if (erased.count === 0) return erased;
    const write = (at: number, from: Uint8Array) => super.write(at, from);
    this.#counters.overwrittenBytes += await overwrite(erased, this.#pattern, write);
    await super.flush();
    this.#counters.flushes++;
    return erased;
  }

  /** A piece that was too small to be given back holds the pattern: a disk that was trimmed reads old bytes or zeros. */
  async #blank(erased: ExtentSet): Promise<void> {
    const left = new ExtentBuilder();
    for (const range of erased) {
      for await (const { start, end, kind } of heldOn(this.below, range)) {
        if (kind === "own") left.add(start, end);
      }
    }
    await overwrite(left.build(), this.#zeros, (at, from) => super.write(at, from));
  }

  async #requireZeros(erased: ExtentSet): Promise<void> {
    const found = Buffer.alloc(PATTERN_BYTES_MAX);
    for (const { start, end } of erased) {
      for (let at = start; at < end; at += found.length) {
        const part = found.subarray(0, Math.min(found.length, end - at));
        await super.read(at, part);
        if (!part.equals(this.#zeros(part.length)))
          throw new DiskError("io", `what was erased does not read as zeros at ${at} and behind`, {
            code: "not-erased",
          });
      }
    }
  }

  #count({ start, end, kind }: Held, own: ExtentBuilder): void {
    if (kind === "own") own.add(start, end);
    else if (kind === "shared") this.#counters.sharedBytes += end - start;
    else this.#counters.compressedBytes += end - start;
  }
}

/** A batch's worth of `set`; cut only at large round offsets, so that an image can give back whole blocks. */
function firstOf(set: ExtentSet): ExtentSet {
  if (set.bytes <= BATCH_BYTES) return set;
  const first = new ExtentBuilder();
  let left = BATCH_BYTES;
  for (const { start, end } of set) {
    const cut = end - start <= left ? end : Math.floor((start + left) / CUT_BYTES) * CUT_BYTES;
    first.add(start, Math.max(start, cut));
    left -= cut - start;
    if (cut < end) break;
  }
  return first.build();
}
