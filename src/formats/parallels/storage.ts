/**
 * One file of a bundle: what one snapshot holds of one storage. The active one is the part of the disk that is written.
 *
 *   storage   | Compressed, the snapshot that is written |
 *             | Compressed, the snapshot below           |  absent clusters are read from below
 *             | Plain or Compressed, the root            |
 */
import { ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice, ReadableFile } from "../../device/device.ts";
import { slice } from "../../device/slice.ts";
import { DiskError } from "../../error.ts";
import { batched } from "../../reclaim/batched.ts";
import { holesIn, holeSteps } from "../../reclaim/holes.ts";
import { EMPTY_PLAN, type Plan, type Wish } from "../../reclaim/plan.ts";
import { checkBlocks } from "../blocks/check.ts";
import { BlockDisk } from "../blocks/disk.ts";
import { planBlocks, planLeaks } from "../blocks/plan.ts";
import type { Finding } from "../format.ts";
import type { Storage, StorageImage } from "./descriptor.ts";
import { readParallels } from "./image.ts";
import { type ParallelsImage, refuseWriting } from "./layout.ts";

export interface Layer<F extends ReadableFile = ReadableFile> {
  readonly fileName: string;
  readonly file: F;
  /** As long as its storage. */
  readonly device: BlockDevice;
  /** Undefined: plain. */
  readonly image: ParallelsImage<F> | undefined;
}

/** @throws DiskError `corrupt`, `unsupported` */
export async function readLayer<F extends ReadableFile>(
  file: F,
  { file: fileName, type }: StorageImage,
  { start, end, clusterBytes }: Storage,
  parent: BlockDevice | undefined,
): Promise<Layer<F>> {
  const bytes = end - start;
  const mustBe = (what: string, found: number, expected: number): void => {
    if (found === expected) return;
    throw new DiskError("corrupt", `${fileName}: ${what}: found ${found}, expected ${expected} bytes`);
  };
  if (type === "Plain") {
    if (parent !== undefined) throw new DiskError("corrupt", `${fileName}: a plain image that has a parent`);
    if (file.bytes < bytes) mustBe("its length", file.bytes, bytes);
    return { fileName, file, device: slice(file, { start: 0, end: bytes }), image: undefined };
  }
  const image = await readParallels(file, fileName, parent);
  mustBe("the disk's length", image.layout.bytes, bytes);
  mustBe("the clusters' length", image.geometry.clusterBytes, clusterBytes);
  return { fileName, file, device: new BlockDisk(image.layout), image };
}

export function requireWritable({ image }: Layer): void {
  if (image !== undefined) refuseWriting(image);
}

export async function* checkLayer({ fileName, image }: Layer): AsyncGenerator<Finding> {
  if (image === undefined) return;
  for await (const finding of checkBlocks(image.layout)) {
    yield { ...finding, message: `${fileName}: ${finding.message}` };
  }
}

/** @param wish in bytes of the storage */
export async function planLayer({ fileName, file, device, image }: Layer, wish: Wish): Promise<Plan> {
  if (image !== undefined) return planBlocks(image.layout, wish, device);
  const blank = wish.blank;
  const inside = (wish.pack ? ExtentSet.EMPTY : wish.free).union(blank);
  const none = ExtentSet.EMPTY;
  const holes = await holesIn(file, { garbage: none, freed: none, inside, blank }, wish);
  return {
    ...EMPTY_PLAN,
    punchBytes: holes.punched.bytes,
    punched: new Map([[fileName, holes.punched]]),
    batches: () => batched(holeSteps(fileName, holes)),
  };
}

export async function planLayerLeaks({ image }: Layer): Promise<Plan> {
  return image === undefined ? EMPTY_PLAN : planLeaks(image.layout);
}
