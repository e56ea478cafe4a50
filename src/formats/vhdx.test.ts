/**
 * VHDX against QEMU and against files of Windows: reading, making, writing, giving back; and what is refused.
 */
import assert from "node:assert/strict";
import { statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite, test } from "node:test";
import { ExtentSet } from "../bytes/extents.ts";
import { type BlockDevice, readBytes, wholeMap } from "../device/device.ts";
import { execute } from "../reclaim/execute.ts";
import type { Wish } from "../reclaim/plan.ts";
import { corpusFiles, unpack } from "../testing/corpus.ts";
import { fileDevice } from "../testing/file-device.ts";
import { Random } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { simulatedSource, sourceOf } from "../testing/simulated-source.ts";
import { attempt, requires, run, scratch } from "../testing/tools.ts";
import { createVhdx, makeVhdx, vhdxContent } from "../testing/vhdx-kinds.ts";
import type { Image, WritableImage } from "./format.ts";
import { vhdx } from "./vhdx.ts";

const MIB = 1024 * 1024;
const noParent = () => Promise.reject(new Error("there is no parent"));

suite("images of other tools", () => {
  for (const name of corpusFiles(/\.vhdx\.\w+$/)) {
    // Waiting logs have a test of their own; the two largest hold nothing that the others lack.
    if (/log-replay|dirtylog|lvm2|xfs\.vhdx/.test(name)) continue;
    test(`${name}: the guest reads what QEMU reads`, async (t) => {
      if (!requires(t, "qemu-img")) return;
      const path = unpack(t, name);
      const raw = join(scratch(t), "guest.raw");
      run("qemu-img", ["convert", "-t", "unsafe", "-f", "vhdx", "-O", "raw", path, raw]);
      await using guest = await fileDevice(raw);
      await using image = await openFile(path);
      assert.equal(image.bytes, guest.bytes);
      for await (const { message } of image.check()) assert.fail(message);
      await mustEqualGuest(image, guest);
    });
  }
});

async function openFile(path: string): Promise<Image> {
  const device = await fileDevice(path);
  const { blocks, size } = statSync(path);
  const file = {
    ...device,
    stat: async () => ({ fileBytes: size, hostBytes: blocks * 512, blockBytes: 4096, identity: path }),
  };
  const open = async () => file;
  const refer = async () => source;
  const source = { name: path, open, refer };
  return vhdx.open(source, noParent);
}

/** All data; of the rest, which may be terabytes, a sample. */
async function mustEqualGuest(image: Image, guest: BlockDevice): Promise<void> {
  const random = new Random(1);
  const compare = async (at: number, bytes: number) => {
    const [found, expected] = [await readBytes(image, at, bytes), await readBytes(guest, at, bytes)];
    assert.ok(Buffer.compare(found, expected) === 0, `${bytes} bytes at ${at}`);
  };
  for (const { start, end, kind } of await wholeMap(image)) {
    const step = kind === "data" ? MIB : Math.ceil((end - start) / 50 / 4096) * 4096;
    for (let at = start; at < end; at += step) {
      await compare(at, Math.min(end - at, kind === "data" ? MIB : 4096));
    }
  }
  for (let i = 0; i < 100; i++) await compare(random.below(image.bytes / 4096) * 4096, 4096);
}

const WAYS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  dynamic: { block_size: "1M" },
  fixed: { subformat: "fixed", block_size: "1M" },
  "dynamic, 2 MiB blocks, 4 MiB of log": { block_size: "2M", log_size: "4M" },
  "dynamic, 32 MiB blocks": { block_size: "32M" },
};

