/**
 * NTFS guests against foreign judges: ntfs-3g, which wrote the files and reads them again, ntfsresize and ntfsfix,
 * partclone, and libvshadow for what shadow copies read.
 *
 *   mkntfs → ntfs-3g fills and deletes → print → image → reclaim → judges → print: the same
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import {
  closeSync,
  openSync,
  readFileSync,
  readSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { basename, join } from "node:path";
import { test, type TestContext } from "node:test";
import { type Extent, ExtentSet } from "../src/bytes/extents.ts";
import type { BlockDevice } from "../src/device/device.ts";
import { reclaim, survey } from "../src/disk.ts";
import type { FileSystem, ReadOptions } from "../src/filesystems/filesystem.ts";
import {
  BlockLayout,
  DescriptorLayout,
  HeaderLayout,
  IDENTIFIER,
  PlacesLayout,
  readShadows,
} from "../src/filesystems/ntfs/shadow.ts";
import { ntfs } from "../src/filesystems/ntfs.ts";
import { prove } from "../src/reclaim/prove.ts";
import { corpus, unpack } from "../src/testing/corpus.ts";
import { fileDevice } from "../src/testing/file-device.ts";
import {
  inNtfs,
  killedInNtfs,
  makeNtfs,
  NTFS_LIFE,
  NTFS_TOOLS,
  ntfsresizeComplaint,
  partcloneFree,
} from "../src/testing/ntfs.ts";
import { attempt, requires, requiresRoot, run, scratch } from "../src/testing/tools.ts";

const MiB = 2 ** 20;

const available = (t: TestContext, ...more: readonly string[]) =>
  requires(t, ...NTFS_TOOLS, "ntfsfix", "setfattr", ...more) && requiresRoot(t);

async function opened(t: TestContext, path: string, options: Partial<ReadOptions> = {}): Promise<FileSystem> {
  const device = await fileDevice(path);
  t.after(() => device[Symbol.asyncDispose]());
  return ntfs.open([device], { replay: false, ...options });
}

/** Everything that the guest's files hold, as ntfs-3g reads it. */
function printOf(image: string): string {
  return inNtfs(
    image,
    `find . -type f -print0 | sort -z | xargs -0 sha256sum
     for stream in stream little; do sha256sum < deep/er/large:$stream; done
     find . -printf '%p %s %n %l\\n' | sort`,
    "ro,streams_interface=windows",
  );
}

function judgeVolume(image: string): void {
  assert.equal(ntfsresizeComplaint(image), undefined);
  const { status, stdout } = attempt("ntfsfix", ["--no-action", image]);
  assert.equal(status, 0, stdout);
}

for (const make of ["-c 512", "-c 65536", "-s 4096 -c 4096"]) {
  test(`a reclaim leaves every file as it was: mkntfs ${make}`, async (t) => {
    if (!available(t, "qemu-img")) return;
    const folder = scratch(t);
    const disk = makeNtfs(join(folder, "disk.raw"), 40 * MiB, ...make.split(" "));
    inNtfs(disk, NTFS_LIFE);
    const print = printOf(disk);
    const qcow2 = join(folder, "disk.qcow2");
    run("qemu-img", ["convert", "-O", "qcow2", disk, qcow2]);
    for (const [path, format] of [
      [disk, "raw"],
      [qcow2, "qcow2"],
    ] as const) {
      const before = statSync(path).blocks;
      const done = await reclaim(path, { format, proof: "full", verify: true });
      assert.equal(done.survey.volumes[0]!.state, "clean", done.survey.volumes[0]!.reason?.message);
      assert.equal(done.survey.volumes[0]!.leakedBytes, 0);
      assert.ok(statSync(path).blocks < before, "something was given back");
    }
    const again = join(folder, "again.raw");
    run("qemu-img", ["convert", "-O", "raw", qcow2, again]);
    for (const image of [disk, again]) {
      judgeVolume(image);
      assert.equal(printOf(image), print);
    }
  });
}

