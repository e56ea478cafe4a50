/**
 * Compressed grains: markers that are not theirs, lengths that lie, and deflated data that are more than a grain.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { deflateSync } from "node:zlib";
import { readBytes } from "../../device/device.ts";
import { Random } from "../../testing/seeds.ts";
import type { SimulatedFile } from "../../testing/simulated-file.ts";
import { simulatedSource } from "../../testing/simulated-source.ts";
import { vmdk } from "../vmdk.ts";

const MIB = 1024 * 1024;
const GRAIN_BYTES = 64 * 1024;
/** The first grain of our streams. */
const GRAIN_AT = 128 * 512;
const noParent = () => Promise.reject(new Error("no parent is asked for"));

type Made = Map<string, SimulatedFile>;

async function stream(content: Uint8Array): Promise<Made> {
  const files: Made = new Map();
  const asked = { virtualBytes: MIB, options: { subformat: "streamOptimized" } };
  await using image = await vmdk.create!(simulatedSource(files, "disk.vmdk"), asked);
  await image.write(0, content);
  await image.flush();
  return files;
}

const open = (files: Made) => vmdk.open(simulatedSource(files, "disk.vmdk"), noParent);

test("a grain with a marker, a length or data that are not its own is an error, and so is reading it", async () => {
  const cases: readonly [at: number, bytes: Uint8Array, message: RegExp, isFoundByCheck: boolean][] = [
    [0, Uint8Array.of(1), /marker of grain 0.*found sector 1/, true],
    [8, Uint8Array.of(0, 0, 0, 0), /length of grain 0/, true],
    [8, Uint8Array.of(0, 0, 3, 0), /length of grain 0/, true],
    [8, Uint8Array.of(0, 0, 2, 0), /grain 0 at/, true],
    [14, Uint8Array.of(0xff, 0xff), /deflated data are damaged/, false],
  ];
  for (const [at, bytes, message, isFoundByCheck] of cases) {
    const files = await stream(new Random(1).bytes(1000));
    await files.get("disk.vmdk")!.write(GRAIN_AT + at, bytes);
    await using image = await open(files);
    await assert.rejects(readBytes(image, 0, 512), { kind: "corrupt", message }, message.source);
    const found: string[] = [];
    for await (const finding of image.check()) found.push(finding.message);
    assert.deepEqual(
      found.map((each) => message.test(each)),
      isFoundByCheck ? [true] : [],
    );
  }
});

test("a bomb is cut off at the length of a grain (H24)", async () => {
  for (const bytes of [GRAIN_BYTES + 1, 64 * MIB]) {
    const files = await stream(new Random(1).bytes(3 * GRAIN_BYTES));
    const data = deflateSync(new Uint8Array(bytes));
    const length = Buffer.alloc(4);
    length.writeUInt32LE(data.length);
    await files.get("disk.vmdk")!.write(GRAIN_AT + 8, length);
    await files.get("disk.vmdk")!.write(GRAIN_AT + 12, data);
    await using image = await open(files);
    await assert.rejects(readBytes(image, 0, 512), { kind: "corrupt", message: /deflated data are damaged/ });
  }
});

test("a grain that inflates to less than a grain is damaged", async () => {
  const files = await stream(new Random(1).bytes(1000));
  const data = deflateSync(new Uint8Array(GRAIN_BYTES - 1));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(data.length);
  await files.get("disk.vmdk")!.write(GRAIN_AT + 8, length);
  await files.get("disk.vmdk")!.write(GRAIN_AT + 12, data);
  await using image = await open(files);
  await assert.rejects(readBytes(image, 0, 512), { kind: "corrupt", message: /65535 bytes/ });
});
