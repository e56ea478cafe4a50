/**
 * Checks an image: counts all references anew and compares them with what the refcounts state. Errors and leaks are
 * counted as `qemu-img check` counts them.
 *
 *   stated > counted    leak: space that nobody uses, harmless
 *   stated < counted    error: the cluster may be allocated again while it is in use
 */
import { DiskError } from "../../error.ts";
import type { Finding } from "../format.ts";
import type { Qcow2Context } from "./context.ts";
import type { ClusterCounts } from "./counts.ts";
import { hex } from "./corrupt.ts";
import { StatedRefcounts } from "./refcounts.ts";
import { ReferenceWalk } from "./references.ts";

/** Findings told one by one; the rest are added up, for a hostile image has as many as it likes (H24). */
const TOLD_MAX = 1000;

/** What is wrong with an image, and how many references each cluster really has. */
export interface Inspection {
  readonly references: ClusterCounts;
  readonly findings: readonly Finding[];
}

/** One inspection serves the check and all plans of an open image, until somebody writes to it. */
const inspections = new WeakMap<Qcow2Context, Promise<Inspection>>();

/** Reads all tables of the image. Of what is corrupt in them nothing is thrown: it is found. */
export function inspect(context: Qcow2Context): Promise<Inspection> {
  let inspection = inspections.get(context);
  if (inspection === undefined) {
    inspection = inspectAnew(context);
    inspections.set(context, inspection);
  }
  return inspection;
}

/** The image changes: what was found about it is not true any more. */
export function forgetInspection(context: Qcow2Context): void {
  inspections.delete(context);
}

async function inspectAnew(context: Qcow2Context): Promise<Inspection> {
  const findings = new Findings();
  const stated = new StatedRefcounts(context.refcounts, context.file);
  const walk = new ReferenceWalk(context, stated, (message, count, mendable) => {
    findings.add(mendable ?? "error", message, count);
  });
  await walk.run();
  await compare(context, stated, walk, findings);
  return { references: walk.counts, findings: findings.list() };
}

/**
 * How many references each cluster really has, of an image that may be written to (H17).
 * @throws DiskError `corrupt` when the check finds an error; leaks do not matter, nor what is wrong in the safe direction
 */
export async function countedReferences(context: Qcow2Context): Promise<ClusterCounts> {
  const { references, findings } = await inspect(context);
  const error = findings.find(({ kind, isMendable }) => kind === "error" && !isMendable);
  if (error === undefined) return references;
  throw new DiskError("corrupt", error.message, { hint: "qemu-img check -r all may repair it" });
}

/** Goes through the stated and the counted references of all clusters side by side. */
async function compare(
  context: Qcow2Context,
  stated: StatedRefcounts,
  walk: ReferenceWalk,
  findings: Findings,
): Promise<void> {
  const { clusterBytes } = context.header;
  const { blockEntries } = context.refcounts;
  for (let first = 0; first < walk.clusterCount; first += blockEntries) {
    const end = Math.min(first + blockEntries, walk.clusterCount);
    const hasBlock = await stated.load(first / blockEntries);
    if (!hasBlock && !walk.counts.mayHave(first, end)) continue;
    let start = first;
    let found = -1;
    let expected = -1;
    for (let cluster = first; cluster <= end; cluster++) {
      const nextFound = cluster < end ? stated.peek(cluster) : -1;
      const nextExpected = cluster < end ? walk.counts.get(cluster) : -1;
      if (nextFound === found && nextExpected === expected) continue;
      if (found !== undefined && found !== expected) {
        const where = `${cluster - start} cluster${cluster - start > 1 ? "s" : ""} at ${hex(start * clusterBytes)}`;
        const message = `${where}: found refcount ${found}, expected ${expected}`;
        findings.add(found < expected ? "error" : "leak", message, cluster - start);
      }
      start = cluster;
      found = nextFound!;
      expected = nextExpected;
    }
  }
}

/** A mendable one is an error that only costs a copy, and that `--repair leaks` mends. */
type Sort = Finding["kind"] | "mendable";

const SUMMED: Readonly<Record<Sort, string>> = {
  error: "more errors",
  mendable: "more flags that cost copies",
  leak: "more leaked clusters",
};

class Findings {
  readonly #told: Finding[] = [];
  readonly #untold: Record<Sort, number> = { error: 0, mendable: 0, leak: 0 };

  add(sort: Sort, message: string, count: number): void {
    if (this.#told.length < TOLD_MAX) this.#told.push(findingOf(sort, message, count));
    else this.#untold[sort] += count;
  }

  list(): Finding[] {
    const rest = (["error", "mendable", "leak"] as const).map((sort) => {
      const count = this.#untold[sort];
      return findingOf(sort, `${count} ${SUMMED[sort]}`, count);
    });
    return [...this.#told, ...rest.filter(({ count }) => count > 0)];
  }
}

function findingOf(sort: Sort, message: string, count: number): Finding {
  return sort === "mendable"
    ? { kind: "error", isMendable: true, count, message }
    : { kind: sort, isMendable: false, count, message };
}
