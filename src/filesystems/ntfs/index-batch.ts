/**
 * Index blocks of many small directories, read together in the order of the disk: most directories have one or two, and
 * a volume has a hundred thousand.
 *
 *   record of a directory:  $INDEX_ALLOCATION, $BITMAP → places of its blocks ┐
 *   record of a directory:  …                                                 ┴→ sorted → read → visited
 *
 * Only what a single record tells is taken: a directory with an attribute list, many blocks, or blocks of another length
 * than all versions of Windows make, is left to be read by itself.
 */
import { readScattered } from "../reading.ts";
import { TYPE } from "./attributes.ts";
import { blocksOf, visitBlock, type VisitEntry } from "./directory.ts";
import type { File, FileTable } from "./table.ts";

const BLOCK_BYTES = 4096;
/** Of one directory. */
const BLOCKS_MAX = 64;
/** More do not wait. */
const WAITING_MAX = 1 << 15;

interface Waiting {
  readonly directory: number;
  readonly index: number;
  /** In blocks of the device. */
  readonly position: number;
}

export class IndexBatch {
  readonly #table: FileTable;
  #waiting: Waiting[] = [];

  constructor(table: FileTable) {
    this.#table = table;
  }

  get isFull(): boolean {
    return this.#waiting.length >= WAITING_MAX;
  }

  /** @returns whether it was taken. @throws Refused when the directory is damaged */
  take(file: File): boolean {
    const { clusterBytes } = this.#table.geometry;
    if (clusterBytes % BLOCK_BYTES !== 0) return false;
    if (file.attributes.some(({ type }) => type === TYPE.attributeList)) return false;
    const blocks = blocksOf(this.#table, file);
    if (blocks === undefined) return true;
    const { directory, stream, map, blockBytes, count } = blocks;
    const { content, record } = map.attribute;
    const isSmall = blockBytes === BLOCK_BYTES && count <= BLOCKS_MAX;
    if (!isSmall || stream.runs === undefined || content.kind !== "resident") return false;
    for (let index = 0; index < count; index++) {
      const used = record.view.getUint8(content.at + (index >> 3)) >> (index & 7);
      if ((used & 1) === 0) continue;
      const position = stream.runs.position(index * BLOCK_BYTES) / BLOCK_BYTES;
      this.#waiting.push({ directory, index, position });
    }
    return true;
  }

  /** Reads all that waits. @throws Refused when a block is damaged */
  async visit(visit: VisitEntry): Promise<void> {
    const blocks = this.#waiting.sort((a, b) => a.position - b.position);
    this.#waiting = [];
    const positions = blocks.map(({ position }) => position);
    await readScattered(this.#table.device, BLOCK_BYTES, positions, (at, bytes) => {
      const { directory, index } = blocks[at]!;
      visitBlock(this.#table, directory, index, bytes, visit);
    });
  }
}
