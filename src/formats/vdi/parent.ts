/**
 * The parent of a differencing VDI, which no name leads to: among the files beside the child it is the one with the
 * UUID that the child states, as it was last modified when the child was made.
 */
import type { Source } from "../../device/source.ts";
import { DiskError } from "../../error.ts";
import type { Image, OpenParent, Reference } from "../format.ts";
import { hasSignature, readHeader, type VdiHeader } from "./header.ts";

type Parent = NonNullable<VdiHeader["parent"]>;

/** @param name of the file, where it is known */
export function referenceOf({ uuid }: Parent, name = uuid): Reference {
  return { role: "backing", name, format: "vdi", id: uuid };
}

/** @throws DiskError `refused` where no file beside the child is its parent, or only a changed one */
export async function openParentOf(
  source: Source,
  parent: Parent,
  openParent: OpenParent,
): Promise<{ readonly image: Image; readonly name: string }> {
  const found: { readonly name: string; readonly modified: string }[] = [];
  for await (const sibling of source.siblings?.() ?? []) {
    const header = await headerOf(sibling);
    if (header?.uuid === parent.uuid) found.push({ name: sibling.name, modified: header.modified });
  }
  const same = found.find(({ modified }) => modified === parent.modified);
  if (same) return { name: same.name, image: await openParent(same.name, "vdi") };
  if (found[0]) {
    throw new DiskError(
      "refused",
      `parent "${found[0].name}" was changed after this image was made from it`,
      {
        code: "wrong-parent",
        hint: `restore the parent as it was at modification ${parent.modified}`,
      },
    );
  }
  throw new DiskError("refused", `no file beside "${source.name}" is its parent, the VDI ${parent.uuid}`, {
    code: "no-parent",
    hint: "put the parent into the same folder",
  });
}

/** Nothing where it is no VDI, or cannot be read. */
async function headerOf(sibling: Source): Promise<VdiHeader | undefined> {
  try {
    await using file = await sibling.open();
    return (await hasSignature(file)) ? await readHeader(file) : undefined;
  } catch (error) {
    if (error instanceof DiskError) return undefined;
    throw error;
  }
}
