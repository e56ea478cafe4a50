/**
 * Gives leaked clusters back: refcounts that are too high become the number of references that really exist.
 *
 *   refcounts lowered → flush → copied flags set
 *
 * Nothing else is touched, and an image with errors is not touched at all. An entry whose cluster turns out to be
 * its own again gets its copied flag last: until then a writer copies the cluster once too often, which is harmless,
 * and a check complains of the flag.
 */
import { bytesOf, viewOf } from "../../bytes/struct.ts";
import { DiskError } from "../../error.ts";
import { batched } from "../../reclaim/batched.ts";
import { differences, type PatchStep } from "../../reclaim/differences.ts";
import { EMPTY_PLAN, type Plan } from "../../reclaim/plan.ts";
import { countedReferences } from "./check.ts";
import type { Qcow2Context } from "./context.ts";
import { refuseUnwritable } from "./plan.ts";
import { knowsAllOwners, refcountPatches } from "./release.ts";
import { COMPRESSED_HIGH, COPIED_HIGH, decodeEntry, l2TableAt } from "./tables.ts";
import type { References } from "./unmap.ts";

/** @throws DiskError `refused`, or `corrupt` when there are errors as well */
export async function planRepairLeaks(context: Qcow2Context): Promise<Plan> {
  refuseUnwritable(context.header);
  if (!knowsAllOwners(context.header)) {
    throw new DiskError("refused", "a feature that is not known may own the clusters that seem to leak", {
      code: "unknown-feature",
      hint: "repair it with the tool that made it",
    });
  }
  const references = await countedReferences(context);
  return {
    ...EMPTY_PLAN,
    async *batches() {
      yield* batched(refcountPatches(context, (cluster) => references.get(cluster)));
      yield* batched(copiedPatches(context, references));
    },
  };
}

/** Sets the copied flag wherever the active mapping is the only one that refers to a cluster. */
async function* copiedPatches(context: Qcow2Context, references: References): AsyncGenerator<PatchStep> {
  const { header, l1, l2 } = context;
  const isAlone = (at: number) => references.get(at / header.clusterBytes) === 1;
  const before = bytesOf(l1.view);
  const after = before.slice();
  const view = viewOf(after);
  for (let index = 0; index < l1.entries; index++) {
    const at = l2TableAt(context, l1, index);
    if (at === 0) continue;
    if (isAlone(at)) setCopied(view, index * 8);
    if (header.externalData) continue;
    const table = await l2.get(at);
    const revised = bytesOf(table.view).slice();
    const entries = viewOf(revised);
    for (let i = 0; i < header.l2Entries; i++) {
      if ((entries.getUint32(i * header.l2EntryBytes) & COMPRESSED_HIGH) !== 0) continue;
      const { host } = decodeEntry(context, table, i);
      if (host >= 0 && isAlone(host)) setCopied(entries, i * header.l2EntryBytes);
    }
    yield* differences("", at, bytesOf(table.view), revised);
  }
  yield* differences("", l1.at, before, after);
}

function setCopied(view: DataView, at: number): void {
  view.setUint32(at, view.getUint32(at) | COPIED_HIGH);
}