test("paths, listings and places of files are those of ntfs-3g", async (t) => {
  if (!available(t)) return;
  const image = makeNtfs(join(scratch(t), "image"), 40 * MiB, "-L", "Ullage");
  inNtfs(image, NTFS_LIFE);
  const filesystem = await opened(t, image);
  assert.equal(filesystem.label, "Ullage");
  const guest = (script: string) =>
    inNtfs(image, script, "ro,streams_interface=windows,show_sys_files").trimEnd();

  const paths = new Map<number, string[]>();
  for (const line of guest("find . -path './$Extend' -prune -o -printf '%i %p\\n'").split("\n")) {
    const [, number, path] = /^(\d+) \.(.*)$/.exec(line)!;
    paths.set(Number(number), [...(paths.get(Number(number)) ?? []), path || "/"]);
  }
  assert.ok(paths.size > 150);
  for (const [number, names] of paths) {
    if (number < 16 && number !== 5) continue;
    const { path } = await filesystem.describe(number);
    assert.ok(path !== undefined && names.includes(path), `${number} is ${names.join()}, not ${path}`);
  }
  for (const folder of ["/", "/many", "/small", "/deep/er"]) {
    const names = (await filesystem.list(folder))!.map(({ name }) => name);
    const expected = guest(`ls -A '.${folder}'`).split("\n");
    if (folder === "/") expected.push("$MFT"); // ntfs-3g never shows it.
    assert.deepEqual(names.sort(), expected.sort(), folder);
  }
  for (const path of ["/deep/er/large", "/DEEP/Er/LARGE", "/sparse"]) {
    const found = (await filesystem.find(path))!;
    const actual = guest(`cat '.${path === "/DEEP/Er/LARGE" ? "/deep/er/large" : path}' | sha256sum`);
    assert.equal(run("sha256sum", [], contentOf(image, found)), `${actual.replace(/ .*$/, "")}  -\n`, path);
  }
  for (const [path, fixed] of [
    ["/packed/text", "compressed"],
    ["/many/file-with-a-rather-long-name-4", "inline"],
    ["/deep/er/large", undefined],
    ["/sparse", undefined],
  ] as const) {
    assert.equal((await filesystem.find(path))!.fixed, fixed, path);
  }
  assert.equal(await filesystem.find("/deep/none"), undefined);
  assert.equal(await filesystem.list("/sparse"), undefined);
  const kinds = new Map((await filesystem.list("/"))!.map(({ name, kind }) => [name, kind]));
  assert.deepEqual([kinds.get("many"), kinds.get("sparse")], ["directory", "file"]);
});

function contentOf(image: string, found: NonNullable<Awaited<ReturnType<FileSystem["find"]>>>): Buffer {
  const content = Buffer.alloc(found.bytes);
  const file = openSync(image, "r");
  for (const { fileOffset, at, bytes, unwritten } of found.extents) {
    const part = content.subarray(fileOffset, Math.min(found.bytes, fileOffset + bytes));
    if (!unwritten) readSync(file, part, 0, part.length, at);
  }
  closeSync(file);
  return content;
}

for (const [name, offset] of [
  ["log2timeline+dfvfs/test_data/windows_volume.qcow2", 0],
  ["log2timeline+dfvfs/test_data/vsstest.qcow2", 0],
  ["strozfriedberg+vmdk-rs/data/monolithicSparse.vmdk", 65_536],
  ["util-linux+util-linux/tests/ts/blkid/images-fs/ntfs.img.xz", 0],
] as const) {
  test(`a volume that Windows made: ${basename(name)}`, async (t) => {
    if (corpus(t) === undefined || !requires(t, ...NTFS_TOOLS, "qemu-img")) return;
    const image = rawVolume(t, name, offset);
    const filesystem = await opened(t, image, { shadowLoss: true });
    const { free, refusal, leakedBytes } = await prove(filesystem, "full");
    assert.equal(refusal, undefined);
    assert.equal(leakedBytes, 0);
    assert.deepEqual([...free[0]!], [...partcloneFree(image)]);
    assert.equal(ntfsresizeComplaint(image), undefined);
  });
}

/** The volume at `offset` of an image of the corpus, as a file of its own. */
function rawVolume(t: TestContext, name: string, offset: number): string {
  const folder = scratch(t);
  const [disk, volume] = [join(folder, "disk"), join(folder, "volume")];
  run("qemu-img", ["convert", "-O", "raw", unpack(t, name), disk]);
  if (offset === 0) return disk;
  run("dd", [
    `if=${disk}`,
    `of=${volume}`,
    "bs=64K",
    `skip=${offset / 65_536}`,
    "conv=sparse",
    "status=none",
  ]);
  return volume;
}

