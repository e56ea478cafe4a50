/**
 * What has to be true of an image before anything is done to it: it is whole, no other one leans on it, its format is no
 * stranger's word.
 */
import { DiskError } from "../error.ts";
import type { Image } from "../formats/format.ts";
import { identitiesOf, refuseParents } from "./children.ts";
import { refuseGuarded } from "./guarded.ts";
import { type Disk, refuseGuess } from "./open.ts";
import type { OpenOptions } from "./results.ts";

/** The image's own structures are whole, no other image leans on it, and no guard holds anything of it (H17, H33, H32). */
export async function requireSafe(disk: Disk, options: OpenOptions): Promise<void> {
  if (!options.allow?.children) {
    const identities = await identitiesOf(disk.image);
    await refuseParents({ path: disk.path, identities, identifiers: disk.image.identifiers ?? [] });
  }
  refuseGuess(disk);
  if (disk.guard !== undefined) await refuseGuarded(disk.path);
  await requireWhole(disk.image, "the image");
}

/** What is judged through a damaged image is not what the guest sees, also where it is only read (H17). */
export async function requireWhole(image: Image, name: string): Promise<void> {
  const { errors, first } = await findings(image);
  if (errors === 0) return;
  throw new DiskError("corrupt", `${name} has ${errors} errors; the first: ${first}`, {
    hint: "see ullage check; qemu-img check -r all may repair a copy",
  });
}

/** What its check finds. */
export async function findings(
  image: Image,
): Promise<{ errors: number; leaks: number; first: string | undefined }> {
  let errors = 0;
  let leaks = 0;
  let first: string | undefined;
  for await (const finding of image.check()) {
    if (finding.kind === "leak") leaks += finding.count;
    else if (!finding.isMendable) {
      errors += finding.count;
      first ??= finding.message;
    }
  }
  return { errors, leaks, first };
}
