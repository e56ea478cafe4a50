/**
 * New disks: what we make, QEMU opens, finds clean and reads as we do; what QEMU writes into it, we read.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { suite, test, type TestContext } from "node:test";
import { setImmediate } from "node:timers/promises";
import { deflateSync } from "node:zlib";
import { readBytes } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { Random } from "../../testing/seeds.ts";
import type { SimulatedFile } from "../../testing/simulated-file.ts";
import { simulatedSource } from "../../testing/simulated-source.ts";
import { requires, run, scratch } from "../../testing/tools.ts";
import { filesIn, saveAll, vmdkBytes, vmdkCheck } from "../../testing/vmdk.ts";
import type { Finding } from "../format.ts";
import { vmdk } from "../vmdk.ts";

const MIB = 1024 * 1024;
const GRAIN_BYTES = 64 * 1024;
const noParent = () => Promise.reject(new Error("no parent is asked for"));

type Options = Readonly<Record<string, string>>;

/** Makes a disk, fills it in ascending order with data and gaps, and returns its files and content. */
async function made(options: Options, virtualBytes: number) {
  const files = new Map<string, SimulatedFile>();
  const random = new Random(7);
  const content = new Uint8Array(virtualBytes);
  {
    await using image = await vmdk.create!(simulatedSource(files, "disk.vmdk"), { virtualBytes, options });
    for (let at = 0; at < virtualBytes; at += 2 * GRAIN_BYTES) {
      const data = random.bytes(Math.min(random.pick([512, 4096, GRAIN_BYTES, 100_000]), virtualBytes - at));
      await image.write(at, data);
      content.set(data, at);
    }
    await image.zero({ start: 0, end: 512 * Number(options["subformat"] !== "streamOptimized") });
    if (options["subformat"] !== "streamOptimized") content.fill(0, 0, 512);
    await image.flush();
    assert.deepEqual(
      Buffer.from(await readBytes(image, 0, virtualBytes)),
      Buffer.from(content),
      "read at once",
    );
  }
  return { files, content };
}

async function reread(files: Map<string, SimulatedFile>): Promise<Buffer> {
  await using image = await vmdk.open(simulatedSource(files, "disk.vmdk"), noParent);
  for await (const { message } of image.check()) assert.fail(message);
  return Buffer.from(await readBytes(image, 0, image.bytes));
}

async function saved(t: TestContext, files: Map<string, SimulatedFile>): Promise<string> {
  const folder = scratch(t);
  await saveAll(files, folder);
  return join(folder, "disk.vmdk");
}

const VARIANTS: Readonly<Record<string, Options>> = {
  "monolithicSparse by default": {},
  "zeroed grains": { zeroed_grain: "on", adapter_type: "lsilogic", hwversion: "7" },
  monolithicFlat: { subformat: "monolithicFlat" },
  twoGbMaxExtentSparse: { subformat: "twoGbMaxExtentSparse" },
  twoGbMaxExtentFlat: { subformat: "twoGbMaxExtentFlat" },
  streamOptimized: { subformat: "streamOptimized" },
};

