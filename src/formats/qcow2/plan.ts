/**
 * The plan that gives back what the guest no longer uses.
 *
 *   header, bitmaps │ holes of the data file │ entries unmapped │ clusters punched │ refcounts released │ packing
 *                 flush                    flush              flush              flush                flush
 *
 * A cluster can be allocated again only when it was released, and is released only when it was punched and that is
 * durable: a late punch cannot hit a new owner (H12). Where the run ends early, clusters have leaked or are free but
 * not punched; the next plan finds both. Of an external data file nothing is ever reallocated: there the holes come
 * first, or an early end would leave them unfound.
 *
 * Specification: QEMU's docs/interop/qcow2.txt.
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import type { BlockDevice } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { batched } from "../../reclaim/batched.ts";
import { differences } from "../../reclaim/differences.ts";
import type { Plan, Step, Wish } from "../../reclaim/plan.ts";
import { requireZeros } from "../../reclaim/zeros.ts";
import { type Bitmap, markChanged, trackingBitmaps } from "./bitmaps.ts";
import { countedReferences } from "./check.ts";
import type { Qcow2Context } from "./context.ts";
import { corrupt, hex } from "./corrupt.ts";
import { AUTOCLEAR_AT, type Header } from "./header.ts";
import { holesIn, type Holes, holeSteps, NO_HOLES } from "../../reclaim/holes.ts";
import { type Packing, planPacking } from "./pack.ts";
import { allReferences, AUTOCLEAR_KNOWN, type Garbage, Release } from "./release.ts";
import { decodeEntry, entryAt, l2TableAt } from "./tables.ts";
import { type Consequences, ownedByCount, type RevisedTable, UNHEARD, Unmapping } from "./unmap.ts";

/**
 * Plans; reads only.
 * @param guest the disk as the guest reads it, for ranges that must be zeros already
 * @throws DiskError `refused`, `corrupt`, `unsupported`
 */
export async function planReclaim(
  context: Qcow2Context,
  wish: Wish,
  guest: Pick<BlockDevice, "read">,
): Promise<Plan> {
  refuseUnwritable(context.header);
  const asked = wish.free.count + wish.blank.count > 0;
  if (asked && context.header.encryption !== "none") {
    throw new DiskError("refused", "the image is encrypted: what its guest uses is not known", {
      code: "encrypted",
      hint: "unlock it in the guest and trim there",
    });
  }
  const bitmaps = await trackingBitmaps(context.file, context.header);
  const references = await allReferences(context, await countedReferences(context));
  if (context.header.externalData) await requireInPlace(context);
  const release = new Release(context, references);
  const draft = new Draft(context.header, release, bitmaps.length > 0);
  const unmapping = new Unmapping(context, ownedByCount(context, references), wish);
  for await (const _ of unmapping.tables(draft));
  await requireZeros(draft.unreachable.build(), guest);
  // Behind the last cluster of an image on a block device lies whatever was there before: that is not for us.
  const isFile = (await context.file.stat()).hostBytes !== null;
  const settled = await release.settle(isFile);
  const inImage = await imageHoles(context, draft, settled, wish);
  const inData = await dataFileHoles(context, draft, wish);
  const changes = draft.changes.build();
  const pack = () => packingOf(context, release, unmapping);
  const packing = wish.pack ? await pack() : undefined;
  return {
    unmapBytes: draft.unmapBytes,
    punchBytes: inImage.otherBytes + inData.otherBytes,
    packBytes: packing?.packBytes ?? 0,
    leakedBytes: settled.leakedBytes,
    punched: new Map([
      [context.header.dataFileName ?? "", inData.punched],
      ["", inImage.punched],
    ]),
    packableBytes: async () => (packing ?? (await pack()))?.packBytes ?? 0,
    async *batches() {
      yield* batched(prepared(context, bitmaps, changes));
      yield* batched(holeSteps(context.header.dataFileName ?? "", inData));
      yield* batched(entryPatches(unmapping.tables(UNHEARD)));
      yield* batched(holeSteps("", inImage));
      yield* batched(release.patches());
      if (packing) yield* packing.batches();
    },
  };
}

/** Packing of the image as it will be when everything unmapped is released. */
async function packingOf(
  context: Qcow2Context,
  release: Release,
  unmapping: Unmapping,
): Promise<Packing | undefined> {
  const isFile = (await context.file.stat()).hostBytes !== null;
  if (!isFile || !release.staysTrue || context.header.encryption !== "none") return undefined;
  return planPacking(context, {
    count: (cluster) => release.count(cluster),
    activeTable: async (index, at) => {
      const revised = await unmapping.revise(index, UNHEARD);
      return revised ? { at, view: viewOf(revised.after) } : context.l2.get(at);
    },
  });
}

