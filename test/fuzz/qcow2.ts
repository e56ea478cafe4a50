/**
 * Fuzzing of qcow2: a mutant is opened, read, mapped, checked and described; and where it may be planned and written,
 * a reclaim must keep every byte that the guest did not free (H9, H12).
 */
import { readFileSync } from "node:fs";
import { type Extent, ExtentSet } from "../../src/bytes/extents.ts";
import { type BlockDevice, readBytes, wholeMap } from "../../src/device/device.ts";
import { assert, DiskError } from "../../src/error.ts";
import type { Image } from "../../src/formats/format.ts";
import { HeaderV2, HeaderV3 } from "../../src/formats/qcow2/header.ts";
import { qcow2 as format } from "../../src/formats/qcow2.ts";
import { execute } from "../../src/reclaim/execute.ts";
import { chunksOf, type FuzzTarget, outcome, type Sample, spotOf } from "../../src/testing/fuzz.ts";
import { createImage, qemuIo } from "../../src/testing/qemu.ts";
import type { Random } from "../../src/testing/seeds.ts";
import { SimulatedFile } from "../../src/testing/simulated-file.ts";
import { simulatedSource } from "../../src/testing/simulated-source.ts";
import { run } from "../../src/testing/tools.ts";

const VIRTUAL_BYTES = 1024 * 1024;
const STEP_BYTES = 4096;

const VARIANTS: Readonly<Record<string, Readonly<Record<string, string | number>>>> = {
  "4 KiB clusters": { cluster_size: 4096 },
  "64 KiB clusters": { cluster_size: 65536 },
  "512 B clusters, version 2": { cluster_size: 512, compat: "0.10" },
  subclusters: { cluster_size: 16384, extended_l2: "on" },
  "refcounts of a bit, lazy": { cluster_size: 4096, refcount_bits: 1, lazy_refcounts: "on" },
  "zstd, 64-bit refcounts": { cluster_size: 8192, refcount_bits: 64, compression_type: "zstd" },
};

export const qcow2: FuzzTarget = {
  name: "qcow2",
  needs: ["qemu-img", "qemu-io"],

  async samples(folder) {
    return Object.entries(VARIANTS).map(([name, options]) => makeSample(folder, name, options));
  },

  run(bytes, random) {
    return outcome(async () => {
      const file = SimulatedFile.from(bytes);
      const limit = VIRTUAL_BYTES * 4;
      const before = await survey(file, limit);
      if (before === undefined) return "larger";
      return reclaim(file, before, random);
    });
  },
};

function makeSample(
  folder: string,
  name: string,
  options: Readonly<Record<string, string | number>>,
): Sample {
  const image = "image.qcow2";
  const path = createImage({ folder, name: image, virtualBytes: VIRTUAL_BYTES, options });
  const cluster = Number(options["cluster_size"]);
  const compressed = [0, 1, 2].map((i) => `write -c -P ${19 + i} ${640 * 1024 + i * cluster} ${cluster}`);
  qemuIo(path, ["write -P 17 0 200k", "write -P 18 400k 60k", "write -z 440k 100k", ...compressed]);
  if (options["refcount_bits"] !== 1) {
    run("qemu-img", ["snapshot", "-c", "first", path]);
    qemuIo(path, ["write -P 20 100k 50k", "discard 0 64k"]);
  }
  if (options["compat"] !== "0.10") run("qemu-img", ["bitmap", "--add", path, "dirty"]);
  const bytes = new Uint8Array(readFileSync(path));
  run("rm", [path]);
  const chunks = chunksOf(bytes, (chunk) => chunk.every((byte) => byte === chunk[0]));
  const headers = [spotOf(HeaderV2, 0), spotOf(HeaderV3, HeaderV2.bytes)];
  const often = Array.from({ length: Math.ceil(chunks.length / 2) }, (_, i) => headers[i % 2]!);
  return { name, bytes, spots: [...often, ...chunks] };
}

