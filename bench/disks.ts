/**
 * The disks of the benchmark, made by the kernel's own ext4 through a loop device, and kept between runs.
 *
 * - aged: 20 GiB, about 4 GiB written in all by files of 4 KiB to 16 MiB over many rounds of writing and deleting, 60 %
 *   deleted at the end.
 * - sparse: 16 TiB less a little, nearly empty.
 * - holed: two million free extents.
 * - full: 1 GiB of noise.
 * - huge: a VHDX of 2 TiB.
 * - crowded: 1 TiB with a million files of two blocks, in another filesystem.
 *
 * Needs root for the loop mounts.
 */
import {
  existsSync,
  mkdirSync,
  openSync,
  closeSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import path from "node:path";
import { Random } from "../src/testing/seeds.ts";
import { must } from "./measure.ts";

const GIB = 2 ** 30;
const KIB = 2 ** 10;
const AGED_BYTES = 20 * GIB;
const FULL_BYTES = GIB;
const HUGE_BYTES = 2048 * GIB;
/** At the end of every round; about 4 GiB are written in all. */
const LIVE_BYTES = 2 * GIB;
const ROUNDS = 10;
const DELETED_A_ROUND = 0.11;
const DELETED_AT_THE_END = 0.6;

/** Makes `name` once: `make` writes to a temporary name that is renamed when it is whole. */
function kept(directory: string, name: string, make: (file: string) => void): string {
  mkdirSync(directory, { recursive: true });
  const file = path.join(directory, name);
  if (existsSync(file)) return file;
  const partial = `${file}.partial`;
  rmSync(partial, { force: true });
  process.stderr.write(`making ${name} …\n`);
  make(partial);
  renameSync(partial, file);
  return file;
}

const LOOP_MOUNT = ["mount", "-o", "loop,nodiscard"];

function mounted(image: string, action: (mountPoint: string) => void, mount = LOOP_MOUNT): void {
  const mountPoint = `${image}.mnt`;
  mkdirSync(mountPoint, { recursive: true });
  must(mount[0]!, [...mount.slice(1), image, mountPoint]);
  try {
    action(mountPoint);
  } finally {
    must("umount", [mountPoint]);
    rmSync(mountPoint, { recursive: true });
  }
}

function sparseFile(file: string, bytes: number): void {
  writeFileSync(file, "");
  truncateSync(file, bytes);
}

export function agedRaw(directory: string): string {
  return kept(directory, "aged.raw", (file) => {
    sparseFile(file, AGED_BYTES);
    must("mke2fs", ["-q", "-t", "ext4", "-F", file]);
    mounted(file, age);
  });
}

export const agedQcow2 = (directory: string): string => agedIn(directory, { qemu: "qcow2" });

/** The aged disk in another format, by QEMU's name and options for it. */
export function agedIn(directory: string, { qemu, options }: { qemu: string; options?: string }): string {
  const rawDisk = agedRaw(directory);
  return kept(directory, `aged.${qemu}`, (file) => {
    const how = options === undefined ? [] : ["-o", options];
    must("qemu-img", ["convert", "-f", "raw", "-O", qemu, ...how, rawDisk, file]);
  });
}

/** Without a filesystem, and so without anything free. */
export function fullRaw(directory: string): string {
  return kept(directory, "full.raw", (file) => {
    must("sh", ["-c", `head -c ${FULL_BYTES} /dev/urandom > "${file}"`]);
  });
}

/** 2 TiB of Hyper-V's default blocks, with an empty filesystem. */
export function hugeVhdx(directory: string): string {
  return kept(directory, "huge.vhdx", (file) => {
    const disk = `${file}.raw`;
    sparseFile(disk, HUGE_BYTES);
    must("mke2fs", ["-q", "-t", "ext4", "-F", disk]);
    must("qemu-img", ["convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=32M", disk, file]);
    rmSync(disk);
  });
}

/** Writes and deletes until the free space is as scattered as on a disk that was lived on. */
function age(root: string): void {
  const source = new Random(20261123);
  const random = () => source.below(2 ** 32) / 2 ** 32;
  const noise = new Uint8Array(16 * 2 ** 20);
  for (let i = 0; i < noise.length; i++) noise[i] = random() * 256;
  let files: { name: string; bytes: number }[] = [];
  let live = 0;
  let serial = 0;
  const remove = (share: number) => {
    files = files.filter(({ name, bytes }) => {
      if (random() >= share) return true;
      rmSync(name);
      live -= bytes;
      return false;
    });
  };
  for (let round = 0; round < ROUNDS; round++) {
    while (live < LIVE_BYTES) {
      const bytes = Math.round(4 * KIB * 4096 ** random());
      const directory = path.join(root, `d${serial % 64}`);
      if (serial < 64) mkdirSync(directory);
      const name = path.join(directory, `f${serial++}`);
      const handle = openSync(name, "w");
      const from = Math.floor(random() * (noise.length - bytes));
      writeSync(handle, noise, Math.max(0, from), Math.min(bytes, noise.length));
      closeSync(handle);
      files.push({ name, bytes });
      live += bytes;
    }
    must("sync", ["-f", root]);
    remove(round === ROUNDS - 1 ? DELETED_AT_THE_END : DELETED_A_ROUND);
  }
}

export function sparseRaw(directory: string): string {
  return kept(directory, "sparse-16T.raw", (file) => {
    sparseFile(file, 16 * 2 ** 40 - 2 ** 20);
    must("mke2fs", ["-q", "-t", "ext4", "-F", file]);
  });
}

/** One file of four million blocks with every other block punched out. */
export function holedRaw(directory: string): string {
  return kept(directory, "holed.raw", (file) => {
    sparseFile(file, 18 * GIB);
    must("mke2fs", ["-q", "-t", "ext4", "-F", "-N", "65536", file]);
    mounted(file, (root) => {
      const big = path.join(root, "big");
      must("fallocate", ["-l", String(16 * GIB), big]);
      must("python3", ["-c", PUNCH_EVERY_OTHER_BLOCK, big]);
    });
  });
}

const CROWDED_BYTES = 1024 * GIB;

/** How each is made and mounted; NTFS without a driver in the kernel. */
const CROWDED = {
  xfs: { make: ["mkfs.xfs", "-q"], mount: LOOP_MOUNT },
  btrfs: { make: ["mkfs.btrfs", "-q"], mount: LOOP_MOUNT },
  ntfs: { make: ["mkntfs", "-q", "-Q", "-F"], mount: ["ntfs-3g", "-o", "big_writes"] },
} as const;
export type Crowded = keyof typeof CROWDED;

/** A tenth more files are made and deleted between the others, so that what is free lies in pieces. */
export function crowdedRaw(directory: string, filesystem: Crowded): string {
  const { make, mount } = CROWDED[filesystem];
  return kept(directory, `crowded.${filesystem}`, (file) => {
    sparseFile(file, CROWDED_BYTES);
    must(make[0], [...make.slice(1), file]);
    mounted(file, (root) => must("python3", ["-c", MILLION_FILES, root]), [...mount]);
  });
}

const MILLION_FILES = `
import os, sys
data = os.urandom(8000)
for folder in range(1000):
    path = os.path.join(sys.argv[1], f"folder {folder}")
    os.mkdir(path)
    for file in range(1100):
        name = os.path.join(path, f"file number {file}")
        fd = os.open(name, os.O_CREAT | os.O_WRONLY)
        try: os.posix_fallocate(fd, 0, 8000)
        except OSError: os.write(fd, data)
        os.close(fd)
    for file in range(0, 1100, 11): os.unlink(os.path.join(path, f"file number {file}"))
`;

const PUNCH_EVERY_OTHER_BLOCK = `
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
fd = os.open(sys.argv[1], os.O_RDWR)
for block in range(0, os.fstat(fd).st_size // 4096, 2):
    if libc.fallocate(fd, 3, block * 4096, 4096): raise OSError(ctypes.get_errno())
`;
