/**
 * Differencing disks: how the parent is found and known, and that nothing of it comes to light again (H9). QEMU cannot
 * read them; the model is the content that was written.
 */
import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { ExtentSet } from "../../bytes/extents.ts";
import { readBytes, wholeMap } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { execute } from "../../reclaim/execute.ts";
import { Random } from "../../testing/seeds.ts";
import type { SimulatedFile } from "../../testing/simulated-file.ts";
import { simulatedSource } from "../../testing/simulated-source.ts";
import { createVhdx, makeDifferencing, vhdxParents } from "../../testing/vhdx-kinds.ts";
import type { OpenParent } from "../format.ts";
import { vhdx } from "../vhdx.ts";
import { encodeLocator, openLinked, parseLocator, referencesOf } from "./locator.ts";
import { MIB, ParentLocatorEntry, ParentLocatorHeader } from "./structures.ts";

const LINKAGE = "83ed0ec3-24c8-49a6-a959-5e4bf1288bfb";

/** A locator with the given keys and values. */
function locator(pairs: Readonly<Record<string, string>>): Uint8Array {
  const item = encodeLocator("x", LINKAGE).slice(0, ParentLocatorHeader.bytes);
  const entries: Uint8Array[] = [];
  const texts: Buffer[] = [];
  const list = Object.entries(pairs);
  let at = ParentLocatorHeader.bytes + list.length * ParentLocatorEntry.bytes;
  for (const [key, value] of list) {
    const [k, v] = [Buffer.from(key, "utf16le"), Buffer.from(value, "utf16le")];
    const entry = new Uint8Array(ParentLocatorEntry.bytes);
    const lengths = { keyLength: k.length, valueLength: v.length };
    ParentLocatorEntry.encode({ keyOffset: at, valueOffset: at + k.length, ...lengths }, entry);
    entries.push(entry);
    texts.push(k, v);
    at += k.length + v.length;
  }
  ParentLocatorHeader.encode({ keyValueCount: list.length }, item);
  return new Uint8Array(Buffer.concat([item, ...entries, ...texts]));
}

suite("the parent locator", () => {
  test("what we write, we read", () => {
    assert.deepEqual(parseLocator(encodeLocator("base.vhdx", LINKAGE), 0), {
      linkages: [LINKAGE],
      names: ["base.vhdx"],
    });
    assert.deepEqual(parseLocator(encodeLocator("../a/base.vhdx", LINKAGE), 0).names, [
      "../a/base.vhdx",
      "base.vhdx",
    ]);
  });

  test("paths of Windows become names beside the child; identifiers may be in capitals", () => {
    const parsed = parseLocator(
      locator({
        absolute_win32_path: "\\\\?\\D:\\vm\\other.vhdx",
        volume_path: "\\\\?\\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\\vm\\parent.vhdx",
        relative_path: ".\\..\\disks\\parent.vhdx",
        parent_linkage: `{${LINKAGE.toUpperCase()}}`,
        parent_linkage2: LINKAGE.replace("8", "9"),
      }),
      0,
    );
    assert.deepEqual(parsed.names, ["../disks/parent.vhdx", "parent.vhdx", "other.vhdx"]);
    assert.deepEqual(parsed.linkages, [LINKAGE, LINKAGE.replace("8", "9")]);
    assert.equal(referencesOf(parsed).length, 6, "each name with each identifier (H33)");
    const backing = { role: "backing", name: "../disks/parent.vhdx", format: "vhdx", id: LINKAGE };
    assert.deepEqual(referencesOf(parsed)[0], backing);
  });

  test("what names nobody", () => {
    const link = { parent_linkage: `{${LINKAGE}}` };
    const cases: readonly (readonly [Uint8Array, RegExp])[] = [
      [locator({ ...link, relative_path: "\0" }), /no path/],
      [locator(link), /no path/],
      [locator({ relative_path: "a" }), /no parent_linkage/],
      [locator({ parent_linkage: "{1}", relative_path: "a" }), /a GUID/],
      [locator({ ...link, relative_path: "a" }).subarray(0, -1), /text at/],
      [locator({ ...link, relative_path: "a" }).subarray(0, 30), /cut short/],
    ];
    for (const [item, message] of cases) {
      assert.throws(() => parseLocator(item, 0), { name: "DiskError", kind: "corrupt", message });
    }
    const twice = locator({ ...link, parent_linkagf: `{${LINKAGE}}` });
    const text = Buffer.from(twice.buffer, twice.byteOffset, twice.length).indexOf(
      "parent_linkagf",
      "utf16le",
    );
    twice[text + 26] = "e".charCodeAt(0);
    assert.throws(() => parseLocator(twice, 0), { kind: "corrupt", message: /parent_linkage twice/ });
    const many = locator({ ...link, relative_path: "a" });
    ParentLocatorHeader.encode({ keyValueCount: 65 }, many);
    assert.throws(() => parseLocator(many, 0), { kind: "corrupt", message: /KeyValueCount/ });
    const other = locator({ ...link, relative_path: "a" });
    other[0]! ^= 1;
    assert.throws(() => parseLocator(other, 0), { kind: "unsupported", message: /parent locator of type/ });
  });
});