suite("new VMDK disks", () => {
  for (const [name, options] of Object.entries(VARIANTS)) {
    for (const virtualBytes of [2 * MIB, MIB + 512]) {
      test(`${name}, ${virtualBytes} bytes: QEMU finds it clean and reads the same`, async (t) => {
        if (!requires(t, "qemu-img")) return;
        const { files, content } = await made(options, virtualBytes);
        assert.deepEqual(await reread(files), Buffer.from(content));
        const path = await saved(t, files);
        if (!options["subformat"]?.endsWith("Flat")) {
          assert.deepEqual(vmdkCheck(path), { errors: 0, leaks: 0 });
        }
        assert.deepEqual(vmdkBytes(path), Buffer.from(content));
      });
    }
  }

  test("QEMU writes into a disk of ours, and we read what it wrote", async (t) => {
    if (!requires(t, "qemu-io")) return;
    const { files, content } = await made({ zeroed_grain: "on" }, 2 * MIB);
    const path = await saved(t, files);
    run("qemu-io", ["-f", "vmdk", "-c", "write -P 9 70k 200k", "-c", "write -z 512k 64k", path]);
    content.fill(9, 70 * 1024, 270 * 1024);
    content.fill(0, 512 * 1024, 576 * 1024);
    await using image = await vmdk.open(
      simulatedSource(await filesIn(join(path, "..")), "disk.vmdk"),
      noParent,
    );
    assert.deepEqual(Buffer.from(await readBytes(image, 0, image.bytes)), Buffer.from(content));
    // QEMU forgets the grain that it made a zeroed one, and its own check does not look for such.
    const found: Finding[] = [];
    for await (const finding of image.check()) found.push(finding);
    assert.deepEqual(
      found.map(({ kind, count }) => [kind, count]),
      [["leak", 1]],
    );
    assert.deepEqual(vmdkCheck(path), { errors: 0, leaks: 0 });
  });

  test("a disk above another one reads through it, in QEMU too", async (t) => {
    if (!requires(t, "qemu-img")) return;
    const { files, content } = await made({}, 2 * MIB);
    files.set("base.vmdk", files.get("disk.vmdk")!);
    files.delete("disk.vmdk");
    const openParent = (name: string) => vmdk.open(simulatedSource(files, name), noParent);
    {
      const options = { virtualBytes: 2 * MIB, options: { backing_file: "base.vmdk" } };
      await using image = await vmdk.create!(simulatedSource(files, "disk.vmdk"), options, openParent);
      await image.write(1000, new Uint8Array(5000).fill(5));
      await image.flush();
      assert.deepEqual(image.references[0]?.name, "base.vmdk");
      assert.equal(image.references[0]?.id, image.parent?.identifiers?.[0]);
    }
    content.fill(5, 1000, 6000);
    assert.deepEqual(vmdkBytes(await saved(t, files)), Buffer.from(content));
  });

  test("split extents end at 2 GiB, and QEMU joins them as we do", async (t) => {
    if (!requires(t, "qemu-img", "qemu-io")) return;
    const files = new Map<string, SimulatedFile>();
    const virtualBytes = 2 ** 31 + MIB;
    const data = new Uint8Array(2 * GRAIN_BYTES).fill(3);
    {
      const options = { virtualBytes, options: { subformat: "twoGbMaxExtentSparse" } };
      await using image = await vmdk.create!(simulatedSource(files, "disk.vmdk"), options);
      await image.write(2 ** 31 - GRAIN_BYTES, data);
      await image.flush();
    }
    assert.deepEqual([...files.keys()].sort(), ["disk-s001.vmdk", "disk-s002.vmdk", "disk.vmdk"]);
    const path = await saved(t, files);
    const found = run("qemu-io", ["-f", "vmdk", "-r", "-c", `read -P 3 ${2 ** 31 - GRAIN_BYTES} 128k`, path]);
    assert.match(found, /read 131072\/131072/);
    assert.doesNotMatch(found, /failed/i);
  });
});

