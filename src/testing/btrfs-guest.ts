/**
 * A guest's Btrfs on one or several disks that the kernel itself filled: subvolumes, snapshots, reflinks, compressed,
 * preallocated and unchecked files, written between others that were deleted later.
 */
import {
  linkSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Random } from "./seeds.ts";
import { run } from "./tools.ts";

const KiB = 1024;

/** Attaches the files to loop devices, known to the kernel as one set, until `use` is done. */
function withDevices<T>(paths: readonly string[], use: (devices: readonly string[]) => T): T {
  const devices: string[] = [];
  try {
    for (const path of paths) devices.push(run("losetup", ["--find", "--show", path]).trim());
    return use(devices);
  } finally {
    for (const device of devices) run("losetup", ["--detach", device]);
  }
}

/** Makes the filesystem on new files of `mebibytes` each. */
export function makeBtrfs(paths: readonly string[], mebibytes: number, options: readonly string[]): void {
  for (const path of paths) {
    writeFileSync(path, "");
    truncateSync(path, mebibytes * KiB * KiB);
  }
  if (paths.length === 1) run("mkfs.btrfs", ["-q", ...options, paths[0]!]);
  else withDevices(paths, (devices) => run("mkfs.btrfs", ["-q", ...options, ...devices]));
}

/** Mounts the filesystem until `use` is done. */
export function withBtrfs<T>(paths: readonly string[], options: string, use: (folder: string) => T): T {
  return withDevices(paths, (devices) => {
    const folder = mkdtempSync(join(tmpdir(), "ullage-mount-"));
    run("btrfs", ["device", "scan", ...devices]);
    try {
      run("mount", ["-t", "btrfs", "-o", `${options},nodiscard`, devices[0]!, folder]);
      try {
        return use(folder);
      } finally {
        run("umount", [folder]);
      }
    } finally {
      run("btrfs", ["device", "scan", "--forget", ...devices]);
      rmSync(folder, { recursive: true });
    }
  });
}

/** What a guest does in `root`, in several transactions, so that every backup of the roots is another one. */
export function live(root: string, seed: number): void {
  const random = new Random(seed);
  const at = (name: string) => join(root, name);
  const sync = () => run("btrfs", ["filesystem", "sync", root]);
  const write = (name: string, bytes: number) => writeFileSync(at(name), random.bytes(bytes));
  run("btrfs", ["subvolume", "create", at("sub")]);
  for (const folder of ["many", "sub/inner", "doomed"]) mkdirSync(at(folder));
  for (let i = 0; i < 200; i++) write(`many/a small file with a rather long name, number ${i}`, i * 20);
  for (let i = 0; i < 24; i++) write(`file${i}`, 1 + random.below(300 * KiB));
  for (let i = 0; i < 12; i++) write(`sub/inner/file${i}`, 40 * KiB);
  writeFileSync(at("text"), "the same line again\n".repeat(40_000));
  const writeUnchecked = (name: string) => {
    writeFileSync(at(name), "");
    run("chattr", ["+C", at(name)]);
    write(name, 200 * KiB);
  };
  writeUnchecked("unchecked");
  run("fallocate", ["-l", "1500000", at("unwritten")]);
  run("cp", ["--reflink=always", at("file5"), at("reflink")]);
  sync();
  linkSync(at("file7"), at("linked"));
  symlinkSync("s".repeat(200), at("symlink"));
  run("btrfs", ["subvolume", "snapshot", at("sub"), at("snapshot")]);
  run("btrfs", ["subvolume", "snapshot", "-r", root, at("frozen")]);
  sync();
  for (let i = 0; i < 24; i += 2) unlinkSync(at(`file${i}`));
  for (let i = 0; i < 12; i += 3) unlinkSync(at(`sub/inner/file${i}`));
  for (let i = 0; i < 200; i += 3) unlinkSync(at(`many/a small file with a rather long name, number ${i}`));
  sync();
  run("btrfs", ["subvolume", "delete", "--commit-after", at("frozen")]);
  for (let i = 0; i < 20; i++) write(`doomed/file${i}`, 60 * KiB);
  sync();
  rmSync(at("doomed"), { recursive: true });
  write("last", 100 * KiB);
  writeUnchecked("swap");
  sync();
}

/** Everything that the kernel shows of the files: names, owners, times, contents. */
const PRINT = `cd "$1"
find . -printf '%p %y %m %U %G %n %s %T@ %l\\n' | LC_ALL=C sort
find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum`;

export const printOfFolder = (folder: string): string => run("sh", ["-c", PRINT, "sh", folder]);

/** The print of the filesystem, mounted read-only. */
export function printOfBtrfs(paths: readonly string[], options = "ro"): string {
  return withBtrfs(paths, options, printOfFolder);
}
