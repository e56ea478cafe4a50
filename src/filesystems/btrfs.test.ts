import assert from "node:assert/strict";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import { readBytes, type BlockDevice } from "../device/device.ts";
import { checked } from "../device/checked.ts";
import { dumpedFree } from "../testing/btrfs.ts";
import { live, makeBtrfs, withBtrfs } from "../testing/btrfs-guest.ts";
import { fileDevice } from "../testing/file-device.ts";
import { requires, requiresRoot, run, scratch } from "../testing/tools.ts";
import { btrfs } from "./btrfs.ts";
import { readMap } from "./btrfs/extent-map.ts";
import { reachOlder } from "./btrfs/older.ts";
import { openMembers, openVolume } from "./btrfs/opening.ts";

interface Make {
  readonly options: string;
  readonly devices?: number;
  readonly mount?: string;
  /** What btrfstune changes afterwards. */
  readonly tune?: string;
}

const MAKES: readonly Make[] = [
  { options: "" },
  { options: "-n 4096 --csum xxhash -R quota", mount: "compress-force=zstd" },
  { options: "-n 32768 --csum sha256 -m single -d single", mount: "compress=lzo", tune: "-m" },
  { options: "--mixed -n 4096 --csum blake2" },
  { options: "-O ^extref,^skinny-metadata,^no-holes -R ^free-space-tree", mount: "space_cache=v1" },
  { options: "-m raid0 -d raid0", devices: 3 },
  { options: "-m raid1 -d dup", devices: 2 },
  { options: "-m raid1c3 -d raid1c4", devices: 4 },
  { options: "-m raid10 -d raid10", devices: 4 },
];

async function devicesOf(t: TestContext, paths: readonly string[]): Promise<BlockDevice[]> {
  return Promise.all(
    paths.map(async (path) => {
      const device = checked(await fileDevice(path));
      t.after(() => device[Symbol.asyncDispose]());
      return device;
    }),
  );
}

for (const { options, devices = 1, mount = "rw", tune } of MAKES) {
  test(`free space agrees with dump-tree, and all else is reached: mkfs.btrfs ${options}`, async (t) => {
    if (!available(t)) return;
    const folder = scratch(t);
    const mebibytes = 256;
    const paths = Array.from({ length: devices }, (_, index) => join(folder, `disk${index}`));
    makeBtrfs(paths, mebibytes, options.split(" ").filter(Boolean));
    withBtrfs(paths, mount, (root) => live(root, 1));
    if (tune !== undefined) run("btrfstune", ["-f", tune, ...paths]);

    const filesystem = await btrfs.open(await devicesOf(t, paths), { replay: false });
    const free = await filesystem.free();
    assert.equal(filesystem.refusal, undefined);
    const bytes = mebibytes * 2 ** 20;
    const { now, kept, isWhole } = dumpedFree(paths, bytes);
    const reached = paths.map(() => new ExtentBuilder());
    await filesystem.walk((member, start, end) => reached[member]!.add(start, end));
    assert.equal(filesystem.refusal, undefined);
    free.forEach((set, index) => {
      const expected = kept.get(index + 1)!;
      // What is left of a backup that dump-tree cannot read whole is kept, too.
      if (isWhole) assert.deepEqual([...set], [...expected]);
      else assert.equal(set.subtract(expected).bytes, 0);
      const walked = reached[index]!.build();
      assert.equal(set.intersect(walked).bytes, 0, "nothing free is reached");
      const used = ExtentSet.of({ start: 0, end: bytes }).subtract(now.get(index + 1)!);
      assert.equal(used.subtract(walked).bytes, 0, "all that is used is reached");
    });
    if (!isWhole) t.diagnostic("an older generation was overwritten in part");
  });
}

/** Counts and lengths of files, in turns. The kernel commits when it likes: not every volume keeps such a node. */
const UNWRITTEN = [
  [12, 16_384],
  [100, 8192],
] as const;
const VOLUMES_MAX = 24;

test("H4: older nodes in space that was allocated anew, and not written yet, lead to what is kept", async (t) => {
  if (!available(t)) return;
  for (let turn = 0; turn < VOLUMES_MAX; turn++) {
    const path = join(scratch(t), "disk");
    makeBtrfs([path], 128, ["--mixed", "-n", "4096"]);
    const [count, bytes] = UNWRITTEN[turn % UNWRITTEN.length]!;
    withBtrfs([path], "rw", (root) => allocateAnew(root, count, bytes));
    const devices = await devicesOf(t, [path]);
    const filesystem = await btrfs.open(devices, { replay: false });
    const [free] = await filesystem.free();
    assert.equal(filesystem.refusal, undefined);
    const { kept } = dumpedFree([path], filesystem.bytes);
    assert.equal(free!.subtract(kept.get(1)!).bytes, 0);
    if ((await carelesslyFree(devices)).subtract(kept.get(1)!).bytes > 0) return;
  }
  assert.fail(`none of ${VOLUMES_MAX} volumes has an older node in space that was allocated anew`);
});

