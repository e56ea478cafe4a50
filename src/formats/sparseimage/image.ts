/**
 * A sparse image as a table of blocks. The table on disk is the other way round: it says of each place which band lies
 * there.
 *
 * A reclaim punches bands and changes no entry: a reader takes the first entry of 0 for the end, so that one in the
 * middle would cost it everything behind. For the same reason new bands are put right behind the last one.
 */
import { size } from "../../bytes/sizes.ts";
import { ExtentSet } from "../../bytes/extents.ts";
import type { HostFile, ReadableFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { Plan, Wish } from "../../reclaim/plan.ts";
import { BlockImage, type ImageFacts, WritableBlockImage } from "../blocks/image.ts";
import { type BlockLayout, slotAt, strideOf } from "../blocks/layout.ts";
import { BlockTable, SLOTS_MAX } from "../blocks/table.ts";
import { corrupt, eachBand, ENTRY_BYTES, entryAt, type Index, NODE_BYTES, readIndex } from "./nodes.ts";

interface Sparse<F extends ReadableFile> {
  readonly index: Index;
  readonly layout: BlockLayout<F>;
}

async function readSparse<F extends ReadableFile>(file: F): Promise<Sparse<F>> {
  const index = await readIndex(file);
  const { nodes, bands, bandBytes } = index;
  const isOne = nodes.length === 1;
  // Further nodes lie between the bands: only one leaves them on a grid of their own length.
  const [baseBytes, unitBytes] = isOne ? [NODE_BYTES, bandBytes] : [0, 512];
  const table = new BlockTable(bands);
  await eachBand(file, index, (band, at) => {
    const slot = (at - baseBytes) / unitBytes;
    if (slot >= SLOTS_MAX)
      throw new DiskError("unsupported", `sparse image: band ${band} at ${at} is too far`);
    if (table.isMapped(band)) throw corrupt("entry", entryAt(index, at), `band ${band} again`, "each once");
    table.set(band, slot);
  });
  const fixed = ExtentSet.from(nodes.slice(1).map(({ at }) => ({ start: at, end: at + NODE_BYTES })));
  const placeOf = (block: number) => baseBytes + table.get(block) * unitBytes;
  return {
    index,
    layout: {
      fileName: "",
      file,
      bytes: index.bytes,
      parent: undefined,
      blockBytes: bandBytes,
      headBytes: 0,
      baseBytes,
      unitBytes,
      table,
      entries: {
        copies: 1,
        bytes: ENTRY_BYTES,
        at: (block) => entryAt(index, placeOf(block)),
        write: (view, at, block) => view.setUint32(at, block + 1),
      },
      freed: undefined,
      blocksStartBytes: NODE_BYTES,
      fixed,
      tailBytes: 0,
      endAlignBytes: 1,
      structureAt: (at) => (at < NODE_BYTES ? "header" : fixed.has(at) ? "index node" : undefined),
    },
  };
}

function factsOf({ index, layout }: Sparse<ReadableFile>): ImageFacts {
  const { bandBytes, nodes } = index;
  let bands = 0;
  layout.table.eachMapped(0, layout.table.blocks, () => bands++);
  return {
    format: "sparseimage",
    summary: `bands of ${size(bandBytes)}`,
    details: { bandBytes, bands, indexNodes: nodes.length },
    references: [],
    identifiers: [],
    parent: undefined,
  };
}

/** Nothing moves: the entries of what would be left behind cannot say so. */
async function withoutPacking(wish: Wish, plan: (wish: Wish) => Promise<Plan>): Promise<Plan> {
  const made = await plan(wish.pack ? { ...wish, free: ExtentSet.EMPTY, pack: false, punch: false } : wish);
  return { ...made, packableBytes: async () => 0 };
}

class SparseImage<F extends ReadableFile> extends BlockImage<F> {
  override plan(wish: Wish): Promise<Plan> {
    return withoutPacking(wish, (without) => super.plan(without));
  }
}

class WritableSparseImage extends WritableBlockImage {
  readonly #index: Index;

  constructor({ index, layout }: Sparse<HostFile>, facts: ImageFacts) {
    super(layout, facts, { begin: () => cutBehind(layout) });
    this.#index = index;
  }

  override plan(wish: Wish): Promise<Plan> {
    return withoutPacking(wish, (without) => super.plan(without));
  }

  override async write(at: number, from: Uint8Array): Promise<void> {
    this.#requireRoom(at, at + from.length);
    await super.write(at, from);
  }

  override claim(): Promise<undefined> {
    return Promise.resolve(undefined);
  }

  /** @throws DiskError where bands would need another index node: none is made here */
  #requireRoom(start: number, end: number): void {
    const { table, blockBytes } = this.layout;
    const { nodes, bands } = this.#index;
    if (nodes.length === 1 && bands <= nodes[0]!.entries) return;
    for (let block = Math.floor(start / blockBytes); block < Math.ceil(end / blockBytes); block++) {
      if (table.isMapped(block)) continue;
      throw new DiskError("unsupported", `band ${block} is not there, and index nodes are not made here`, {
        hint: "write to the image on a Mac, or convert it",
      });
    }
  }
}

/** What a writer before us left behind the last band would push the next one away from it. */
async function cutBehind(layout: BlockLayout<HostFile>): Promise<void> {
  let end = layout.blocksStartBytes;
  layout.table.eachMapped(0, layout.table.blocks, (_, slot) => {
    end = Math.max(end, slotAt(layout, slot) + strideOf(layout));
  });
  if (end >= layout.file.bytes) return;
  await layout.file.truncate(end);
  await layout.file.flush();
}

export async function openSparse(file: ReadableFile): Promise<BlockImage> {
  const sparse = await readSparse(file);
  return new SparseImage(sparse.layout, factsOf(sparse));
}

export async function openWritableSparse(file: HostFile): Promise<WritableBlockImage> {
  const sparse = await readSparse(file);
  return new WritableSparseImage(sparse, factsOf(sparse));
}
