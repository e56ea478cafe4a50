/**
 * A guest that runs while its disks are served: another kernel makes filesystems on them, fills them, deletes, trims.
 *
 *   image ── server ── UNIX socket ── QEMU ── virtio ── another kernel: mkfs, files, rm, fstrim, sha256sum
 */
import { basename, join } from "node:path";
import { ExtentSet } from "../bytes/extents.ts";
import { otherKernel, type NbdDisk, type OtherKernelOptions } from "./other-kernel.ts";
import { serving, type Serving } from "./serving.ts";
import { attempt, requires, run, scratch } from "./tools.ts";
import type { TestContext } from "node:test";

const MiB = 1024 * 1024;

export const FILESYSTEMS = ["ext4", "xfs", "btrfs"] as const;
export type LiveFilesystem = (typeof FILESYSTEMS)[number];

/** The smallest that mkfs.xfs makes, and a little. */
const DISK_BYTES = 320 * MiB;

/** Judges on the host, and what the guest brings from it. */
const CHECKERS = { ext4: ["e2fsck", "-fn"], xfs: ["xfs_repair", "-n"], btrfs: ["btrfs", "check"] } as const;
const GUEST_TOOLS = [
  "/sbin/mke2fs",
  "/sbin/mkfs.xfs",
  "/sbin/mkfs.btrfs",
  "/sbin/fstrim",
  "/sbin/blkdiscard",
];

/** An image that holds one filesystem. */
export interface LiveDisk {
  readonly path: string;
  readonly format: "qcow2" | "raw";
  readonly filesystem: LiveFilesystem;
}

