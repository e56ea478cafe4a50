/**
 * H33: an image that another one names as its parent. The child may read the parent's *free* blocks, and nothing in
 * the parent tells; so the directory of the image is searched for a child before anything is given back.
 */
import { DiskError } from "../error.ts";
import { FORMATS } from "../formats/all.ts";
import type { Source } from "../device/source.ts";
import type { Image, ImageFormat, Reference } from "../formats/format.ts";
import { leadsTo, siblings } from "../host/neighbours.ts";

/** An image that may have children. */
export interface Elder {
  readonly path: string;
  /** Of its files, as `stat` gives them: a child may name an extent alone. */
  readonly identities: ReadonlySet<string>;
  /** What children may know it by, whatever its name. */
  readonly identifiers: readonly string[];
}

/**
 * Every format is asked: the guest of a child may write another one's signature into its own disk.
 * @throws DiskError `refused` when a file beside the image names one of its files as its backing or data file
 */
export async function refuseParents({ path, identities, identifiers }: Elder): Promise<void> {
  for await (const sibling of siblings(path)) {
    for (const format of FORMATS) {
      if (!(await format.probe(sibling).catch(() => false))) continue;
      const references = await referencesOf(format, sibling);
      const isParent = ({ name, id }: Reference) =>
        (id !== undefined && identifiers.includes(id)) || leadsTo(sibling, name, identities);
      if (references.some(isParent)) throw hasChild(sibling.name);
    }
  }
}

/** Of the files that an image is made of, without its parents. */
export async function identitiesOf({ files }: Image): Promise<ReadonlySet<string>> {
  const identities = new Set<string>();
  for (const file of files.values()) identities.add((await file.stat()).identity);
  return identities;
}

/** @throws DiskError `refused` when it is an image, and what it is built on cannot be read */
async function referencesOf(format: ImageFormat, sibling: Source): Promise<readonly Reference[]> {
  try {
    return await format.references(sibling);
  } catch (error) {
    if (!(error instanceof DiskError) || error.kind === "io") return [];
    throw new DiskError("refused", `"${sibling.name}" may be built on this image: ${error.message}`, {
      code: "has-children",
      hint: "move it elsewhere, or swear that it needs nothing of this image: --allow children",
      cause: error,
    });
  }
}

function hasChild(child: string): DiskError {
  return new DiskError("refused", `"${child}" is built on this image and may read its free blocks`, {
    code: "has-children",
    hint: "do it to the child instead, or swear that no child needs them: --allow children",
  });
}
