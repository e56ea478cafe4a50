/**
 * What remains of the reference counts when a plan has dropped references, and what that frees.
 *
 *   counted really      1    1    2    0    0          the references that exist, before the plan
 *   dropped by it       1    .    1    .    .
 *   stated              1    1    2    1    0          the refcounts of the image
 *   stated afterwards   0    1    1    0    0          cluster 3 had leaked
 *   garbage             #    .    .    #    #          punched first, then released (H12)
 *
 * A cluster that the image calls free already may still be allocated on the host: an interrupted run left it, or a
 * guest's discards that never reached the host. It is garbage like the others.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import { bytesOf, viewOf } from "../../bytes/struct.ts";
import { differences, type PatchStep } from "../../reclaim/differences.ts";
import type { Qcow2Context } from "./context.ts";
import { Autoclear, Compatible, ExtensionType, type Header } from "./header.ts";
import { readRefcount, writeRefcount } from "./refcounts.ts";
import type { References } from "./unmap.ts";

const EXTENSIONS_KNOWN: ReadonlySet<number> = new Set(Object.values(ExtensionType));
const COMPATIBLE_KNOWN = Compatible.lazyRefcounts;
export const AUTOCLEAR_KNOWN = Autoclear.bitmaps | Autoclear.rawExternalData;

/** Whether everything that may refer to clusters is known, so that a cluster without a reference has leaked. */
export function knowsAllOwners(header: Header): boolean {
  return (
    (header.compatible & ~COMPATIBLE_KNOWN) === 0n &&
    (header.autoclear & ~AUTOCLEAR_KNOWN) === 0n &&
    header.extensions.every(({ type }) => EXTENSIONS_KNOWN.has(type))
  );
}

export class Release {
  readonly #context: Qcow2Context;
  readonly #references: References;
  readonly #takesLeaks: boolean;
  /** Clusters whose last reference is dropped. */
  readonly #freed = new SparseBitmap();
  /** References dropped of clusters that keep others. */
  readonly #dropped = new Map<number, number>();

  constructor(context: Qcow2Context, references: References) {
    this.#context = context;
    this.#references = references;
    this.#takesLeaks = knowsAllOwners(context.header);
  }

  /** One reference to a host cluster goes. */
  drop(cluster: number): void {
    const dropped = (this.#dropped.get(cluster) ?? 0) + 1;
    if (dropped < this.#references.get(cluster)) {
      this.#dropped.set(cluster, dropped);
    } else {
      this.#dropped.delete(cluster);
      this.#freed.setRange(cluster, cluster + 1);
    }
  }

  /** Whether nothing refers to a cluster any more, for which the image states `stated`. */
  isGarbage(cluster: number, stated: number): boolean {
    if (this.#freed.has(cluster)) return true;
    return this.#references.get(cluster) === 0 && (stated === 0 || this.#takesLeaks);
  }

  /** The count to be stated for a cluster for which the image states `stated`. */
  remaining(cluster: number, stated: number): number {
    return this.isGarbage(cluster, stated) ? 0 : stated - (this.#dropped.get(cluster) ?? 0);
  }

  /**
   * File ranges of the clusters to which nothing will refer.
   * @param alsoFree those too that the image states free already
   */
  async garbage(alsoFree: boolean): Promise<ExtentSet> {
    const { file, header, refcounts } = this.#context;
    const { clusterBytes } = header;
    const clusters = Math.ceil(file.bytes / clusterBytes);
    const garbage = new ExtentBuilder();
    for (let first = 0; first < clusters; first += refcounts.blockEntries) {
      const block = await refcounts.block(first / refcounts.blockEntries);
      const end = Math.min(first + refcounts.blockEntries, clusters);
      for (let cluster = first; cluster < end; cluster++) {
        const stated = block ? readRefcount(block.view, refcounts.order, cluster - first) : 0;
        if ((stated === 0 && !alsoFree) || !this.isGarbage(cluster, stated)) continue;
        garbage.add(cluster * clusterBytes, Math.min((cluster + 1) * clusterBytes, file.bytes));
      }
    }
    return garbage.build();
  }

  /** Patches of the refcount blocks. */
  patches(): AsyncGenerator<PatchStep> {
    return refcountPatches(this.#context, (cluster, stated) => this.remaining(cluster, stated));
  }
}

/** Patches that replace the counts stated by those that `remaining` gives; what is 0 stays 0. */
export async function* refcountPatches(
  { refcounts }: Qcow2Context,
  remaining: (cluster: number, stated: number) => number,
): AsyncGenerator<PatchStep> {
  for (let number = 0; number < refcounts.tableEntries; number++) {
    const block = await refcounts.block(number);
    if (block === undefined) continue;
    const before = bytesOf(block.view);
    const after = before.slice();
    const view = viewOf(after);
    const first = number * refcounts.blockEntries;
    for (let i = 0; i < refcounts.blockEntries; i++) {
      const stated = readRefcount(block.view, refcounts.order, i);
      const count = stated === 0 ? 0 : remaining(first + i, stated);
      if (count !== stated) writeRefcount(view, refcounts.order, i, count);
    }
    yield* differences("", block.at, before, after);
  }
}
