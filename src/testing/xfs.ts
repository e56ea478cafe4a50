/**
 * xfsprogs as the judge of the XFS reader.
 */
import { ExtentBuilder, type ExtentSet } from "../bytes/extents.ts";
import { run } from "./tools.ts";

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

const numbersOf = (text: string) => [...text.matchAll(/= (\d+)/g)].map(([, value]) => Number(value));
