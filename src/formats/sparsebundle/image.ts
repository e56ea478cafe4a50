/**
 * A sparse bundle, opened: the disk over its bands.
 *
 *   guest offset → band number, in hexadecimal the name of its file; no file, or behind its end: zeros
 */
import { size } from "../../bytes/sizes.ts";
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import type { HostFile, Place, ReadableFile, Run, Zeroing } from "../../device/device.ts";
import { readPadded } from "../../device/padded.ts";
import { joined } from "../../device/runs.ts";
import type { Plan, Wish } from "../../reclaim/plan.ts";
import type { Finding, Image, Snapshot, WritableImage } from "../format.ts";
import { type Band, WritableBand } from "./band.ts";
import type { Info } from "./info.ts";
import { type Placed, planBands } from "./plan.ts";

/** What was found in the folder. */
export interface Bundle<F extends ReadableFile = ReadableFile, B extends Band = Band> {
  readonly info: Info;
  /** `Info.plist`, and whatever else is held open as a lock. */
  readonly held: readonly [F, ...F[]];
  readonly bands: Map<number, B>;
  /** Files among the bands that are none. */
  readonly strangers: readonly string[];
}

export class SparseBundle<
  F extends ReadableFile = ReadableFile,
  B extends F & Band = F & Band,
> implements Image {
  readonly format = "sparsebundle";
  readonly encrypted = false;
  readonly parent = undefined;
  readonly references = [];
  protected readonly bundle: Bundle<F, B>;

  constructor(bundle: Bundle<F, B>) {
    this.bundle = bundle;
  }

  get bytes(): number {
    return this.bundle.info.bytes;
  }

  get grainBytes(): number {
    return this.bundle.info.bandBytes;
  }

  get files(): ReadonlyMap<string, F> {
    const files = new Map<string, F>([["", this.bundle.held[0]]]);
    for (const [number, band] of this.bundle.bands) files.set(fileName(number), band);
    return files;
  }

  get summary(): string {
    return `bands of ${size(this.bundle.info.bandBytes)}`;
  }

  get details(): Image["details"] {
    return { bandBytes: this.bundle.info.bandBytes, bands: this.bundle.bands.size };
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    for (const { number, from, start, end } of this.pieces({ start: at, end: at + into.length })) {
      const target = into.subarray(start - at, end - at);
      const band = this.bundle.bands.get(number);
      if (band === undefined) target.fill(0);
      else await readPadded(band, from, target);
    }
  }

  map(range: Extent): AsyncGenerator<readonly Run[]> {
    return joined(this.#runs(range));
  }

  locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    const { bands, info } = this.bundle;
    const number = Math.floor(at / info.bandBytes);
    const from = at - number * info.bandBytes;
    return bands.get(number)?.locate(from, Math.min(bytes, info.bandBytes - from), access);
  }

  tableBytes(): Promise<number> {
    return Promise.resolve(this.bundle.held[0].bytes);
  }

  snapshots(): Promise<readonly Snapshot[]> {
    return Promise.resolve([]);
  }

  async *check(): AsyncGenerator<Finding> {
    const { strangers, bands, info } = this.bundle;
    for (const name of strangers) {
      const message = `bands/${JSON.stringify(name)} is no band of this disk`;
      yield { kind: "leak", isMendable: false, count: 1, message };
    }
    for (const [number, { bytes }] of bands) {
      if (bytes <= info.bandBytes) continue;
      const message = `${fileName(number)} has ${bytes} bytes, expected at most ${info.bandBytes}`;
      yield { kind: "error", isMendable: false, count: 1, message };
    }
  }

  plan(wish: Wish): Promise<Plan> {
    return planBands([...this.#placed()], wish);
  }

  describe(fileOffset: number): Promise<string | undefined> {
    return Promise.resolve(fileOffset < this.bundle.held[0].bytes ? "Info.plist" : undefined);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const file of [...this.bundle.bands.values(), ...this.bundle.held])
      await file[Symbol.asyncDispose]();
  }

  async *#runs(range: Extent): AsyncGenerator<readonly Run[]> {
    for (const { number, from, start, end } of this.#bandsAndGaps(range)) {
      const file = this.bundle.bands.get(number);
      const inside = Math.min(end, start + Math.max(0, (file?.bytes ?? 0) - from));
      const runs: Run[] = [];
      if (file !== undefined && start < inside) {
        const place = { file, at: from, bytes: inside - start };
        runs.push({ start, end: inside, kind: "data", place, shared: false, depth: 0 });
      }
      if (inside < end) runs.push({ start: inside, end, kind: "hole", shared: false, depth: 0 });
      yield runs;
    }
  }

  /** Pieces, of which those without a band are one where they are more than the bands: a disk may have 2^44. */
  *#bandsAndGaps(range: Extent): Generator<Piece> {
    const { bands, info } = this.bundle;
    const [first, last] = [range.start, range.end].map((at) => Math.floor(at / info.bandBytes));
    if (last! - first! <= bands.size) return yield* this.pieces(range);
    const numbers = [...bands.keys()].filter((number) => number >= first! && number <= last!);
    let at = range.start;
    for (const number of numbers.sort((a, b) => a - b)) {
      const start = number * info.bandBytes;
      if (at < start) yield this.#gap(at, start);
      at = Math.min(range.end, start + info.bandBytes);
      yield* this.pieces({ start: Math.max(range.start, start), end: at });
    }
    if (at < range.end) yield this.#gap(at, range.end);
  }

  /** A range without a band. */
  #gap(start: number, end: number): Piece {
    return { number: Math.floor(start / this.bundle.info.bandBytes), from: 0, start, end };
  }

  *#placed(): Generator<Placed> {
    const { bands, info } = this.bundle;
    for (const [number, file] of bands) {
      const start = number * info.bandBytes;
      yield { name: fileName(number), file, start, end: start + info.bandBytes };
    }
  }

  protected *pieces({ start, end }: Extent): Generator<Piece> {
    const { bandBytes } = this.bundle.info;
    for (let at = start; at < end;) {
      const number = Math.floor(at / bandBytes);
      const stop = Math.min(end, (number + 1) * bandBytes);
      yield { number, from: at - number * bandBytes, start: at, end: stop };
      at = stop;
    }
  }
}

