/**
 * An image opened for writing: the files are locked, the disk is written by `write.ts`, and plans see every change.
 */
import type { Extent } from "../../bytes/extents.ts";
import type { HostFile, Place, Zeroing } from "../../device/device.ts";
import type { Plan, Wish } from "../../reclaim/plan.ts";
import type { ClaimedPlace, Finding, Image, WritableImage } from "../format.ts";
import type { Qcow2Context } from "./context.ts";
import { Qcow2Image } from "./image.ts";
import { Qcow2Writer } from "./write.ts";

export class WritableQcow2Image extends Qcow2Image implements WritableImage {
  readonly #context: Qcow2Context<HostFile>;
  readonly #writer: Qcow2Writer;

  constructor(context: Qcow2Context<HostFile>, parent: Image | undefined) {
    super(context, parent);
    this.#context = context;
    const disk = { bytes: this.bytes, read: (at: number, into: Uint8Array) => super.read(at, into) };
    this.#writer = new Qcow2Writer(context, disk, this.compressed);
  }

  override get files(): ReadonlyMap<string, HostFile> {
    const { file, data, header } = this.#context;
    const files = new Map([["", file]]);
    if (header.externalData) files.set(header.dataFileName!, data);
    return files;
  }

  override read(at: number, into: Uint8Array): Promise<void> {
    return this.#writer.reading(super.read(at, into));
  }

  override locate(at: number, bytes: number, access: "read" | "write"): Place | undefined {
    return access === "read" ? super.locate(at, bytes, access) : this.#writer.locate(at, bytes);
  }

  write(at: number, from: Uint8Array): Promise<void> {
    return this.#writer.write(at, from);
  }

  claim(range: Extent): Promise<ClaimedPlace | undefined> {
    return this.#writer.claim(range);
  }

  zero(range: Extent, how: Zeroing = {}): Promise<void> {
    return this.#writer.zero(range, how);
  }

  discard(range: Extent): Promise<void> {
    return this.#writer.discard(range);
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

  override async repairLeaks(): Promise<Plan> {
    await this.#writer.flush();
    return super.repairLeaks();
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#writer.close();
    } finally {
      await super[Symbol.asyncDispose]();
    }
  }
}
