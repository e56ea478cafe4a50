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
import { ClusterCounts } from "./counts.ts";
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

/** The references of all owners: what an image states beyond those counted is a leak, unless somebody unknown has it. */
export async function allReferences(
  { header, refcounts }: Qcow2Context,
  counted: References,
): Promise<References> {
  if (knowsAllOwners(header)) return counted;
  const stated = new ClusterCounts();
  for (const number of await refcounts.existing()) {
    const { view } = (await refcounts.block(number))!;
    const first = number * refcounts.blockEntries;
    for (let i = 0; i < refcounts.blockEntries; i++) {
      const count = readRefcount(view, refcounts.order, i);
      if (count > counted.get(first + i)) stated.set(first + i, count);
    }
  }
  return { get: (cluster) => Math.max(counted.get(cluster), stated.get(cluster)) };
}

export interface Garbage {
  readonly garbage: ExtentSet;
  readonly freed: ExtentSet;
  readonly leakedBytes: number;
}

export class Release {
  readonly #context: Qcow2Context;
  readonly #references: References;
  /** Clusters whose last reference is dropped. */
  readonly #freed = new SparseBitmap();
  /** References dropped of clusters that keep others. */
  readonly #dropped = new Map<number, number>();
  #staysTrue = true;

  /** @param references of all owners */
  constructor(context: Qcow2Context, references: References) {
    this.#context = context;
    this.#references = references;
  }

  /** One reference to each of the host clusters `[start, end)` goes. */
  drop(start: number, end: number): void {
    let cluster = start;
    while (cluster < end) {
      const first = cluster;
      while (cluster < end && this.#references.get(cluster) === 1) cluster++;
      this.#freed.setRange(first, cluster);
      if (cluster < end) this.#dropShared(cluster++);
    }
  }

  #dropShared(cluster: number): void {
    const dropped = (this.#dropped.get(cluster) ?? 0) + 1;
    if (dropped < this.#references.get(cluster)) {
      this.#dropped.set(cluster, dropped);
    } else {
      this.#dropped.delete(cluster);
      this.#freed.setRange(cluster, cluster + 1);
    }
  }

  /**
   * To be called when all references were dropped. Returns the file ranges of the clusters that nothing refers to,
   * what of them was in use until now, and what had leaked.
   * @param alsoFree those too that the image states free already
   */
  async settle(alsoFree: boolean): Promise<Garbage> {
    const { file, header, refcounts } = this.#context;
    const { clusterBytes } = header;
    const garbage = new ExtentBuilder();
    const freed = new ExtentBuilder();
    let leakedBytes = 0;
    const blocks = Math.ceil(file.bytes / clusterBytes / refcounts.blockEntries);
    const numbers = new Set(await refcounts.existing());
    for (let number = 0; number < blocks; number++) numbers.add(number);
    const inFile = (cluster: number) => Math.min(cluster * clusterBytes, file.bytes);
    for (const number of numbers) {
      const view = (await refcounts.block(number))?.view;
      const first = number * refcounts.blockEntries;
      const end = first + refcounts.blockEntries;
      for (let cluster = first; cluster < end;) {
        const dropped = this.#freed.nextSet(cluster, end);
        for (; cluster < dropped; cluster++) {
          const stated = view ? readRefcount(view, refcounts.order, cluster - first) : 0;
          const references = this.#references.get(cluster);
          if (references > 0) {
            if (stated > references) this.#staysTrue = false;
          } else if (stated > 0 || alsoFree) {
            garbage.add(inFile(cluster), inFile(cluster + 1));
            if (stated > 0) leakedBytes += inFile(cluster + 1) - inFile(cluster);
          }
        }
        cluster = this.#freed.nextClear(dropped, end);
        garbage.add(inFile(dropped), inFile(cluster));
        freed.add(inFile(dropped), inFile(cluster));
      }
    }
    return { garbage: garbage.build(), freed: freed.build(), leakedBytes };
  }

  /** Whether the image will state for every cluster what `count` says: no leak stays. Known after `settle`. */
  get staysTrue(): boolean {
    return this.#staysTrue;
  }

  /** How many references to a cluster remain. */
  count(cluster: number): number {
    const references = this.#references.get(cluster);
    if (references === 0 || this.#freed.has(cluster)) return 0;
    return references - (this.#dropped.get(cluster) ?? 0);
  }

  /** Patches of the refcount blocks. */
  patches(): AsyncGenerator<PatchStep> {
    return refcountPatches(this.#context, (cluster, stated) =>
      this.#freed.has(cluster) || this.#references.get(cluster) === 0
        ? 0
        : stated - (this.#dropped.get(cluster) ?? 0),
    );
  }
}

/** Patches that replace the counts stated by those that `remaining` gives; what is 0 stays 0. */
export async function* refcountPatches(
  { refcounts }: Qcow2Context,
  remaining: (cluster: number, stated: number) => number,
): AsyncGenerator<PatchStep> {
  for (const number of await refcounts.existing()) {
    const block = (await refcounts.block(number))!;
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
