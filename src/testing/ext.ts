/**
 * e2fsprogs as the judge of the ext reader.
 */
import { ExtentBuilder, type ExtentSet } from "../bytes/extents.ts";
import { run } from "./tools.ts";

/** The free blocks that dumpe2fs prints, in bytes. */
export function dumpe2fsFree(path: string): ExtentSet {
  const text = run("dumpe2fs", [path]);
  const number = (name: string) => Number(new RegExp(`^${name}: +(\\d+)`, "m").exec(text)?.[1]);
  const blockBytes = number("Block size");
  // With bigalloc a range ends with the first block of its last cluster.
  const unit = number("Cluster size") || blockBytes;
  const free = new ExtentBuilder();
  for (const [, list] of text.matchAll(/^ {2}Free blocks: (.*)$/gm)) {
    for (const [, first, last] of list!.matchAll(/(\d+)(?:-(\d+))?/g)) {
      free.add(Number(first) * blockBytes, Number(last ?? first) * blockBytes + unit);
    }
  }
  return free.build();
}
