/**
 * A stream-optimized disk while it is made: it takes what comes in ascending order, and can be read when it is finished.
 *
 *   write, write, …   grains behind the last one; the one that is being filled is held in memory
 *   flush             the stream ends: from now on it is read, and never written again
 */
import type { Extent } from "../../bytes/extents.ts";
import type { HostFile, Run } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { Plan } from "../../reclaim/plan.ts";
import type { Finding, Snapshot, WritableImage } from "../format.ts";
import type { VmdkImage } from "./image.ts";
import { SECTOR_BYTES } from "./descriptor.ts";
import { GRAIN_BYTES, type StreamWriter } from "./stream-writer.ts";

export class StreamedVmdkImage implements WritableImage {
  readonly format = "vmdk";
  readonly grainBytes = GRAIN_BYTES;
  readonly bytes: number;
  readonly files: ReadonlyMap<string, HostFile>;
  readonly parent = undefined;
  readonly references = [];
  readonly summary = "streamOptimized, being written";
  readonly encrypted = false;
  readonly details = { createType: "streamOptimized", grainBytes: GRAIN_BYTES };
  readonly #writer: StreamWriter;
  readonly #reopen: () => Promise<VmdkImage>;
  #pending: { readonly grain: number; readonly content: Uint8Array } | undefined;
  #finished: VmdkImage | undefined;

  /** @param reopen opens the disk, once the stream is finished */
  constructor(file: HostFile, sectors: number, writer: StreamWriter, reopen: () => Promise<VmdkImage>) {
    this.files = new Map([["", file]]);
    this.bytes = sectors * SECTOR_BYTES;
    this.#writer = writer;
    this.#reopen = reopen;
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    for (const { grain, start, end } of partsOf({ start: at, end: at + from.length })) {
      const content = await this.#grainOf(grain);
      content.set(from.subarray(start - at, end - at), start - grain * GRAIN_BYTES);
    }
  }

  async zero(range: Extent): Promise<void> {
    for (const { grain, start, end } of partsOf(range)) {
      // A grain that never comes reads as zeros.
      if (grain > (this.#pending?.grain ?? this.#writer.lastGrain)) return;
      (await this.#grainOf(grain)).fill(0, start - grain * GRAIN_BYTES, end - grain * GRAIN_BYTES);
    }
  }

  /** Advice, which a stream cannot follow. */
  discard(): Promise<void> {
    return Promise.resolve();
  }

  async flush(): Promise<void> {
    if (this.#finished !== undefined) return;
    await this.#writePending();
    await this.#writer.finish();
    this.#finished = await this.#reopen();
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    await this.#whole().read(at, into);
  }

  map(range: Extent): AsyncIterable<readonly Run[]> {
    return this.#whole().map(range);
  }

  async tableBytes(): Promise<number> {
    return this.#whole().tableBytes();
  }

  snapshots(): Promise<readonly Snapshot[]> {
    return Promise.resolve([]);
  }

  check(): AsyncIterable<Finding> {
    return this.#whole().check();
  }

  async plan(): Promise<Plan> {
    throw new DiskError("unsupported", "a streamOptimized disk is written once");
  }

  async describe(fileOffset: number): Promise<string | undefined> {
    return this.#whole().describe(fileOffset);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // A write to a descriptor that is closed would go to whatever file has its number by then.
    await this.#writer.settle();
    for (const file of this.files.values()) await file[Symbol.asyncDispose]();
  }

  #whole(): VmdkImage {
    if (this.#finished !== undefined) return this.#finished;
    throw new DiskError("unsupported", "a streamOptimized disk cannot be read before it is finished");
  }

  /** The content of the grain that is being filled, which may be a new one. */
  async #grainOf(grain: number): Promise<Uint8Array> {
    if (this.#pending?.grain === grain && this.#finished === undefined) return this.#pending.content;
    const last = this.#pending?.grain ?? this.#writer.lastGrain;
    if (this.#finished !== undefined || grain <= last) {
      throw new DiskError(
        "unsupported",
        `a streamOptimized disk is written in ascending order: grain ${grain} is past`,
      );
    }
    await this.#writePending();
    const content = new Uint8Array(GRAIN_BYTES);
    this.#pending = { grain, content };
    return content;
  }

  async #writePending(): Promise<void> {
    if (this.#pending === undefined) return;
    const { grain, content } = this.#pending;
    this.#pending = undefined;
    if (content.some((byte) => byte !== 0)) await this.#writer.write(grain, content);
  }
}

function* partsOf({ start, end }: Extent): Generator<Extent & { readonly grain: number }> {
  for (let at = start; at < end;) {
    const grain = Math.floor(at / GRAIN_BYTES);
    const stop = Math.min(end, (grain + 1) * GRAIN_BYTES);
    yield { grain, start: at, end: stop };
    at = stop;
  }
}