suite("images of our own", () => {
  for (const [name, options] of Object.entries(WAYS)) {
    test(`${name}: QEMU finds them whole and reads what was written`, async (t) => {
      if (!requires(t, "qemu-img")) return;
      const random = new Random(1);
      const folder = scratch(t);
      const content = new Uint8Array(5 * MIB);
      const files = new Map<string, SimulatedFile>();
      const fill = async (image: WritableImage) => {
        for (let i = 0; i < 12; i++) {
          const at = random.below(content.length / 512) * 512;
          const data = random.bytes(Math.min(content.length - at, 512 * random.between(1, 900)));
          content.set(data, at);
          await image.write(at, data);
        }
      };
      await createVhdx(files, "disk.vhdx", options, fill, content.length);
      const path = join(folder, "disk.vhdx");
      await files.get("disk.vhdx")!.save(path);
      mustBeWhole(path);
      assert.ok(vhdxContent(path).equals(content));
    });
  }

  test("sectors of 4 KiB, which QEMU refuses to read", async (t) => {
    const files = new Map<string, SimulatedFile>();
    const data = new Random(1).bytes(MIB);
    const options = { block_size: "1M", logical_sector_size: "4096" };
    await createVhdx(files, "disk.vhdx", options, (image) => image.write(MIB, data));
    await using image = await vhdx.open(simulatedSource(files, "disk.vhdx"), noParent);
    assert.equal(image.details["logicalSectorBytes"], 4096);
    assert.deepEqual(await readBytes(image, MIB, MIB), data);
    if (!requires(t, "qemu-img")) return;
    const path = join(scratch(t), "disk.vhdx");
    await files.get("disk.vhdx")!.save(path);
    assert.notEqual(attempt("qemu-img", ["check", "-f", "vhdx", path]).status, 0);
  });

  test("sizes at the edges of a chunk, whose sector bitmap has an entry of its own", async (t) => {
    if (!requires(t, "qemu-img", "qemu-io")) return;
    const folder = scratch(t);
    for (const bytes of [4096 * MIB, 4097 * MIB, 8193 * MIB]) {
      const files = new Map<string, SimulatedFile>();
      const data = new Random(bytes).bytes(4096);
      const places = [0, 4095 * MIB, bytes - 4096];
      const fill = async (image: WritableImage) => {
        for (const at of places) await image.write(at, data);
      };
      await createVhdx(files, "disk.vhdx", { block_size: "1M" }, fill, bytes);
      const path = join(folder, `${bytes}.vhdx`);
      await files.get("disk.vhdx")!.save(path);
      mustBeWhole(path);
      writeFileSync(join(folder, "data"), data);
      for (const at of places) {
        run("qemu-img", [
          "dd",
          "-f",
          "vhdx",
          "-O",
          "raw",
          "bs=4096",
          `skip=${at / 4096}`,
          `count=${at / 4096 + 1}`,
          `if=${path}`,
          `of=${path}.part`,
        ]);
        run("cmp", [join(folder, "data"), `${path}.part`]);
      }
    }
  });

  test("options that make no image", async () => {
    const cases: readonly (readonly [Readonly<Record<string, string>>, RegExp])[] = [
      [{ subformat: "sparse" }, /subformat "sparse"/],
      [{ block_size: "3M" }, /block_size/],
      [{ block_size: "512M" }, /block_size/],
      [{ block_size: "512k" }, /block_size/],
      [{ log_size: "65M" }, /log_size/],
      [{ logical_sector_size: "1024" }, /logical_sector_size/],
      [{ cluster_size: "1M" }, /no option "cluster_size"/],
      [{ backing_file: "p", backing_fmt: "qcow2" }, /backing_fmt/],
      [{ backing_file: "p", subformat: "fixed" }, /subformat/],
    ];
    for (const [options, message] of cases) {
      const files = new Map<string, SimulatedFile>();
      const made = vhdx.create!(
        simulatedSource(files, "disk.vhdx"),
        { virtualBytes: MIB, options },
        noParent,
      );
      await assert.rejects(made, { kind: "usage", message });
      assert.equal(files.size, 0, "no file was made");
    }
    const large = vhdx.create!(simulatedSource(new Map(), "disk"), {
      virtualBytes: 2 ** 46 + 1,
      options: {},
    });
    await assert.rejects(large, { kind: "usage", message: /64 TiB/ });
  });
});

/** QEMU checks the log and that blocks lie in the file. */
function mustBeWhole(path: string): void {
  const { status, stdout, stderr } = attempt("qemu-img", ["check", "-f", "vhdx", path]);
  assert.equal(status, 0, stdout + stderr);
}

