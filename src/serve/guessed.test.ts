/**
 * H21: a guest whose disk's format was guessed cannot make an image of it, by whatever commands.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { DiskError } from "../error.ts";
import { qcow2 } from "../formats/qcow2.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { simulatedSource } from "../testing/simulated-source.ts";
import { GuessedFormat } from "./guessed.ts";

const BYTES = 1024 * 1024;
const QCOW2 = Buffer.from("QFI\xfb\0\0\0\x03", "latin1");

function disk(): GuessedFormat {
  return new GuessedFormat(SimulatedFile.from(new Uint8Array(BYTES)));
}

async function textAt(device: GuessedFormat, at: number, bytes: number): Promise<string> {
  const found = Buffer.alloc(bytes);
  await device.read(at, found);
  return found.toString("latin1");
}

const isRefused = (error: unknown): boolean => error instanceof DiskError && error.code === "format-guessed";

for (const [what, at, signature] of [
  ["qcow2", 0, "QFI\xfb\0\0\0\x03"],
  ["the footer of a VHD", BYTES - 512, "conectix"],
  ["the trailer of a UDIF", BYTES - 512, "koly"],
] as const) {
  test(`H21: ${what} is not written at once, nor by pieces`, async () => {
    const device = disk();
    const bytes = Buffer.from(signature, "latin1");
    await assert.rejects(device.write(at, bytes), isRefused);
    await device.write(at, bytes.subarray(0, 3));
    await assert.rejects(device.write(at + 3, bytes.subarray(3)), isRefused);
  });
}

test("H21: two writes that are harmless alone, at the same time", async () => {
  const device = disk();
  const halves = [device.write(0, QCOW2.subarray(0, 4)), device.write(4, QCOW2.subarray(4))];
  const outcomes = await Promise.allSettled(halves);
  assert.deepEqual(outcomes.map(({ status }) => status).sort(), ["fulfilled", "rejected"]);
  assert.notEqual(await textAt(device, 0, 8), QCOW2.toString("latin1"));
});

for (const how of ["zero", "discard"] as const) {
  test(`H21: zeros complete a signature, by ${how}`, async () => {
    const device = disk();
    await device.write(0, Buffer.from("QED\x01", "latin1"));
    await assert.rejects(device[how]({ start: 3, end: 4 }), isRefused);
    await assert.rejects(device[how]({ start: 3, end: BYTES }), isRefused);
    assert.equal(await textAt(device, 0, 4), "QED\x01");
    await device[how]({ start: 0, end: BYTES });
    assert.equal(await textAt(device, 0, 4), "\0\0\0\0");
  });
}

test("zeros of a whole disk are judged by its ends alone, however large it is", async () => {
  const device = new GuessedFormat(new SimulatedFile(2 ** 31));
  await device.zero({ start: 0, end: device.bytes });
});

/** An image of a real format, whose bytes a guest may want to have on its disk. */
async function imageOf(format: typeof qcow2, options: Record<string, string>): Promise<Buffer> {
  const files = new Map<string, SimulatedFile>();
  const image = await format.create!(simulatedSource(files, "image"), { virtualBytes: BYTES, options });
  await image[Symbol.asyncDispose]();
  const file = files.get("image")!;
  const bytes = Buffer.alloc(file.bytes);
  await file.read(0, bytes);
  return bytes;
}

test("H21: a guessed raw disk does not become an image by its guest's hand", async () => {
  const disk = new GuessedFormat(new SimulatedFile(4 * BYTES));
  const header = (await imageOf(qcow2, {})).subarray(0, 65536);
  await assert.rejects(disk.write(0, header), isRefused);
  await assert.rejects(disk.write(0, header.subarray(0, 512)), isRefused);
  const first = Buffer.alloc(4);
  await disk.read(0, first);
  assert.deepEqual(first, Buffer.alloc(4), "nothing of it was written");
  await disk.write(BYTES, header);
  await disk.write(0, Buffer.alloc(512, 0xeb));
});
