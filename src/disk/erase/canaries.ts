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
  { tag, samples }: Planted,
  { signal, onProgress }: SearchOptions = {},
): Promise<Sighted> {
  const margin = Math.max(TAG_BYTES, SAMPLE_BYTES) - 1;
  const buffer = Buffer.alloc(margin + CHUNK_BYTES);
  const seen = new Set<Buffer>();
  let canaries = 0;
  let searchedBytes = 0;
  for (const file of files.values()) {
    file.forget?.();
    for await (const runs of file.map({ start: 0, end: file.bytes })) {
      for (const { start, end, kind } of runs) {
        if (kind === "hole") continue;
        let kept = 0;
        for (let at = start; at < end; at += CHUNK_BYTES) {
          if (signal?.aborted)
            throw new DiskError("interrupted", "interrupted while searching; all is erased");
          const bytes = Math.min(CHUNK_BYTES, end - at);
          await file.read(at, buffer.subarray(kept, kept + bytes));
          const read = buffer.subarray(0, kept + bytes);
          for (let found = read.indexOf(tag); found >= 0; found = read.indexOf(tag, found + 1)) canaries++;
          for (const sample of samples) if (!seen.has(sample) && read.includes(sample)) seen.add(sample);
          searchedBytes += bytes;
          onProgress?.(searchedBytes);
          // The end of this chunk is looked at again: shorter than what is searched for, it is counted once.
          kept = Math.min(margin, read.length);
          buffer.copyWithin(0, read.length - kept, read.length);
        }
      }
    }
  }
  return { canaries, samples: seen.size, searchedBytes };
}