function wishFor(image: Image, more: Partial<Wish>): Wish {
  return {
    free: ExtentSet.of({ start: 0, end: image.bytes }),
    blank: ExtentSet.EMPTY,
    pack: false,
    punch: true,
    minHoleBytes: 4096,
    hostBlockBytes: 4096,
    ...more,
  };
}

async function reclaim(file: SimulatedFile, more: Partial<Wish>): Promise<void> {
  await using image = await vhdx.openWritable!(sourceOf(file), noParent);
  await execute(await image.plan(wishFor(image, more)), image.files);
}

suite("giving back", () => {
  for (const pack of [false, true]) {
    test(`what ${pack ? "packing" : "punching"} leaves, QEMU reads, and writes to`, async (t) => {
      if (!requires(t, "qemu-img", "qemu-io")) return;
      const random = new Random(2);
      const path = makeVhdx(scratch(t), { block_size: "1M" }, random, 16 * MIB);
      const content = vhdxContent(path);
      const file = await SimulatedFile.load(path);
      const free = ExtentSet.of({ start: MIB, end: 3 * MIB }, { start: 5 * MIB, end: 9 * MIB + 70_000 });
      await reclaim(file, { free, pack, punch: !pack });
      await file.save(path);
      mustBeWhole(path);
      const now = vhdxContent(path);
      for (const { start, end } of ExtentSet.of({ start: 0, end: content.length }).subtract(free)) {
        assert.ok(now.subarray(start, end).equals(content.subarray(start, end)));
      }
      assert.ok(
        now.subarray(MIB, 3 * MIB).every((byte) => byte === 0),
        "ZERO is a promise (H9)",
      );
      run("qemu-io", ["-t", "unsafe", "-f", "vhdx", "-c", "write -P 7 2M 4M", path]);
      now.fill(7, 2 * MIB, 6 * MIB);
      mustBeWhole(path);
      const after = await SimulatedFile.load(path);
      await using image = await vhdx.open(sourceOf(after), noParent);
      assert.ok(Buffer.from(await readBytes(image, 0, image.bytes)).equals(now));
    });
  }

  test("children must not take a changed parent for the one that they knew (DataWriteGuid)", async () => {
    const files = new Map<string, SimulatedFile>();
    await createVhdx(files, "disk.vhdx", { block_size: "1M" }, (image) =>
      image.write(0, new Uint8Array(MIB).fill(1)),
    );
    const file = files.get("disk.vhdx")!.fork();
    const id = async (of: SimulatedFile): Promise<string | undefined> => {
      await using image = await vhdx.open(sourceOf(of), noParent);
      return image.identifiers?.[0];
    };
    const before = await id(file);
    const kept = file.fork();
    await reclaim(kept, { keepIdentity: true });
    assert.equal(await id(kept), before, "whoever vouches for the children keeps it");
    await reclaim(file, {});
    assert.notEqual(await id(file), before);
    const written = files.get("disk.vhdx")!.fork();
    {
      await using image = await vhdx.openWritable!(sourceOf(written), noParent);
      await readBytes(image, 0, 512);
    }
    assert.equal(await id(written), before, "opening alone changes nothing");
    {
      await using image = await vhdx.openWritable!(sourceOf(written), noParent);
      await image.write(0, new Uint8Array(512));
    }
    assert.notEqual(await id(written), before);
  });

  test("a fixed disk keeps its length and its blocks", async () => {
    const files = new Map<string, SimulatedFile>();
    const options = { subformat: "fixed", block_size: "1M" };
    await createVhdx(files, "disk.vhdx", options, (image) => image.write(0, new Uint8Array(4 * MIB).fill(1)));
    const file = files.get("disk.vhdx")!.fork();
    for (const pack of [false, true]) {
      const length = file.bytes;
      await reclaim(file, { pack });
      assert.equal(file.bytes, length);
      await using image = await vhdx.open(sourceOf(file), noParent);
      assert.ok(
        (await wholeMap(image)).every(({ kind }) => kind === "data"),
        "every block is present",
      );
    }
    assert.ok(file.hostBytes < MIB, `${file.hostBytes} bytes are left at the host`);
  });
});
