/**
 * A small guest's disk with a past: an ext filesystem made by mke2fs, filled from a folder, with files deleted again
 * by debugfs, so that its free blocks hold stale data.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Random } from "./seeds.ts";
import { run } from "./tools.ts";

export interface GuestOptions {
  readonly folder: string;
  /** File name of the raw disk inside `folder`. */
  readonly name: string;
  readonly bytes: number;
  /** For mke2fs: features, block sizes. Default: ext4 with 4 KiB blocks. */
  readonly mke2fs?: readonly string[];
  readonly files?: number;
  /** Largest file in bytes. */
  readonly fileBytesMax?: number;
}

/** @returns the path of the raw disk; every second file is deleted */
export function makeGuest(options: GuestOptions): string {
  const { folder, name, bytes, files = 24, fileBytesMax = 96 * 1024 } = options;
  const random = new Random(1);
  const tree = join(folder, `${name}.tree`);
  mkdirSync(join(tree, "dir"), { recursive: true });
  for (let i = 0; i < files; i++) {
    const content = Buffer.alloc(1 + random.below(fileBytesMax));
    random.fill(content);
    writeFileSync(join(tree, "dir", `file${i}`), content);
  }
  const path = join(folder, name);
  writeFileSync(path, "");
  run("truncate", ["-s", String(bytes), path]);
  const mke2fs = options.mke2fs ?? ["-t", "ext4", "-b", "4096"];
  run("mke2fs", ["-q", "-F", "-d", tree, ...mke2fs, path]);
  const deletions = Array.from({ length: files / 2 }, (_, i) => `rm /dir/file${i * 2}`);
  run("debugfs", ["-w", "-f", "-", path], deletions.join("\n"));
  return path;
}
