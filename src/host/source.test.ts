import assert from "node:assert/strict";
import fs, { mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { readBytes } from "../device/device.ts";
import { requires, run, scratch } from "../testing/tools.ts";
import { draftSource, type HostSource, hostSource } from "./source.ts";

/**
 *   images/disk            the image
 *   images/base            beside it; FIFO, socket-like names and links too
 *   images/sub/base
 *   elsewhere/base         outside
 *   elsewhere/secret
 */
function tree(t: TestContext): { root: string; image: string } {
  const root = scratch(t);
  for (const folder of ["images/sub", "elsewhere/deep"]) mkdirSync(join(root, folder), { recursive: true });
  for (const file of [
    "images/disk",
    "images/base",
    "images/sub/base",
    "elsewhere/base",
    "elsewhere/deep/base",
  ]) {
    writeFileSync(join(root, file), file);
  }
  symlinkSync("base", join(root, "images/link"));
  symlinkSync("../elsewhere/base", join(root, "images/away"));
  symlinkSync("nowhere", join(root, "images/dangling"));
  symlinkSync("../elsewhere", join(root, "images/door"));
  symlinkSync("sub", join(root, "images/side"));
  symlinkSync("../elsewhere/deep", join(root, "images/deep"));
  symlinkSync("/dev/null", join(root, "images/null"));
  run("mkfifo", [join(root, "images/fifo"), join(root, "elsewhere/fifo")]);
  return { root, image: join(root, "images/disk") };
}

async function content(source: HostSource): Promise<string> {
  await using file = await source.open();
  return Buffer.from(await readBytes(file, 0, file.bytes)).toString();
}

const OUTSIDE = { kind: "refused", code: "outside" };

test("names beside the image, below it, and by their own real path there are allowed (H22)", async (t) => {
  const { root, image } = tree(t);
  const source = hostSource(image);
  for (const [name, expected] of [
    ["base", "images/base"],
    ["./base", "images/base"],
    ["sub/base", "images/sub/base"],
    ["side/base", "images/sub/base"],
    ["sub/../base", "images/base"],
    ["../images/base", "images/base"],
    [`${root}/images/base`, "images/base"],
    ["disk", "images/disk"],
  ] as const) {
    assert.equal(await content(await source.refer(name)), expected, name);
  }
});

test("everything else that an image may name is refused (H22)", async (t) => {
  const { root, image } = tree(t);
  const source = hostSource(image);
  for (const name of [
    "../elsewhere/base",
    "sub/../../elsewhere/base",
    "door/base",
    "door/deep/base",
    "side/../../elsewhere/base",
    "deep/../base",
    `${root}/elsewhere/base`,
    "/etc/shadow",
    "/etc/passwd",
    "/dev/null",
    "/dev/zero",
    "/proc/self/mem",
    "/no/such/folder/base",
    "../nowhere/base",
    "link",
    "away",
    "dangling",
    "null",
    "fifo",
    "sub",
    ".",
    "..",
    "",
    "sub/",
    "base\0",
    "json:{}",
    'json:{"driver":"file","filename":"base"}',
    "nbd:localhost:10809",
    "nbd+unix:///?socket=x",
    "file:base",
    "FILE:///etc/shadow",
    "https://example.org/base",
    "fat:rw:/",
    "ssh://host/base",
    "a:b",
  ]) {
    await assert.rejects(source.refer(name), OUTSIDE, name);
  }
});

test("a missing file is no refusal where the policy allows its folder", async (t) => {
  const { image } = tree(t);
  await assert.rejects(hostSource(image).refer("missing"), { kind: "io", code: "not-found" });
  await assert.rejects(hostSource(image).refer("missing/base"), { kind: "io", code: "not-found" });
});

test("the user's consent opens one directory, its folders, and links into it; never what is no file", async (t) => {
  const { root, image } = tree(t);
  const source = hostSource(image, { outside: [join(root, "elsewhere"), "/dev"] });
  for (const [name, expected] of [
    ["../elsewhere/base", "elsewhere/base"],
    [`${root}/elsewhere/deep/base`, "elsewhere/deep/base"],
    ["door/base", "elsewhere/base"],
    ["away", "elsewhere/base"],
  ] as const) {
    assert.equal(await content(await source.refer(name)), expected, name);
  }
  for (const name of ["/etc/passwd", "../elsewhere/fifo", "/dev/null", "null", "link", "json:{}"]) {
    await assert.rejects(source.refer(name), OUTSIDE, name);
  }
  const deep = hostSource(image, { outside: [join(root, "elsewhere/deep")] });
  await assert.rejects(deep.refer("../elsewhere/base"), {
    ...OUTSIDE,
    hint: `if you trust this image, --allow outside=${root}/elsewhere`,
  });
});

test("a chain is judged by the first image's directory, and names are relative to the file that holds them", async (t) => {
  const { root, image } = tree(t);
  const source = hostSource(image, { outside: [join(root, "elsewhere/deep")] });
  const below = await source.refer("sub/base");
  assert.equal(await content(await below.refer("base")), "images/sub/base");
  assert.equal(await content(await below.refer("../base")), "images/base");
  await assert.rejects(below.refer("../../elsewhere/base"), OUTSIDE);
  const deep = await source.refer("../elsewhere/deep/base");
  assert.equal(await content(await deep.refer("base")), "elsewhere/deep/base");
  await assert.rejects(deep.refer("../base"), OUTSIDE);
});

test("the image itself may be a link; names count from where the user named it", async (t) => {
  const { root } = tree(t);
  symlinkSync("../images/disk", join(root, "elsewhere/disk"));
  const source = hostSource(join(root, "elsewhere/disk"));
  assert.equal(await content(source), "images/disk");
  assert.equal(await content(await source.refer("base")), "elsewhere/base");
});

test("what is exchanged between the look and the opening is not opened (H22)", async (t) => {
  const { root, image } = tree(t);
  const images = join(root, "images");
  const exchanges: readonly [name: string, exchange: () => void][] = [
    ["base", () => renameSync(join(root, "elsewhere/base"), join(images, "base"))],
    [
      "base",
      () => {
        rmSync(join(images, "base"));
        symlinkSync("disk", join(images, "base"));
      },
    ],
    [
      "base",
      () => {
        // The very same file, but by a link: its identity alone would not tell.
        renameSync(join(images, "base"), join(images, "moved"));
        symlinkSync("moved", join(images, "base"));
      },
    ],
    [
      "base",
      () => {
        rmSync(join(images, "base"));
        run("mkfifo", [join(images, "base")]);
      },
    ],
    [
      "sub/base",
      () => {
        // A folder becomes a link, and the file by that path is the same one.
        renameSync(join(images, "sub"), join(root, "elsewhere/sub"));
        symlinkSync("../elsewhere/sub", join(images, "sub"));
      },
    ],
  ];
  for (const [name, exchange] of exchanges) {
    rmSync(join(images, "base"), { force: true });
    rmSync(join(images, "moved"), { force: true });
    writeFileSync(join(images, "base"), "again");
    writeFileSync(join(root, "elsewhere/base"), "elsewhere");
    const source = await hostSource(image).refer(name);
    exchange();
    await assert.rejects(source.open(), (error: Error) => {
      return ["refused", "unsupported"].includes((error as { kind?: string }).kind!);
    });
    await assert.rejects(source.openWritable(), { name: "DiskError" });
  }
});

test("what is exchanged during the opening is not opened (H22)", async (t) => {
  const { root, image } = tree(t);
  const base = join(root, "images/base");
  const source = await hostSource(image).refer("base");
  const opened = t.mock.method(fs, "openSync");
  syncBuiltinESMExports();
  t.after(() => {
    t.mock.restoreAll();
    syncBuiltinESMExports();
  });
  /** Exchanges at the last moment: when everything was looked at, and the kernel is asked to open. */
  const during = (exchange: () => void) => {
    const { openSync } = fs;
    opened.mock.mockImplementationOnce((path, flags) => {
      exchange();
      return openSync(path, flags);
    });
  };
  during(() => {
    renameSync(base, join(root, "images/moved"));
    symlinkSync("moved", base);
  });
  await assert.rejects(source.open(), { ...OUTSIDE, message: /symbolic link/ });
  renameSync(join(root, "images/moved"), base);

  during(() => {
    renameSync(base, join(root, "images/moved"));
    renameSync(join(root, "elsewhere/base"), base);
  });
  await assert.rejects(source.open(), { ...OUTSIDE, message: /exchanged/ });

  const calls = opened.mock.callCount();
  await assert.rejects(source.open(), { ...OUTSIDE, message: /exchanged/ });
  assert.equal(opened.mock.callCount(), calls, "what is another file before the opening is not even opened");
});

test("what the user names must be a file or a block device, and a FIFO does not hang", async (t) => {
  const { root } = tree(t);
  for (const [name, what] of [
    ["images/fifo", "a FIFO"],
    ["images", "a directory"],
    ["images/null", "a character device"],
  ] as const) {
    const path = join(root, name);
    const expected = {
      kind: "unsupported",
      message: `${path}: it is ${what}; expected a regular file or a block device`,
    };
    await assert.rejects(hostSource(path).open(), expected);
    await assert.rejects(hostSource(path).openWritable(), expected);
  }
  await assert.rejects(hostSource(join(root, "missing")).open(), { kind: "io", code: "not-found" });
  await assert.rejects(hostSource(join(root, "images/disk/x")).open(), { kind: "io", code: "not-found" });
});

test("reading opens nothing for writing", async (t) => {
  if (!requires(t, "sh")) return;
  const { image } = tree(t);
  await using file = await hostSource(image).open();
  assert.equal(file.bytes, "images/disk".length);
  const flags = run("sh", ["-c", `cat /proc/${process.pid}/fdinfo/* 2>/dev/null | grep -c lock: || true`]);
  assert.equal(flags.trim(), "0", "and takes no lock");
  assert.equal("write" in file, false);
});

test("files are made beside the image, and nowhere else (H22)", async (t) => {
  const root = scratch(t);
  const source = hostSource(join(root, "disk.vmdk"));
  {
    await using file = await source.createBeside!("disk-s001.vmdk");
    await file.write(0, new Uint8Array(3));
  }
  assert.equal(fs.statSync(join(root, "disk-s001.vmdk")).size, 3);
  symlinkSync(join(root, "elsewhere"), join(root, "link"));
  await assert.rejects(source.createBeside!("disk-s001.vmdk"), { kind: "usage" });
  await assert.rejects(source.createBeside!("link"), { kind: "usage" });
  for (const name of ["../x", "sub/x", "/tmp/x", "", "..", "a\0b"]) {
    await assert.rejects(source.createBeside!(name), { kind: "refused", code: "outside" }, name);
  }
});

test("siblings are the regular files beside the image, without itself", async (t) => {
  const { root, image } = tree(t);
  const names: string[] = [];
  for await (const sibling of hostSource(image).siblings())
    names.push(`${sibling.name} ${await content(sibling)}`);
  assert.deepEqual(names, ["base images/base"]);
  const outside: string[] = [];
  for await (const sibling of hostSource(join(root, "images/sub/base")).siblings())
    outside.push(sibling.name);
  assert.deepEqual(outside, []);
});

test("siblings of a draft are those of the place it is made for, what it names lies beside the draft", async (t) => {
  const { root, image } = tree(t);
  const found: string[] = [];
  for (const place of [image, join(root, "images/to-be"), join(root, "images/base")]) {
    const names: string[] = [];
    const draft = draftSource(join(root, "images/sub/draft"), place);
    for await (const sibling of draft.siblings()) names.push(sibling.name);
    found.push(names.sort().join());
    assert.equal(await content(await draft.refer("base")), "images/sub/base");
  }
  assert.deepEqual(found, ["base", "base,disk", "disk"]);
});
