/**
 * The regular files of a folder, as far as anybody looks: those that may be based on an image (H33), or be what it is
 * based on.
 */
import { opendir } from "node:fs/promises";
import { DiskError } from "../error.ts";
import { hostError } from "./failure.ts";

/** Far more than any directory of images holds. */
const FILES_MAX = 100_000;

/**
 * Names of the regular files in `directory`, in no order. Nothing is opened.
 * @throws DiskError `refused` when there are too many to look at, `io`
 */
export async function* filesIn(directory: string): AsyncIterable<string> {
  let seen = 0;
  try {
    for await (const entry of await opendir(directory)) {
      if (++seen > FILES_MAX) {
        throw new DiskError(
          "refused",
          `${directory} holds more than ${FILES_MAX} files; one may be a child`,
          {
            code: "children",
            hint: "if no other image is based on this one, --allow children",
          },
        );
      }
      if (entry.isFile()) yield entry.name;
    }
  } catch (error) {
    throw hostError(error, `${directory}: the files in it`);
  }
}
