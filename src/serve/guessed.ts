/**
 * A disk whose format was guessed (H21), and whose first bytes are those of its file: raw, or with a footer alone. Its guest may
 * write whatever it likes, but nothing that would have the next program take the disk for another image, and follow what
 * that image names.
 *
 * Formats are told by the first bytes and the last. A write there, and what makes zeros, is tried in memory first, and
 * refused where the content would be a format's afterwards. QEMU restricts such disks in the same way. `--format` lifts it.
 */
import type { Extent } from "../bytes/extents.ts";
import type { Place, ReadableFile, WritableDevice, Zeroing } from "../device/device.ts";
import { Filter } from "../device/filter.ts";
import { overlay } from "../device/overlay.ts";
import type { Source } from "../device/source.ts";
import { formatOf } from "../disk/open.ts";
import { DiskError } from "../error.ts";

/** No format looks farther to be told. */
const EDGE_BYTES = 64 * 1024;

type Change = (disk: WritableDevice) => Promise<void>;

export class GuessedFormat extends Filter {
  #last: Promise<void> = Promise.resolve();

  override locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    if (access === "write" && this.#isEdge({ start: at, end: at + bytes })) return undefined;
    return super.locate(at, bytes, access);
  }

  override write(at: number, from: Uint8Array): Promise<void> {
    return this.#judged(
      { start: at, end: at + from.length },
      (disk) => disk.write(at, from),
      () => super.write(at, from),
    );
  }

  override zero(range: Extent, how?: Zeroing): Promise<void> {
    return this.#judged(
      range,
      (disk) => this.#zeroEdges(disk, range),
      () => super.zero(range, how),
    );
  }

  /** What is left as it was, sector by sector, makes no signature either: all of them lie in one sector. */
  override discard(range: Extent): Promise<void> {
    return this.#judged(
      range,
      (disk) => this.#zeroEdges(disk, range),
      () => super.discard(range),
    );
  }

  /** At the edges one change after the other, for each is judged by what those before it left. */
  #judged(range: Extent, suppose: Change, change: () => Promise<void>): Promise<void> {
    if (!this.#isEdge(range)) return change();
    const done = this.#last.then(async () => {
      await this.#requireRaw(suppose);
      await change();
    });
    this.#last = done.catch(() => {});
    return done;
  }

  async #zeroEdges(disk: WritableDevice, { start, end }: Extent): Promise<void> {
    await disk.zero({ start, end: Math.min(end, Math.max(start, EDGE_BYTES)) });
    await disk.zero({ start: Math.min(end, Math.max(start, this.bytes - EDGE_BYTES)), end });
  }

  #isEdge({ start, end }: Extent): boolean {
    return start < EDGE_BYTES || end > this.bytes - EDGE_BYTES;
  }

  /** @throws DiskError `refused` */
  async #requireRaw(change: Change): Promise<void> {
    const supposed = overlay(this.below);
    await change(supposed);
    const name = await nameOf(supposed);
    if (name === "raw") return;
    throw new DiskError("refused", `this would make the disk look like ${name}`, {
      code: "format-guessed",
      hint: "say which format it is, --format raw, if its guest may do that",
    });
  }
}

/** What the content would be taken for. */
async function nameOf(disk: WritableDevice): Promise<string> {
  const file: ReadableFile = {
    bytes: disk.bytes,
    read: (at, into) => disk.read(at, into),
    map: (range) => disk.map(range),
    stat: () =>
      Promise.resolve({ fileBytes: disk.bytes, hostBytes: null, blockBytes: 4096, identity: "supposed" }),
    async [Symbol.asyncDispose]() {},
  };
  const refused = (): Promise<never> => Promise.reject(new DiskError("refused", "nothing is followed here"));
  const source: Source = { name: "disk", open: () => Promise.resolve(file), refer: refused };
  try {
    return (await formatOf(source, {})).name;
  } catch (error) {
    if (error instanceof DiskError) return "an image";
    throw error;
  }
}
