/**
 * Disk images that other people's tools made. They are not part of the project: tests find them in `ULLAGE_CORPUS`,
 * or beside the project, and are skipped where there are none.
 */
import { existsSync, readdirSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import type { TestContext } from "node:test";
import { run, scratch } from "./tools.ts";

const root = process.env["ULLAGE_CORPUS"] ?? resolve(import.meta.dirname, "../../../shared/corpus");

/** How each kind of packing is undone: `$1` is the packed file, `$2` what to write. */
const UNPACK: Readonly<Record<string, string>> = {
  ".gz": 'gzip -dc "$1" | cp --sparse=always /dev/stdin "$2"',
  ".bz2": 'bzip2 -dc "$1" | cp --sparse=always /dev/stdin "$2"',
  ".xz": 'xz -dc "$1" | cp --sparse=always /dev/stdin "$2"',
};

/** Path of the corpus; undefined, and the test is skipped (or fails under CI), where there is none. */
export function corpus(t: TestContext): string | undefined {
  if (existsSync(root)) return root;
  if (process.env["CI"] === "true" && process.env["ULLAGE_CORPUS"] !== undefined) {
    throw new Error(`no corpus at ${root}`);
  }
  t.skip(`needs the corpus at ${root}`);
  return undefined;
}

/** Names below the corpus that `pattern` matches, with `/` between folders, sorted. */
export function corpusFiles(pattern: RegExp): string[] {
  if (!existsSync(root)) return [];
  return (readdirSync(root, { recursive: true, encoding: "utf8" }) as string[])
    .filter((name) => pattern.test(name))
    .sort();
}

/**
 * Unpacks a file of the corpus into a scratch folder and returns its path; of a tar, the path of the folder with its
 * files. A file that is not packed is returned where it lies: it must not be written.
 */
export function unpack(t: TestContext, name: string): string {
  const packed = join(root, name);
  const ending = Object.keys(UNPACK).find((end) => name.endsWith(end));
  const isTar = /\.tar(\.\w+)?$|\.tgz$/.test(name);
  if (!isTar && ending === undefined) return packed;
  const folder = scratch(t);
  if (isTar) {
    run("tar", ["-xSf", packed, "-C", folder]);
    return folder;
  }
  const unpacked = join(folder, basename(name, ending));
  run("sh", ["-c", UNPACK[ending!]!, "sh", packed, unpacked]);
  return unpacked;
}
