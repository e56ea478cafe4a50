/**
 * Guard and erase exclude each other: what the guard still holds can be taken back, and what is erased cannot.
 *
 *   IMAGE.ullage-guard     beside the image, as long as a guard holds something of it
 */
import { DiskError } from "../../error.ts";
import { identityAt } from "../../host/medium.ts";

/** @throws DiskError `refused` while a guard may hold something of the image */
export async function refuseGuarded(file: string): Promise<void> {
  if (identityAt(`${file}.ullage-guard`) === undefined) return;
  throw new DiskError("refused", "a guard holds what was freed, so that it can be taken back", {
    code: "guarded",
    hint: "see ullage undo; when nothing is wanted back, delete the file that ends in .ullage-guard",
  });
}
