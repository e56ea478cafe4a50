/**
 * The files beside an image, among which are those that may name it as their parent (H33). A child reads its parent's
 * free blocks too, so a parent must not be reclaimed.
 */
import { realpathSync } from "node:fs";
import { opendir } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { DiskError } from "../error.ts";
import { hostError } from "./failure.ts";
import { identityAt } from "./medium.ts";
import { type HostSource, hostSource } from "./source.ts";

/** Far more than any directory of images holds; beyond it nobody looked, and so nobody may write. */
const NEIGHBOURS_MAX = 100_000;

/**
 * The regular files in the image's directory, and in that of its real path, without the image itself. Nothing is
 * opened: who opens one should skip those that cannot be read.
 * @throws DiskError `refused` when there are too many to look at
 */
export async function* siblings(path: string): AsyncIterable<HostSource> {
  const own = identityAt(path);
  let seen = 0;
  try {
    for (const directory of new Set([dirname(resolve(path)), dirname(realpathSync.native(path))])) {
      for await (const entry of await opendir(directory)) {
        if (++seen > NEIGHBOURS_MAX) throw tooMany(directory);
        const sibling = join(directory, entry.name);
        if (entry.isFile() && identityAt(sibling) !== own) yield hostSource(sibling);
      }
    }
  } catch (error) {
    throw hostError(error, `${path}: files beside it`);
  }
}

function tooMany(directory: string): DiskError {
  return new DiskError(
    "refused",
    `${directory} holds more than ${NEIGHBOURS_MAX} files; one may be a child`,
    {
      code: "children",
      hint: "if no other image is based on this one, --allow children",
    },
  );
}

/**
 * Whether `name`, as an image states its parent, leads to the file with that identity. The name is only looked at,
 * never opened, and links are followed: an answer "no" must be true. Understands `file:` and the file names in `json:`.
 */
export function leadsTo(child: HostSource, name: string, identity: string): boolean {
  const folder = dirname(child.path);
  return fileNames(name).some((file) => identityAt(resolve(folder, file)) === identity);
}

function fileNames(name: string): string[] {
  if (name.startsWith("json:")) {
    return [...name.matchAll(/"(?:[\w.-]*\.)?filename"\s*:\s*("(?:[^"\\]|\\.)*")/g)].flatMap(([, quoted]) => {
      return unquoted(quoted!);
    });
  }
  const plain = name.replace(/^file:(?:\/\/(?=\/))?/, "");
  return plain === "" || plain.includes("\0") ? [] : [plain];
}

function unquoted(quoted: string): string[] {
  try {
    const name = JSON.parse(quoted) as string;
    return name.includes("\0") ? [] : [name];
  } catch {
    return [];
  }
}