/** What the guest and the snapshots read: per disk and step of 4 KiB its bytes, or nothing where they are damaged. */
type Content = ReadonlyMap<string, readonly (Uint8Array | undefined)[]>;

/** Reads everything; undefined when the disk is too large for that. */
async function survey(file: SimulatedFile, limit: number): Promise<Content | undefined> {
  await using image = await open(file);
  if (image.bytes > limit) {
    await exercise(image, file);
    return undefined;
  }
  const content = new Map([["", await readAll(image)]]);
  for (const snapshot of await image.snapshots()) {
    if (snapshot.bytes > limit) continue;
    const disk = await intact(() => snapshot.open());
    if (disk !== undefined) content.set(`${snapshot.id} ${snapshot.name}`, await readAll(disk));
  }
  await exercise(image, file);
  return content;
}

function open(file: SimulatedFile): Promise<Image> {
  const noParent = () => Promise.reject(new DiskError("refused", "the mutant names a parent"));
  return format.open(simulatedSource(new Map([[file.name, file]]), file.name), noParent);
}

async function readAll(disk: BlockDevice): Promise<(Uint8Array | undefined)[]> {
  const steps: (Uint8Array | undefined)[] = [];
  for (let at = 0; at < disk.bytes; at += STEP_BYTES) {
    steps.push(await intact(() => readBytes(disk, at, Math.min(STEP_BYTES, disk.bytes - at))));
  }
  return steps;
}

/** All else that an image can be asked. */
async function exercise(image: Image, file: SimulatedFile): Promise<void> {
  await intact(() => wholeMap(image));
  await intact(() => image.tableBytes());
  await intact(async () => {
    for await (const { count, message } of image.check()) assert(count > 0 && message !== "", "a finding");
  });
  await intact(() => image.describe(Math.floor(file.bytes / 2)));
  assert(image.summary !== "" && Object.keys(image.details).length > 0, "facts");
}

/** What `work` gives, or nothing where the mutant is damaged there. */
async function intact<T>(work: () => Promise<T>): Promise<T | undefined> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof DiskError && error.kind !== "io") return undefined;
    throw error;
  }
}

async function reclaim(file: SimulatedFile, before: Content, random: Random): Promise<string> {
  const free = ExtentSet.from(
    Array.from({ length: 4 }, () => {
      const start = random.below(VIRTUAL_BYTES / 512) * 512;
      return { start, end: Math.min(VIRTUAL_BYTES, start + 512 * (1 + random.below(400))) };
    }),
  );
  {
    await using image = await open(file);
    const plan = await image.plan({
      free: free.within({ start: 0, end: image.bytes }),
      blank: ExtentSet.EMPTY,
      pack: random.oneIn(3),
      punch: true,
      minHoleBytes: 4096,
      hostBlockBytes: 4096,
    });
    await execute(plan, new Map([["", file]]));
  }
  const after = (await survey(file, VIRTUAL_BYTES * 4))!;
  for (const [disk, steps] of before) {
    for (const [i, old] of steps.entries()) {
      if (old === undefined) continue;
      const found = after.get(disk)?.[i];
      const at = i * STEP_BYTES;
      assert(found !== undefined, `${disk} could be read at ${at} before the reclaim`);
      compare(disk, at, old, found, disk === "" ? free : ExtentSet.EMPTY);
    }
  }
  return "reclaimed";
}

/** Sector by sector: unchanged, or zeros where the guest freed it. */
function compare(disk: string, at: number, old: Uint8Array, found: Uint8Array, free: ExtentSet): void {
  if (Buffer.compare(old, found) === 0) return;
  for (let offset = 0; offset < old.length; offset += 512) {
    const sector: Extent = { start: at + offset, end: at + offset + 512 };
    const part = found.subarray(offset, offset + 512);
    if (Buffer.compare(old.subarray(offset, offset + 512), part) === 0) continue;
    const isZero = part.every((byte) => byte === 0);
    assert(isZero && free.covers(sector), `${disk || "the guest"} reads something else at ${sector.start}`);
  }
}
