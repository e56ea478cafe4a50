/**
 * The disks that are crashed: small guests with deleted files, in each shape that changes how space is given back.
 */
import { closeSync, copyFileSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { convert } from "../src/disk.ts";
import { makeGuest } from "../src/testing/guest.ts";
import { SimulatedFile } from "../src/testing/simulated-file.ts";
import { run } from "../src/testing/tools.ts";
import type { Deed, Scenario } from "./crash-walk.ts";

const KIB = 1024;
const DISK_BYTES = 3072 * KIB;

interface Shape {
  readonly name: string;
  /** Default qcow2, or raw without options. */
  readonly format?: string;
  /** For `create -o`, QEMU's or ours; none: raw. */
  readonly options?: string;
  readonly deed: Deed;
  /** `snapshot`: half of the files were deleted after one was taken; `backing`: the disk lies in a parent. */
  readonly past?: "snapshot" | "backing" | "compressed" | "leaks";
}

/** Formats of mapped blocks, by our own hand: QEMU makes no blocks so small. */
const MAPPED_BLOCKS = [
  { format: "vhdx", options: "block_size=1M,log_size=1M" },
  { format: "vhd", options: "block_size=65536" },
  { format: "vdi", options: "block_size=65536" },
  { format: "vmdk", options: "subformat=monolithicSparse" },
  { format: "parallels", options: "cluster_size=64k" },
];

const SHAPES: readonly Shape[] = [
  { name: "raw", deed: "punch" },
  { name: "v3, 4 KiB clusters", options: "cluster_size=4k", deed: "punch" },
  { name: "v3, 64 KiB clusters", options: "cluster_size=64k", deed: "punch" },
  { name: "v2, 1 KiB clusters", options: "cluster_size=1k,compat=0.10", deed: "punch" },
  { name: "v3, 1-bit refcounts", options: "cluster_size=4k,refcount_bits=1", deed: "punch" },
  { name: "v3, 64-bit refcounts", options: "cluster_size=4k,refcount_bits=64", deed: "punch" },
  { name: "v3, subclusters", options: "cluster_size=64k,extended_l2=on", deed: "punch" },
  { name: "v3, snapshot", options: "cluster_size=4k", deed: "punch", past: "snapshot" },
  { name: "v3 above a parent", options: "cluster_size=4k", deed: "punch", past: "backing" },
  { name: "v2 above a parent", options: "cluster_size=4k,compat=0.10", deed: "punch", past: "backing" },
  { name: "v3, compressed", options: "cluster_size=4k", deed: "punch", past: "compressed" },
  { name: "v3, pack", options: "cluster_size=4k", deed: "pack" },
  { name: "v3, pack above a parent", options: "cluster_size=4k", deed: "pack", past: "backing" },
  { name: "v2, pack", options: "cluster_size=1k,compat=0.10", deed: "pack" },
  { name: "v3, repair of leaks", options: "cluster_size=4k", deed: "repair", past: "leaks" },
  ...MAPPED_BLOCKS.flatMap(({ format, options }) =>
    (["punch", "pack"] as const)
      // Three blocks of a MiB leave no gap.
      .filter((deed) => deed === "punch" || format !== "vhdx")
      .map((deed) => ({ name: `${format}, ${deed}`, format, options, deed })),
  ),
];

/** Few: it is the same plan, and what comes before it. */
const ERASED: readonly Shape[] = [
  { name: "raw, erase", deed: "erase" },
  { name: "v3, erase", options: "cluster_size=4k", deed: "erase" },
  { name: "v3, subclusters, erase", options: "cluster_size=64k,extended_l2=on", deed: "erase" },
  { name: "v3, snapshot, erase", options: "cluster_size=4k", deed: "erase", past: "snapshot" },
  { name: "v3, compressed, erase", options: "cluster_size=4k", deed: "erase", past: "compressed" },
  { name: "v3, leaks, erase", options: "cluster_size=4k", deed: "erase", past: "leaks" },
  {
    name: "v2 above a parent, erase",
    options: "cluster_size=4k,compat=0.10",
    deed: "erase",
    past: "backing",
  },
  ...MAPPED_BLOCKS.map(({ format, options }) => ({
    name: `${format}, erase`,
    format,
    options,
    deed: "erase" as const,
  })),
];

/** Those of `ullage erase`. */
export const eraseScenarios = (folder: string): AsyncGenerator<Scenario> => scenarios(folder, ERASED);

/** Makes every scenario in `folder`; needs mke2fs, debugfs and qemu-img. */
export const crashScenarios = (folder: string): AsyncGenerator<Scenario> => scenarios(folder, SHAPES);

async function* scenarios(folder: string, shapes: readonly Shape[]): AsyncGenerator<Scenario> {
  const guest = makeGuest({
    folder,
    name: "guest",
    bytes: DISK_BYTES,
    mke2fs: ["-t", "ext4", "-b", "1024", "-O", "^has_journal,^resize_inode"],
    files: 20,
    fileBytesMax: 80 * KIB,
  });
  for (const shape of shapes) {
    const { name, deed } = shape;
    if (shape.options === undefined) {
      yield { name, format: "raw", deed, files: new Map([["disk", await SimulatedFile.load(guest)]]) };
      continue;
    }
    const { format = "qcow2", options, past } = shape;
    const files =
      format === "qcow2"
        ? await shaped(folder, guest, options, past)
        : await inBlocks(folder, guest, format, options);
    yield { name, format, deed, files };
  }
}

async function shaped(folder: string, guest: string, options: string, past: Shape["past"]) {
  const files = new Map<string, SimulatedFile>();
  const disk = join(folder, "disk");
  const convert = (from: string, to: string, ...more: string[]) =>
    run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", "-o", options, ...more, from, to]);
  if (past === "backing") {
    // The parent holds noise where the child has been written, so that uncovering it would show (H9).
    const parent = join(folder, "parent");
    run("sh", ["-c", `head -c ${DISK_BYTES} /dev/urandom > "${parent}"`]);
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, "-b", "parent", "-F", "raw", disk]);
    run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "qcow2", "-S", "0", guest, disk]);
    files.set("parent", await SimulatedFile.load(parent));
  } else convert(guest, disk, ...(past === "compressed" ? ["-c"] : []));
  if (past === "snapshot") {
    const later = join(folder, "later");
    copyFileSync(guest, later);
    run("debugfs", ["-w", "-f", "-", later], "rm /dir/file1\nrm /dir/file3\nrm /dir/file5");
    run("qemu-img", ["snapshot", "-c", "before", disk]);
    run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "qcow2", later, disk]);
  }
  if (past === "leaks") leak(disk);
  files.set("disk", await SimulatedFile.load(disk));
  return files;
}

/** The guest with what it freed, in a format of mapped blocks. */
async function inBlocks(folder: string, guest: string, format: string, options: string) {
  const disk = join(folder, "disk");
  const pairs = options.split(",").map((pair) => pair.split("=") as [string, string]);
  await convert(guest, disk, {
    format: "raw",
    to: format,
    options: Object.fromEntries(pairs),
    includeFree: true,
    force: true,
  });
  return new Map([["disk", await SimulatedFile.load(disk)]]);
}

/** Clusters with a count and no owner, as a lost snapshot leaves them: its tables and its counts have leaked. */
function leak(disk: string): void {
  run("qemu-img", ["snapshot", "-c", "lost", disk]);
  const image = openSync(disk, "r+");
  writeSync(image, Buffer.alloc(4), 0, 4, NB_SNAPSHOTS_AT);
  closeSync(image);
}

/** Of `nb_snapshots` in the header. */
const NB_SNAPSHOTS_AT = 60;
