/**
 * One class for every byte of the guest's disk, and the witness for every free one. Silence means used.
 *
 *   guarded     trimmed or zeroed while it was served, and can be taken back        → free, and stays
 *   filesystem  its map calls it free, and (proof full) nothing reaches it           → free
 *   zeros       read, and holds only zeros (--also zeros)                            → free
 *   gaps        between partitions, needed by no loader and no table (--also gaps)   → free
 *   worthless   swap, page files, hibernation files of a clean guest (--also swap …) → free
 *   mapping     never written, and no filesystem calls it used                       → free, owns nothing
 *   refused or strange volumes                                                       → unknown, counts as used
 */
import { ExtentSet } from "../bytes/extents.ts";
import { zeroRuns } from "../reclaim/zeros.ts";
import { type Allocation, complement } from "./allocation.ts";
import { maskedBy } from "./guarded.ts";
import { leftoversOn } from "./leftovers.ts";
import type { Disk } from "./open.ts";
import {
  type ByteClass,
  type Proof,
  type SurveyOptions,
  type VolumeReport,
  type Witness,
  WORTHLESS_WORDS,
  type WorthlessReport,
  type WorthlessWord,
} from "./results.ts";
import { type Tally, tallyOf } from "./tally.ts";
import { type Worthless, worthlessOn } from "./worthless.ts";

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
  readonly worthless: readonly WorthlessReport[];
  /** What lies behind those of `worthless` that `--also` may clear. */
  readonly contents: readonly Worthless[];
  readonly regions: ReadonlyMap<ByteClass, ExtentSet>;
  readonly notes: readonly string[];
}

/** One part in so many of the disk must be unwritten for it to count as preallocated on purpose. */
const PREALLOCATED_SHARE = 20;

export async function usageOf(disk: Disk, allocation: Allocation, options: SurveyOptions): Promise<Usage> {
  const layout = await disk.layout();
  const proof = options.proof ?? "full";
  const { contents, suspended } = await worthlessOn(layout);
  const tally = await tallyOf(layout, {
    proof,
    inUse: disk.inUse,
    discards: options.allow?.discards ?? false,
    suspended,
    names: [disk.path, ...disk.companions.map(({ path }) => path)],
  });
  const worthless = contents.map((each) => ({
    ...each,
    kept: each.kept ?? whyKept(each, tally.doubt, proof),
  }));
  const reports = [...worthless.map(reportOf), ...(await leftoversOn(layout))];
  const classified = await classify(disk, allocation, options, { tally, worthless });
  return { ...classified, worthless: reports, contents: worthless };
}

interface Said {
  readonly tally: Tally;
  readonly worthless: readonly Worthless[];
}

async function classify(
  disk: Disk,
  allocation: Allocation,
  options: SurveyOptions,
  { tally, worthless }: Said,
): Promise<Omit<Usage, "worthless" | "contents">> {
  const whole = { start: 0, end: disk.image.bytes };
  const notes = [...tally.notes];
  const witnesses = new Map<Witness, ExtentSet>();
  let given = ExtentSet.EMPTY;
  const give = (witness: Witness, set: ExtentSet): void => {
    const more = set.within(whole).subtract(given);
    witnesses.set(witness, more);
    given = given.union(more);
  };
  const guarded = maskedBy(disk.guard);
  give("guarded", guarded);
  give("filesystem", tally.free);
  const also = new Set(options.also);
  if (also.has("gaps")) give("gaps", tally.gaps);
  for (const word of WORTHLESS_WORDS.filter((each) => also.has(each))) give(word, clearable(worthless, word));
  if (also.has("zeros")) {
    const zeros = await zeroRuns(disk.image, allocation.owned.subtract(given), await granule(disk), {
      ...(options.signal && { signal: options.signal }),
      onProgress: (doneBytes, totalBytes) =>
        options.onProgress?.({ phase: "reading", doneBytes, totalBytes }),
    });
    give("zeros", zeros);
  }
  const preallocated = preallocatedOnPurpose(allocation.unwritten.intersect(given), whole.end);
  if (preallocated.count > 0 && !options.allow?.preallocated) {
    notes.push(
      `${Math.ceil(preallocated.bytes / 1024)} KiB of free space were preallocated on the host and stay (--allow preallocated returns them)`,
    );
  }
  if (guarded.count === 0) witnesses.delete("guarded");
  const holes = allocation.holes.subtract(tally.understood.subtract(given)).subtract(given);
  witnesses.set("mapping-table", holes);
  const free = given.union(holes);
  const plannable = given.subtract(guarded);
  const unknown = tally.unknown.within(whole).subtract(free);
  const used = complement(free.union(unknown), whole);
  const metadata = tally.metadata.intersect(used);
  const spare = ExtentSet.from(WORTHLESS_WORDS.flatMap((word) => [...clearable(worthless, word)])).intersect(
    used,
  );
  const returnable = plannable.intersect(allocation.owned);
  return {
    free: options.allow?.preallocated ? plannable : plannable.subtract(preallocated),
    kept: complement(plannable, whole),
    usedBytes: used.bytes,
    freeBytes: free.bytes,
    unknownBytes: unknown.bytes,
    witnesses,
    volumes: tally.volumes,
    notes,
    regions: new Map<ByteClass, ExtentSet>([
      ["used", used.subtract(metadata).subtract(spare).union(plannable.intersect(allocation.shared))],
      ["metadata", metadata],
      ["worthless", spare],
      ["guarded", guarded],
      ["returnable", returnable],
      ["hole", free.subtract(guarded).subtract(returnable).subtract(allocation.shared)],
      ["unknown", unknown],
    ]),
  };
}

/** What `--also` with that word may clear. */
function clearable(worthless: readonly Worthless[], word: WorthlessWord): ExtentSet {
  const sets = worthless.filter(({ kind, kept }) => kind === word && kept === undefined);
  return sets.reduce((sum, { extents }) => sum.union(extents), ExtentSet.EMPTY);
}

/** Why what a cleanly stopped guest does not need stays here all the same. */
function whyKept({ path }: Worthless, doubt: string | undefined, proof: Proof): string | undefined {
  if (doubt !== undefined || path === "" || proof === "full") return doubt;
  return "only --proof full shows that its blocks are nobody else's";
}

function reportOf({ kind, volume, path, extents, kept }: Worthless): WorthlessReport {
  return {
    kind,
    volume,
    path,
    bytes: extents.bytes,
    isPartial: false,
    also: kind,
    command: null,
    kept: kept ?? null,
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
