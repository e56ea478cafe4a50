/**
 * A Parallels bundle (`.hdd`), opened: its storages one behind the other, its snapshots one above the other.
 *
 *   files    "": DiskDescriptor.xml, held as the lock of the bundle; and the files of the snapshot that is written
 *   parent   the same bundle as its parent snapshot has it
 */
import { size } from "../../bytes/sizes.ts";
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import { concat } from "../../device/concat.ts";
import type { BlockDevice, HostFile, Place, ReadableFile, Run, Zeroing } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { Plan, Wish } from "../../reclaim/plan.ts";
import { inSequence } from "../../reclaim/sequence.ts";
import { BlockWriter } from "../blocks/write.ts";
import type { Finding, Image, Snapshot, WritableImage } from "../format.ts";
import { DESCRIPTOR, type Descriptor } from "./descriptor.ts";
import { markingUse } from "./image.ts";
import { checkLayer, type Layer, planLayer, planLayerLeaks, requireWritable } from "./storage.ts";

/** One snapshot of a bundle with all of its files open. */
export interface Shot<F extends ReadableFile = ReadableFile> {
  readonly guid: string;
  readonly descriptor: Descriptor;
  readonly descriptorFile: F;
  /** One for each storage. */
  readonly layers: readonly Layer<F>[];
  readonly parent: ParallelsBundle | undefined;
  /** Opens another snapshot. */
  readonly open: (guid: string) => Promise<BlockDevice>;
}

export class ParallelsBundle<F extends ReadableFile = ReadableFile> implements Image {
  readonly format = "parallels-bundle";
  readonly encrypted = false;
  readonly references = [];
  readonly files: ReadonlyMap<string, F>;
  protected readonly shot: Shot<F>;
  readonly #guest: BlockDevice;

  constructor(shot: Shot<F>) {
    this.shot = shot;
    this.#guest = concat(shot.layers.map(({ device }) => device));
    this.files = new Map([
      ["", shot.descriptorFile],
      ...shot.layers.map(({ fileName, file }) => [fileName, file] as const),
    ]);
  }

  get bytes(): number {
    return this.#guest.bytes;
  }

  get grainBytes(): number {
    return this.shot.descriptor.storages.reduce(
      (least, { clusterBytes }) => Math.min(least, clusterBytes),
      Infinity,
    );
  }

  get parent(): Image | undefined {
    return this.shot.parent;
  }

  get summary(): string {
    const { storages, shots } = this.shot.descriptor;
    const parts = storages.length === 1 ? [] : [`${storages.length} storages`];
    return [`${size(this.grainBytes)} clusters`, ...parts, `${Math.max(0, shots.size - 1)} snapshots`].join(
      ", ",
    );
  }

  get details(): Image["details"] {
    const { storages, shots } = this.shot.descriptor;
    return { guid: this.shot.guid, storages: storages.length, snapshots: Math.max(0, shots.size - 1) };
  }

  /** What the snapshot above reads from, in one storage. */
  deviceOf(storage: number): BlockDevice {
    return this.shot.layers[storage]!.device;
  }

  read(at: number, into: Uint8Array): Promise<void> {
    return this.#guest.read(at, into);
  }

  map(range: Extent): AsyncIterable<readonly Run[]> {
    return this.#guest.map(range);
  }

  locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    return this.#guest.locate?.(at, bytes, access);
  }

  tableBytes(): Promise<number> {
    const { layers, descriptorFile } = this.shot;
    const tables = layers.map(({ image }) =>
      image ? image.layout.blocksStartBytes + image.layout.fixed.bytes : 0,
    );
    return Promise.resolve(tables.reduce((sum, bytes) => sum + bytes, descriptorFile.bytes));
  }

  async snapshots(): Promise<readonly Snapshot[]> {
    const { descriptor, guid: own, open } = this.shot;
    const others = [...descriptor.shots.keys()].filter((guid) => guid !== own);
    return others.map((guid) => ({
      id: guid,
      name: guid,
      bytes: this.bytes,
      stateBytes: 0,
      open: () => open(guid),
    }));
  }

  async *check(): AsyncGenerator<Finding> {
    for (const layer of this.shot.layers) yield* checkLayer(layer);
    if (!this.shot.parent) return;
    for await (const finding of this.shot.parent.check()) if (finding.kind === "error") yield finding;
  }

  async plan(wish: Wish): Promise<Plan> {
    this.requireWritable();
    const plans: Plan[] = [];
    for (const { layer, start, end } of this.placed()) {
      const local = (set: ExtentSet) => set.within({ start, end }).shift(-start);
      plans.push(await planLayer(layer, { ...wish, free: local(wish.free), blank: local(wish.blank) }));
    }
    return inSequence(plans);
  }

  async repairLeaks(): Promise<Plan> {
    this.requireWritable();
    return inSequence(await Promise.all(this.shot.layers.map(planLayerLeaks)));
  }

  describe(fileOffset: number): Promise<string | undefined> {
    return Promise.resolve(fileOffset < this.shot.descriptorFile.bytes ? DESCRIPTOR : undefined);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.shot.parent?.[Symbol.asyncDispose]();
    for (const { file } of this.shot.layers) await file[Symbol.asyncDispose]();
    await this.shot.descriptorFile[Symbol.asyncDispose]();
  }

  /** @throws DiskError when nothing may be written (H17, H33) */
  protected requireWritable(): void {
    const { layers, descriptor, guid } = this.shot;
    layers.forEach(requireWritable);
    for (const [child, parent] of descriptor.shots) {
      if (parent !== guid) continue;
      throw new DiskError(
        "refused",
        `the snapshot ${child} is based on ${guid}, and may read its free blocks`,
        {
          code: "has-children",
          hint: "delete that snapshot, or switch to it",
        },
      );
    }
  }

  /** Each layer with the range of the disk that its storage holds. */
  protected *placed(): Generator<Extent & { readonly layer: Layer<F>; readonly index: number }> {
    const { layers, descriptor } = this.shot;
    for (const [index, { start, end }] of descriptor.storages.entries()) {
      yield { layer: layers[index]!, index, start, end };
    }
  }
}

export class WritableParallelsBundle extends ParallelsBundle<HostFile> implements WritableImage {
  /** Of each storage; undefined: a plain file. */
  readonly #writers: readonly (BlockWriter | undefined)[];
  /** Something was written: it may be. */
  #isWritten = false;

  constructor(shot: Shot<HostFile>) {
    super(shot);
    this.#writers = shot.layers.map(
      ({ image, file }) => image && new BlockWriter(image.layout, markingUse(file, image.geometry)),
    );
  }

  override read(at: number, into: Uint8Array): Promise<void> {
    let reading = super.read(at, into);
    for (const writer of this.#writers) if (writer) reading = writer.reading(reading);
    return reading;
  }

  override locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    if (access === "read") return super.locate(at, bytes, access);
    const { storages } = this.shot.descriptor;
    const index = storages.findIndex(({ end }) => at < end);
    const storage = storages[index];
    if (storage === undefined || !this.#isWritten) return undefined;
    const [inside, most] = [at - storage.start, Math.min(bytes, storage.end - at)];
    const writer = this.#writers[index];
    if (writer !== undefined) return writer.locate(inside, most);
    return { file: this.shot.layers[index]!.file, at: inside, bytes: most, isStable: true };
  }

  write(at: number, from: Uint8Array): Promise<void> {
    return this.#each({ start: at, end: at + from.length }, (target, { start, end }, base) =>
      target.write(start, from.subarray(base + start - at, base + end - at)),
    );
  }

  zero(range: Extent, how?: Zeroing): Promise<void> {
    return this.#each(range, (target, inside) => target.zero(inside, how));
  }

  discard(range: Extent): Promise<void> {
    return this.#each(range, (target, inside) => target.discard(inside));
  }

  async flush(): Promise<void> {
    for (const [index, { file }] of this.shot.layers.entries()) await (this.#writers[index] ?? file).flush();
  }

  override async *check(): AsyncGenerator<Finding> {
    await this.flush();
    yield* super.check();
  }

  override async plan(wish: Wish): Promise<Plan> {
    await this.flush();
    return super.plan(wish);
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    try {
      for (const writer of this.#writers) await writer?.close();
    } finally {
      await super[Symbol.asyncDispose]();
    }
  }

  /** @param change gets a range in bytes of the storage, which begins at `base` of the disk */
  async #each(
    range: Extent,
    change: (target: BlockWriter | HostFile, inside: Extent, base: number) => Promise<void>,
  ): Promise<void> {
    this.requireWritable();
    for (const { layer, index, start, end } of this.placed()) {
      const [from, to] = [Math.max(range.start, start), Math.min(range.end, end)];
      if (from >= to) continue;
      await change(this.#writers[index] ?? layer.file, { start: from - start, end: to - start }, start);
    }
    this.#isWritten = true;
  }
}
