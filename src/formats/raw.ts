/**
 * Raw: the guest's bytes as they are, in a file with holes or on a block device.
 *
 *   guest  |######|      |###|         |##|
 *   file   |######| hole |###|  hole   |##|      the host's own map is the mapping table
 *
 * There are no tables: to free is to punch, and there is nothing to check or to pack.
 */
import type { ReadableFile } from "../device/device.ts";
import type { Source } from "../device/source.ts";
<<<<<<< HEAD
import { assert, DiskError } from "../error.ts";
import { EMPTY_PLAN, type Plan, type Step, type Wish } from "../reclaim/plan.ts";
import type {
  ClaimedPlace,
  CreateOptions,
  Finding,
  Image,
  ImageFormat,
  Snapshot,
  WritableImage,
} from "./format.ts";
=======
import { DiskError } from "../error.ts";
import { type FlatFacts, FlatImage, made, WritableFlatImage } from "./blocks/flat.ts";
import type { CreateOptions, ImageFormat, WritableImage } from "./format.ts";
>>>>>>> vhd

export const raw: ImageFormat = {
  name: "raw",
  // Any content is a raw disk; the door asks the other formats first.
  probe: () => Promise.resolve(true),
  references: () => Promise.resolve([]),
  open: async (source) => made(await source.open(), async (file) => new FlatImage(file, await factsOf(file))),
  async openWritable(source) {
    if (!source.openWritable) throw new DiskError("unsupported", `${source.name} can only be read`);
    return made(
      await source.openWritable(),
      async (file) => new WritableFlatImage(file, await factsOf(file)),
    );
  },
  create,
};

async function factsOf(file: ReadableFile): Promise<FlatFacts> {
  const { blockBytes } = await file.stat();
  const { bytes } = file;
  const summary = `holes of ${blockBytes / 1024} KiB`;
  return { format: "raw", at: 0, bytes, grainBytes: blockBytes, summary, details: {}, identifiers: [] };
}

async function create(source: Source, { virtualBytes, options }: CreateOptions): Promise<WritableImage> {
  const [unknown] = Object.keys(options);
  if (unknown !== undefined) throw new DiskError("usage", `raw images have no option ${unknown}`);
  if (!source.create) throw new DiskError("unsupported", `${source.name}: no file can be made here`);
  return made(await source.create(), async (file) => {
    await file.truncate(virtualBytes);
    return new WritableFlatImage(file, await factsOf(file));
  });
}
<<<<<<< HEAD

/** What `make` makes of an open file, or nothing left open. */
async function opened<F extends ReadableFile, T>(
  file: F,
  make: (file: F, blockBytes: number) => T | Promise<T>,
): Promise<T> {
  try {
    return await make(file, (await file.stat()).blockBytes);
  } catch (error) {
    await file[Symbol.asyncDispose]();
    throw error;
  }
}

class RawImage<F extends ReadableFile = ReadableFile> implements Image {
  readonly format = "raw";
  readonly bytes: number;
  readonly grainBytes: number;
  readonly files: ReadonlyMap<string, F>;
  readonly parent = undefined;
  readonly references = [];
  readonly summary: string;
  readonly encrypted = false;
  readonly details = {};
  protected readonly file: F;

  constructor(file: F, blockBytes: number) {
    this.file = file;
    this.bytes = file.bytes;
    this.grainBytes = blockBytes;
    this.files = new Map([["", file]]);
    this.summary = `holes of ${blockBytes / 1024} KiB`;
  }

  read(at: number, into: Uint8Array): Promise<void> {
    this.mustLieInside({ start: at, end: at + into.length });
    return this.file.read(at, into);
  }

  map(range: Extent): AsyncIterable<readonly Run[]> {
    this.mustLieInside(range);
    return this.file.map(range);
  }

  locate(at: number, bytes: number): Place {
    return { file: this.file, at, bytes };
  }

  tableBytes(): Promise<number> {
    return Promise.resolve(0);
  }

  snapshots(): Promise<readonly Snapshot[]> {
    return Promise.resolve([]);
  }

  // oxlint-disable-next-line require-yield
  async *check(): AsyncIterable<Finding> {}

  describe(): Promise<undefined> {
    return Promise.resolve(undefined);
  }

  async plan(wish: Wish): Promise<Plan> {
    if (wish.pack || !wish.punch) return planOf(ExtentSet.EMPTY, wish.blank);
    const { hostBlockBytes } = wish;
    const blank = wish.blank.alignInward(hostBlockBytes);
    const punches = (await this.#worthPunching(wish)).union(blank);
    return planOf(punches, wish.blank.subtract(blank));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.file[Symbol.asyncDispose]();
  }

  protected mustLieInside({ start, end }: Extent): void {
    if (start < 0 || start > end || end > this.bytes) {
      assert(false, `${start}-${end} lies in ${this.bytes} bytes`);
    }
  }

  /**
   * The free host blocks that own space of their own (H10, H35). A hole counts by its whole length: a small one that
   * lengthens an existing one costs the host no extent.
   */
  async #worthPunching({ free, hostBlockBytes, minHoleBytes }: Wish): Promise<ExtentSet> {
    const holes = new ExtentBuilder();
    const owned = new ExtentBuilder();
    for await (const runs of this.file.map({ start: 0, end: this.bytes })) {
      for (const { start, end, kind, shared } of runs) {
        if (kind === "hole") holes.add(start, end);
        else if (!shared) owned.add(start, end);
      }
    }
    const aligned = free.within({ start: 0, end: this.bytes }).alignInward(hostBlockBytes);
    const large =
      minHoleBytes > hostBlockBytes ? aligned.union(holes.build()).atLeast(minHoleBytes) : aligned;
    return aligned.intersect(large).intersect(owned.build()).alignInward(hostBlockBytes);
  }
}

class WritableRawImage extends RawImage<HostFile> implements WritableImage {
  write(at: number, from: Uint8Array): Promise<void> {
    this.mustLieInside({ start: at, end: at + from.length });
    return this.file.write(at, from);
  }

  claim({ start, end }: Extent): Promise<ClaimedPlace> {
    this.mustLieInside({ start, end });
    return Promise.resolve({ file: this.file, at: start, bytes: end - start });
  }

  zero(range: Extent): Promise<void> {
    this.mustLieInside(range);
    return this.file.zero(range);
  }

  discard(range: Extent): Promise<void> {
    this.mustLieInside(range);
    return this.file.discard(range);
  }

  flush(): Promise<void> {
    return this.file.flush();
  }
}

/** So many steps share a flush; any subset of them is harmless. */
const BATCH_STEPS = 65_536;

function planOf(punches: ExtentSet, zeros: ExtentSet): Plan {
  return {
    ...EMPTY_PLAN,
    punchBytes: punches.bytes,
    punched: new Map([["", punches]]),
    async *batches() {
      yield* batched("zero", zeros);
      yield* batched("punch", punches);
    },
  };
}

function* batched(op: "punch" | "zero", ranges: ExtentSet): Generator<readonly Step[]> {
  for (let first = 0; first < ranges.count; first += BATCH_STEPS) {
    const steps: Step[] = [];
    const end = Math.min(ranges.count, first + BATCH_STEPS);
    for (let i = first; i < end; i++) {
      steps.push({ file: "", op, range: { start: ranges.start(i), end: ranges.end(i) } });
    }
    yield steps;
  }
}
=======
>>>>>>> vhd