/** Whether all tools of a live guest are there; otherwise the test is skipped. */
export function requiresLiveGuest(t: TestContext): boolean {
  return requires(
    t,
    "qemu-img",
    "xfs_io",
    ...Object.values(CHECKERS).map(([tool]) => tool),
    ...GUEST_TOOLS.map((tool) => tool.replace(/.*\//, "")),
  );
}

/** Empty disks, one for each filesystem. */
export function blankDisks(folder: string, format: LiveDisk["format"]): LiveDisk[] {
  return FILESYSTEMS.map((filesystem) => {
    const path = join(folder, `${filesystem}.${format}`);
    run("qemu-img", ["create", "-q", "-f", format, path, `${DISK_BYTES}`]);
    return { path, format, filesystem };
  });
}

/** Copies, to be lived in. */
export function copies(t: TestContext, disks: readonly LiveDisk[]): LiveDisk[] {
  const folder = scratch(t);
  return disks.map((disk) => {
    const path = join(folder, basename(disk.path));
    run("cp", ["--sparse=always", disk.path, path]);
    return { ...disk, path };
  });
}

/** What serves a guest's disks: a server for each format, with all its images; `disks` in their order. */
export interface LiveServers {
  readonly disks: readonly NbdDisk[];
  readonly servers: readonly Serving[];
}

export async function serveAll(
  t: TestContext,
  disks: readonly LiveDisk[],
  words: readonly string[] = [],
): Promise<LiveServers> {
  const formats = [...new Set(disks.map(({ format }) => format))];
  const served = new Map<string, Serving>();
  for (const format of formats) {
    const images = disks.filter((disk) => disk.format === format).map(({ path }) => path);
    served.set(format, await serving(t, images, { format, words }));
  }
  return {
    disks: disks.map(({ path, format }) => ({
      socket: served.get(format)!.socket,
      exportName: basename(path),
    })),
    servers: [...served.values()],
  };
}

export interface LiveGuestOptions extends Omit<OtherKernelOptions, "modules" | "disks" | "tools"> {
  /** Of the disks, in their order: they are /dev/vda, /dev/vdb, …, and `each` names both. */
  readonly filesystems: readonly LiveFilesystem[];
}

/** Boots the guest. */
export async function liveGuest(
  t: TestContext,
  disks: readonly NbdDisk[],
  { filesystems, ...options }: LiveGuestOptions,
): Promise<string | undefined> {
  const pairs = filesystems.map((filesystem, i) => `vd${"abcdefgh"[i]}:${filesystem}`);
  return otherKernel(t, {
    ...options,
    modules: ["crc32c_generic", "ext4", "xfs", "btrfs"],
    disks,
    tools: GUEST_TOOLS,
    script: `disks="${pairs.join(" ")}"\n${WORDS}\n${options.script}`,
  });
}

/** Commands for the scripts; `each` runs one of them for every disk, in its folder where it is mounted. */
const WORDS = `
quietly() { "$@" >/tmp/said 2>&1 || { echo "$@"; cat /tmp/said; exit 1; }; }
each() {
  for disk in $disks; do
    device=/dev/\${disk%:*}; filesystem=\${disk#*:}; folder=/mnt/\${disk%:*}
    "$@"
  done
}
make() {
  case $filesystem in
    ext4) quietly /sbin/mke2fs -t ext4 -b 4096 "$@" $device;;
    xfs) quietly /sbin/mkfs.xfs "$@" $device;;
    btrfs) quietly /sbin/mkfs.btrfs "$@" $device;;
  esac
  mkdir -p $folder
}
mount_with() { mkdir -p $folder; mount -t $filesystem -o $1 $device $folder; }
unmount() { umount $folder; }
trim() { /sbin/fstrim $folder; }
# Files of all sizes up to 300 KB, of different content.
content() { { echo "$disk $2"; cat /tmp/seed; } | head -c $(($1 * $1 * $1 * 37 % 300007 + 1)); }
fill() {
  [ -e /tmp/seed ] || head -c 300100 /dev/urandom > /tmp/seed
  mkdir $folder/$1
  for i in $(seq $2); do
    content $i "$1 keep $i" > $folder/$1/keep$i
    content $((i + 7)) "$1 gone $i" > $folder/$1/gone$i
  done
  sync -f $folder
}
delete() { rm $folder/$1/gone*; sync -f $folder; }
commit() { date > $folder/commit; sync -f $folder; }
print_folder() { (cd $folder; echo "print $disk"; find $1 -type f | sort | xargs sha256sum); }
print() { print_folder .; }
forget() { sync; echo 3 > /proc/sys/vm/drop_caches; }
`;

/** The prints of a boot: by disk, what its files were. */
export function printsOf(printed: string): string[] {
  return printed
    .split(/^print /m)
    .slice(1)
    .map((print) =>
      print
        .split("\n")
        .filter((line) => /^[0-9a-f]{64} |^vd/.test(line))
        .join("\n"),
    );
}

/** A copy of the disk as raw bytes, through QEMU. */
export function rawView(t: TestContext, { path, format }: LiveDisk): string {
  const raw = join(scratch(t), "raw");
  run("qemu-img", ["convert", "-f", format, "-O", "raw", path, raw]);
  return raw;
}

/** What the filesystem's own checker and `qemu-img check` say when it is not that all is well; else nothing. */
export function complaints(t: TestContext, disk: LiveDisk): string {
  const [tool, ...options] = CHECKERS[disk.filesystem];
  const said = [attempt(tool, [...options, rawView(t, disk)])];
  if (disk.format === "qcow2") said.push(attempt("qemu-img", ["check", "-f", "qcow2", disk.path]));
  return said
    .filter(({ status }) => status !== 0)
    .map(({ stdout, stderr }) => stdout + stderr)
    .join("\n");
}

/** What of the disk the host stores, as QEMU maps the disk and the host's filesystem the file. */
export function stored({ path, format }: LiveDisk): ExtentSet {
  run("sync", [path]);
  const listed = run("xfs_io", ["-r", "-c", "fiemap", path]).matchAll(/\[(\d+)\.\.(\d+)\]: \d/g);
  const onHost = ExtentSet.from(
    [...listed].map(([, first, last]) => ({ start: Number(first) * 512, end: (Number(last) + 1) * 512 })),
  );
  const map = JSON.parse(run("qemu-img", ["map", "--output=json", "-f", format, path])) as {
    readonly start: number;
    readonly length: number;
    readonly offset?: number;
  }[];
  const pieces = map.flatMap(({ start, length, offset }) => {
    if (offset === undefined) return [];
    return [...onHost.within({ start: offset, end: offset + length }).shift(start - offset)];
  });
  return ExtentSet.from(pieces);
}
