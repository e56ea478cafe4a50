/**
 * The files beside an image, among which are those that may name it as their parent (H33). A child reads its parent's
 * free blocks too, so a parent must not be reclaimed.
 */
import { realpathSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { hostError } from "./failure.ts";
import { filesIn } from "./listing.ts";
import { identityAt } from "./medium.ts";
import { type HostSource, hostSource } from "./source.ts";

/**
 * The regular files in the image's directory, and in that of its real path, without the image itself. Nothing is
 * opened: who opens one should skip those that cannot be read.
 * @throws DiskError `refused` when there are too many to look at
 */
export async function* siblings(path: string): AsyncIterable<HostSource> {
  const own = identityAt(path);
  for (const directory of new Set([dirname(resolve(path)), dirname(realPath(path))])) {
    for await (const name of filesIn(directory)) {
      const sibling = join(directory, name);
      if (identityAt(sibling) !== own) yield hostSource(sibling);
    }
  }
}

function realPath(path: string): string {
  try {
    return realpathSync.native(path);
  } catch (error) {
    throw hostError(error, `${path}: files beside it`);
  }
}

/**
 * Whether `name`, as an image states its parent, leads to a file with one of these identities. The name is only looked at,
 * never opened, and links are followed: an answer "no" must be true. Understands `file:` and the file names in `json:`.
 */
export function leadsTo(child: HostSource, name: string, identities: ReadonlySet<string>): boolean {
  const folder = dirname(child.path);
  return fileNames(name).some((file) => identities.has(identityAt(resolve(folder, file)) ?? ""));
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
