/**
 * A VHD, opened: a flat stretch of its file, or blocks.
 *
 *   footer, header ─→ fixed: FlatImage      dynamic, differencing: BlockImage ─→ parent
 *
 * A new block overwrites the footer at the end; both it and the bitmap that says whose sectors a block holds follow
 * when the data are durable, and the footer copy at the start is there meanwhile.
 * Specification: Virtual Hard Disk Image Format Specification 1.0.
 */
import { size } from "../../bytes/sizes.ts";
import type { Extent } from "../../bytes/extents.ts";
import { uuidText } from "../../bytes/struct.ts";
import { type HostFile, type Place, type ReadableFile, readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { damaged } from "../blocks/damaged.ts";
import { type FlatFacts, FlatImage, WritableFlatImage } from "../blocks/flat.ts";
import { BlockImage, type ImageFacts, WritableBlockImage } from "../blocks/image.ts";
import { slotAt } from "../blocks/layout.ts";
import type { WriterHooks } from "../blocks/write.ts";
import type { ClaimedPlace, Finding, Image, OpenParent, Reference, WritableImage } from "../format.ts";
import { Footer, type Footers, readFooters, SECTOR_BYTES } from "./footer.ts";
import { readHeader, readParentNames } from "./header.ts";
import { layOut, type VhdLayout } from "./layout.ts";
import { openParentOf, referenceOf } from "./parent.ts";

/** Which classes an image is made of, by how it is opened. */
interface Makers<F extends ReadableFile, I> {
  flat(file: F, facts: FlatFacts): I;
  blocks(layout: VhdLayout<F>, facts: ImageFacts, footers: Footers): I;
}

export function openVhd(file: ReadableFile, openParent: OpenParent): Promise<Image> {
  return openAs<ReadableFile, Image>(file, openParent, {
    flat: (flat, facts) => new FlatImage(flat, facts),
    blocks: (layout, facts) => new BlockImage(layout, facts),
  });
}

export function openWritableVhd(file: HostFile, openParent: OpenParent): Promise<WritableImage> {
  return openAs<HostFile, WritableImage>(file, openParent, {
    flat: (flat, facts) => new WritableFlatImage(flat, facts),
    blocks: (layout, facts, { kind, footer }) =>
      kind === "dynamic"
        ? new WritableDynamicImage(layout, facts, hooksOf(layout, footer.bytes))
        : new WritableBlockImage(layout, facts, hooksOf(layout, footer.bytes)),
  });
}

async function openAs<F extends ReadableFile, I>(
  file: F,
  openParent: OpenParent,
  make: Makers<F, I>,
): Promise<I> {
  const footers = await readFooters(file);
  const { kind, footer } = footers;
  if (kind === "fixed") return make.flat(file, await flatFacts(file, footers));
  const header = await readHeader(file, footer);
  const names = kind === "differencing" ? await readParentNames(file, header) : undefined;
  const parent = names && (await openParentOf(names, openParent));
  try {
    const layout = await layOut(file, header, footers, parent);
    const faults = [...footers.faults, ...header.faults];
    const facts = {
      ...factsOf(footers, faults),
      summary: `${kind}, blocks of ${size(layout.blockBytes)}`,
      references: names === undefined ? [] : referenceOf(names),
      parent,
    };
    return make.blocks(layout, facts, footers);
  } catch (error) {
    await parent?.[Symbol.asyncDispose]();
    throw error;
  }
}

function factsOf({ kind, footer: { fields }, isAtEnd }: Footers, faults: readonly string[]) {
  const { creatorApplication, currentSize, cylinders, heads, sectorsPerTrack, savedState } = fields;
  const geometryBytes = cylinders * heads * sectorsPerTrack * SECTOR_BYTES;
  const references: readonly Reference[] = [];
  return {
    format: "vhd",
    identifiers: [uuidText(fields.uniqueId)],
    references,
    details: {
      subformat: kind,
      creator: creatorApplication.trim(),
      currentSize,
      geometryBytes,
      savedState: savedState !== 0,
    },
    async *check(): AsyncGenerator<Finding> {
      for (const message of faults) yield { kind: "error", isMendable: false, count: 1, message };
      if (isAtEnd) return;
      const message = "no footer at the end of the file: a writer was cut off; the copy at the start serves";
      yield { kind: "leak", isMendable: false, count: 1, message };
    },
    requireWritable: () => requireFaultless(faults),
  };
}

function requireFaultless([fault]: readonly string[]): void {
  if (fault === undefined) return;
  throw new DiskError("refused", `this VHD is only read: ${fault}`, {
    code: "vhd-fault",
    hint: "shut the machine down, or convert the image into a new one",
  });
}

async function flatFacts(file: ReadableFile, footers: Footers): Promise<FlatFacts> {
  const { currentSize } = footers.footer.fields;
  if (currentSize > file.bytes - SECTOR_BYTES) {
    throw damaged(
      "current size",
      Footer.at.currentSize,
      currentSize,
      `at most ${file.bytes - SECTOR_BYTES} bytes`,
    );
  }
  const { blockBytes } = await file.stat();
  return {
    ...factsOf(footers, footers.faults),
    at: 0,
    bytes: currentSize,
    grainBytes: blockBytes,
    summary: `fixed, holes of ${size(blockBytes)}`,
    structureAt: (at) => (at >= file.bytes - SECTOR_BYTES && at < file.bytes ? "footer" : undefined),
  };
}

function hooksOf(layout: VhdLayout<HostFile>, footer: Uint8Array): WriterHooks {
  const { file, table, complete } = layout;
  const full = new Uint8Array(layout.headBytes).fill(0xff);
  const unwritten = new Set<number>();
  let footerEnd = layout.tailBytes === 0 ? -1 : file.bytes;
  return {
    newHead: full,
    complete(block) {
      if (complete.has(block)) return;
      complete.add(block);
      unwritten.add(block);
    },
    async settle(end) {
      for (const block of unwritten) await file.write(slotAt(layout, table.get(block)), full);
      unwritten.clear();
      if (file.bytes === footerEnd) return;
      await file.write(Math.max(end.bytes, Math.ceil(file.bytes / SECTOR_BYTES) * SECTOR_BYTES), footer);
      footerEnd = file.bytes;
      layout.tailBytes = footer.length;
    },
  };
}

/** Marks the sectors of a block as written before it writes: other programs heed the bitmap of a dynamic image too. */
class WritableDynamicImage extends WritableBlockImage {
  readonly #marked = new Set<number>();

  override locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    const isMarked = access === "read" || this.#marked.has(Math.floor(at / this.layout.blockBytes));
    return isMarked ? super.locate(at, bytes, access) : undefined;
  }

  override async write(at: number, from: Uint8Array): Promise<void> {
    await super.write(at, from);
    await this.#mark({ start: at, end: at + from.length });
  }

  override async claim(range: Extent): Promise<ClaimedPlace | undefined> {
    const place = await super.claim(range);
    await this.#mark(range);
    return place;
  }

  async #mark({ start, end }: Extent): Promise<void> {
    const { table, blockBytes, headBytes } = this.layout;
    const file = this.files.get("")!;
    for (let block = Math.floor(start / blockBytes); block * blockBytes < end; block++) {
      if (this.#marked.has(block) || !table.isMapped(block)) continue;
      const at = slotAt(this.layout, table.get(block));
      const full = new Uint8Array(headBytes).fill(0xff);
      if (Buffer.compare(await readBytes(file, at, headBytes), full) !== 0) await file.write(at, full);
      this.#marked.add(block);
    }
  }
}
