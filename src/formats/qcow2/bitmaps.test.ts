import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { setTimeout } from "node:timers/promises";
import { ExtentSet } from "../../bytes/extents.ts";
import { execute } from "../../reclaim/execute.ts";
import { loadFolder, parentsIn, sourceIn } from "../../testing/qcow2-kinds.ts";
import { createImage, qemuCheck, qemuIo } from "../../testing/qemu.ts";
import { requires, run, scratch } from "../../testing/tools.ts";
import type { WritableImage } from "../format.ts";
import { qcow2 } from "../qcow2.ts";

const MIB = 2 ** 20;
const KIB = 1024;

/** The dirty ranges of a bitmap, as QEMU tells them to a backup program. */
async function dirtyRanges(folder: string, path: string, bitmap: string): Promise<ExtentSet> {
  const socket = join(folder, `${bitmap}.sock`);
  const server = spawn("qemu-nbd", ["-r", "-f", "qcow2", "-B", bitmap, "-k", socket, path], {
    stdio: "inherit",
  });
  const ended = new Promise((resolve) => server.once("exit", resolve));
  for (let i = 0; i < 200 && !existsSync(socket); i++) await setTimeout(20);
  const options = `driver=nbd,server.type=unix,server.path=${socket},x-dirty-bitmap=qemu:dirty-bitmap:${bitmap}`;
  const map = JSON.parse(run("qemu-img", ["map", "--output=json", "--image-opts", options])) as {
    start: number;
    length: number;
    data: boolean;
  }[];
  server.kill();
  await ended;
  return ExtentSet.from(
    map.filter(({ data }) => !data).map(({ start, length }) => ({ start, end: start + length })),
  );
}

/** Small clusters, so that a bitmap has several clusters of bits; every bitmap is clean, but for one write. */
function makeImage(t: TestContext): { folder: string; path: string } {
  const folder = scratch(t);
  const path = createImage({
    folder,
    name: "image.qcow2",
    virtualBytes: 16 * MIB,
    options: { cluster_size: 512 },
  });
  qemuIo(path, [`write -P 7 0 ${12 * MIB}`]);
  for (const name of ["tracking", "disabled"]) run("qemu-img", ["bitmap", "--add", "-g", "4096", path, name]);
  run("qemu-img", ["bitmap", "--disable", path, "disabled"]);
  qemuIo(path, [`write -P 8 ${4 * MIB} ${64 * KIB}`]);
  return { folder, path };
}

async function change(folder: string, act: (image: WritableImage) => Promise<void>): Promise<void> {
  const files = await loadFolder(folder);
  const image = await qcow2.openWritable!(sourceIn(files, "image.qcow2"), parentsIn(files));
  await act(image);
  await image[Symbol.asyncDispose]();
  await files.get("image.qcow2")!.save(join(folder, "image.qcow2"));
}

const range = (start: number, bytes: number) => ({ start, end: start + bytes });

test("a reclaim marks what it changes, and what it cannot mark finely, coarsely", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io", "qemu-nbd")) return;
  const { folder, path } = makeImage(t);
  const free = ExtentSet.of(range(5 * MIB + 8 * KIB, 100 * KIB), range(15 * MIB, MIB));
  await change(folder, async (image) => {
    const granules = { minHoleBytes: 4096, hostBlockBytes: 4096 };
    const plan = await image.plan({ free, blank: ExtentSet.EMPTY, pack: false, punch: true, ...granules });
    await execute(plan, image.files);
  });
  assert.deepEqual(qemuCheck(path), { errors: 0, leaks: 0 });
  const written = range(4 * MIB, 64 * KIB);
  // What was never allocated does not change; the bits of the first 16 MiB lie in one cluster.
  const expected = ExtentSet.of(written, range(5 * MIB + 8 * KIB, 100 * KIB));
  assert.deepEqual([...(await dirtyRanges(folder, path, "tracking"))], [...expected]);
  assert.deepEqual([...(await dirtyRanges(folder, path, "disabled"))], []);
});

test("bits that were never allocated become all ones", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io", "qemu-nbd")) return;
  const { folder, path } = makeImage(t);
  run("qemu-img", ["bitmap", "--add", "-g", "512", path, "fine"]);
  qemuIo(path, [`write -P 8 ${4 * MIB} 512`]);
  await change(folder, async (image) => {
    const granules = { minHoleBytes: 4096, hostBlockBytes: 4096 };
    const free = ExtentSet.of(range(2 * MIB, 512), range(4 * MIB + 512, 512));
    const plan = await image.plan({ free, blank: ExtentSet.EMPTY, pack: false, punch: true, ...granules });
    await execute(plan, image.files);
  });
  // 512 bytes of bits cover 2 MiB: the second 2 MiB had none, the third had some.
  const expected = ExtentSet.of(range(2 * MIB, 2 * MIB + KIB));
  assert.deepEqual([...(await dirtyRanges(folder, path, "fine"))], [...expected]);
});

test("writes mark what they change, and bitmaps are in use meanwhile", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io", "qemu-nbd")) return;
  const { folder, path } = makeImage(t);
  const flags = () => {
    const info = JSON.parse(run("qemu-img", ["info", "--output=json", path])) as {
      "format-specific": { data: { bitmaps: { name: string; flags: string[] }[] } };
    };
    return info["format-specific"].data.bitmaps.map((bitmap) => `${bitmap.name} ${bitmap.flags.join(",")}`);
  };
  const files = await loadFolder(folder);
  const image = await qcow2.openWritable!(sourceIn(files, "image.qcow2"), parentsIn(files));
  await image.write(9 * MIB, new Uint8Array(600).fill(1));
  await image.flush();
  await files.get("image.qcow2")!.save(path);
  assert.deepEqual(flags(), ["tracking in-use,auto", "disabled "]);
  await image[Symbol.asyncDispose]();
  await files.get("image.qcow2")!.save(path);
  assert.deepEqual(flags(), ["tracking auto", "disabled "]);
  const expected = ExtentSet.of(range(4 * MIB, 64 * KIB), range(9 * MIB, 4 * KIB));
  assert.deepEqual([...(await dirtyRanges(folder, path, "tracking"))], [...expected]);
  assert.deepEqual(qemuCheck(path), { errors: 0, leaks: 0 });
});
