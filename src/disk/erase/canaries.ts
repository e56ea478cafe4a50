/**
 * Canaries: bytes that nobody else has, planted where the erasure must reach, and looked for everywhere afterwards.
 *
 *   before   |free|CANARY|free|used|CANARY|     flushed; read back from the medium, so that the search is known to work
 *   after    every byte that the host holds of the files is read, past its memory, and searched
 *
 * All canaries of a run begin with the same 32 random bytes: one search finds any of them. With them go samples of what
 * the free places held before: these may lie in the image rightly as well, in a file that is still there or in the
 * guest's journal, and are counted by themselves.
 */
import { randomBytes } from "node:crypto";
import type { ExtentSet } from "../../bytes/extents.ts";
import type { ReadableFile } from "../../device/device.ts";
import { assert, DiskError } from "../../error.ts";

const CANARIES_MAX = 64;
const CANARY_BYTES = 512;
const TAG_BYTES = 32;
const SAMPLES_MAX = 8;
const SAMPLE_BYTES = 32;
/** What has fewer different bytes could lie anywhere. */
const SAMPLE_VALUES_MIN = 12;
const CHUNK_BYTES = 1024 * 1024;

/** What a search needs to know. */
export interface Planted {
  readonly tag: Buffer;
  readonly samples: readonly Buffer[];
  readonly count: number;
}

export interface Sighted {
  readonly canaries: number;
  /** How many of the samples were found anywhere. */
  readonly samples: number;
  readonly searchedBytes: number;
}

/** A file that can be planted in. */
interface Ground extends ReadableFile {
  write(at: number, from: Uint8Array): Promise<void>;
  flush(): Promise<void>;
}

/** @throws DiskError `io` when what was planted cannot be found */
export async function plant(
  files: ReadonlyMap<string, Ground>,
  remains: ReadonlyMap<string, ExtentSet>,
): Promise<Planted> {
  const tag = randomBytes(TAG_BYTES);
  const samples: Buffer[] = [];
  const places: { readonly file: Ground; readonly at: number }[] = [];
  const chosen = spread(remains);
  for (const [i, { name, at }] of chosen.entries()) {
    const file = files.get(name)!;
    assert(
      remains.get(name)!.covers({ start: at, end: at + CANARY_BYTES }),
      "a canary sits in what is erased",
    );
    const old = Buffer.alloc(CANARY_BYTES);
    await file.read(at, old);
    const sample = i % Math.ceil(chosen.length / SAMPLES_MAX) === 0 ? sampleOf(old) : undefined;
    if (sample !== undefined) samples.push(sample);
    places.push({ file, at });
  }
  for (const { file, at } of places)
    await file.write(at, Buffer.concat([tag, randomBytes(CANARY_BYTES - TAG_BYTES)]));
  for (const file of files.values()) {
    await file.flush();
    file.forget?.();
  }
  for (const { file, at } of places) {
    const found = Buffer.alloc(CANARY_BYTES);
    await file.read(at, found);
    if (found.indexOf(tag) !== 0) throw new DiskError("io", `a canary planted at ${at} is not found there`);
  }
  return { tag, samples, count: places.length };
}

/** Places for canaries, evenly over all that is to be erased. */
function spread(remains: ReadonlyMap<string, ExtentSet>): { readonly name: string; readonly at: number }[] {
  const all = Array.from(remains, ([name, set]) => ({ name, set: set.atLeast(2 * CANARY_BYTES) }));
  const total = all.reduce((sum, { set }) => sum + set.bytes, 0);
  const step = Math.max(2 * CANARY_BYTES, Math.ceil(total / CANARIES_MAX));
  const chosen: { name: string; at: number }[] = [];
  let passed = 0;
  let next = 0;
  for (const { name, set } of all) {
    for (const { start, end } of set) {
      for (;;) {
        const at = start + Math.max(0, next - passed);
        if (at + CANARY_BYTES > end) break;
        chosen.push({ name, at });
        next = passed + at - start + step;
      }
      passed += end - start;
    }
  }
  return chosen;
}

function sampleOf(old: Buffer): Buffer | undefined {
  for (let at = 0; at + SAMPLE_BYTES <= old.length; at += SAMPLE_BYTES) {
    const part = old.subarray(at, at + SAMPLE_BYTES);
    if (new Set(part).size >= SAMPLE_VALUES_MIN) return Buffer.from(part);
  }
  return undefined;
}

export interface SearchOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((doneBytes: number) => void) | undefined;
}

/** Searches all that the host holds of the files. @throws DiskError `interrupted`, `io` */
export async function search(
  files: ReadonlyMap<string, ReadableFile>,
  planted: Planted,
  { signal, onProgress }: SearchOptions = {},
): Promise<Sighted> {
  const look = new Look(planted);
  for (const file of files.values()) {
    file.forget?.();
    look.begin();
    for await (const runs of file.map({ start: 0, end: file.bytes })) {
      for (const { start, end, kind } of runs) {
        if (kind === "hole") continue;
        for (let at = start; at < end; at += CHUNK_BYTES) {
          if (signal?.aborted)
            throw new DiskError("interrupted", "interrupted while searching; all is erased");
          await look.at(file, at, Math.min(CHUNK_BYTES, end - at));
          onProgress?.(look.searchedBytes);
        }
      }
    }
  }
  return { canaries: look.canaries, samples: look.samples.size, searchedBytes: look.searchedBytes };
}

/** Of what was read, so much is looked at again with what follows: less than is searched for, so that it counts once. */
const MARGIN_BYTES = Math.min(TAG_BYTES, SAMPLE_BYTES) - 1;

class Look {
  readonly #planted: Planted;
  readonly #buffer = Buffer.alloc(MARGIN_BYTES + CHUNK_BYTES);
  #kept = 0;
  #end = 0;
  canaries = 0;
  searchedBytes = 0;
  readonly samples = new Set<Buffer>();

  constructor(planted: Planted) {
    this.#planted = planted;
  }

  /** With a new file. */
  begin(): void {
    this.#kept = 0;
  }

  async at(file: ReadableFile, at: number, bytes: number): Promise<void> {
    const kept = at === this.#end ? this.#kept : 0;
    await file.read(at, this.#buffer.subarray(kept, kept + bytes));
    const read = this.#buffer.subarray(0, kept + bytes);
    const { tag, samples } = this.#planted;
    for (let found = read.indexOf(tag); found >= 0; found = read.indexOf(tag, found + 1)) this.canaries++;
    for (const sample of samples)
      if (!this.samples.has(sample) && read.includes(sample)) this.samples.add(sample);
    this.searchedBytes += bytes;
    this.#end = at + bytes;
    this.#kept = Math.min(MARGIN_BYTES, read.length);
    this.#buffer.copyWithin(0, read.length - this.#kept, read.length);
  }
}
