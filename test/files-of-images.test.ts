/**
 * Images of several files: none is freed, nor replaced, on the word of an image that shares it with another.
 */
import assert from "node:assert/strict";
import { existsSync, linkSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { convert, create, reclaim } from "../src/disk.ts";
import { openWritable } from "../src/disk/open.ts";
import { Random } from "../src/testing/seeds.ts";
import { scratch } from "../src/testing/tools.ts";

const MIB = 2 ** 20;
const yes = { confirm: async () => true };

const descriptor = (...lines: string[]): string =>
  ["# Disk DescriptorFile", "version=1", "CID=12345678", ...lines, ""].join("\n");

test("an extent that another image names too is not freed (H33)", async (t) => {
  const folder = scratch(t);
  writeFileSync(join(folder, "flat.raw"), Buffer.alloc(MIB));
  const text = descriptor("parentCID=ffffffff", 'createType="custom"', 'RW 2048 FLAT "flat.raw" 0');
  for (const name of ["one.vmdk", "two.vmdk"]) writeFileSync(join(folder, name), text);
  await assert.rejects(reclaim(join(folder, "one.vmdk"), yes), { kind: "refused", code: "has-children" });
});

test("an extent that the disk's parent is made of is not written (H33)", async (t) => {
  const folder = scratch(t);
  for (const name of ["own.raw", "shared.raw"]) writeFileSync(join(folder, name), Buffer.alloc(MIB));
  await create({ path: join(folder, "upper.vmdk"), format: "vmdk", virtualBytes: MIB });
  const base = ['createType="custom"', 'RW 2048 FLAT "own.raw" 0', 'RW 2048 FLAT "shared.raw" 0'];
  writeFileSync(join(folder, "base.vmdk"), descriptor("parentCID=ffffffff", ...base));
  const parent = ["parentCID=12345678", 'parentFileNameHint="base.vmdk"', 'createType="custom"'];
  const extents = ['RW 2048 FLAT "shared.raw" 0', 'RW 2048 SPARSE "upper.vmdk"'];
  writeFileSync(join(folder, "child.vmdk"), descriptor(...parent, ...extents));
  await assert.rejects(openWritable(join(folder, "child.vmdk")), {
    kind: "corrupt",
    message: /shared\.raw/,
  });
});

test("bands that are one file are not written", async (t) => {
  const path = join(scratch(t), "disk.sparsebundle");
  await create({ path, format: "sparsebundle", virtualBytes: 2 * MIB, options: { "band-size": "65536" } });
  writeFileSync(join(path, "bands/0"), new Random(1).bytes(65_536));
  linkSync(join(path, "bands/0"), join(path, "bands/1f"));
  await assert.rejects(openWritable(path), { kind: "corrupt", message: /bands\/1f/ });
});

test("--force replaces no file but those of the image that is named", async (t) => {
  const folder = scratch(t);
  const content = Buffer.from(new Random(2).bytes(MIB));
  const flat = join(folder, "copy-flat.vmdk");
  const copy = join(folder, "copy.vmdk");
  const options = { force: true, includeFree: true, options: { subformat: "monolithicFlat" } };
  writeFileSync(flat, content);
  await assert.rejects(convert(flat, copy, { ...options, format: "raw" }), { kind: "usage" });
  const other = join(folder, "other.raw");
  writeFileSync(other, Buffer.alloc(MIB, 1));
  await assert.rejects(convert(other, copy, { ...options, format: "raw" }), { kind: "usage" });
  assert.ok(readFileSync(flat).equals(content));
  assert.equal(existsSync(copy), false);
  writeFileSync(
    copy,
    descriptor("parentCID=ffffffff", 'createType="custom"', 'RW 2048 FLAT "copy-flat.vmdk" 0'),
  );
  await convert(other, copy, { ...options, format: "raw" });
  assert.ok(readFileSync(flat).equals(Buffer.alloc(MIB, 1)), "the old image's own");
});

test("--force does not replace a bundle by a copy of what lies in it", async (t) => {
  const path = join(scratch(t), "disk.sparsebundle");
  await create({ path, format: "sparsebundle", virtualBytes: MIB, options: { "band-size": "65536" } });
  writeFileSync(join(path, "bands/3"), new Random(3).bytes(65_536));
  for (const source of [path, join(path, "bands/3")]) {
    await assert.rejects(convert(source, path, { force: true, includeFree: true }), {
      kind: "usage",
      message: /the source is made of it/,
    });
  }
  assert.ok(existsSync(join(path, "bands/3")));
});
