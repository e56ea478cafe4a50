/**
 * xfsprogs as the judge of the XFS reader.
 */
import assert from "node:assert/strict";
import { closeSync, openSync, writeSync } from "node:fs";
import { ExtentBuilder, type ExtentSet } from "../bytes/extents.ts";
import type { FileSystem } from "../filesystems/filesystem.ts";
import { attempt, run } from "./tools.ts";

/** mkfs.xfs makes nothing below 300 MB, unless it believes to be tested itself. */
const AS_TEST = ["TEST_DIR=/", "TEST_DEV=/", "QA_CHECK_FS=/"];

/** Makes a file of `size`, as truncate says it, or takes the device that is there, and makes an XFS in it. */
export function makeXfs(path: string, options: string, size?: string): void {
  if (size !== undefined) run("truncate", ["-s", size, path]);
  const words = options.split(" ").filter((word) => word !== "");
  run("env", [...AS_TEST, "mkfs.xfs", "-q", "-f", ...words, path]);
}

/** Commands of xfs_db on an image or a device that is not mounted. */
export function xfsDb(path: string, ...commands: readonly string[]): string {
  return run("xfs_db", ["-r", ...commands.flatMap((command) => ["-c", command]), path]);
}

/** The free blocks in bytes that xfs_db finds in the trees of free space, without those of the AGFLs. */
export function xfsDbFree(path: string): ExtentSet {
  const geometry = xfsDb(path, "sb 0", "print blocksize agblocks agcount");
  const [blockBytes, agBlocks, agCount] = numbersOf(geometry) as [number, number, number];
  const free = new ExtentBuilder();
  for (const [, ag, block, blocks] of xfsDb(path, "freesp -d").matchAll(/^ +(\d+) +(\d+) +(\d+)$/gm)) {
    const start = Number(ag) * agBlocks + Number(block);
    free.add(start * blockBytes, (start + Number(blocks)) * blockBytes);
  }
  const ags = Array.from({ length: agCount }, (_, ag) => ag);
  const printLists = ags.flatMap((ag) => [`agf ${ag}`, "print flfirst flcount", `agfl ${ag}`, "print bno"]);
  const lists = xfsDb(path, ...printLists).matchAll(
    /flfirst = (\d+)\nflcount = (\d+)\nbno\[0-(\d+)\] = (.*)/g,
  );
  const listed = new ExtentBuilder();
  for (const [ag, [, first, count, last, slots]] of [...lists].entries()) {
    const blocks = slots!.split(" ").map((slot) => Number(slot.split(":")[1]));
    for (let index = 0; index < Number(count); index++) {
      const block = ag * agBlocks + blocks[(Number(first) + index) % (Number(last) + 1)]!;
      listed.add(block * blockBytes, (block + 1) * blockBytes);
    }
  }
  return free.build().subtract(listed.build());
}

/** Owners of the reverse map: what the trees of free space and their list hold, what the tree of shared blocks holds. */
const TREE_OWNERS = new Set(["-5", "-8"]);

/** The bytes of the trees that xfs_db finds in the reverse map of a volume that has one. */
export function xfsDbTrees(path: string): ExtentSet {
  const [blockBytes, agBlocks] = numbersOf(xfsDb(path, "sb 0", "print blocksize agblocks")) as [
    number,
    number,
  ];
  const trees = new ExtentBuilder();
  const { stdout } = attempt("xfs_db", ["-r", "-c", "fsmap", path]);
  for (const [, ag, block, blocks, owner] of stdout.matchAll(/: (\d+)\/(\d+) len (\d+) owner (-?\d+) /g)) {
    if (!TREE_OWNERS.has(owner!)) continue;
    const start = Number(ag) * agBlocks + Number(block);
    trees.add(start * blockBytes, (start + Number(blocks)) * blockBytes);
  }
  return trees.build();
}

const numbersOf = (text: string) => [...text.matchAll(/= (\d+)/g)].map(([, value]) => Number(value));

/** Double entry of `image` without a contradiction and without a leak. @returns a place of each owner */
export async function balances(filesystem: FileSystem, image: string): Promise<Map<number, number>> {
  const [free] = await filesystem.free();
  assert.equal(filesystem.refusal, undefined);
  assert.deepEqual([...free!], [...xfsDbFree(image)]);
  const used = new Set<number>();
  const owners = new Map<number, number>();
  await filesystem.walk((_, start, end, owner) => {
    assert.ok(!free!.touches({ start, end }), `${owner} at ${start} is free`);
    for (let at = start; at < end; at += filesystem.blockBytes) used.add(at);
    if (!owners.has(owner)) owners.set(owner, start);
  });
  assert.equal(filesystem.refusal, undefined);
  assert.equal(used.size * filesystem.blockBytes + free!.bytes, filesystem.bytes);
  return owners;
}

/** Writes rubbish over all of `free`, which begins at byte `start` of the file. */
export function spoil(path: string, start: number, free: ExtentSet): void {
  const file = openSync(path, "r+");
  for (const extent of free) {
    const rubbish = Buffer.alloc(extent.end - extent.start, 0xa5);
    writeSync(file, rubbish, 0, rubbish.length, start + extent.start);
  }
  closeSync(file);
}
