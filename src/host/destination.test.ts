import assert from "node:assert/strict";
import fs, {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { DiskError } from "../error.ts";
import { attempt, scratch } from "../testing/tools.ts";
import { Destination, occupantOf, sweep } from "./destination.ts";

const anew = { replaces: false };
const inPlace = { replaces: true };

test("nothing is at the destination until it is published, and nothing beside it afterwards", (t) => {
  const folder = scratch(t);
  const path = join(folder, "disk.vmdk");
  {
    using destination = new Destination(path, anew);
    writeFileSync(destination.draft, "descriptor");
    writeFileSync(join(dirname(destination.draft), "disk-f001.vmdk"), "extent");
    assert.deepEqual(
      readdirSync(folder).filter((name) => !name.startsWith(".")),
      [],
    );
    destination.publish();
  }
  assert.deepEqual(readdirSync(folder).sort(), ["disk-f001.vmdk", "disk.vmdk"]);
  assert.equal(readFileSync(path, "utf8"), "descriptor");
});

test("what is not published is removed", (t) => {
  const folder = scratch(t);
  {
    using destination = new Destination(join(folder, "disk.raw"), anew);
    writeFileSync(destination.draft, "half");
  }
  assert.deepEqual(readdirSync(folder), []);
});

test("nothing is replaced, be it the image or one of its parts; then no part stays", (t) => {
  for (const taken of ["disk.vmdk", "disk-f001.vmdk", "zz.vmdk"]) {
    const folder = scratch(t);
    using destination = new Destination(join(folder, "disk.vmdk"), anew);
    for (const name of ["disk.vmdk", "disk-f001.vmdk", "zz.vmdk"]) {
      writeFileSync(join(dirname(destination.draft), name), "new");
    }
    writeFileSync(join(folder, taken), "theirs");
    assert.throws(() => destination.publish(), { kind: "usage", code: "exists" });
    assert.deepEqual(
      readdirSync(folder).filter((name) => !name.startsWith(".")),
      [taken],
    );
    assert.equal(readFileSync(join(folder, taken), "utf8"), "theirs");
  }
});

test("files replace files, folders replace folders, and each the other, when that is wanted", (t) => {
  const kinds = {
    file: (path: string, text: string) => writeFileSync(path, text),
    folder(path: string, text: string) {
      mkdirSync(join(path, "bands"), { recursive: true });
      writeFileSync(join(path, "bands", text), text);
    },
  };
  for (const before of ["file", "folder"] as const) {
    for (const after of ["file", "folder"] as const) {
      const folder = scratch(t);
      const path = join(folder, "disk");
      kinds[before](path, "old");
      {
        using destination = new Destination(path, inPlace);
        kinds[after](destination.draft, "new");
        destination.publish();
      }
      assert.deepEqual(readdirSync(folder), ["disk"], `${after} for ${before}`);
      if (after === "file") assert.equal(readFileSync(path, "utf8"), "new");
      else assert.deepEqual(readdirSync(join(path, "bands")), ["new"]);
    }
  }
});

test("a power cut while a folder gives way to another loses neither", async (t) => {
  const folder = scratch(t);
  const path = join(folder, "disk");
  mkdirSync(path);
  writeFileSync(join(path, "old"), "");
  const rename = fs.renameSync;
  let renames = 0;
  t.mock.method(fs, "renameSync", (from: string, to: string) => {
    if (++renames > 1) throw new Error("power cut");
    rename(from, to);
  });
  syncBuiltinESMExports();
  {
    using destination = new Destination(path, inPlace);
    mkdirSync(destination.draft);
    assert.throws(() => destination.publish());
  }
  t.mock.restoreAll();
  syncBuiltinESMExports();
  await sweep(path);
  const [left] = readdirSync(folder);
  assert.deepEqual(readdirSync(join(folder, left!, "disk")), ["old"]);
});

test("a folder takes no other folder's place unasked", (t) => {
  const path = join(scratch(t), "disk");
  using destination = new Destination(path, anew);
  mkdirSync(destination.draft);
  mkdirSync(path);
  assert.throws(() => destination.publish(), { kind: "usage", code: "exists" });
});

test("only a file or a folder may be replaced, and only when that is wanted", async (t) => {
  const folder = scratch(t);
  const path = join(folder, "disk");
  assert.equal(await occupantOf(path, anew), undefined);
  writeFileSync(path, "");
  await assert.rejects(occupantOf(path, anew), { kind: "usage", code: "exists" });
  assert.equal((await occupantOf(path, inPlace))?.kind, "file");
  assert.equal((await occupantOf(folder, inPlace))?.kind, "folder");
  const link = join(folder, "link");
  symlinkSync(path, link);
  await assert.rejects(occupantOf(link, inPlace), { kind: "usage" });
  await assert.rejects(occupantOf(link, anew), { kind: "usage" });
});

test("a directory that does not exist is an error with its place", (t) => {
  const path = join(scratch(t), "absent", "disk");
  assert.throws(
    () => new Destination(path, anew),
    (error) => error instanceof DiskError && error.kind === "io" && error.message.includes(path),
  );
});

test("what dead processes left is swept; what lives, and what only looks like it, stays", async (t) => {
  const folder = scratch(t);
  const path = join(folder, "disk");
  // The process of a command that has ended is dead.
  const dead = attempt("sh", ["-c", "echo $$"]).stdout.trim();
  const left = mkdtempSync(join(folder, `.ullage-${dead}-`));
  writeFileSync(join(left, "disk"), "half");
  const stays = [`.ullage-${process.pid}-abcdef`, ".ullage-1-toolong", `.ullage-${dead}`];
  for (const name of stays) mkdirSync(join(folder, name));
  writeFileSync(join(folder, `.ullage-${dead}-file00`), "");
  const outside = scratch(t);
  symlinkSync(outside, join(folder, `.ullage-${dead}-link00`));
  await sweep(path);
  assert.equal(existsSync(left), false);
  assert.ok(existsSync(outside));
  assert.deepEqual(
    readdirSync(folder).sort(),
    [...stays, `.ullage-${dead}-file00`, `.ullage-${dead}-link00`].sort(),
  );
});
