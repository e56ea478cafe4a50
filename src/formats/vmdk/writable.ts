/**
 * A disk opened for writing: each sparse extent has a writer of its own, a flat one is its file.
 *
 * The CID in the descriptor changes before the first change of the content, so that a child of this disk is noticed to
 * be one of another content; a reclaim changes none that anybody wants, and keeps it.
 */
import type { Extent } from "../../bytes/extents.ts";
import type { HostFile, Place, Zeroing } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { Plan, Wish } from "../../reclaim/plan.ts";
import type { BlockLayout } from "../blocks/layout.ts";
import { BlockWriter } from "../blocks/write.ts";
import type { ClaimedPlace, Finding, WritableImage } from "../format.ts";
import { newCid } from "./create.ts";
import { withCid } from "./descriptor.ts";
import type { FlatExtent } from "./flat.ts";
import { VmdkImage } from "./image.ts";
import type { VmdkDisk } from "./open.ts";
import type { Part } from "./part.ts";
import type { SparseExtent } from "./sparse.ts";

export class WritableVmdkImage extends VmdkImage<HostFile> implements WritableImage {
  /** Of each sparse part, by its place among the parts. */
  readonly #writers = new Map<number, BlockWriter>();
  #begun: Promise<void> | undefined;
  /** The CID is new, and may be written under. */
  #isBegun = false;

  constructor(disk: VmdkDisk<HostFile>) {
    super(disk);
    for (const [index, part] of disk.parts.entries()) {
      if (!isSparse(part) || part.refusal) continue;
      this.#writers.set(index, new BlockWriter(part.layout, { begin: () => this.#begin(part) }));
    }
  }

  override read(at: number, into: Uint8Array): Promise<void> {
    let reading = super.read(at, into);
    for (const writer of this.#writers.values()) reading = writer.reading(reading);
    return reading;
  }

  override locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    if (access === "read") return super.locate(at, bytes, access);
    if (!this.#isBegun) return undefined;
    let base = 0;
    for (let i = 0; i < this.disk.parts.length; i++) {
      const part = this.disk.parts[i]!;
      const end = base + part.device.bytes;
      if (at < end) {
        const inside = Math.min(bytes, end - at);
        if (isFlat(part)) return part.device.locate?.(at - base, inside, access);
        return this.#writers.get(i)?.locate(at - base, inside);
      }
      base = end;
    }
    return undefined;
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    await this.#onParts(
      { start: at, end: at + from.length },
      "write",
      async (target, { start, end }, base) => {
        const bytes = from.subarray(start - at, end - at);
        if (target instanceof BlockWriter) await target.write(start - base, bytes);
        else await target.place.file.write(target.place.at + start - base, bytes);
      },
    );
  }

  async zero(range: Extent, how?: Zeroing): Promise<void> {
    await this.#onParts(range, "zero", async (target, { start, end }, base) => {
      const local = { start: start - base, end: end - base };
      if (target instanceof BlockWriter) await target.zero(local, how);
      else await target.place.file.zero(shifted(local, target.place.at), how);
    });
  }

  async discard(range: Extent): Promise<void> {
    await this.#onParts(range, "discard", async (target, { start, end }, base) => {
      const local = { start: start - base, end: end - base };
      if (target instanceof BlockWriter) await target.discard(local);
      else await target.place.file.discard(shifted(local, target.place.at));
    });
  }

  async claim(range: Extent): Promise<ClaimedPlace | undefined> {
    this.requireWritable();
    for (const { part, index, start: base, end: stop } of this.placed()) {
      if (range.start < base || range.start >= stop) continue;
      const local = { start: range.start - base, end: Math.min(range.end, stop) - base };
      const writer = this.#writers.get(index);
      if (writer !== undefined) {
        requireTables((part as SparseExtent<HostFile>).layout, local);
        return writer.claim(local);
      }
      if (!isFlat(part)) return undefined;
      await this.#renewCid();
      const { file, at } = part.place;
      return { file, at: at + local.start, bytes: local.end - local.start };
    }
    return undefined;
  }

  async flush(): Promise<void> {
    for (const writer of this.#writers.values()) await writer.flush();
    for (const part of this.disk.parts) if (isFlat(part)) await part.place.file.flush();
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
      for (const writer of this.#writers.values()) await writer.close();
    } finally {
      await super[Symbol.asyncDispose]();
    }
  }

  async #onParts(
    range: Extent,
    doing: "write" | "zero" | "discard",
    change: (target: BlockWriter | FlatExtent<HostFile>, range: Extent, base: number) => Promise<void>,
  ): Promise<void> {
    this.requireWritable();
    for (const { part, index, start: base, end: stop } of this.placed()) {
      const [start, end] = [Math.max(range.start, base), Math.min(range.end, stop)];
      if (start >= end) continue;
      const writer = this.#writers.get(index);
      if (writer !== undefined) {
        const { layout } = part as SparseExtent<HostFile>;
        const needsNoEntry = doing === "discard" || (doing === "zero" && layout.parent === undefined);
        if (!needsNoEntry) requireTables(layout, { start: start - base, end: end - base });
        await change(writer, { start, end }, base);
      } else if (isFlat(part)) {
        await this.#renewCid();
        await change(part, { start, end }, base);
      } else if (doing === "write") {
        throw new DiskError("unsupported", `bytes ${start} to ${end} lie in a ZERO extent, which holds none`);
      }
    }
  }

  /** Before the first change of an extent. */
  async #begin(part: SparseExtent<HostFile>): Promise<void> {
    for await (const batch of part.mend()) {
      for (const step of batch) if (step.op === "patch") await part.layout.file.write(step.at, step.after);
    }
    await this.#renewCid();
  }

  #renewCid(): Promise<void> {
    this.#begun ??= this.#writeCid();
    return this.#begun;
  }

  async #writeCid(): Promise<void> {
    const { descriptor, room } = this.disk;
    const file = this.files.get("")!;
    const text = Buffer.from(withCid(descriptor.text, newCid()), "latin1");
    if (room !== undefined && text.length > room.bytes) {
      throw new DiskError("unsupported", `the descriptor of ${text.length} bytes does not fit ${room.bytes}`);
    }
    await file.write(room?.at ?? 0, text);
    await file.flush();
    this.#isBegun = true;
  }
}

function shifted({ start, end }: Extent, by: number): Extent {
  return { start: start + by, end: end + by };
}

function isSparse(part: Part): part is SparseExtent<HostFile> {
  return "layout" in part;
}

function isFlat(part: Part): part is FlatExtent<HostFile> {
  return "place" in part;
}

/** @throws DiskError where a grain would need an entry of a grain table that there is not */
function requireTables({ entries, blockBytes, table }: BlockLayout, range: Extent): void {
  const end = Math.ceil(range.end / blockBytes);
  for (let block = Math.floor(range.start / blockBytes); block < end; block++) {
    if (table.isMapped(block) || entries.at(block, 0) >= 0) continue;
    throw new DiskError("unsupported", `grain ${block} has no grain table, and none is made here`, {
      hint: "convert the image to a new one",
    });
  }
}
