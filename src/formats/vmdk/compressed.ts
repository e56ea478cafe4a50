/**
 * A stream-optimized extent: grains that were compressed one after the other, written once and never again.
 *
 *   grain table entry ─→ | marker: first sector, length | deflated grain | pad to a sector |
 *
 * Specification: VMware, Virtual Disk Format 5.0, "Stream-Optimized Compressed Sparse Extents"; RFC 1950.
 */
import { inflateSync } from "node:zlib";
import type { Extent } from "../../bytes/extents.ts";
import type { BlockDevice, Run } from "../../device/device.ts";
import { readBytes } from "../../device/device.ts";
import { readBeyond } from "../../device/padded.ts";
import { parentRuns } from "../../device/runs.ts";
import { u32le, u64le } from "../../bytes/struct.ts";
import { struct } from "../../bytes/struct.ts";
import { DiskError } from "../../error.ts";
import type { Finding } from "../format.ts";
import { ABSENT, type BlockTable, ZERO } from "../blocks/table.ts";
import { damaged } from "../blocks/damaged.ts";
import { mustLieInside } from "./damaged.ts";
import { SECTOR_BYTES } from "./descriptor.ts";

/** Before each grain. */
export const GrainMarker = struct({ lba: u64le, dataBytes: u32le });
/** Before each grain of a file without markers. */
const GrainSize = struct({ dataBytes: u32le });

export interface CompressedGrains {
  readonly file: BlockDevice;
  readonly bytes: number;
  readonly grainBytes: number;
  readonly hasMarkers: boolean;
  readonly table: BlockTable;
  readonly parent: BlockDevice | undefined;
}

/** A map yields so many runs at a time. */
const BATCH_RUNS = 1024;
/** Findings told one by one. */
const TOLD_MAX = 100;

export class CompressedDisk implements BlockDevice {
  readonly bytes: number;
  readonly #grains: CompressedGrains;
  /** The grain that was read last: readers come for its parts one after the other. */
  #last: { readonly grain: number; readonly content: Uint8Array } | undefined;

  constructor(grains: CompressedGrains) {
    this.#grains = grains;
    this.bytes = grains.bytes;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    const { grainBytes, table, parent } = this.#grains;
    for (let done = 0; done < into.length;) {
      const grain = Math.floor((at + done) / grainBytes);
      const from = at + done - grain * grainBytes;
      const target = into.subarray(done, done + grainBytes - from);
      const slot = table.get(grain);
      if (slot === ABSENT) await readBeyond(parent, at + done, target);
      else if (slot === ZERO) target.fill(0);
      else target.set((await this.#content(grain, slot)).subarray(from, from + target.length));
      done += target.length;
    }
  }

  async *map({ start, end }: Extent): AsyncIterable<readonly Run[]> {
    const { grainBytes, table, parent } = this.#grains;
    let runs: Run[] = [];
    for (let at = start; at < end;) {
      const grain = Math.floor(at / grainBytes);
      const slot = table.get(grain);
      if (slot === ABSENT) {
        const next = table.nextPresent(grain, Math.ceil(end / grainBytes));
        const stop = Math.min(end, next * grainBytes);
        yield runs;
        runs = [];
        yield* parentRuns(parent, { start: at, end: stop });
        at = stop;
        continue;
      }
      const stop = Math.min(end, (grain + 1) * grainBytes);
      runs.push({
        start: at,
        end: stop,
        kind: slot === ZERO ? "zero" : "compressed",
        shared: false,
        depth: 0,
      });
      at = stop;
      if (runs.length < BATCH_RUNS) continue;
      yield runs;
      runs = [];
    }
    if (runs.length > 0) yield runs;
  }

  /** Whether each grain's marker is its own, and its data lie in the file. */
  async *check(): AsyncIterable<Finding> {
    const { table } = this.#grains;
    let errors = 0;
    for (let grain = table.nextPresent(0, table.blocks); grain < table.blocks;) {
      const slot = table.get(grain);
      const message = slot === ZERO ? undefined : await this.#wrongOf(grain, slot);
      if (message !== undefined && errors++ < TOLD_MAX) {
        yield { kind: "error", isMendable: false, count: 1, message };
      }
      grain = table.nextPresent(grain + 1, table.blocks);
    }
    if (errors <= TOLD_MAX) return;
    const count = errors - TOLD_MAX;
    yield { kind: "error", isMendable: false, count, message: `${count} more errors` };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }

  async #wrongOf(grain: number, slot: number): Promise<string | undefined> {
    try {
      await this.#dataOf(grain, slot);
      return undefined;
    } catch (error) {
      if (error instanceof DiskError && error.kind !== "io") return error.message;
      throw error;
    }
  }

  async #content(grain: number, slot: number): Promise<Uint8Array> {
    if (this.#last?.grain === grain) return this.#last.content;
    const { at, bytes } = await this.#dataOf(grain, slot);
    const { file, grainBytes } = this.#grains;
    const content = inflated(await readBytes(file, at, bytes), grainBytes, at);
    // Some writers end the last grain where the disk ends.
    const least = Math.min(grainBytes, this.bytes - grain * grainBytes);
    if (content.length < least) throw damaged("grain", at, `${content.length} bytes`, `${least} bytes`);
    this.#last = { grain, content };
    return content;
  }

  /** Where the deflated data of a grain lie. @throws DiskError `corrupt` */
  async #dataOf(grain: number, slot: number): Promise<{ at: number; bytes: number }> {
    const { file, grainBytes, hasMarkers } = this.#grains;
    const at = slot * SECTOR_BYTES;
    const header = hasMarkers ? GrainMarker : GrainSize;
    mustLieInside(file, `marker of grain ${grain}`, at, header.bytes);
    const head = await readBytes(file, at, header.bytes);
    const { dataBytes } = header.decode(head);
    const sector = (grain * grainBytes) / SECTOR_BYTES;
    if (hasMarkers) {
      const { lba } = GrainMarker.decode(head);
      if (lba !== sector) throw damaged(`marker of grain ${grain}`, at, `sector ${lba}`, `sector ${sector}`);
    }
    // What cannot be compressed grows by some bytes in each block of deflate.
    if (dataBytes === 0 || dataBytes > 2 * grainBytes + SECTOR_BYTES) {
      throw damaged(`length of grain ${grain}`, at, dataBytes, `1 to ${2 * grainBytes + SECTOR_BYTES}`);
    }
    mustLieInside(file, `grain ${grain}`, at + header.bytes, dataBytes);
    return { at: at + header.bytes, bytes: dataBytes };
  }
}

/** @throws DiskError `corrupt` also where it would be longer than a grain (H24) */
function inflated(data: Uint8Array, grainBytes: number, at: number): Uint8Array {
  try {
    return inflateSync(data, { maxOutputLength: grainBytes });
  } catch (cause) {
    const message = `grain at ${at}: its deflated data are damaged: ${String(cause)}`;
    throw new DiskError("corrupt", message, { cause });
  }
}