suite("streams", () => {
  test("grains, tables, directory and footer have their markers", async () => {
    const { files } = await made({ subformat: "streamOptimized" }, 2 * MIB);
    const file = files.get("disk.vmdk")!;
    const sector = (number: number) => Buffer.from(file.peek(file.bytes + number * 512, 512));
    assert.equal(sector(-3).readUInt32LE(12), 3, "footer marker");
    assert.equal(sector(-2).toString("latin1", 0, 4), "KDMV", "footer");
    assert.deepEqual(sector(-1), Buffer.alloc(512), "end of stream");
    const directory = Number(sector(-2).readBigUInt64LE(56));
    const marker = Buffer.from(file.peek((directory - 1) * 512, 512));
    assert.deepEqual(
      [Number(marker.readBigUInt64LE(0)), marker.readUInt32LE(12)],
      [1, 2],
      "directory marker",
    );
    const table = Buffer.from(file.peek(directory * 512, 4)).readUInt32LE();
    const before = Buffer.from(file.peek((table - 1) * 512, 512));
    assert.deepEqual([Number(before.readBigUInt64LE(0)), before.readUInt32LE(12)], [4, 1], "table marker");
  });

  test("what is written out of order, or behind the end of the stream, is refused", async () => {
    const files = new Map<string, SimulatedFile>();
    const options = { virtualBytes: 2 * MIB, options: { subformat: "streamOptimized" } };
    await using image = await vmdk.create!(simulatedSource(files, "disk.vmdk"), options);
    const refused = (work: Promise<void>) =>
      assert.rejects(work, (error) => error instanceof DiskError && error.kind === "unsupported");
    await image.write(2 * GRAIN_BYTES, new Uint8Array(1024).fill(1));
    await image.write(2 * GRAIN_BYTES + 4096, new Uint8Array(1024).fill(2));
    await image.write(4 * GRAIN_BYTES, new Uint8Array(10).fill(1));
    await refused(image.write(2 * GRAIN_BYTES, new Uint8Array(10)));
    await refused(image.zero({ start: 2 * GRAIN_BYTES, end: 3 * GRAIN_BYTES }));
    await refused(image.read(0, new Uint8Array(10)));
    await image.flush();
    await refused(image.write(5 * GRAIN_BYTES, new Uint8Array(10).fill(1)));
    assert.equal((await readBytes(image, 2 * GRAIN_BYTES + 4096, 1))[0], 2);
  });

  test("grains that are deflated at once lie in their order, and are what zlib makes of them", async () => {
    const { files, content } = await made({ subformat: "streamOptimized" }, 34 * MIB);
    const file = files.get("disk.vmdk")!;
    let last = -1;
    for (let at = 128 * 512; at < file.bytes;) {
      const marker = Buffer.from(file.peek(at, 12));
      const dataBytes = marker.readUInt32LE(8);
      const value = Number(marker.readBigUInt64LE(0));
      if (dataBytes === 0) {
        at += (1 + value) * 512;
        continue;
      }
      const grain = (value * 512) / GRAIN_BYTES;
      assert.ok(grain > last, `grain ${grain} behind grain ${last}`);
      last = grain;
      const whole = Buffer.alloc(GRAIN_BYTES);
      whole.set(content.subarray(grain * GRAIN_BYTES, (grain + 1) * GRAIN_BYTES));
      assert.deepEqual(Buffer.from(file.peek(at + 12, dataBytes)), deflateSync(whole));
      at += Math.ceil((12 + dataBytes) / 512) * 512;
    }
    assert.ok(last > 512, "grains of two tables");
  });

  for (const forever of [false, true]) {
    test(`any change that fails ${forever ? "for good" : "once"} fails the stream`, async () => {
      const noise = new Random(3).bytes(20 * GRAIN_BYTES);
      const stream = async (operation: number) => {
        const files = new Map<string, SimulatedFile>();
        const options = { virtualBytes: 4 * MIB, options: { subformat: "streamOptimized" } };
        const image = await vmdk.create!(simulatedSource(files, "disk.vmdk"), options);
        const file = files.get("disk.vmdk")!;
        const began = file.operations;
        file.fault = { operation: began + operation, forever };
        let failures = 0;
        const failed = (error: unknown) => {
          assert.match(String(error), /injected failure/);
          failures++;
        };
        // Whoever goes on after a failure is told again, and gets no stream.
        for (let at = 0; at < noise.length; at += GRAIN_BYTES) {
          await image.write(at, noise.subarray(at, at + GRAIN_BYTES)).catch(failed);
        }
        await image.flush().catch(failed);
        const told = failures;
        await image[Symbol.asyncDispose]();
        const ended = file.operations;
        await setImmediate();
        assert.equal(file.operations, ended, "nothing is written once the file is closed");
        return { told, files, changes: ended - began };
      };
      const { changes, told } = await stream(Infinity);
      assert.equal(told, 0);
      for (let operation = 0; operation < changes; operation++) {
        const { told: failures, files } = await stream(operation);
        assert.ok(failures > 0, `failure of change ${operation} is lost`);
        if (operation === changes - 1) continue; // the flush: the stream is whole, and may not be durable
        await assert.rejects(vmdk.open(simulatedSource(files, "disk.vmdk"), noParent), `change ${operation}`);
      }
    });
  }

  test("a stream that was not finished is not opened", async () => {
    const files = new Map<string, SimulatedFile>();
    const options = { virtualBytes: MIB, options: { subformat: "streamOptimized" } };
    {
      await using image = await vmdk.create!(simulatedSource(files, "disk.vmdk"), options);
      await image.write(0, new Uint8Array(4 * GRAIN_BYTES).fill(7));
    }
    await assert.rejects(vmdk.open(simulatedSource(files, "disk.vmdk"), noParent), /footer/);
  });
});

test("options that make no sense are refused, and no file is made", async () => {
  const wrong: readonly Options[] = [
    { subformat: "seSparse" },
    { subformat: "monolithicFlat", zeroed_grain: "on" },
    { subformat: "twoGbMaxExtentFlat", backing_file: "base.vmdk" },
    { adapter_type: "scsi" },
    { hwversion: "4\nRW" },
    { backing_file: 'a"b' },
    { backing_fmt: "raw" },
    { cluster_size: "65536" },
  ];
  for (const options of wrong) {
    const files = new Map<string, SimulatedFile>();
    await assert.rejects(
      vmdk.create!(simulatedSource(files, "disk.vmdk"), { virtualBytes: MIB, options }),
      (error) => error instanceof DiskError && error.kind === "usage",
      JSON.stringify(options),
    );
    assert.equal(files.size, 0);
  }
});

test("the raw content of a disk converted by QEMU to a stream is the disk's", async (t) => {
  if (!requires(t, "qemu-img")) return;
  const { files, content } = await made({}, 2 * MIB);
  const path = await saved(t, files);
  const stream = join(path, "..", "stream.vmdk");
  run("qemu-img", ["convert", "-f", "vmdk", "-O", "vmdk", "-o", "subformat=streamOptimized", path, stream]);
  assert.ok(readFileSync(stream).length > 0);
  const all = await filesIn(join(path, ".."));
  await using image = await vmdk.open(simulatedSource(all, "stream.vmdk"), noParent);
  for await (const { message } of image.check()) assert.fail(message);
  assert.deepEqual(Buffer.from(await readBytes(image, 0, image.bytes)), Buffer.from(content));
});
