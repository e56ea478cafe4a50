import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { loadFolder, parentsIn, sourceIn } from "../../testing/qcow2-kinds.ts";
import { createImage, guestBytes, qemuCheck } from "../../testing/qemu.ts";
import { requires, scratch } from "../../testing/tools.ts";
import { qcow2 } from "../qcow2.ts";

const MIB = 2 ** 20;
const IMAGE = "image.qcow2";

test("refcount blocks and a longer refcount table are made where they are needed", async (t) => {
  if (!requires(t, "qemu-img")) return;
  const folder = scratch(t);
  const virtualBytes = 24 * MIB;
  // One cluster of refcount table covers 64 blocks of 64 clusters of 512 bytes: 2 MiB.
  const options = { cluster_size: 512, refcount_bits: 64 };
  const path = createImage({ folder, name: IMAGE, virtualBytes, options });
  const files = await loadFolder(folder);
  const file = files.get(IMAGE)!;
  const tableBefore = file.peek(48, 12);
  const image = await qcow2.openWritable!(sourceIn(files, IMAGE), parentsIn(files));
  const content = Buffer.alloc(virtualBytes);
  for (let at = 0; at < 12 * MIB; at += 64 * 1024) {
    content.fill(1 + (at % 251), at, at + 64 * 1024);
    await image.write(at, content.subarray(at, at + 64 * 1024));
  }
  await image[Symbol.asyncDispose]();
  assert.notDeepEqual(file.peek(48, 12), tableBefore, "the refcount table moved");
  await file.save(join(folder, IMAGE));
  assert.deepEqual(qemuCheck(path), { errors: 0, leaks: 0 });
  assert.ok(guestBytes(path).equals(content));
});

test("what was discarded is claimed again, but not before it is durable (H14)", async (t) => {
  if (!requires(t, "qemu-img")) return;
  const folder = scratch(t);
  createImage({ folder, name: IMAGE, virtualBytes: 4 * MIB });
  const files = await loadFolder(folder);
  const file = files.get(IMAGE)!;
  await using image = await qcow2.openWritable!(sourceIn(files, IMAGE), parentsIn(files));
  await image.write(0, new Uint8Array(MIB).fill(1));
  await image.flush();
  const { bytes } = file;
  await image.discard({ start: 0, end: MIB });
  await image.write(MIB, new Uint8Array(64 * 1024).fill(2));
  assert.ok(file.bytes > bytes, "a new place while the old one is not given back");
  await image.flush();
  const grown = file.bytes;
  await image.write(2 * MIB, new Uint8Array(15 * 64 * 1024).fill(3));
  await image.flush();
  assert.equal(file.bytes, grown, "the old place");
});
