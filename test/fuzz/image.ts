/**
 * Fuzzing of an image format: a mutant is opened, read, mapped, checked and described; and where it may be planned and
 * written, a reclaim must keep every byte that the guest did not free (H9, H12).
 */
import { type Extent, ExtentSet } from "../../src/bytes/extents.ts";
import { type BlockDevice, readBytes, wholeMap } from "../../src/device/device.ts";
import { assert, DiskError } from "../../src/error.ts";
import type { Source } from "../../src/device/source.ts";
import type { Image, ImageFormat, OpenParent, WritableImage } from "../../src/formats/format.ts";
import { execute } from "../../src/reclaim/execute.ts";
import { outcome } from "../../src/testing/fuzz.ts";
import type { Random } from "../../src/testing/seeds.ts";
import type { SimulatedFile } from "../../src/testing/simulated-file.ts";
import { simulatedSource } from "../../src/testing/simulated-source.ts";

const STEP_BYTES = 4096;

export interface Mutant {
  readonly format: ImageFormat;
  readonly file: SimulatedFile;
  /** Of a bundle, whose descriptor is the mutant: its name and its other files. */
  readonly bundle?: { readonly name: string; readonly files: readonly SimulatedFile[] };
  /** Length of the sample's disk in bytes. */
  readonly virtualBytes: number;
  /** Default: there is no parent. */
  readonly openParent?: OpenParent;
  /** Longest range to free in sectors. Default 400. */
  readonly freeSectorsMax?: number;
  /** The format replays a log into the file when it is opened for writing. */
  readonly mustReplay?: boolean;
}

/** @returns a word for the statistics */
export function fuzzImage(mutant: Mutant, random: Random): Promise<string> {
  return outcome(async () => {
    const before = await survey(mutant, mutant.virtualBytes * 4);
    if (before === undefined) return "larger";
    return reclaim(mutant, before, random);
  });
}

/** What the guest and the snapshots read: per disk and step of 4 KiB its bytes, or nothing where they are damaged. */
type Content = ReadonlyMap<string, readonly (Uint8Array | undefined)[]>;

/** Reads everything; undefined when the disk is too large for that. */
async function survey(mutant: Mutant, limit: number): Promise<Content | undefined> {
  const { file } = mutant;
  await using image = await open(mutant);
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

const noParent: OpenParent = () => Promise.reject(new DiskError("refused", "the mutant names a parent"));

function sourceOf({ file, bundle }: Mutant): Source {
  const files = new Map([file, ...(bundle?.files ?? [])].map((each) => [each.name, each]));
  return simulatedSource(files, bundle?.name ?? file.name);
}

function open(mutant: Mutant): Promise<Image> {
  return mutant.format.open(sourceOf(mutant), mutant.openParent ?? noParent);
}

function openWritable(mutant: Mutant): Promise<WritableImage> {
  return mutant.format.openWritable!(sourceOf(mutant), mutant.openParent ?? noParent);
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

async function reclaim(mutant: Mutant, before: Content, random: Random): Promise<string> {
  const { virtualBytes } = mutant;
  const free = ExtentSet.from(
    Array.from({ length: 4 }, () => {
      const start = random.below(virtualBytes / 512) * 512;
      const sectors = 1 + random.below(mutant.freeSectorsMax ?? 400);
      return { start, end: Math.min(virtualBytes, start + 512 * sectors) };
    }),
  );
  {
    await using writable = mutant.mustReplay || mutant.bundle ? await openWritable(mutant) : undefined;
    await using image = writable ?? (await open(mutant));
    const plan = await image.plan({
      free: free.within({ start: 0, end: image.bytes }),
      blank: ExtentSet.EMPTY,
      pack: random.oneIn(3),
      punch: true,
      minHoleBytes: 4096,
      hostBlockBytes: 4096,
    });
    await execute(plan, writable?.files ?? new Map([["", mutant.file]]));
  }
  const after = (await survey(mutant, virtualBytes * 4))!;
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
