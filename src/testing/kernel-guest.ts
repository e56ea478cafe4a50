/**
 * A guest's disk that the kernel itself filled: files of every kind, written between others that were deleted later.
 *
 *   raw disk   | table? | … | filesystem | … |      made by mke2fs, filled, deleted from and read by the kernel
 *
 * What every file is (content, holes, links, attributes, names, times) becomes one text, the print, to be compared
 * before and after.
 */
import {
  closeSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Extent } from "../bytes/extents.ts";
import { Random } from "./seeds.ts";
import { attempt, run } from "./tools.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

/** Attaches part of a file to a loop device until `use` is done. */
export function withPart<T>(path: string, { start, end }: Extent, use: (device: string) => T): T {
  const part = ["--offset", `${start}`, "--sizelimit", `${end - start}`];
  const device = run("losetup", ["--find", "--show", ...part, path]).trim();
  try {
    return use(device);
  } finally {
    run("losetup", ["--detach", device]);
  }
}

/** Mounts the filesystem that lies in `extent` of a raw disk until `use` is done. */
export function withMount<T>(path: string, extent: Extent, mode: "ro" | "rw", use: (folder: string) => T): T {
  return withPart(path, extent, (device) => {
    const folder = mkdtempSync(join(tmpdir(), "ullage-mount-"));
    run("mount", ["-o", `${mode},nodiscard`, device, folder]);
    try {
      return use(folder);
    } finally {
      run("umount", [folder]);
      rmSync(folder, { recursive: true });
    }
  });
}

/** Makes the filesystem. Inode tables are written at once, as those of a disk that is not new. */
export function makeFilesystem(path: string, extent: Extent, options: readonly string[]): void {
  withPart(path, extent, (device) => run("mke2fs", ["-q", "-F", ...options, device]));
}

/** Adds features for which the kernel here may not be built, but which it reads. */
export function addFeatures(path: string, extent: Extent, features: string): void {
  withPart(path, extent, (device) => run("tune2fs", ["-O", features, device]));
}

/** Replays the journal and repairs. @throws Error when e2fsck had more to repair than a journal leaves */
export function recover(path: string, extent: Extent): void {
  const { status, stdout } = withPart(path, extent, (device) => attempt("e2fsck", ["-fy", device]));
  if (status > 1) throw new Error(stdout);
}

/** The exit code of `e2fsck -fn`, and what it said. */
export function e2fsck(path: string, extent: Extent): { readonly status: number; readonly stdout: string } {
  return withPart(path, extent, (device) => attempt("e2fsck", ["-fn", device]));
}

/** Files that stay and files that go, in turn; then the second kind is deleted. */
export function liveIn(path: string, extent: Extent, seed: number): void {
  withMount(path, extent, "rw", (root) => live(root, seed));
}

/**
 * As `liveIn`, but the power fails before the journal is written back: `copy` becomes the disk as it was then.
 */
export function dieIn(path: string, extent: Extent, seed: number, copy: string): void {
  withMount(path, extent, "rw", (root) => {
    live(root, seed);
    run("sync", [join(root, `life${seed}`, "empty")]);
    run("cp", ["--sparse=always", path, copy]);
  });
}

/** `count` files of one block each; every second ten are deleted. */
export function crowd(path: string, extent: Extent, count: number): void {
  withMount(path, extent, "rw", (root) => {
    const split = `head -c $((${count} * 100)) /dev/urandom | split -a 5 -b 100 --numeric-suffixes - "$1/crowd"`;
    run("sh", ["-c", split, "sh", root]);
    run("sync", ["-f", root]);
    run("find", [root, "-name", "crowd*[02468]?", "-delete"]);
  });
}

function live(root: string, seed: number): void {
  const random = new Random(seed);
  const own = join(root, `life${seed}`);
  for (const folder of [own, join(own, "many"), join(own, "deep")]) mkdirSync(folder);
  const doomed = [...writeFiles(own, random), ...writeMany(join(own, "many"))];
  writeSpecial(own, random);
  run("sync", ["-f", root]);
  for (const file of doomed) unlinkSync(file);
}

/** @returns the files that are to be deleted */
function writeFiles(folder: string, random: Random): string[] {
  const doomed: string[] = [];
  for (let i = 0; i < 48; i++) {
    const file = join(folder, `file${i}`);
    writeFileSync(file, random.bytes(1 + random.below(random.oneIn(6) ? 700 * KiB : 60 * KiB)));
    if (random.below(100) < 60) doomed.push(file);
  }
  return doomed;
}

/** Enough small files for a hash tree. @returns those that are to be deleted */
function writeMany(folder: string): string[] {
  const doomed: string[] = [];
  for (let i = 0; i < 360; i++) {
    const file = join(folder, `a small file with a rather long name, number ${i}`);
    writeFileSync(file, `${i}\n`.repeat(i % 70));
    if (i % 3 === 0) doomed.push(file);
  }
  return doomed;
}

function writeSpecial(folder: string, random: Random): void {
  const at = (name: string) => join(folder, name);
  writeFileSync(at("linked"), random.bytes(9 * KiB));
  linkSync(at("linked"), at("deep/link"));
  symlinkSync("short", at("symlink"));
  symlinkSync("l".repeat(200), at("long symlink"));
  writeFileSync(at("empty"), "");
  writePieces(at("holes"), [0, 100 * KiB, 1 * MiB + 3, 5 * MiB], random);
  writePieces(at("far"), [0, 3 * MiB, 700 * MiB, 3000 * MiB], random);
  // Not every filesystem has these: extended attributes, unwritten extents, very long files.
  attempt("setfattr", ["-n", "user.note", "-v", "x".repeat(40), at("linked")]);
  attempt("setfattr", ["-n", "user.block", "-v", "y".repeat(900), at("holes")]);
  attempt("fallocate", ["-l", "300000", at("unwritten")]);
  try {
    truncateSync(at("far"), 100 * 1024 * MiB);
  } catch {
    // 1 KiB blocks without extents end at 16 GiB.
  }
  let deep = at("deep");
  for (let i = 0; i < 12; i++) mkdirSync((deep = join(deep, `${i}`)));
  writeFileSync(join(deep, "bottom"), random.bytes(5000));
}

function writePieces(file: string, offsets: readonly number[], random: Random): void {
  const descriptor = openSync(file, "w");
  try {
    for (const offset of offsets) writeSync(descriptor, random.bytes(7000), 0, 7000, offset);
  } finally {
    closeSync(descriptor);
  }
}

/** Everything that the kernel shows of a filesystem. Very long files by their pieces of data. */
const PRINT = `cd "$1"
find . -printf '%p %y %m %U %G %n %s %T@ %l\\n' | LC_ALL=C sort
find . -type f -size -64M -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum
find . -type f -size +64M -print | while read -r f; do for at in 0 3072 716800 3072000; do
  dd if="$f" bs=1024 skip=$at count=8 status=none | sha256sum; done; done
find . -type f -print0 | LC_ALL=C sort -z | xargs -0 getfattr -d -m -`;

/** Everything the kernel shows of the filesystem, mounted read-only. */
export function printOf(path: string, extent: Extent): string {
  return withMount(path, extent, "ro", (folder) => run("sh", ["-c", PRINT, "sh", folder]));
}
