import assert from "node:assert/strict";
import { mkdirSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { readBytes } from "../device/device.ts";
import type { Source } from "../device/source.ts";
import { run, scratch } from "../testing/tools.ts";
import { inUse } from "./inuse.ts";
import { hostSource } from "./source.ts";

/**
 *   bundle/Info, bundle/bands/{0,1f}          its own
 *   bundle/away → ../secret, door → ..        links and a FIFO
 *   secret
 */
function bundle(t: TestContext): string {
  const root = scratch(t);
  mkdirSync(join(root, "bundle/bands"), { recursive: true });
  for (const file of ["secret", "bundle/Info", "bundle/bands/1f", "bundle/bands/0"]) {
    writeFileSync(join(root, file), file);
  }
  symlinkSync("../secret", join(root, "bundle/away"));
  symlinkSync("..", join(root, "bundle/door"));
  run("mkfifo", [join(root, "bundle/fifo")]);
  return join(root, "bundle");
}

async function content(source: Source): Promise<string> {
  await using file = await source.open();
  return Buffer.from(await readBytes(file, 0, file.bytes)).toString();
}

const OUTSIDE = { kind: "refused", code: "outside" };
const NOT_FOUND = { kind: "io", code: "not-found" };

test("a folder lists and opens its own plain files", async (t) => {
  const folder = hostSource(bundle(t)).folder!;
  assert.deepEqual(await folder.list(""), ["Info"]);
  assert.deepEqual(await folder.list("bands"), ["0", "1f"]);
  assert.deepEqual(await folder.list("missing"), []);
  assert.equal(await content(folder.file("bands/1f")), "bundle/bands/1f");
  await assert.rejects(folder.file("bands/2").open(), NOT_FOUND);
  await assert.rejects(folder.file("missing/2").open(), NOT_FOUND);
});

test("what is no plain file among the bands is refused: passed over, it would read as zeros", async (t) => {
  const path = bundle(t);
  symlinkSync("../../secret", join(path, "bands/2"));
  await assert.rejects(hostSource(path).folder!.list("bands"), { ...OUTSIDE, message: /bands\/2/ });
});

test("nothing leads out of a folder (H22)", async (t) => {
  const path = bundle(t);
  const folder = hostSource(path, { outside: [join(path, "..")] }).folder!;
  for (const name of [
    "../secret",
    "away",
    "door/secret",
    "fifo",
    join(path, "../secret"),
    "bands/../Info",
    "",
  ]) {
    await assert.rejects(folder.file(name).open(), OUTSIDE, name);
    await assert.rejects(folder.file(name).openWritable!(), OUTSIDE, name);
  }
  for (const name of ["../new", "door/new", "/new", "a\0b"]) {
    await assert.rejects(folder.file(name).create!(), OUTSIDE, name);
    await assert.rejects(folder.remove!(name), OUTSIDE, name);
  }
  await assert.rejects(folder.list("door"), OUTSIDE);
  await assert.rejects(folder.list(".."), OUTSIDE);
});

test("files of a folder are made, locked and removed", async (t) => {
  const path = bundle(t);
  const folder = hostSource(path).folder!;
  {
    await using made = await folder.file("bands/2").create!();
    await made.write(0, Buffer.from("new"));
    await assert.rejects(folder.file("bands/2").create!(), { kind: "usage" });
    await assert.rejects(folder.file("bands/2").openWritable!(), { kind: "busy" });
  }
  assert.equal(await content(folder.file("bands/2")), "new");
  await folder.remove!("bands/2");
  assert.deepEqual(readdirSync(join(path, "bands")), ["0", "1f"]);
  await assert.rejects(folder.remove!("bands/2"), NOT_FOUND);
});

test("a folder is made once, with those below it", async (t) => {
  const path = join(scratch(t), "new");
  const source = hostSource(path);
  assert.equal(source.folder, undefined);
  await source.makeFolder!(["bands"]);
  assert.deepEqual(readdirSync(path), ["bands"]);
  await assert.rejects(source.makeFolder!(["bands"]), { kind: "usage" });
});

test("a folder is in use while one of its own files is", async (t) => {
  const path = bundle(t);
  assert.equal(await inUse(path), false);
  await using _held = await hostSource(path).folder!.file("Info").openWritable!();
  assert.equal(await inUse(path), true);
});