test("H4: shadow copies of Windows read the same after all that is free was spoilt", async (t) => {
  if (corpus(t) === undefined || !available(t, "qemu-img", "vshadowmount")) return;
  const image = rawVolume(t, "log2timeline+dfvfs/test_data/vsstest.qcow2", 0);
  const spoilt = join(scratch(t), "spoilt");
  run("cp", ["--sparse=always", image, spoilt]);
  const filesystem = await opened(t, image);
  const [free] = await filesystem.free();
  assert.match(filesystem.notes.join(), /2 shadow copies/);
  const [claimed] = await (await opened(t, image, { shadowLoss: true })).free();
  const kept = claimed!.subtract(free!);
  assert.ok(kept.bytes > 0);
  spoil(spoilt, free!);
  for (const number of [1, 2]) {
    const before = await inSnapshot(t, image, number, filesPrint);
    assert.ok(before.size > 10);
    assert.deepEqual(await inSnapshot(t, spoilt, number, filesPrint), before);
  }
  const keptPrint = (device: BlockDevice) => hashOf(device, kept);
  const before = await inSnapshot(t, image, 2, keptPrint);
  assert.equal(await inSnapshot(t, spoilt, 2, keptPrint), before);
  spoil(spoilt, kept);
  assert.notEqual(await inSnapshot(t, spoilt, 2, keptPrint), before, "it does read what was kept");
});

