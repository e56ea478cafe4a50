/**
 * What every reader of a filesystem is asked for with a mutant: all that it offers, whatever the answers are.
 */
import type { ExtentSet } from "../../src/bytes/extents.ts";
import { assert } from "../../src/error.ts";
import type { FileSystem } from "../../src/filesystems/filesystem.ts";
import { prove } from "../../src/reclaim/prove.ts";

const OWNERS_MAX = 100;
const LISTED_MAX = 1000;

/** @returns the code of the refusal, or what is proven free */
export async function readThrough(
  filesystem: FileSystem,
  deviceBytes: number,
  paths: readonly string[],
): Promise<string | ExtentSet> {
  const owners = new Set<number>();
  await filesystem.walk((_member, start, end, owner) => {
    assert(start >= 0 && start < end, "a stretch that is none");
    if (owners.size < OWNERS_MAX) owners.add(owner);
  });
  for (const owner of owners) await filesystem.describe(owner);
  for (const path of paths) {
    await filesystem.find(path);
    await filesystem.list(path, LISTED_MAX);
  }
  const { free, refusal } = await prove(filesystem, "full");
  if (refusal !== undefined) {
    assert(
      free.every((set) => set.count === 0),
      "a refused filesystem gives nothing away",
    );
    return refusal.code;
  }
  assert(free[0]!.within({ start: 0, end: deviceBytes }).equals(free[0]!), "free space lies on the device");
  return free[0]!;
}
