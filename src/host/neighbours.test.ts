import assert from "node:assert/strict";
import { linkSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { requires, run, scratch } from "../testing/tools.ts";
import { leadsTo, siblings } from "./neighbours.ts";
import { hostSource } from "./source.ts";

async function names(path: string): Promise<string[]> {
  const found: string[] = [];
  for await (const sibling of siblings(path)) found.push(sibling.path);
  return found.toSorted();
}

test("siblings are the regular files beside an image, without itself by any name (H33)", async (t) => {
  if (!requires(t, "mkfifo")) return;
  const folder = scratch(t);
  for (const name of ["disk", "child", ".hidden"]) writeFileSync(join(folder, name), name);
  mkdirSync(join(folder, "sub"));
  writeFileSync(join(folder, "sub/deep"), "");
  linkSync(join(folder, "disk"), join(folder, "same"));
  symlinkSync("child", join(folder, "link"));
  run("mkfifo", [join(folder, "fifo")]);
  const expected = [join(folder, ".hidden"), join(folder, "child")];
  assert.deepEqual(await names(join(folder, "disk")), expected);

  const elsewhere = scratch(t);
  writeFileSync(join(elsewhere, "other"), "");
  symlinkSync(join(folder, "disk"), join(elsewhere, "disk"));
  assert.deepEqual(
    await names(join(elsewhere, "disk")),
    [...expected, join(elsewhere, "other")].toSorted(),
    "a link's directory and the real one",
  );
});

test("a missing directory is an error, not an empty one", async (t) => {
  await assert.rejects(names(join(scratch(t), "no/disk")), { kind: "io", code: "not-found" });
});

test("a parent's name leads to a file however it is spelt (H33)", async (t) => {
  const folder = scratch(t);
  mkdirSync(join(folder, "sub"));
  for (const name of ["base", "other", "sub/child"]) writeFileSync(join(folder, name), name);
  symlinkSync("base", join(folder, "link"));
  await using base = await hostSource(join(folder, "base")).open();
  const identities = new Set([(await base.stat()).identity]);
  const child = hostSource(join(folder, "sub/child"));
  for (const name of [
    "../base",
    `${folder}/base`,
    "../link",
    "file:../base",
    `file:${folder}/base`,
    `file://${folder}/base`,
    'json:{"driver":"qcow2","file":{"driver":"file","filename":"../base"}}',
    'json:{ "file.filename" : "..\\/base" }',
  ]) {
    assert.equal(leadsTo(child, name, identities), true, name);
  }
  for (const name of ["../other", "base", "", "../base\0", "json:{", "json:{}", "nbd:localhost:1", "child"]) {
    assert.equal(leadsTo(child, name, identities), false, name);
  }
});