/** What would be free if whatever is in use now were known to be followed already. */
async function carelesslyFree(devices: readonly BlockDevice[]): Promise<ExtentSet> {
  const volume = await openVolume(await openMembers(devices));
  const [free] = (await readMap(volume)).free;
  const kept = new ExtentBuilder();
  const isFollowed = (_: number, at: number) => !free!.has(at);
  await reachOlder(volume, { isFollowed, believesMaps: true }, (_, start, end) => kept.add(start, end));
  return free!.subtract(kept.build());
}

function allocateAnew(root: string, count: number, bytes: number): void {
  live(root, 5);
  const folder = join(root, "unwritten files");
  mkdirSync(folder);
  rmSync(join(root, "many"), { recursive: true });
  run("btrfs", ["filesystem", "sync", root]);
  for (const turn of ["a", "b", "c"]) {
    run("python3", ["-c", UNWRITTEN_FILES, join(folder, turn), `${count}`, `${bytes}`]);
    run("btrfs", ["filesystem", "sync", root]);
  }
}

const UNWRITTEN_FILES = `
import os, sys
for number in range(int(sys.argv[2])):
    file = os.open(f"{sys.argv[1]} {number}", os.O_CREAT | os.O_WRONLY)
    os.posix_fallocate(file, 0, int(sys.argv[3]))
    os.close(file)
`;

const available = (t: TestContext) =>
  requires(t, "mkfs.btrfs", "btrfs", "btrfstune", "losetup", "chattr") && requiresRoot(t);

test("files: where their bytes lie, and why they are not simply there", async (t) => {
  if (!available(t)) return;
  const path = join(scratch(t), "disk");
  makeBtrfs([path], 256, []);
  const contents = withBtrfs([path], "compress=zstd", (root) => {
    live(root, 2);
    run("btrfs", ["subvolume", "set-default", join(root, "sub")]);
    writeFileSync(join(root, "sub", "line\nfeed"), "x");
    return new Map(["swap", "last", "file7"].map((name) => [name, readFileSync(join(root, name))]));
  });
  const devices = await devicesOf(t, [path]);
  const filesystem = await btrfs.open(devices, { replay: false });
  for (const [name, content] of contents) {
    const found = await filesystem.find(`/${name}`);
    assert.equal(found!.bytes, content.length);
    const read = Buffer.alloc(content.length);
    for (const { fileOffset, at, bytes } of found!.extents) {
      const piece = await readBytes(devices[0]!, at, bytes);
      read.set(piece.subarray(0, content.length - fileOffset), fileOffset);
    }
    assert.ok(read.equals(content), name);
    assert.equal((await filesystem.describe(found!.owner)).bytes, content.length);
  }
  const fixed = async (name: string) => (await filesystem.find(name))!.fixed;
  assert.equal(await fixed("/swap"), undefined);
  assert.equal(await fixed("/last"), "checksummed");
  assert.equal(await fixed("/text"), "compressed");
  assert.equal(await fixed("/reflink"), "shared");
  assert.equal(await fixed("/unchecked"), "shared", "a snapshot has it, too");
  assert.equal(await fixed("/symlink"), "inline");
  assert.equal(await filesystem.find("/sub/nothing"), undefined);
  assert.ok(await filesystem.find("/inner/file1"), "in the default subvolume");
  assert.ok(await filesystem.find("/sub/line\\u{a}feed"));
  const kinds = ["/swap", "/sub", "/symlink"].map(async (path) => (await filesystem.find(path))!.kind);
  assert.deepEqual(await Promise.all(kinds), ["file", "directory", "other"]);
  const names = (await filesystem.list("/"))!.map(({ name, kind }) => `${name} ${kind}`);
  assert.ok(
    ["sub directory", "swap file", "symlink other"].every((name) => names.includes(name)),
    names.join(),
  );
  const swap = (await filesystem.list("/"))!.find(({ name }) => name === "swap");
  assert.equal(swap?.allocatedBytes, 200 * 1024);
  assert.equal(await filesystem.list("/swap"), undefined);
});

test("H36: members that are missing, there twice, of another time or of another set", async (t) => {
  if (!available(t)) return;
  const at = (name: string) => join(scratch(t), name);
  const [first, second, stale, other, another] = ["1", "2", "stale", "3", "4"].map(at) as [
    string,
    string,
    string,
    string,
    string,
  ];
  makeBtrfs([first, second], 160, ["-L", "pair"]);
  makeBtrfs([other, another], 160, []);
  run("cp", ["--sparse=always", second, stale]);
  withBtrfs([first, second], "rw", (root) => writeFileSync(join(root, "file"), "content"));
  const opened = async (...paths: string[]) =>
    (await btrfs.open(await devicesOf(t, paths), { replay: false })).refusal;
  assert.equal(await opened(first, second), undefined);
  assert.equal(await opened(second, first), undefined);
  assert.equal((await opened(first))?.code, "members-missing");
  assert.equal((await opened(first, first))?.code, "members-missing");
  assert.equal((await opened(first, another))?.code, "members-missing");
  assert.equal((await opened(first, stale))?.code, "members-stale");
  const memberships = await Promise.all(
    (await devicesOf(t, [first, second])).map((device) => btrfs.membership!(device)),
  );
  assert.deepEqual(
    memberships.map((membership) => [membership?.name, membership?.member, membership?.total]),
    [
      ["pair", "1", 2],
      ["pair", "2", 2],
    ],
  );
  assert.equal(memberships[0]?.set, memberships[1]?.set);
});
