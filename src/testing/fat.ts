/**
 * FAT volumes that mkfs.fat makes and mtools fill, and what the Sleuth Kit and mtools say about them.
 */
import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { ExtentSet } from "../bytes/extents.ts";
import { blklsFree } from "./cluster-volume.ts";
import { Random } from "./seeds.ts";
import { attempt, run } from "./tools.ts";

export const FAT_TOOLS = ["mkfs.fat", "fsck.fat", "mcopy", "mdel", "mmd", "mattrib"];

/** Names short, long, in small letters, in other scripts, and files of every number of clusters down to none. */
function growFatTree(folder: string): void {
  const random = new Random(7);
  const file = (name: string, bytes: number) => writeFileSync(join(folder, name), random.bytes(bytes));
  for (const name of ["many", "deep", "deep/er", "deep/er/and deeper still", "empty directory"]) {
    mkdirSync(join(folder, name), { recursive: true });
  }
  for (let i = 0; i < 90; i++) file(`many/A file with a long name, number ${i}.text`, random.below(6000));
  for (let i = 0; i < 40; i++) file(`F${i}.TXT`, random.below(3000));
  file("empty", 0);
  file("exact", 65536);
  file("small.txt", 700);
  file("größer als sonst.dat", 9000);
  file("deep/er/and deeper still/leaf", 12_345);
  file("large.bin", 300_000);
}

/** mkfs.fat with `options`, then the tree, then deletions and new files that fill the holes. */
export function makeFat(folder: string, options: readonly string[], kibibytes: number): string {
  const [image, tree] = [join(folder, "fat.img"), join(folder, "tree")];
  mkdirSync(folder, { recursive: true });
  growFatTree(tree);
  run("mkfs.fat", ["-C", ...options, image, String(kibibytes)]);
  const names = readdirSync(tree).map((name) => join(tree, name));
  // In another locale mtools writes no name but ASCII.
  run("env", ["LC_ALL=C.UTF-8", "mcopy", "-i", image, "-s", "-m", ...names, "::/"]);
  const gone = Array.from({ length: 20 }, (_, i) => `::/F${i * 2}.TXT`);
  run("mdel", ["-i", image, ...gone]);
  run("mdel", ["-i", image, "::/many/A file with a long name, number 1*.text"]);
  const again = join(folder, "again");
  writeFileSync(again, new Random(8).bytes(200_000));
  run("mcopy", ["-i", image, again, "::/scattered over the holes"]);
  run("mattrib", ["-i", image, "+h", "+s", "+r", "::/exact"]);
  return image;
}

/** What blkls calls unallocated among the clusters. */
export function fatFree(image: string): ExtentSet {
  const told = attempt("fsck.fat", ["-n", "-v", image]).stdout;
  const number = (pattern: RegExp) => Number(pattern.exec(told)![1]);
  const start = number(/Data area starts at byte (\d+)/);
  const end = start + number(/data clusters \((\d+) bytes\)/);
  return blklsFree(image, number(/(\d+) bytes per logical sector/), { start, end });
}

/** Runs of clusters of a file, from mshowfat: `::/name <5-7> <9>`. */
export function mshowfatRuns(image: string, path: string): { first: number; end: number }[] {
  const told = run("mshowfat", ["-i", image, `::${path}`]);
  return [...told.matchAll(/<(\d+)(?:-(\d+))?>/g)].map(([, first, last]) => ({
    first: Number(first),
    end: Number(last ?? first) + 1,
  }));
}
