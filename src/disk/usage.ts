/**
 * One class for every byte of the guest's disk, and the witness for every free one. Silence means used.
 *
 *   filesystem  its map calls it free, and (proof full) nothing reaches it           → free
 *   zeros       read, and holds only zeros (--also zeros)                            → free
 *   gaps        between partitions, needed by no loader and no table (--also gaps)   → free
 *   mapping     never written, and no filesystem calls it used                       → free, owns nothing
 *   refused or strange volumes                                                       → unknown, counts as used
 */
import { ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import type { Refusal } from "../error.ts";
import type { FileSystem } from "../filesystems/filesystem.ts";
import { type Proven, prove } from "../reclaim/prove.ts";
import { zeroRuns } from "../reclaim/zeros.ts";
import { type Allocation, complement } from "./allocation.ts";
import { onDisk, type Region, regionsOf } from "./layout.ts";
import type { Disk } from "./open.ts";
import { HIBERNATED } from "./recognise.ts";
import type { ByteClass, Proof, SurveyOptions, VolumeReport, Witness } from "./results.ts";

export interface Usage {
  /** What may be given back, in guest bytes: every witness but the mapping table, which has nothing to give. */
  readonly free: ExtentSet;
  /** What the guest uses, or may use: everything that must read the same afterwards. */
  readonly kept: ExtentSet;
  readonly usedBytes: number;
  readonly freeBytes: number;
  readonly unknownBytes: number;
  readonly witnesses: ReadonlyMap<Witness, ExtentSet>;
  readonly volumes: readonly VolumeReport[];
  readonly regions: ReadonlyMap<ByteClass, ExtentSet>;
  readonly notes: readonly string[];
}

/** One part in so many of the disk must be unwritten for it to count as preallocated on purpose. */
const PREALLOCATED_SHARE = 20;

interface Tally {
  readonly volumes: VolumeReport[];
  readonly notes: string[];
  readonly metadata: ExtentBuilder;
  /** Free by a filesystem's word. */
  free: ExtentSet;
  /** Ranges of filesystems that were understood: inside them only their own word counts. */
  readonly understood: ExtentBuilder;
  readonly unknown: ExtentBuilder;
  gaps: ExtentSet;
}

export async function usageOf(disk: Disk, allocation: Allocation, options: SurveyOptions): Promise<Usage> {
  const tally: Tally = {
    volumes: [],
    notes: [],
    metadata: new ExtentBuilder(),
    free: ExtentSet.EMPTY,
    understood: new ExtentBuilder(),
    unknown: new ExtentBuilder(),
    gaps: ExtentSet.EMPTY,
  };
  const regions = [...regionsOf(await disk.layout())];
  const suspended = regions.find(
    ({ content }) =>
      (content.kind === "stranger" && content.name === HIBERNATED) ||
      (content.kind === "filesystem" && content.filesystem.refusal?.code === "hibernated"),
  );
  const judgement: Judgement = {
    proof: options.proof ?? "full",
    inUse: disk.inUse,
    refusal: suspended && hibernated(suspended),
  };
  for (const region of regions) await countRegion(region, judgement, tally);
  return classify(disk, allocation, options, tally);
}

/** How the filesystems of a disk are judged. */
interface Judgement {
  readonly proof: Proof;
  readonly inUse: boolean;
  /** Refuses all of them: the state of the whole guest forbids it. */
  readonly refusal: Refusal | undefined;
}

/** H3: a resumed guest goes on with the filesystems as it remembers them. */
function hibernated({ name }: Region): Refusal {
  return {
    code: "hibernated",
    message: `the guest is hibernated: volume ${name} holds its memory`,
    hint: "resume the guest and shut it down",
  };
}

async function countRegion(region: Region, judgement: Judgement, tally: Tally): Promise<void> {
  const { content } = region;
  if (content.kind === "table") {
    const { table } = content;
    tally.notes.push(...table.notes);
    if (table.refusal) {
      tally.volumes.push(unreadable(region, table.scheme, "refused", table.refusal));
      markUnknown(region, tally);
    } else for (const gaps of table.gaps) tally.gaps = tally.gaps.union(onDisk(region, gaps));
  } else if (content.kind === "stranger") {
    const state = content.reason.code === "ambiguous" ? "refused" : "unknown";
    tally.volumes.push(unreadable(region, content.name, state, content.reason));
    markUnknown(region, tally);
  } else await countFilesystem(region, content.filesystem, judgement, tally);
}

async function countFilesystem(
  region: Region,
  filesystem: FileSystem,
  { proof, inUse, refusal: forbidden }: Judgement,
  tally: Tally,
): Promise<void> {
  const metadata = new ExtentBuilder();
  const known = forbidden ?? filesystem.refusal;
  const proven: Proven = known
    ? { free: [ExtentSet.EMPTY], leakedBytes: 0, refusal: known }
    : await prove(watchingMetadata(filesystem, metadata), proof);
  const refusal = proven.refusal ?? filesystem.refusal;
  if (refusal) {
    tally.volumes.push(unreadable(region, filesystem.name, inUse ? "unknown" : "refused", refusal));
    markUnknown(region, tally);
    return;
  }
  const whole = { start: 0, end: region.device.bytes };
  const free = proven.free[0]!.within({ start: 0, end: Math.min(filesystem.bytes, whole.end) });
  tally.free = tally.free.union(onDisk(region, free));
  for (const extent of onDisk(region, ExtentSet.of(whole))) tally.understood.add(extent.start, extent.end);
  for (const extent of onDisk(region, metadata.build().within(whole)))
    tally.metadata.add(extent.start, extent.end);
  const { map, walk } = filesystem.witness;
  tally.volumes.push({
    ...heading(region),
    label: region.label || filesystem.label,
    filesystem: filesystem.name,
    usedBytes: region.device.bytes - free.bytes,
    freeBytes: free.bytes,
    leakedBytes: proven.leakedBytes,
    state: "clean",
    reason: null,
    witness: proof === "full" ? `${map} + ${walk}` : map,
    notes: filesystem.notes,
  });
}

/** The filesystem, with an eye on what of its walk is its own metadata. */
function watchingMetadata(filesystem: FileSystem, metadata: ExtentBuilder) {
  return {
    blockBytes: filesystem.blockBytes,
    bytes: filesystem.bytes,
    get refusal() {
      return filesystem.refusal;
    },
    free: () => filesystem.free(),
    describe: (owner: number) => filesystem.describe(owner),
    walk: (visit: (member: number, start: number, end: number, owner: number) => void) =>
      filesystem.walk((member, start, end, owner) => {
        if (owner < 0 && member === 0) metadata.add(start, end);
        visit(member, start, end, owner);
      }),
  };
}

function heading(region: Region) {
  const [first] = region.places({ start: 0, end: Math.min(1, region.device.bytes) });
  return { name: region.name, label: region.label, start: first?.at ?? 0, bytes: region.device.bytes };
}

function unreadable(
  region: Region,
  filesystem: string | null,
  state: "refused" | "unknown",
  reason: VolumeReport["reason"],
): VolumeReport {
  return {
    ...heading(region),
    filesystem,
    usedBytes: region.device.bytes,
    freeBytes: 0,
    leakedBytes: 0,
    state,
    reason,
    witness: null,
    notes: [],
  };
}

function markUnknown(region: Region, tally: Tally): void {
  for (const { at, bytes } of region.places({ start: 0, end: region.device.bytes })) {
    tally.unknown.add(at, at + bytes);
  }
}

async function classify(
  disk: Disk,
  allocation: Allocation,
  options: SurveyOptions,
  tally: Tally,
): Promise<Usage> {
  const whole = { start: 0, end: disk.image.bytes };
  const notes = [...tally.notes];
  let given = tally.free;
  const witnesses = new Map<Witness, ExtentSet>([["filesystem", given]]);
  const also = new Set(options.also);
  if (also.has("gaps")) {
    const gaps = tally.gaps.within(whole).subtract(given);
    witnesses.set("gaps", gaps);
    given = given.union(gaps);
  }
  if (also.has("zeros")) {
    const zeros = await zeroRuns(disk.image, allocation.owned.subtract(given), await granule(disk), {
      ...(options.signal && { signal: options.signal }),
      onProgress: (doneBytes, totalBytes) =>
        options.onProgress?.({ phase: "reading", doneBytes, totalBytes }),
    });
    witnesses.set("zeros", zeros);
    given = given.union(zeros);
  }
  const preallocated = preallocatedOnPurpose(allocation.unwritten.intersect(given), whole.end);
  if (preallocated.count > 0 && !options.allow?.preallocated) {
    notes.push(
      `${Math.ceil(preallocated.bytes / 1024)} KiB of free space were preallocated on the host and stay (--allow preallocated returns them)`,
    );
  }
  const usedByFilesystem = tally.understood.build().subtract(given);
  const holes = allocation.holes.subtract(usedByFilesystem).subtract(given);
  witnesses.set("mapping-table", holes);
  const free = given.union(holes);
  const unknown = tally.unknown.build().within(whole).subtract(free);
  const used = complement(free.union(unknown), whole);
  const metadata = tally.metadata.build().intersect(used);
  const returnable = given.intersect(allocation.owned);
  return {
    free: options.allow?.preallocated ? given : given.subtract(preallocated),
    kept: complement(given, whole),
    usedBytes: used.bytes,
    freeBytes: free.bytes,
    unknownBytes: unknown.bytes,
    witnesses,
    volumes: tally.volumes,
    notes,
    regions: new Map<ByteClass, ExtentSet>([
      ["used", used.subtract(metadata).union(given.intersect(allocation.shared))],
      ["metadata", metadata],
      ["returnable", returnable],
      ["hole", free.subtract(returnable).subtract(allocation.shared)],
      ["unknown", unknown],
    ]),
  };
}

/**
 * Unwritten extents, when they are many enough to be somebody's purpose. A few are only what zeroing left behind:
 * QEMU and the kernel turn written zeros into them.
 */
function preallocatedOnPurpose(unwritten: ExtentSet, virtualBytes: number): ExtentSet {
  return unwritten.bytes * PREALLOCATED_SHARE > virtualBytes ? unwritten : ExtentSet.EMPTY;
}

async function granule(disk: Disk): Promise<number> {
  let bytes = 512;
  for (const file of disk.image.files.values()) bytes = Math.max(bytes, (await file.stat()).blockBytes);
  return bytes;
}
