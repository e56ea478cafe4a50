/**
 * H33: an image that another one names as its parent. The child may read the parent's *free* blocks, and nothing in
 * the parent tells; so the directory of the image is searched for a child before anything is given back.
 */
import { DiskError } from "../error.ts";
import { FORMATS } from "../formats/all.ts";
import type { Source } from "../device/source.ts";
import { siblings } from "../host/siblings.ts";

/** @throws DiskError `refused` when a file beside the image names it as its backing or data file */
export async function refuseParents(file: string, source: Source): Promise<void> {
  const child = await childOf(file, source);
  if (child === undefined) return;
  throw new DiskError("refused", `"${child}" is built on this image and may read its free blocks`, {
    code: "has-children",
    hint: "reclaim the child instead, or swear that no child needs them: --allow children",
  });
}

async function childOf(file: string, source: Source): Promise<string | undefined> {
  const identity = await identityOf(source);
  for await (const sibling of siblings(file)) {
    for (const format of FORMATS) {
      if (!(await format.probe(sibling).catch(() => false))) continue;
      for (const { name } of await format.references(sibling).catch(() => [])) {
        const named = await sibling
          .refer(name)
          .then(identityOf)
          .catch(() => undefined);
        if (named === identity) return sibling.name;
      }
      break;
    }
  }
  return undefined;
}

async function identityOf(source: Source): Promise<string> {
  await using file = await source.open();
  return (await file.stat()).identity;
}
