/**
 * Keeps the persistent bitmaps of an image that is being written.
 *
 *   open   in_use set, unknown autoclear bits cleared → flush        a crash leaves bitmaps that nobody trusts
 *   mark   changed ranges, in memory
 *   close  bits set → flush → in_use cleared → flush
 *
 * Specification: QEMU's docs/interop/qcow2.txt, "Bitmaps".
 */
import { type Extent, ExtentBuilder, ExtentSet } from "../../bytes/extents.ts";
import { viewOf } from "../../bytes/struct.ts";
import type { HostFile } from "../../device/device.ts";
import { type Bitmap, FLAGS_AT, markChanged, trackingBitmaps } from "./bitmaps.ts";
import type { Qcow2Context } from "./context.ts";
import { AUTOCLEAR_AT } from "./header.ts";
import { AUTOCLEAR_KNOWN } from "./release.ts";

/** Ranges held before they are merged into coarser ones. */
const RANGES_MAX = 65536;

export class BitmapKeeper {
  readonly #context: Qcow2Context<HostFile>;
  #bitmaps: readonly Bitmap[] = [];
  #changed = ExtentSet.EMPTY;
  #fresh: Extent[] = [];

  constructor(context: Qcow2Context<HostFile>) {
    this.#context = context;
  }

  /** @throws DiskError `unsupported` when a bitmap is of an unknown kind */
  async open(): Promise<void> {
    const { file, header } = this.#context;
    this.#bitmaps = await trackingBitmaps(file, header);
    const known = header.autoclear & AUTOCLEAR_KNOWN;
    if (known !== header.autoclear) {
      const word = viewOf(new Uint8Array(8));
      word.setBigUint64(0, known);
      await file.write(AUTOCLEAR_AT, new Uint8Array(word.buffer));
    }
    await this.#writeFlags(1);
    if (this.#bitmaps.length > 0 || known !== header.autoclear) await file.flush();
  }

  /** Whether there is a bitmap to mark anything in. */
  get isTracking(): boolean {
    return this.#bitmaps.length > 0;
  }

  mark(range: Extent): void {
    if (!this.isTracking) return;
    this.#fresh.push(range);
    if (this.#fresh.length < RANGES_MAX) return;
    this.#merge();
    const coarse = Math.max(...this.#bitmaps.map((bitmap) => bitmap.granularityBytes));
    if (this.#changed.count > RANGES_MAX) this.#changed = this.#changed.alignOutward(coarse);
  }

  #merge(): void {
    const builder = new ExtentBuilder();
    for (const { start, end } of this.#fresh) builder.add(start, end);
    this.#changed = this.#changed.union(builder.build());
    this.#fresh = [];
  }

  async close(): Promise<void> {
    if (this.#bitmaps.length === 0) return;
    const { file, header } = this.#context;
    this.#merge();
    for (const bitmap of this.#bitmaps) {
      for await (const { at, after } of markChanged(file, header, bitmap, this.#changed)) {
        await file.write(at, after);
      }
    }
    await file.flush();
    await this.#writeFlags(0);
    await file.flush();
  }

  /** @param inUse 1 or 0 */
  async #writeFlags(inUse: number): Promise<void> {
    for (const { entryAt, flags } of this.#bitmaps) {
      const word = viewOf(new Uint8Array(4));
      word.setUint32(0, flags | inUse);
      await this.#context.file.write(entryAt + FLAGS_AT, new Uint8Array(word.buffer));
    }
  }
}
