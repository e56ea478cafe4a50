/**
 * Erase: overwrite what nobody uses any more, then give it back.
 *
 *   lock → check → survey and plan → confirm → plant canaries? → overwrite → flush → reclaim's own plan → zeros in the
 *   pieces that could not be given back → flush → reopen → all of it must read as zeros → search for canaries?
 *
 * Everything is overwritten before anything is unmapped: a crash leaves a whole image in which some free places hold the
 * pattern, and the next run does the rest. What is free is judged, locked and refused exactly as for `reclaim`.
 */
import { ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import { DiskError } from "../error.ts";
import type { Image, WritableImage } from "../formats/format.ts";
import { realPathOf } from "../host/changes.ts";
import { type Stack, stackOf } from "../host/stack.ts";
import { type PatternName, patternOf } from "../live/pattern.ts";
import { EMPTY_PLAN } from "../reclaim/plan.ts";
import { plant, type Planted, search, type Sighted } from "./erase/canaries.ts";
import { bestGrade, type Graded, gradeOf, lowest } from "./erase/grade.ts";
import { digestOfPlaces, firstNonZero, overwriteAll, zeroLeft } from "./erase/overwriting.ts";
import { type Remains, remainsOf } from "./erase/remains.ts";
import type { Disk } from "./open.ts";
import { type Attendant, reclaimWith } from "./reclaim.ts";
import type { Erased, EraseIntent, EraseOptions, Reclaimed } from "./results.ts";
import { type Prospect, sizesOf } from "./survey.ts";

/**
 * Overwrites everything that is free in an image, and gives it back.
 * @throws DiskError as `reclaim`; `io` with code `not-erased` when something of it is found afterwards
 */
export async function erase(file: string, options: EraseOptions = {}): Promise<Erased> {
  const { confirm, ...others } = options;
  const erasure = new Erasure(file, options);
  const reclaimed = await reclaimWith(
    file,
    {
      ...others,
      ...(confirm && { confirm: (prospect, host) => confirm(prospect, host, erasure.intent) }),
    },
    erasure,
  );
  return { ...reclaimed, ...erasure.outcome(reclaimed.applied) };
}

const NOTHING: Remains = {
  files: new Map(),
  guest: ExtentSet.EMPTY,
  bytes: 0,
  sharedBytes: 0,
  unwrittenBytes: 0,
  compressedBytes: 0,
};

class Erasure implements Attendant {
  readonly #options: EraseOptions;
  readonly #name: PatternName;
  /** What the image's files lie on. */
  #stacks: readonly Stack[];
  #remains = NOTHING;
  #plan = EMPTY_PLAN;
  #stayedInPlace: boolean | undefined;
  #graded: Graded;
  #planted: Planted | undefined;
  #sighted: Sighted | undefined;

  constructor(file: string, options: EraseOptions) {
    this.#options = options;
    this.#name = options.pattern ?? "random";
    this.#stacks = [stackOf(file)];
    this.#graded = { ...this.#best, grade: "none" };
  }

  get #best(): Graded {
    return lowest(this.#stacks.map(bestGrade));
  }

  get intent(): EraseIntent {
    return { pattern: this.#name, bytes: this.#remains.bytes, ...this.#best };
  }

  outcome(applied: boolean): Omit<Erased, keyof Reclaimed> {
    const { bytes, sharedBytes, compressedBytes } = this.#remains;
    const planted = this.#planted;
    const sighted = this.#sighted;
    return {
      pattern: this.#name,
      ...this.#graded,
      bestGrade: this.#best.grade,
      erasedBytes: applied || this.#options.dryRun === true ? bytes : 0,
      sharedBytes,
      compressedBytes,
      canaries: planted && sighted ? { planted: planted.count, found: sighted.canaries } : null,
      samples: planted && sighted ? { taken: planted.samples.length, found: sighted.samples } : null,
    };
  }

  async prepare({ image }: Disk, { survey, usage, plan, allocation }: Prospect): Promise<number> {
    if (survey.method !== "punch") {
      throw new DiskError(
        "unsupported",
        "the host cannot punch holes here: nothing that is erased can be given back",
      );
    }
    const others = [...image.files.values()].map(realPathOf).filter((path) => path !== undefined);
    this.#stacks = [...this.#stacks, ...others.map((path) => stackOf(path))];
    this.#graded = { ...this.#best, grade: "none" };
    this.#plan = plan;
    this.#remains = await remainsOf(image, usage.free, plan, allocation);
    return this.#remains.bytes;
  }

  async begin({ image }: Disk<WritableImage>): Promise<void> {
    const { files, bytes } = this.#remains;
    const { signal, onProgress, verify } = this.#options;
    if (verify) this.#planted = await plant(image.files, files);
    const before = await digestOfPlaces(image.files, files);
    await overwriteAll(image.files, files, patternOf(this.#name), (doneBytes) => {
      if (signal?.aborted) throw interrupted(doneBytes);
      onProgress?.({ phase: "erasing", doneBytes, totalBytes: bytes });
    });
    const after = await digestOfPlaces(image.files, files);
    this.#stayedInPlace = after === undefined ? undefined : after === before;
  }

  async finish({ image }: Disk<WritableImage>): Promise<void> {
    await zeroLeft(image.files, this.#remains.files, this.#plan);
  }

  async look(image: Image): Promise<void> {
    const { files, guest, bytes, sharedBytes, unwrittenBytes } = this.#remains;
    for (const file of image.files.values()) file.forget?.();
    for (const [name, set] of files) await requireZero(image.files.get(name)!, set, "the file");
    // What is shared is left as it is, also where the guest calls it free.
    if (sharedBytes === 0) await requireZero(image, guest, "the guest's disk");
    if (this.#planted) {
      const totalBytes = (await sizesOf(image)).hostBytes ?? image.bytes;
      const onProgress = (doneBytes: number) =>
        this.#options.onProgress?.({ phase: "searching", doneBytes, totalBytes });
      this.#sighted = await search(image.files, this.#planted, { onProgress });
      if (this.#sighted.canaries > 0) throw notErased(`${this.#sighted.canaries} canaries are still found`);
    }
    if (bytes === 0) return;
    const seen = { stayedInPlace: this.#stayedInPlace, unwrittenBytes };
    this.#graded = lowest(this.#stacks.map((stack) => gradeOf(stack, seen)));
  }
}

function interrupted(bytes: number): DiskError {
  return new DiskError(
    "interrupted",
    `interrupted at a safe point; ${bytes} bytes are overwritten, none returned`,
    {
      hint: "the image is whole; run the same command again to do the rest",
    },
  );
}

function notErased(what: string): DiskError {
  return new DiskError("io", `the erasure failed: ${what}`, {
    code: "not-erased",
    hint: "the host does not do what it says; the image itself is whole",
  });
}

async function requireZero(device: BlockDevice, set: ExtentSet, name: string): Promise<void> {
  const at = await firstNonZero(device, set);
  if (at !== undefined) throw notErased(`${name} does not read as zeros at ${at} and behind`);
}