interface Piece extends Extent {
  readonly number: number;
  /** Offset in the band. */
  readonly from: number;
}

export function fileName(number: number): string {
  return `bands/${number.toString(16)}`;
}

/** What a writer needs of the folder. */
export interface BandMaker {
  make(number: number): Promise<WritableBand>;
  remove(number: number): Promise<void>;
}

export class WritableSparseBundle extends SparseBundle<HostFile, WritableBand> implements WritableImage {
  readonly #maker: BandMaker;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(bundle: Bundle<HostFile, WritableBand>, maker: BandMaker) {
    super(bundle);
    this.#maker = maker;
  }

  write(at: number, from: Uint8Array): Promise<void> {
    return this.#inTurn(async () => {
      for (const piece of this.pieces({ start: at, end: at + from.length })) {
        const band = this.bundle.bands.get(piece.number) ?? (await this.#made(piece.number));
        await band.write(piece.from, from.subarray(piece.start - at, piece.end - at));
      }
    });
  }

  zero(range: Extent, how?: Zeroing): Promise<void> {
    return this.#each(range, (band, inside) => band.zero(inside, how));
  }

  /** The end of a band is cut off. One of which nothing is left goes when the bundle is closed. */
  discard(range: Extent): Promise<void> {
    return this.#each(range, async (band, inside) => {
      if (inside.end === band.bytes) await band.truncate(inside.start);
      else await band.discard(inside);
      await band.cutIfEmpty();
    });
  }

  async flush(): Promise<void> {
    await this.#turn;
    for (const band of this.bundle.bands.values()) await band.flush();
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#turn;
      for (const [number, band] of this.bundle.bands) {
        if (band.bytes > 0) continue;
        await band.close();
        await this.#maker.remove(number);
        this.bundle.bands.delete(number);
      }
    } finally {
      await super[Symbol.asyncDispose]();
    }
  }

  async #made(number: number): Promise<WritableBand> {
    const band = await this.#maker.make(number);
    this.bundle.bands.set(number, band);
    return band;
  }

  /** One after the other: two writers must not make the same band, and none writes to one that is cut. */
  #inTurn(work: () => Promise<void>): Promise<void> {
    const done = this.#turn.then(work);
    this.#turn = done.catch(() => {});
    return done;
  }

  /** What of the range has a file. */
  #each(range: Extent, work: (band: WritableBand, inside: Extent) => Promise<void>): Promise<void> {
    return this.#inTurn(async () => {
      for (const { number, from, start, end } of this.pieces(range)) {
        const band = this.bundle.bands.get(number);
        const [inside] = ExtentSet.of({ start: from, end: from + end - start }).within({
          start: 0,
          end: band?.bytes ?? 0,
        });
        if (band !== undefined && inside !== undefined) await work(band, inside);
      }
    });
  }
}