suite("finding the parent", () => {
  const open = (files: Map<string, SimulatedFile>, parents: OpenParent = vhdxParents(files)) =>
    vhdx.open(simulatedSource(files, "child.vhdx"), parents);

  test("by any of its names; others are passed over", async () => {
    const { files } = await makeDifferencing(new Random(1), 512);
    const found = parseLocator(encodeLocator("parent.vhdx", LINKAGE), 0);
    await using parent = await vhdxParents(files)("parent.vhdx", "vhdx");
    const link = {
      linkages: parent.identifiers!,
      names: ["../outside/parent.vhdx", "gone.vhdx", ...found.names],
    };
    await using again = await openLinked(link, vhdxParents(files));
    assert.deepEqual(again.identifiers, parent.identifiers);
  });

  test("that is missing, or forbidden", async () => {
    const { files } = await makeDifferencing(new Random(1), 512);
    const alone = new Map([["child.vhdx", files.get("child.vhdx")!]]);
    await assert.rejects(open(alone), (error) => {
      assert.ok(error instanceof DiskError);
      assert.deepEqual([error.kind, error.code], ["refused", "parent-missing"]);
      assert.match(error.message, /"parent.vhdx"/);
      assert.match(error.hint!, /beside this image/);
      return true;
    });
    const forbid = () => Promise.reject(new DiskError("refused", "not without consent", { code: "consent" }));
    await assert.rejects(open(files, forbid), { kind: "refused", code: "consent" });
  });

  test("that was changed since", async () => {
    const { files } = await makeDifferencing(new Random(1), 512);
    const parent = await vhdx.openWritable!(simulatedSource(files, "parent.vhdx"), vhdxParents(files));
    await parent.write(0, new Uint8Array(512));
    await parent[Symbol.asyncDispose]();
    await assert.rejects(open(files), { kind: "refused", code: "parent-changed" });
  });

  test("whose sectors have another length", async () => {
    const { files } = await makeDifferencing(new Random(1), 512);
    const parents: OpenParent = async (name) => {
      const parent = await vhdxParents(files)(name, "vhdx");
      return Object.defineProperty(parent, "details", { value: {} });
    };
    await assert.rejects(open(files, parents), { kind: "corrupt", message: /logical sectors/ });
  });

  test("its names and identifier are told without opening it (H33)", async () => {
    const { files } = await makeDifferencing(new Random(1), 512);
    await using parent = await vhdxParents(files)("parent.vhdx", "vhdx");
    const alone = new Map([["child.vhdx", files.get("child.vhdx")!]]);
    assert.deepEqual(await vhdx.references(simulatedSource(alone, "child.vhdx")), [
      { role: "backing", name: "parent.vhdx", format: "vhdx", id: parent.identifiers![0] },
    ]);
    assert.deepEqual(await vhdx.references(simulatedSource(files, "parent.vhdx")), []);
  });
});

