/**
 * What of the image's files is nobody's any more, and yet still there: all of it is to be overwritten.
 *
 *   guest    |used|free|free|used|        free by the same proof as for a reclaim
 *   file     |used|FREE|LEAK|used|FREE|   FREE lies where the image maps it; LEAK is what the plan punches without an
 *            |zero flag over old bytes|   owner; behind a table's promise of zeros old bytes may lie as well
 *   remains  ......####.####.....####
 *
 * Taken out again: every place that something else refers to, a snapshot or the guest (H11); what the host shares with
 * another file (H35); what the host does not hold at all, or has allocated and never written: to write a part of that
 * changes how the rest of it is stored.
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice, Run } from "../../device/device.ts";
import type { Image } from "../../formats/format.ts";
import type { Plan } from "../../reclaim/plan.ts";
import type { Allocation } from "../allocation.ts";

export interface Remains {
  /** In file bytes, by the names of the image's files. */
  readonly files: ReadonlyMap<string, ExtentSet>;
  /** Free guest bytes that lie in them: afterwards these read as zeros. */
  readonly guest: ExtentSet;
  readonly bytes: number;
  /** Free guest bytes that are left as they are: held by a snapshot, a reflink or a backing image as well. */
  readonly sharedBytes: number;
  /** Allocated and never written, or zeroed by the host: what its device holds there is not seen through the file. */
  readonly unwrittenBytes: number;
  /** Free guest bytes in compressed clusters, of which only what is given back as whole blocks is overwritten. */
  readonly compressedBytes: number;
}

/** @param free guest bytes that nobody uses any more */
export async function remainsOf(
  image: Image,
  free: ExtentSet,
  plan: Plan,
  allocation: Allocation,
): Promise<Remains> {
  const look = new Look(image, free);
  for await (const runs of image.map({ start: 0, end: image.bytes })) for (const run of runs) look.add(run);
  const files = new Map<string, ExtentSet>();
  let bytes = 0;
  let unwrittenBytes = 0;
  let { sharedBytes } = look;
  for (const name of image.files.keys()) {
    const { allocated, unwritten, shared } = allocation.files.get(name)!;
    const places = look.places(name);
    const unused = places.free.union(plan.punched.get(name) ?? ExtentSet.EMPTY);
    // In an external file the guest's bytes may also be read as they lie there.
    const isRead = name !== "" && image.details["rawExternalData"] !== false;
    const written = allocated.subtract(unwritten);
    const hidden = isRead ? ExtentSet.EMPTY : places.zero.intersect(written);
    const remains = unused.union(hidden).subtract(places.kept).intersect(written);
    sharedBytes += remains.intersect(shared).bytes;
    unwrittenBytes += unused.intersect(unwritten).bytes;
    files.set(name, remains.subtract(shared));
    bytes += files.get(name)!.bytes;
  }
  const guest = look.guest.build().intersect(allocation.owned);
  return { files, guest, bytes, sharedBytes, unwrittenBytes, compressedBytes: look.compressedBytes };
}

/** Where the guest's bytes lie in one file. */
interface Places {
  readonly free: ExtentBuilder;
  readonly zero: ExtentBuilder;
  readonly kept: ExtentBuilder;
}

class Look {
  readonly #free: ExtentSet;
  readonly #names: ReadonlyMap<BlockDevice, string>;
  readonly #places = new Map<string, Places>();
  readonly guest = new ExtentBuilder();
  sharedBytes = 0;
  compressedBytes = 0;

  constructor(image: Image, free: ExtentSet) {
    this.#free = free;
    this.#names = new Map(Array.from(image.files, ([name, file]) => [file, name]));
  }

  places(name: string): Readonly<Record<keyof Places, ExtentSet>> {
    const { free, zero, kept } = this.#placesIn(name);
    return { free: free.build(), zero: zero.build(), kept: kept.build() };
  }

  add(run: Run): void {
    if (run.kind === "hole" && run.place === undefined) return;
    const free = this.#free.within(run);
    const name = run.place && run.depth === 0 ? this.#names.get(run.place.file) : undefined;
    if (name === undefined) {
      if (run.kind === "compressed" && run.depth === 0) this.compressedBytes += free.bytes;
      else if (run.kind === "data") this.sharedBytes += free.bytes;
      return;
    }
    const shift = run.place!.at - run.start;
    const places = this.#placesIn(name);
    const add = (into: ExtentBuilder, { start, end }: Extent) => into.add(start + shift, end + shift);
    if (run.shared) {
      add(places.kept, run);
      this.sharedBytes += free.bytes;
      return;
    }
    for (const piece of free) {
      add(places.free, piece);
      this.guest.add(piece.start, piece.end);
    }
    const rest = ExtentSet.of(run).subtract(free);
    for (const piece of rest) add(run.kind === "data" ? places.kept : places.zero, piece);
  }

  #placesIn(name: string): Places {
    let places = this.#places.get(name);
    if (places === undefined) {
      places = { free: new ExtentBuilder(), zero: new ExtentBuilder(), kept: new ExtentBuilder() };
      this.#places.set(name, places);
    }
    return places;
  }
}
