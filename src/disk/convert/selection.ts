/**
 * Which bytes of a disk a copy needs.
 *
 *   guest uses   |######|##########|....|####|
 *   map          |data..|hole|data.|data|....|
 *   read         |######|    |#####|    |    |      what is used and holds something
 *
 * With the chain kept, only what this image holds itself; what it blanks above its parent is blanked in the copy too.
 */
import { ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import type { Run } from "../../device/device.ts";
import type { Image } from "../../formats/format.ts";

export interface Selection {
  /** To be read from the source and written to the copy. */
  readonly data: ExtentSet;
  /** To be made zeros in the copy, where it would read its parent otherwise. */
  readonly blank: ExtentSet;
}

export interface Wanted {
  /** What the guest uses. */
  readonly kept: ExtentSet;
  /** The copy has the source's parent: what is the parent's is not copied. */
  readonly keepsChain: boolean;
  /** The host's own map says truly what is zero; else it is read, for images without tables have no other (H8). */
  readonly trustsHoles: boolean;
}

export async function select(image: Image, { kept, keepsChain, trustsHoles }: Wanted): Promise<Selection> {
  const data = new ExtentBuilder();
  const blank = new ExtentBuilder();
  const isEmpty = ({ kind }: Run) => trustsHoles && (kind === "hole" || kind === "zero");
  for await (const runs of image.map({ start: 0, end: image.bytes })) {
    for (const run of runs) {
      if (keepsChain && isParents(run)) continue;
      if (!isEmpty(run)) data.add(run.start, run.end);
      else if (keepsChain) blank.add(run.start, run.end);
    }
  }
  const stored = data.build();
  const used = stored.intersect(kept);
  return { data: used, blank: keepsChain ? blank.build().union(stored.subtract(used)) : ExtentSet.EMPTY };
}

/** Without a place in this image it is read from the parent, or from nothing where that ends. */
function isParents({ depth, kind }: Run): boolean {
  return depth > 0 || kind === "hole";
}
