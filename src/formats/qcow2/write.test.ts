import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import type { Extent } from "../../bytes/extents.ts";
import type { WritableDevice } from "../../device/device.ts";
import {
  KINDS,
  loadFolder,
  makeImage,
  parentsIn,
  sourceIn,
  VIRTUAL_BYTES,
} from "../../testing/qcow2-kinds.ts";
import { guestBytes, qemuCheck } from "../../testing/qemu.ts";
import { Random, seeds } from "../../testing/seeds.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { simulatedSource } from "../../testing/simulated-source.ts";
import { requires, scratch } from "../../testing/tools.ts";
import type { OpenParent } from "../format.ts";
import { qcow2 } from "../qcow2.ts";
import { raw } from "../raw.ts";

/** A disk beside a buffer that has to hold the same. */
class Model {
  readonly #image: WritableDevice;
  readonly #random: Random;
  readonly #content: Buffer;

  constructor(image: WritableDevice, random: Random, content: Buffer) {
    this.#image = image;
    this.#random = random;
    this.#content = content;
  }

  get content(): Buffer {
    return this.#content;
  }

  async step(): Promise<void> {
    const range = this.#range();
    const { start, end } = range;
    switch (this.#random.below(8)) {
      case 0:
        return this.#image.flush();
      case 1:
        await this.#image.zero(range);
        this.#content.fill(0, start, end);
        return;
      case 2:
        await this.#image.discard(range);
        return this.#adopt(range);
      case 3:
        return this.#compare(range);
      default: {
        const bytes = this.#random.bytes(end - start);
        await this.#image.write(start, bytes);
        this.#content.set(bytes, start);
      }
    }
  }

  #range(): Extent {
    const start = this.#random.below(VIRTUAL_BYTES / 512) * 512;
    const bytes = (1 + this.#random.below(this.#random.pick([2, 16, 700]))) * 512;
    return { start, end: Math.min(VIRTUAL_BYTES, start + bytes) };
  }

  async #read({ start, end }: Extent): Promise<Buffer> {
    const bytes = Buffer.alloc(end - start);
    await this.#image.read(start, bytes);
    return bytes;
  }

  async #compare(range: Extent): Promise<void> {
    assert.ok((await this.#read(range)).equals(this.#content.subarray(range.start, range.end)));
  }

  /** After a discard every sector holds what it held, or zeros (H9). */
  async #adopt(range: Extent): Promise<void> {
    const found = await this.#read(range);
    for (let at = 0; at < found.length; at += 512) {
      const sector = found.subarray(at, at + 512);
      const before = this.#content.subarray(range.start + at, range.start + at + 512);
      assert.ok(sector.equals(before) || sector.every((byte) => byte === 0), `sector at ${range.start + at}`);
    }
    this.#content.set(found, range.start);
  }
}

for (const kind of KINDS) {
  test(`writes, zeros and discards: ${kind.name}`, async (t) => {
    if (!requires(t, "qemu-img", "qemu-io")) return;
    for (const seed of seeds(1)) {
      const label = `SEED=${seed}`;
      const folder = scratch(t);
      const random = new Random(seed);
      const path = makeImage(folder, kind, random);
      const snapshots = () =>
        Array.from({ length: kind.snapshots ?? 0 }, (_, i) => guestBytes(path, `snapshot ${i}`));
      const before = snapshots();
      const files = await loadFolder(folder);
      const image = await qcow2.openWritable!(sourceIn(files, "image.qcow2"), parentsIn(files));
      const model = new Model(image, random, guestBytes(path));
      for (let i = 0; i < 150; i++) await model.step();
      await image[Symbol.asyncDispose]();
      for (const [name, file] of files) await file.save(join(folder, name));
      assert.deepEqual(qemuCheck(path), { errors: 0, leaks: 0 }, label);
      assert.ok(guestBytes(path).equals(model.content), `${label}: content`);
      for (const [i, content] of snapshots().entries()) {
        assert.ok(content.equals(before[i]!), `${label}: snapshot ${i}`);
      }
    }
  });
}

test("H19: a full host fails the write, and nothing else: with room again the disk goes on, and nothing has leaked", async () => {
  const virtualBytes = 16 * 2 ** 20;
  for (const backing of [false, true]) {
    const files = new Map<string, SimulatedFile>();
    const source = (name: string) => simulatedSource(files, name);
    const open: OpenParent = (name) => raw.open(source(name), open);
    const base = Buffer.alloc(virtualBytes, 3);
    if (backing) files.set("base", SimulatedFile.from(base, { name: "base" }));
    const options: Record<string, string> = { cluster_size: "4096" };
    if (backing) Object.assign(options, { backing_file: "base", backing_fmt: "raw" });
    const image = await qcow2.create!(source("disk"), { virtualBytes, options }, open);
    await image.write(0, Buffer.alloc(8192, 7));
    await image.flush();
    const file = files.get("disk")!;
    const failed: number[] = [];
    // One block of room more each time: the claim, the content, the table run out of it in turn.
    for (let room = 0; room < 6; room++) {
      file.capacityBytes = file.hostBytes + room * 4096;
      const at = (16 + 600 * room) * 4096;
      const wrote = await image.write(at, Buffer.alloc(4 * 4096, 9)).then(
        () => true,
        (error: { code?: string }) => error.code !== "no-space",
      );
      if (!wrote) failed.push(room);
      file.capacityBytes = Infinity;
      await image.write(at, Buffer.alloc(4 * 4096, 9));
    }
    assert.ok(failed.includes(0) && failed.length > 2, `failed with ${failed.join(", ")} blocks of room`);
    await image.flush();
    for await (const { message } of image.check()) assert.fail(message);
    await image[Symbol.asyncDispose]();
    await using again = await qcow2.open(source("disk"), open);
    const content = Buffer.alloc(virtualBytes, backing ? 3 : 0);
    content.fill(7, 0, 8192);
    for (let room = 0; room < 6; room++) content.fill(9, (16 + 600 * room) * 4096, (20 + 600 * room) * 4096);
    const read = Buffer.alloc(virtualBytes);
    await again.read(0, read);
    assert.ok(read.equals(content));
  }
});
