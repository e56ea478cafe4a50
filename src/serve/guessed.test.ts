import assert from "node:assert/strict";
import { test } from "node:test";
import { qcow2 } from "../formats/qcow2.ts";
import { vhd } from "../formats/vhd.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { simulatedSource } from "../testing/simulated-source.ts";
import { GuessedRaw } from "./guessed.ts";

const MIB = 2 ** 20;

/** An image of a real format, whose bytes a guest may want to have on its disk. */
async function imageOf(format: typeof qcow2, options: Record<string, string>): Promise<Buffer> {
  const files = new Map<string, SimulatedFile>();
  const image = await format.create!(simulatedSource(files, "image"), { virtualBytes: MIB, options });
  await image[Symbol.asyncDispose]();
  const file = files.get("image")!;
  const bytes = Buffer.alloc(file.bytes);
  await file.read(0, bytes);
  return bytes;
}

const refused = { kind: "refused", code: "format-guessed" };

test("H21: a guessed raw disk does not become an image by its guest's hand", async () => {
  const disk = new GuessedRaw(new SimulatedFile(4 * MIB));
  const header = (await imageOf(qcow2, {})).subarray(0, 65536);
  await assert.rejects(disk.write(0, header), refused);
  await assert.rejects(disk.write(0, header.subarray(0, 512)), refused);
  const first = Buffer.alloc(4);
  await disk.read(0, first);
  assert.deepEqual(first, Buffer.alloc(4), "nothing of it was written");
  await disk.write(MIB, header);
  await disk.write(0, Buffer.alloc(512, 0xeb));
});

test("H21: nor in pieces, of which each alone looks harmless", async () => {
  const disk = new GuessedRaw(new SimulatedFile(4 * MIB));
  const header = (await imageOf(qcow2, {})).subarray(0, 512);
  await disk.write(4, header.subarray(4));
  await disk.write(0, header.subarray(0, 3));
  await assert.rejects(disk.write(3, header.subarray(3, 4)), refused);
});

test("H21: formats that are told by their last bytes are seen too", async () => {
  const image = await imageOf(vhd, { subformat: "fixed" });
  const disk = new GuessedRaw(new SimulatedFile(image.length));
  await assert.rejects(disk.write(image.length - 512, image.subarray(-512)), refused);
});

test("nobody writes past the guard of its beginning and its end", () => {
  const disk = new GuessedRaw(new SimulatedFile(4 * MIB));
  for (const at of [0, 65535, 4 * MIB - 512]) assert.equal(disk.locate(at, 512, "write"), undefined);
});