function imageHoles(context: Qcow2Context, draft: Draft, garbage: Garbage, wish: Wish): Promise<Holes> {
  const { file, header } = context;
  const inside = header.externalData ? ExtentSet.EMPTY : draft.holes.build();
  const blank = header.externalData ? ExtentSet.EMPTY : draft.blanks.build();
  return holesIn(file, { ...garbage, inside, blank }, wish);
}

async function dataFileHoles({ data, header }: Qcow2Context, draft: Draft, wish: Wish): Promise<Holes> {
  if (!header.externalData) return NO_HOLES;
  const freed = draft.unmapped.build();
  const inside = draft.holes.build();
  return holesIn(data, { garbage: freed, freed, inside, blank: draft.blanks.build() }, wish);
}

/** @throws DiskError when nobody may write to the image before it was repaired (H17) */
export function refuseUnwritable({ corrupt, dirty, incompatible }: Header): void {
  if (!corrupt && !dirty) return;
  const what = corrupt ? "is marked as corrupt" : "was not closed: its refcounts may be too low";
  throw new DiskError("refused", `the image ${what} (incompatible_features ${hex(incompatible)})`, {
    code: corrupt ? "corrupt-bit" : "dirty-bit",
    hint: "qemu-img check -r all repairs it",
  });
}

/**
 * An external data file has no refcounts: its clusters have one owner each because all lie where the guest has them.
 * @throws DiskError `corrupt`
 */
async function requireInPlace(context: Qcow2Context): Promise<void> {
  const { header, l1, l2 } = context;
  for (let index = 0; index < l1.entries; index++) {
    const at = l2TableAt(context, l1, index);
    if (at === 0) continue;
    const table = await l2.get(at);
    for (let i = 0; i < header.l2Entries; i++) {
      const { host } = decodeEntry(context, table, i);
      const guest = index * header.l2SpanBytes + i * header.clusterBytes;
      if (host < 0 || host === guest) continue;
      throw corrupt(`L2 entry ${i}`, entryAt(header, table, i), hex(host), `the guest's own ${hex(guest)}`);
    }
  }
}

/** What the first look at the tables brings to light. */
class Draft implements Consequences {
  readonly release: Release;
  /** Ranges of the external data file that lose their mapping. */
  readonly unmapped = new ExtentBuilder();
  readonly holes = new ExtentBuilder();
  readonly blanks = new ExtentBuilder();
  readonly changes = new ExtentBuilder();
  readonly unreachable = new ExtentBuilder();
  unmapBytes = 0;
  readonly #header: Header;
  readonly #isTracked: boolean;

  /** @param isTracked whether some bitmap is to be told what changes */
  constructor(header: Header, release: Release, isTracked: boolean) {
    this.#header = header;
    this.#isTracked = isTracked;
    this.release = release;
  }

  unmap(guest: Extent, host: Extent): void {
    this.unmapBytes += guest.end - guest.start;
    if (this.#header.externalData) {
      this.unmapped.add(host.start, host.end);
      return;
    }
    const { clusterBytes } = this.#header;
    this.release.drop(Math.floor(host.start / clusterBytes), Math.ceil(host.end / clusterBytes));
  }

  hole(host: Extent): void {
    this.holes.add(host.start, host.end);
  }

  blank(host: Extent): void {
    this.blanks.add(host.start, host.end);
  }

  change(guest: Extent): void {
    if (this.#isTracked) this.changes.add(guest.start, guest.end);
  }

  mustBeZero(guest: Extent): void {
    this.unreachable.add(guest.start, guest.end);
  }
}

/** What has to be on disk before anything changes: bits that promise what we do not keep, and those that we set. */
async function* prepared(
  { file, header }: Qcow2Context,
  bitmaps: readonly Bitmap[],
  changed: ExtentSet,
): AsyncGenerator<Step> {
  const known = header.autoclear & AUTOCLEAR_KNOWN;
  if (known !== header.autoclear) {
    const word = (value: bigint) => new Uint8Array(new BigUint64Array([value]).buffer).reverse();
    yield { file: "", op: "patch", at: AUTOCLEAR_AT, before: word(header.autoclear), after: word(known) };
  }
  if (changed.count === 0) return;
  for (const bitmap of bitmaps) yield* markChanged(file, header, bitmap, changed);
}

async function* entryPatches(tables: AsyncIterable<RevisedTable>): AsyncGenerator<Step> {
  for await (const { at, before, after } of tables) yield* differences("", at, before, after);
}
