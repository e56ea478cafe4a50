/**
 * The disk as one image: its parts one behind the other, and their plans one after the other.
 */
import { type Extent, ExtentSet } from "../../bytes/extents.ts";
import { concat } from "../../device/concat.ts";
import type { BlockDevice, Place, ReadableFile, Run } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import type { Plan, Wish } from "../../reclaim/plan.ts";
import { inSequence } from "../../reclaim/sequence.ts";
import type { Finding, Image, Reference, Snapshot } from "../format.ts";
import { quoted } from "./damaged.ts";
import { referencesOf, type VmdkDisk } from "./open.ts";
import type { Part } from "./part.ts";

export class VmdkImage<F extends ReadableFile = ReadableFile> implements Image {
  readonly format = "vmdk";
  readonly encrypted = false;
  readonly bytes: number;
  readonly grainBytes: number;
  readonly files: ReadonlyMap<string, F>;
  readonly parent: Image | undefined;
  readonly references: readonly Reference[];
  readonly identifiers: readonly string[];
  readonly summary: string;
  readonly details: Image["details"];
  protected readonly disk: VmdkDisk<F>;
  readonly #guest: BlockDevice;

  constructor(disk: VmdkDisk<F>) {
    const { descriptor, parts, files, parent, room } = disk;
    this.disk = disk;
    this.#guest = concat(parts.map(({ device }) => device));
    this.bytes = this.#guest.bytes;
    this.grainBytes = parts.reduce((least, { grainBytes }) => Math.min(least, grainBytes), Infinity);
    this.files = files;
    this.parent = parent;
    this.references = referencesOf(descriptor, room !== undefined);
    this.identifiers = [descriptor.cid];
    const kinds = [...new Set(parts.map(({ type }) => type))].join(", ");
    this.summary = `${descriptor.createType}, ${parts.length === 1 ? "1 extent" : `${parts.length} extents`}`;
    this.details = {
      createType: descriptor.createType,
      extents: parts.length,
      extentTypes: kinds,
      grainBytes: this.grainBytes,
      cid: descriptor.cid,
      parentCid: descriptor.parentCid,
    };
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
    const descriptor = this.disk.room === undefined ? this.files.get("")!.bytes : 0;
    return Promise.resolve(this.disk.parts.reduce((sum, part) => sum + part.tableBytes, descriptor));
  }

  snapshots(): Promise<readonly Snapshot[]> {
    return Promise.resolve([]);
  }

  async *check(): AsyncGenerator<Finding> {
    for (const part of this.disk.parts) {
      for await (const finding of part.check()) {
        const where = part.fileName === undefined || part.fileName === "" ? "" : `${quoted(part.fileName)}: `;
        yield { ...finding, message: where + finding.message };
      }
    }
  }

  async plan(wish: Wish): Promise<Plan> {
    this.requireWritable();
    const plans: Plan[] = [];
    for (const { part, start, end } of this.placed()) {
      const local = (set: ExtentSet) => set.within({ start, end }).shift(-start);
      plans.push(await part.plan({ ...wish, free: local(wish.free), blank: local(wish.blank) }));
    }
    return inSequence(plans);
  }

  async repairLeaks(): Promise<Plan> {
    this.requireWritable();
    const plans: Plan[] = [];
    for (const part of this.disk.parts) plans.push(await part.planLeaks());
    return inSequence(plans);
  }

  describe(fileOffset: number): Promise<string | undefined> {
    if (this.disk.room === undefined) return Promise.resolve("descriptor");
    return Promise.resolve(this.disk.parts[0]!.describe(fileOffset));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.parent?.[Symbol.asyncDispose]();
    for (const file of this.files.values()) await file[Symbol.asyncDispose]();
  }

  /** Each part with the guest range that it holds. */
  protected *placed(): Generator<Extent & { readonly part: Part; readonly index: number }> {
    let start = 0;
    for (const [index, part] of this.disk.parts.entries()) {
      const end = start + part.device.bytes;
      yield { part, index, start, end };
      start = end;
    }
  }

  /** @throws DiskError when nothing may be written (H17) */
  protected requireWritable(): void {
    const { descriptor, parts } = this.disk;
    const [line] = descriptor.unknown;
    if (line !== undefined) {
      throw new DiskError("unsupported", `descriptor: unknown line ${quoted(line)}`, {
        code: "unknown-line",
        hint: "what it promises of the content might be broken; remove the line, or convert the image",
      });
    }
    for (const { refusal } of parts) if (refusal !== undefined) throw refusal;
  }
}
