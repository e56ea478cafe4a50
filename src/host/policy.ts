/**
 * Which files an image may name (H22). Names found in an image are a guest's or a stranger's words: without consent
 * they reach the image's own directory and nothing else.
 *
 *   base.qcow2, sub/base.qcow2      allowed: really below the image's directory
 *   /images/base.qcow2, ../x        allowed when the real path lies there, or in a directory that the user named
 *   nbd:…, json:…, file:…           refused: a scheme
 *   symlink                         refused, unless its target lies in a directory that the user named
 *   FIFO, device, socket            refused
 */
import { type BigIntStats, lstatSync, realpathSync } from "node:fs";
import { basename, dirname, isAbsolute, join, relative, resolve, sep } from "node:path";
import { DiskError } from "../error.ts";
import { codeOf, hostError } from "./failure.ts";

export interface Policy {
  /** Directories that the user consented to: `--allow outside=DIR`. */
  readonly outside: readonly string[];
}

/** Where a name leads: to be opened without following links, and to be found the same. */
export interface Named {
  /** The real path. */
  readonly path: string;
  readonly stats: BigIntStats;
}

/** At least two letters on Windows, where one is a drive. */
const SCHEME = process.platform === "win32" ? /^[a-z][a-z0-9+.-]+:/i : /^[a-z][a-z0-9+.-]*:/i;

/**
 * @param folder the directory of the image that holds the name
 * @param home the real directory of the image that the user gave
 * @throws DiskError `refused` with code `outside`, `io` when there is no such file
 */
export function resolveName(name: string, folder: string, home: string, policy: Policy): Named {
  const scheme = SCHEME.exec(name)?.[0];
  if (scheme !== undefined) throw refusal(name, `it names a protocol (${scheme})`, undefined);
  if (name === "" || name.includes("\0") || !/[^/.]/.test(basename(name)) || name.endsWith("/")) {
    throw refusal(name, "it is no file name", undefined);
  }
  const outside = policy.outside.flatMap((path) => realOrNothing(path));
  // The kernel's idea of `..`, not the text's: a link before it leads elsewhere.
  const full = isAbsolute(name) ? name : `${folder}${sep}${name}`;
  const directory = realDirectory(full, name, [home, ...outside]);
  if (![home, ...outside].some((root) => isWithin(directory, root))) {
    throw refusal(name, `it lies in ${directory}, outside the image's directory`, directory);
  }
  const path = join(directory, basename(full));
  const stats = lstat(path, name);
  if (stats.isFile()) return { path, stats };
  if (!stats.isSymbolicLink()) throw refusal(name, "it is not a regular file", undefined);
  return followed(path, name, outside);
}

/** A link is followed only to where the user pointed. */
function followed(path: string, name: string, outside: readonly string[]): Named {
  const [target] = realOrNothing(path);
  if (target === undefined) throw refusal(name, "it is a symbolic link to nowhere", undefined);
  if (!outside.some((root) => isWithin(dirname(target), root))) {
    throw refusal(name, `it is a symbolic link to ${target}`, dirname(target));
  }
  const stats = lstat(target, name);
  if (!stats.isFile()) throw refusal(name, "it is a link to what is not a regular file", undefined);
  return { path: target, stats };
}

export function refusal(name: string, why: string, directory: string | undefined): DiskError {
  const hint =
    directory === undefined
      ? "name a plain file beside the image, for instance with qemu-img rebase -u"
      : `if you trust this image, --allow outside=${directory}`;
  return new DiskError("refused", `the image refers to ${JSON.stringify(name)}: ${why}`, {
    code: "outside",
    hint,
  });
}

function realDirectory(full: string, name: string, roots: readonly string[]): string {
  try {
    return realpathSync.native(dirname(full));
  } catch (error) {
    // Nobody learns from us what exists elsewhere.
    const folder = dirname(resolve(full));
    if (!roots.some((root) => isWithin(folder, root))) throw refusal(name, `it lies in ${folder}`, folder);
    throw hostError(error, `the file ${JSON.stringify(name)} that the image refers to`);
  }
}

function lstat(path: string, name: string): BigIntStats {
  try {
    return lstatSync(path, { bigint: true });
  } catch (error) {
    throw hostError(error, `the file ${JSON.stringify(name)} that the image refers to`);
  }
}

function realOrNothing(path: string): string[] {
  try {
    return [realpathSync.native(path)];
  } catch (error) {
    if (codeOf(error) === undefined) throw error;
    return [];
  }
}

function isWithin(path: string, root: string): boolean {
  const way = relative(root, path);
  return way === "" || (way !== ".." && !way.startsWith(`..${sep}`) && !isAbsolute(way));
}
