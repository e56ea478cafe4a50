/**
 * Which guest bytes own bytes of the host's disk: the image's map joined with the host file's own map.
 *
 *   guest  |######|......|####|        image.map: clusters
 *   file   |##..##|......|####|        file.map: FIEMAP (H8: says what is allocated, never what is zero)
 *   owned  |##..##|......|####|
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice, ReadableFile, Run } from "../device/device.ts";
import type { Image } from "../formats/format.ts";

/** What the host has allocated for a file, in file bytes. */
export interface FileAllocation {
  /** Data and unwritten extents. */
  readonly allocated: ExtentSet;
  /** Preallocated: reads as zeros, owns space. */
  readonly unwritten: ExtentSet;
  /** Reflinked: punching returns nothing (H35). */
  readonly shared: ExtentSet;
}

/** In guest bytes, of the image itself without its parents. */
export interface Allocation {
  /** Bytes that own host space, by themselves alone. */
  readonly owned: ExtentSet;
  /** Bytes whose clusters a snapshot refers to as well, or whose host extents are reflinked. */
  readonly shared: ExtentSet;
  /** Part of `owned` that was preallocated and never written. */
  readonly unwritten: ExtentSet;
  /** Bytes that read as zeros because nothing was ever written there, in this image or its parents. */
  readonly holes: ExtentSet;
  readonly files: ReadonlyMap<string, FileAllocation>;
}

export async function allocationOf(image: Image): Promise<Allocation> {
  const files = new Map<string, FileAllocation>();
  const byDevice = new Map<BlockDevice, FileAllocation>();
  for (const [name, file] of image.files) {
    const allocation = await allocationOfFile(file);
    files.set(name, allocation);
    byDevice.set(file, allocation);
  }
  const owned = new ExtentBuilder();
  const shared = new ExtentBuilder();
  const unwritten = new ExtentBuilder();
  const holes = new ExtentBuilder();
  for await (const batch of image.map({ start: 0, end: image.bytes })) {
    for (const run of batch) {
      if (run.kind === "hole" || (run.kind === "zero" && !run.place)) holes.add(run.start, run.end);
      if (run.depth > 0) continue;
      if (run.kind === "compressed") (run.shared ? shared : owned).add(run.start, run.end);
      if (!run.place) continue;
      const host = byDevice.get(run.place.file);
      if (!host) continue;
      translate(run, host.allocated, run.shared ? shared : owned);
      if (!run.shared) translate(run, host.shared, shared);
      translate(run, host.unwritten, unwritten);
    }
  }
  const sharedSet = shared.build();
  return {
    owned: owned.build().subtract(sharedSet),
    shared: sharedSet,
    unwritten: unwritten.build(),
    holes: holes.build(),
    files,
  };
}

async function allocationOfFile(file: ReadableFile): Promise<FileAllocation> {
  const allocated = new ExtentBuilder();
  const unwritten = new ExtentBuilder();
  const shared = new ExtentBuilder();
  for await (const batch of file.map({ start: 0, end: file.bytes })) {
    for (const run of batch) {
      if (run.kind === "hole") continue;
      allocated.add(run.start, run.end);
      if (run.kind === "zero") unwritten.add(run.start, run.end);
      if (run.shared) shared.add(run.start, run.end);
    }
  }
  return { allocated: allocated.build(), unwritten: unwritten.build(), shared: shared.build() };
}

/** Adds the part of `run` whose place lies in `set`, in the run's own offsets. */
function translate(run: Run, set: ExtentSet, into: ExtentBuilder): void {
  const { at, bytes } = run.place!;
  const shift = run.start - at;
  for (let i = set.seek(at); i < set.count && set.start(i) < at + bytes; i++) {
    into.add(Math.max(set.start(i), at) + shift, Math.min(set.end(i), at + bytes) + shift);
  }
}

/** The complement of `set` inside `range`. */
export function complement(set: ExtentSet, range: Extent): ExtentSet {
  return ExtentSet.of(range).subtract(set);
}