test("what a child gives back reads zeros or as before, never the parent (H9)", async () => {
  const { files, content } = await makeDifferencing(new Random(3), 512);
  const source = simulatedSource(files, "child.vhdx");
  {
    await using child = await vhdx.openWritable!(source, vhdxParents(files));
    const plan = await child.plan({
      free: ExtentSet.of({ start: 0, end: child.bytes }),
      blank: ExtentSet.EMPTY,
      pack: true,
      punch: false,
      minHoleBytes: 4096,
      hostBlockBytes: 4096,
    });
    assert.equal(plan.unmapBytes, 2 * MIB);
    await execute(plan, child.files);
  }
  await using child = await vhdx.open(source, vhdxParents(files));
  assert.deepEqual(await readBytes(child, 0, MIB), content.subarray(0, MIB), "block 0 was never the child's");
  assert.ok((await readBytes(child, MIB, 3 * MIB)).every((byte) => byte === 0));
  const kinds = (await wholeMap(child)).map(({ start, kind, depth }) => [start / MIB, kind, depth]);
  assert.deepEqual(kinds, [
    [0, "data", 1],
    [1, "zero", 0],
  ]);
});

test("a block in part that packing moves stays one", async () => {
  const { files, content } = await makeDifferencing(new Random(6), 512);
  const source = simulatedSource(files, "child.vhdx");
  {
    await using child = await vhdx.openWritable!(source, vhdxParents(files));
    const wish = {
      blank: ExtentSet.EMPTY,
      pack: true,
      punch: false,
      minHoleBytes: 4096,
      hostBlockBytes: 4096,
    };
    const plan = await child.plan({ ...wish, free: ExtentSet.of({ start: MIB, end: 2 * MIB }) });
    assert.equal(plan.packBytes, MIB);
    await execute(plan, child.files);
  }
  content.fill(0, MIB, 2 * MIB);
  await using child = await vhdx.open(source, vhdxParents(files));
  assert.deepEqual(await readBytes(child, 0, child.bytes), content);
});

test("a block in part that is written becomes whole, and its parent's sectors are the child's", async () => {
  const { files, content } = await makeDifferencing(new Random(4), 4096);
  const source = simulatedSource(files, "child.vhdx");
  {
    await using child = await vhdx.openWritable!(source, vhdxParents(files));
    await child.write(2 * MIB + 512, new Uint8Array(1000).fill(7));
    content.fill(7, 2 * MIB + 512, 2 * MIB + 1512);
    assert.deepEqual(await readBytes(child, 0, child.bytes), content);
  }
  await using child = await vhdx.open(source, vhdxParents(files));
  assert.deepEqual(await readBytes(child, 0, child.bytes), content);
  assert.ok((await wholeMap(child, { start: 2 * MIB, end: 3 * MIB })).every(({ depth }) => depth === 0));
});

test("a chain of three", async () => {
  const { files, content } = await makeDifferencing(new Random(5), 512);
  const above = { block_size: "2M", backing_file: "child.vhdx" };
  await createVhdx(files, "top.vhdx", above, (image) => image.write(100, new Uint8Array(50).fill(9)));
  content.fill(9, 100, 150);
  await using top = await vhdx.open(simulatedSource(files, "top.vhdx"), vhdxParents(files));
  assert.deepEqual(await readBytes(top, 0, top.bytes), content);
  assert.equal(top.parent?.parent?.details["type"], "dynamic");
  assert.equal(top.details["virtualDiskId"], top.parent?.parent?.details["virtualDiskId"], "the same disk");
});

test("a child is made of a VHDX file with sectors as long as its own", async () => {
  const files = new Map<string, SimulatedFile>();
  await createVhdx(files, "base.vhdx", { logical_sector_size: "4096" }, async () => {});
  const options = { backing_file: "base.vhdx" };
  const made = vhdx.create!(
    simulatedSource(files, "child.vhdx"),
    { virtualBytes: MIB, options },
    vhdxParents(files),
  );
  await assert.rejects(made, { kind: "usage", message: /logical_sector_size 512: the parent has 4096/ });
  assert.ok(!files.has("child.vhdx"));
});