const STORE = /^\/System Volume Information\/\{[-0-9a-f]{36}\}\{3808876b/;

/** Hands over a snapshot as libvshadow reads it. */
async function inSnapshot<T>(
  t: TestContext,
  image: string,
  number: number,
  use: (device: BlockDevice) => Promise<T>,
): Promise<T> {
  const point = join(scratch(t), "snapshots");
  run("mkdir", [point]);
  run("vshadowmount", [image, point]);
  try {
    await using device = await fileDevice(join(point, `vss${number}`));
    return await use(device);
  } finally {
    run("umount", [point]);
  }
}

/** A hash an owner. The files that shadow copies themselves lie in are no part of any snapshot. */
async function filesPrint(device: BlockDevice): Promise<Map<number, string>> {
  const filesystem = await ntfs.open([device], { replay: false, shadowLoss: true });
  const places = new Map<number, Extent[]>();
  await filesystem.walk((_, start, end, owner) => {
    places.set(owner, [...(places.get(owner) ?? []), { start, end }]);
  });
  assert.equal(filesystem.refusal, undefined);
  const print = new Map<number, string>();
  for (const [owner, extents] of places) {
    if (STORE.test((await filesystem.describe(owner)).path ?? "")) continue;
    print.set(owner, await hashOf(device, extents));
  }
  return print;
}

async function hashOf(device: BlockDevice, extents: Iterable<Extent>): Promise<string> {
  const hash = createHash("sha256");
  for (const { start, end } of extents) {
    const bytes = new Uint8Array(end - start);
    await device.read(start, bytes);
    hash.update(bytes);
  }
  return hash.digest("hex");
}

function spoil(path: string, free: ExtentSet): void {
  const file = openSync(path, "r+");
  const rubbish = Buffer.alloc(MiB, 0xa5);
  for (const { start, end } of free) {
    for (let at = start; at < end; at += MiB) writeSync(file, rubbish, 0, Math.min(MiB, end - at), at);
  }
  closeSync(file);
}

test("H2: a driver that was killed: refused, or everything that can be read stays readable", async (t) => {
  if (!available(t)) return;
  const folder = scratch(t);
  const verdicts: string[] = [];
  for (const seconds of [0.05, 0.1, 0.2, 0.4, 0.8]) {
    const image = makeNtfs(join(folder, "image"), 40 * MiB);
    killedInNtfs(image, NTFS_LIFE, seconds);
    const { free, refusal } = await prove(await opened(t, image), "full");
    verdicts.push(refusal?.code ?? "proven");
    const spoilt = join(folder, "spoilt");
    run("cp", ["--sparse=always", image, spoilt]);
    spoil(spoilt, free[0]!);
    assert.equal(ntfsresizeComplaint(spoilt), ntfsresizeComplaint(image));
    const readable = "find . -type f -print0 | sort -z | xargs -0 -r sha256sum 2>&1 || true";
    const [before, after] = [image, spoilt].map((path) => inNtfs(path, readable, "ro"));
    assert.equal(after, before);
  }
  t.diagnostic(verdicts.join(", "));
});

/** A file of many names, of which either may tell another one. */
const LINKED = /^\/(many|small)\/(file-with-a-rather-long-name-2|another-name.*)$/;

test("clusters belong to whom ntfscluster finds, and a refused volume is explained all the same", async (t) => {
  if (!available(t, "ntfscluster")) return;
  const image = makeNtfs(join(scratch(t), "image"), 40 * MiB);
  inNtfs(image, NTFS_LIFE);
  inNtfs(image, "head -c 2000 /dev/urandom > hiberfil.sys");
  const filesystem = await opened(t, image);
  assert.equal(filesystem.refusal?.code, "hibernated");
  const runs: { first: number; owner: number }[] = [];
  await filesystem.walk((_, start, end, owner) => {
    if (end <= filesystem.bytes - 4096) runs.push({ first: start / 4096, owner });
  });
  for (let index = 0; index < runs.length; index += Math.ceil(runs.length / 20)) {
    const { first, owner } = runs[index]!;
    const found = run("ntfscluster", ["-f", "-c", `${first}-${first}`, image]);
    const [, number, path] = /^Inode (\d+) (.*)\/\$?\w+/m.exec(found)!;
    assert.equal(Number(number), owner < 0 ? -1 - owner : owner, `cluster ${first}`);
    const { path: described, name } = await filesystem.describe(owner);
    if (!LINKED.test(path!)) assert.equal(described ?? `/${name}`, path);
  }
});

test("H3: a hibernated Windows refuses every volume of its disk", async (t) => {
  if (!available(t)) return;
  const disk = makeNtfs(join(scratch(t), "disk.raw"), 8 * MiB);
  inNtfs(disk, "(printf hibr; head -c 10000 /dev/zero) > hiberfil.sys");
  const { volumes, reclaimableBytes } = await survey(disk);
  assert.equal(volumes[0]!.reason?.code, "hibernated");
  assert.equal(reclaimableBytes, 0);
});

const BLOCK = 16_384;
const STORE_FILE = "System Volume Information/{3808876b-c176-4e48-b7ae-04046e6cc752}";

/** Where the blocks of a hand-built store lie, and which free blocks they speak of. */
interface Handmade {
  readonly image: string;
  readonly at: {
    readonly catalog: number;
    readonly bitmap: number;
    readonly previous: number;
    readonly list: number;
  };
  readonly needed: readonly number[];
}

/** A volume with one shadow copy, built after the documentation of libvshadow: no tool but Windows makes any. */
async function withShadowCopy(t: TestContext): Promise<Handmade> {
  const image = makeNtfs(join(scratch(t), "image"), 40 * MiB);
  inNtfs(image, `mkdir "System Volume Information"; head -c ${4 * BLOCK} /dev/zero > "${STORE_FILE}"`);
  const [extent] = (await (await opened(t, image)).find(`/${STORE_FILE}`))!.extents;
  const [catalog, bitmap, previous, list] = [0, 1, 2, 3].map((index) => extent!.at + index * BLOCK) as [
    number,
    number,
    number,
    number,
  ];
  const needed = [...partcloneFree(image).atLeast(2 * MiB)]
    .map(({ start }) => Math.ceil(start / BLOCK) + 3)
    .slice(0, 1);
  while (needed.length < 4) needed.push(needed.at(-1)! + 2);
  const bytes = readFileSync(image);
  const identity = { identifier: IDENTIFIER, version: 1 };
  const volume = Buffer.alloc(16, 5);
  HeaderLayout.encode({ ...identity, type: 1, own: 0x1e00, catalog, volume, storage: volume }, bytes, 0x1e00);
  for (const [own, type] of [
    [catalog, 2],
    [bitmap, 6],
    [previous, 6],
    [list, 3],
  ] as const) {
    BlockLayout.encode({ ...identity, type, own, next: 0 }, bytes, own);
  }
  const store = Buffer.alloc(16, 6);
  PlacesLayout.encode({ type: 2, store }, bytes, catalog + 128);
  PlacesLayout.encode(
    { type: 3, store, blockList: list, bitmap, previousBitmap: previous },
    bytes,
    catalog + 256,
  );
  for (const [at, block] of [
    [bitmap, needed[0]!],
    [previous, needed[1]!],
  ] as const) {
    bytes.fill(0xff, at + 128, at + BLOCK);
    bytes[at + 128 + (block >> 3)]! &= ~(1 << (block & 7));
  }
  const original = needed[2]! * BLOCK;
  DescriptorLayout.encode({ original, copy: list }, bytes, list + 128);
  const relative = BigInt(needed[3]! * BLOCK);
  DescriptorLayout.encode({ original, relative, flags: 1 }, bytes, list + 128 + DescriptorLayout.bytes);
  writeFileSync(image, bytes);
  return { image, at: { catalog, bitmap, previous, list }, needed };
}

test("H4: what a bitmap needs and what a block list names is kept, unless it is given up", async (t) => {
  if (!available(t)) return;
  const { image, needed } = await withShadowCopy(t);
  const claimed = partcloneFree(image);
  const kept = ExtentSet.from(needed.map((block) => ({ start: block * BLOCK, end: (block + 1) * BLOCK })));
  assert.equal(claimed.intersect(kept).bytes, 4 * BLOCK);
  const filesystem = await opened(t, image);
  const { free, refusal } = await prove(filesystem, "full");
  assert.equal(refusal, undefined);
  assert.deepEqual([...free[0]!], [...claimed.subtract(kept)]);
  assert.equal((await filesystem.find(`/${STORE_FILE}`))!.fixed, "shared");
  const careless = await opened(t, image, { shadowLoss: true });
  assert.equal((await careless.find(`/${STORE_FILE}`))!.fixed, undefined);
  const lost = await prove(careless, "full");
  assert.deepEqual([...lost.free[0]!], [...claimed]);
});

test("H4: blocks behind the end of a store's bitmap may be needed", async (t) => {
  if (!available(t)) return;
  const { image } = await withShadowCopy(t);
  const reach = (BLOCK - 128) * 8 * BLOCK;
  truncateSync(image, reach + 9 * MiB);
  await using device = await fileDevice(image);
  const { kept } = (await readShadows(device))!;
  assert.ok(kept.covers({ start: reach, end: device.bytes }));
});

test("H4: shadow copies that cannot be understood refuse the volume", async (t) => {
  if (!available(t)) return;
  const { image, at } = await withShadowCopy(t);
  const whole = readFileSync(image);
  const damages: readonly (readonly [string, (bytes: Buffer) => void, string | undefined])[] = [
    ["header of version 9", (bytes) => bytes.writeUInt8(9, 0x1e00 + 16), "shadow-copies"],
    ["kept on another volume", (bytes) => bytes.writeUInt8(9, 0x1e00 + 80), "shadow-copies"],
    ["no catalog, and no volume for one", (bytes) => bytes.fill(0, 0x1e00 + 48, 0x1e00 + 96), undefined],
    ["no catalog", (bytes) => bytes.fill(0, 0x1e00 + 48, 0x1e00 + 56), undefined],
    ["catalog outside", (bytes) => bytes.writeUInt32LE(0x7fffffff, 0x1e00 + 48), "shadow-copies"],
    [
      "a chain that comes back",
      (bytes) => bytes.writeBigUInt64LE(BigInt(at.bitmap), at.bitmap + 40),
      "shadow-copies",
    ],
    [
      "two chains that meet",
      (bytes) => bytes.writeBigUInt64LE(BigInt(at.bitmap), at.previous + 40),
      "shadow-copies",
    ],
    ["a block of another type", (bytes) => bytes.writeUInt8(5, at.list + 20), "shadow-copies"],
    ["an entry of an unknown type", (bytes) => bytes.writeUInt8(9, at.catalog + 384), "shadow-copies"],
    [
      "a store whose place is not told",
      (bytes) => bytes.fill(0, at.catalog + 256, at.catalog + 384),
      "shadow-copies",
    ],
  ];
  for (const [name, damage, code] of damages) {
    const bytes = Buffer.from(whole);
    damage(bytes);
    writeFileSync(image, bytes);
    assert.equal((await opened(t, image)).refusal?.code, code, name);
    assert.equal((await opened(t, image, { shadowLoss: true })).refusal, undefined, name);
  }
});
