/**
 * The disks that are crashed: small guests with deleted files, in each shape that changes how space is given back.
 */
import { closeSync, copyFileSync, openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import type { ImageFormat } from "../src/formats/format.ts";
import { vdi } from "../src/formats/vdi.ts";
import { vhd } from "../src/formats/vhd.ts";
import { makeGuest } from "../src/testing/guest.ts";
import { SimulatedFile } from "../src/testing/simulated-file.ts";
import { simulatedSource } from "../src/testing/simulated-source.ts";
import { run } from "../src/testing/tools.ts";
import type { Deed, Scenario } from "./crash-walk.ts";

const KIB = 1024;
const DISK_BYTES = 3072 * KIB;

interface Shape {
  readonly name: string;
  /** For `qemu-img create -o`; none: raw. */
  readonly options?: string;
  readonly deed: Deed;
  /** `snapshot`: half of the files were deleted after one was taken; `backing`: the disk lies in a parent. */
  readonly past?: "snapshot" | "backing" | "compressed" | "leaks";
}

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
];

/** Formats of mapped blocks, in images of our own: QEMU's blocks of a MiB and more are too large for so small a disk. */
const BLOCK_SHAPES: readonly { readonly format: ImageFormat; readonly deed: Deed }[] = [
  { format: vhd, deed: "punch" },
  { format: vhd, deed: "pack" },
  { format: vdi, deed: "punch" },
  { format: vdi, deed: "pack" },
];
const BLOCK_BYTES = 16 * KIB;

/** Makes every scenario in `folder`; needs mke2fs, debugfs and qemu-img. */
export async function* crashScenarios(folder: string): AsyncGenerator<Scenario> {
  const guest = makeGuest({
    folder,
    name: "guest",
    bytes: DISK_BYTES,
    mke2fs: ["-t", "ext4", "-b", "1024", "-O", "^has_journal,^resize_inode"],
    files: 20,
    fileBytesMax: 80 * KIB,
  });
  for (const shape of SHAPES) {
    const { name, deed } = shape;
    if (shape.options === undefined) {
      yield { name, format: "raw", deed, files: new Map([["disk", await SimulatedFile.load(guest)]]) };
      continue;
    }
    yield { name, format: "qcow2", deed, files: await shaped(folder, guest, shape.options, shape.past) };
  }
  for (const { format, deed } of BLOCK_SHAPES) {
    yield {
      name: `${format.name}, ${deed}`,
      format: format.name,
      deed,
      files: await ofBlocks(guest, format),
    };
  }
}

async function ofBlocks(guest: string, format: ImageFormat): Promise<Map<string, SimulatedFile>> {
  const content = readFileSync(guest);
  const files = new Map<string, SimulatedFile>();
  const options = { block_size: String(BLOCK_BYTES) };
  const asked = { virtualBytes: content.length, options };
  await using image = await format.create!(simulatedSource(files, "disk"), asked);
  for (let at = 0; at < content.length; at += BLOCK_BYTES) {
    const block = content.subarray(at, at + BLOCK_BYTES);
    if (block.some((byte) => byte !== 0)) await image.write(at, block);
  }
  return files;
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

/** Clusters with a count and no owner, as a lost snapshot leaves them: its tables and its counts have leaked. */
function leak(disk: string): void {
  run("qemu-img", ["snapshot", "-c", "lost", disk]);
  const image = openSync(disk, "r+");
  writeSync(image, Buffer.alloc(4), 0, 4, NB_SNAPSHOTS_AT);
  closeSync(image);
}

/** Of `nb_snapshots` in the header. */
const NB_SNAPSHOTS_AT = 60;
