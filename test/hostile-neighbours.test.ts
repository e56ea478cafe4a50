/**
 * Parents and children whose files were made to mislead.
 */
import assert from "node:assert/strict";
import { appendFileSync, copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { create, reclaim, survey } from "../src/disk.ts";
import type { Source } from "../src/device/source.ts";
import { parentsOf } from "../src/disk/open.ts";
import { DiskError } from "../src/error.ts";
import { Header } from "../src/formats/vhd/header.ts";
import { scratch } from "../src/testing/tools.ts";

const MIB = 2 ** 20;

test("H33: a child stays a child when its guest writes another format's signature", async (t) => {
  const folder = scratch(t);
  const path = (name: string) => join(folder, name);
  await create({ path: path("base.vdi"), format: "vdi", virtualBytes: MIB });
  const options = { backing_file: "base.vdi" };
  await create({ path: path("child.vdi"), format: "vdi", virtualBytes: MIB, options });
  const fixed = { subformat: "fixed" };
  await create({ path: path("fixed.vhd"), format: "vhd", virtualBytes: MIB, options: fixed });
  // The last sector of an image that grows belongs to the guest: here it is the whole footer of a VHD.
  appendFileSync(path("child.vdi"), readFileSync(path("fixed.vhd")).subarray(-512));
  await assert.rejects(reclaim(path("base.vdi")), { kind: "refused", code: "has-children" });
});

test("H24: several names for each parent do not multiply", { timeout: 60_000 }, async (t) => {
  const folder = scratch(t);
  const path = (name: string) => join(folder, name);
  await create({ path: path("a.vhd"), format: "vhd", virtualBytes: MIB });
  const options = { backing_file: "a.vhd" };
  await create({ path: path("child.vhd"), format: "vhd", virtualBytes: MIB, options });
  const child = readFileSync(path("child.vhd"));
  child.set(Buffer.from("b.vhd", "utf16le").swap16(), 512 + Header.at.parentUnicodeName);
  writeFileSync(path("child.vhd"), child);
  for (const copy of ["a.vhd", "b.vhd"]) copyFileSync(path("child.vhd"), path(copy));
  await assert.rejects(survey(path("child.vhd")), { kind: "refused" });
});

test("H24: the names that are tried are counted", async () => {
  let tried = 0;
  const refer = (name: string) => Promise.reject(new DiskError("io", `${name}: ${tried++}`));
  const openParent = parentsOf({ refer } as unknown as Source);
  for (let i = 0; i < 2000; i++) await assert.rejects(openParent("name", "vhd"), DiskError);
  assert.equal(tried, 800);
});
