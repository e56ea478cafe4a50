/**
 * Who claims which block: metadata belongs to one owner alone, the blocks of files may be shared among files (clones) and
 * with snapshots, and every one of them stands in the extent records.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import type { Visit } from "../filesystem.ts";
import { checkRange, type Area } from "./objects.ts";
import { contradiction } from "./refused.ts";

export class Claims {
  readonly #area: Area;
  readonly #visit: Visit;
  readonly #metadata = new SparseBitmap();
  /** What extent records name. */
  readonly #recorded = new SparseBitmap();

  constructor(area: Area, visit: Visit) {
    this.#area = area;
    this.#visit = visit;
  }

  /** @throws Refused where somebody else claims any of the blocks */
  metadata(what: string, start: number, blocks: number, owner: number): void {
    checkRange(this.#area, what, start, blocks);
    const end = start + blocks;
    const taken = Math.min(this.#metadata.nextSet(start, end), this.#recorded.nextSet(start, end));
    if (taken < end) throw contradiction(`${what}: block ${taken} belongs to another owner too`);
    this.#metadata.setRange(start, end);
    this.#reach(start, blocks, owner);
  }

  /** An extent record. @throws Refused where metadata lies there */
  recorded(start: number, blocks: number, owner: number): void {
    checkRange(this.#area, "extent record", start, blocks);
    const taken = this.#metadata.nextSet(start, start + blocks);
    if (taken < start + blocks) throw contradiction(`extent record: block ${taken} belongs to metadata too`);
    this.#recorded.setRange(start, start + blocks);
    this.#reach(start, blocks, owner);
  }

  /** Blocks of a file: visited with their extent record. @throws Refused where there is none */
  file(start: number, blocks: number): void {
    checkRange(this.#area, "file extent", start, blocks);
    const missing = this.#recorded.nextClear(start, start + blocks);
    if (missing < start + blocks) throw contradiction(`file extent: block ${missing} is in no extent record`);
  }

  #reach(start: number, blocks: number, owner: number): void {
    const { blockBytes } = this.#area;
    if (blocks > 0) this.#visit(0, start * blockBytes, (start + blocks) * blockBytes, owner);
  }
}
