/**
 * The parent of a differencing VHD: a file beside the child whose unique id is the one that the child states.
 */
import { DiskError } from "../../error.ts";
import type { Image, OpenParent, Reference } from "../format.ts";
import type { ParentNames } from "./header.ts";

export function referenceOf({ id, names }: ParentNames): Reference[] {
  const [name] = names;
  return name === undefined ? [] : [{ role: "backing", name, format: "vhd", id }];
}

/** @throws DiskError `refused` where there is none, or another one */
export async function openParentOf({ id, names }: ParentNames, openParent: OpenParent): Promise<Image> {
  let failure: unknown;
  for (const name of names) {
    try {
      const parent = await openParent(name, "vhd");
      if (parent.identifiers?.includes(id)) return parent;
      await parent[Symbol.asyncDispose]();
      failure ??= new DiskError(
        "refused",
        `parent "${name}" has id ${parent.identifiers?.join()}, the child needs ${id}`,
        {
          code: "wrong-parent",
          hint: "put the parent that this image was made from beside it",
        },
      );
    } catch (error) {
      if (!(error instanceof DiskError)) throw error;
      failure ??= error;
    }
  }
  throw failure ?? new DiskError("corrupt", `differencing VHD: no name leads to its parent ${id}`);
}
