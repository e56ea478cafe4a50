/**
 * A whole image of one file with one table of blocks: what a format has to add are its facts.
 */
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import type { HostFile, Place, ReadableFile, Zeroing } from "../../device/device.ts";
import type { Plan, Wish } from "../../reclaim/plan.ts";
import type { ClaimedPlace, Finding, Image, Reference, Snapshot, WritableImage } from "../format.ts";
import { checkBlocks } from "./check.ts";
import { BlockDisk } from "./disk.ts";
import { type BlockLayout, payloadAt, slotAt } from "./layout.ts";
import { planBlocks, planLeaks } from "./plan.ts";
import { BlockWriter, type WriterHooks } from "./write.ts";

/** What a format says of an image besides its layout. */
export interface ImageFacts {
  readonly format: string;
  readonly summary: string;
  readonly details: Image["details"];
  readonly references: readonly Reference[];
  readonly identifiers: readonly string[];
  readonly parent: Image | undefined;
  /** What the format's own structures are found to be. */
  check?(): AsyncIterable<Finding>;
  /** @throws DiskError `refused`, `unsupported` or `corrupt` when nothing may be written, nor planned (H17) */
  requireWritable?(): void;
}

export class BlockImage<F extends ReadableFile = ReadableFile> extends BlockDisk implements Image {
  readonly encrypted = false;
  protected readonly facts: ImageFacts;
  readonly #layout: BlockLayout<F>;

  constructor(layout: BlockLayout<F>, facts: ImageFacts) {
    super(layout);
    this.#layout = layout;
    this.facts = facts;
  }

  get format(): string {
    return this.facts.format;
  }

  get grainBytes(): number {
    return this.#layout.blockBytes;
  }

  get files(): ReadonlyMap<string, F> {
    return new Map([[this.#layout.fileName, this.#layout.file]]);
  }

  get parent(): Image | undefined {
    return this.facts.parent;
  }

  get references(): readonly Reference[] {
    return this.facts.references;
  }

  get identifiers(): readonly string[] {
    return this.facts.identifiers;
  }

  get summary(): string {
    return this.facts.summary;
  }

  get details(): Image["details"] {
    return this.facts.details;
  }

  /** What the host holds of the structures around the blocks, and the blocks' heads. */
  async tableBytes(): Promise<number> {
    const { blocksStartBytes, fixed, tailBytes, headBytes, table, file } = this.#layout;
    const tail = { start: Math.max(0, file.bytes - tailBytes), end: file.bytes };
    const structures = fixed.union(ExtentSet.of({ start: 0, end: blocksStartBytes }, tail));
    let bytes = 0;
    for await (const runs of file.map({ start: 0, end: file.bytes })) {
      for (const run of runs) if (run.kind !== "hole") bytes += structures.within(run).bytes;
    }
    if (headBytes > 0) table.eachMapped(0, table.blocks, () => (bytes += headBytes));
    return bytes;
  }

  snapshots(): Promise<readonly Snapshot[]> {
    return Promise.resolve([]);
  }

  async *check(): AsyncGenerator<Finding> {
    if (this.facts.check) yield* this.facts.check();
    yield* checkBlocks(this.#layout);
  }

  async plan(wish: Wish): Promise<Plan> {
    this.facts.requireWritable?.();
    return planBlocks(this.#layout, wish, this);
  }

  async repairLeaks(): Promise<Plan> {
    this.facts.requireWritable?.();
    return planLeaks(this.#layout);
  }

  async describe(fileOffset: number): Promise<string | undefined> {
    return this.#layout.structureAt(fileOffset) ?? headAt(this.#layout, fileOffset);
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await this.parent?.[Symbol.asyncDispose]();
    await this.#layout.file[Symbol.asyncDispose]();
  }
}

function headAt(layout: BlockLayout, fileOffset: number): string | undefined {
  const { headBytes, table } = layout;
  let found: string | undefined;
  if (headBytes === 0) return found;
  table.eachMapped(0, table.blocks, (block, slot) => {
    if (fileOffset >= slotAt(layout, slot) && fileOffset < payloadAt(layout, slot)) {
      found = `head of block ${block}`;
    }
  });
  return found;
}

/** An image opened for writing, under its lock. */
export class WritableBlockImage extends BlockImage<HostFile> implements WritableImage {
  readonly #writer: BlockWriter;

  constructor(layout: BlockLayout<HostFile>, facts: ImageFacts, hooks: WriterHooks = {}) {
    super(layout, facts);
    this.#writer = new BlockWriter(layout, hooks);
  }

  override read(at: number, into: Uint8Array): Promise<void> {
    return this.#writer.reading(super.read(at, into));
  }

  override locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    return access === "read" ? super.locate(at, bytes, access) : this.#writer.locate(at, bytes);
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    this.facts.requireWritable?.();
    await this.#writer.write(at, from);
  }

  async zero(range: Extent, how?: Zeroing): Promise<void> {
    this.facts.requireWritable?.();
    await this.#writer.zero(range, how);
  }

  async discard(range: Extent): Promise<void> {
    this.facts.requireWritable?.();
    await this.#writer.discard(range);
  }

  async claim(range: Extent): Promise<ClaimedPlace | undefined> {
    this.facts.requireWritable?.();
    return this.#writer.claim(range);
  }

  flush(): Promise<void> {
    return this.#writer.flush();
  }

  override async *check(): AsyncGenerator<Finding> {
    await this.#writer.flush();
    yield* super.check();
  }

  override async plan(wish: Wish): Promise<Plan> {
    await this.#writer.flush();
    return super.plan(wish);
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#writer.close();
    } finally {
      await super[Symbol.asyncDispose]();
    }
  }
}
