/**
 * Content that a stopped guest can do without: cleared only on demand, only where it is safe, and nothing else with it.
 * The kernel makes the files, e2fsck and the kernel judge what is left.
 */
import assert from "node:assert/strict";
import {
  appendFileSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { explain, reclaim, survey, type SurveyOptions } from "../src/disk.ts";
import { e2fsck, makeFilesystem, withMount } from "../src/testing/kernel-guest.ts";
import { inNtfs, makeNtfs, NTFS_TOOLS } from "../src/testing/ntfs.ts";
import { Random } from "../src/testing/seeds.ts";
import { attempt, requires, requiresRoot, run, scratch } from "../src/testing/tools.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const FILESYSTEM = { start: 0, end: 64 * MiB };
const HEADER_BYTES = 64 * KiB;

/** A Linux guest whose swap files hold what they swapped out. */
function guest(t: TestContext): string {
  const disk = join(scratch(t), "guest.raw");
  run("truncate", ["-s", `${FILESYSTEM.end}`, disk]);
  makeFilesystem(disk, FILESYSTEM, ["-t", "ext4", "-b", "4096"]);
  withMount(disk, FILESYSTEM, "rw", (root) => {
    const random = new Random(4);
    for (const name of ["swapfile", "srv-swap", "kept", "notswap"]) {
      writeFileSync(join(root, name), random.bytes(4 * MiB));
    }
    run("mkswap", [join(root, "swapfile")]);
    run("mkswap", [join(root, "srv-swap")]);
    mkdirSync(join(root, "etc"));
    writeFileSync(join(root, "etc/fstab"), "/srv-swap none swap sw 0 0\n/notswap none swap sw 0 0\n");
    mkdirSync(join(root, "var/cache/apt/archives/partial"), { recursive: true });
    writeFileSync(join(root, "var/cache/apt/archives/vim.deb"), random.bytes(2 * MiB));
  });
  return disk;
}

/** Where a byte of a guest's file lies on the disk. */
async function placeIn(disk: string, file: string, at: number): Promise<number> {
  const { pieces } = (await explain(disk, { format: "raw", file })).file!;
  const { offset, fileOffset } = pieces.find((piece) => piece.fileOffset + piece.bytes > at)!;
  return offset + at - fileOffset;
}

/** What the survey says of swap: paths, and why they stay. */
async function swapsOf(
  disk: string,
  options: SurveyOptions = {},
): Promise<(readonly [string, string | null])[]> {
  const { worthless } = await survey(disk, { format: "raw", ...options });
  return worthless.filter(({ kind }) => kind === "swap").map(({ path, kept }) => [path, kept]);
}

/** Every file as the kernel reads it; of swap files only the header. */
function contentOf(disk: string): Record<string, string> {
  return withMount(disk, FILESYSTEM, "ro", (root) =>
    Object.fromEntries(
      ["swapfile", "srv-swap", "kept", "notswap", "var/cache/apt/archives/vim.deb"].map((name) => {
        const bytes = readFileSync(join(root, name));
        return [
          name,
          (name.includes("swap") && name !== "notswap" ? bytes.subarray(0, HEADER_BYTES) : bytes).toString(
            "base64",
          ),
        ];
      }),
    ),
  );
}

const available = (t: TestContext) => requires(t, "mke2fs", "e2fsck", "mkswap", "losetup") && requiresRoot(t);

test("swap files are told, and cleared behind their headers on demand", async (t) => {
  if (!available(t)) return;
  const disk = guest(t);
  const before = contentOf(disk);
  const { worthless, regions, usedBytes } = await survey(disk, { format: "raw" });
  const swaps = worthless.filter(({ kind }) => kind === "swap");
  assert.deepEqual(
    swaps.map(({ path, bytes, also, kept }) => ({ path, bytes, also, kept })),
    ["/swapfile", "/srv-swap"].map((path) => ({
      path,
      bytes: 4 * MiB - HEADER_BYTES,
      also: "swap",
      kept: null,
    })),
  );
  assert.deepEqual(
    worthless
      .filter(({ also }) => also === null)
      .map(({ kind, path, bytes, command }) => ({ kind, path, bytes, command })),
    [{ kind: "package cache", path: "/var/cache/apt/archives", bytes: 2 * MiB, command: "apt-get clean" }],
  );
  assert.equal(regions.get("worthless")!.bytes, 2 * (4 * MiB - HEADER_BYTES));

  const found = await explain(disk, { format: "raw", file: "/swapfile" });
  const last = found.file!.pieces.at(-1)!;
  const inside = last.offset + last.bytes - 1;
  assert.equal((await explain(disk, { format: "raw", offsets: [inside] })).offsets[0]!.class, "worthless");

  const done = await reclaim(disk, { format: "raw", also: ["swap"], verify: true });
  assert.equal(done.applied, true);
  assert.equal(done.survey.usedBytes, usedBytes - 2 * (4 * MiB - HEADER_BYTES));
  assert.ok(done.reclaimedBytes >= 2 * (4 * MiB - HEADER_BYTES), `${done.reclaimedBytes} bytes came back`);
  assert.deepEqual(contentOf(disk), before);
  const { status, stdout } = e2fsck(disk, FILESYSTEM);
  assert.equal(status, 0, stdout);
  withMount(disk, FILESYSTEM, "ro", (root) => {
    const rest = readFileSync(join(root, "swapfile")).subarray(HEADER_BYTES);
    assert.ok(
      rest.every((byte) => byte === 0),
      "what was swapped out is gone",
    );
    assert.match(run("swaplabel", [join(root, "swapfile")]), /UUID/);
  });
});

test("what lies in the file behind its swap area is not touched; a file of two names is one", async (t) => {
  if (!available(t)) return;
  const disk = guest(t);
  const more = new Random(5).bytes(MiB);
  withMount(disk, FILESYSTEM, "rw", (root) => {
    appendFileSync(join(root, "swapfile"), more);
    rmSync(join(root, "srv-swap"));
    linkSync(join(root, "swapfile"), join(root, "srv-swap"));
  });
  assert.deepEqual(await swapsOf(disk), [["/swapfile", null]]);
  await reclaim(disk, { format: "raw", also: ["swap"], verify: true });
  withMount(disk, FILESYSTEM, "ro", (root) => {
    const file = readFileSync(join(root, "swapfile"));
    assert.ok(file.subarray(HEADER_BYTES, 4 * MiB).every((byte) => byte === 0));
    assert.ok(file.subarray(4 * MiB).equals(more));
  });
});

/** An NTFS with a page file and another file. */
function windows(t: TestContext): string {
  const folder = scratch(t);
  const [disk, content] = [join(folder, "windows.raw"), join(folder, "content")];
  run("truncate", ["-s", `${32 * MiB}`, disk]);
  run("mkntfs", ["-q", "-F", "-Q", "-c", "4096", "-s", "512", "-p", "0", "-H", "255", "-S", "63", disk]);
  for (const [name, bytes] of [
    ["pagefile.sys", 2 * MiB],
    ["kept", MiB / 2],
  ] as const) {
    writeFileSync(content, new Random(bytes).bytes(bytes));
    run("ntfscp", ["-q", disk, content, name]);
  }
  return disk;
}

test("H1: a page file whose clusters another file has, too, stays; without the walk nobody can tell", async (t) => {
  if (!requires(t, "mkntfs", "ntfscp")) return;
  const disk = windows(t);
  const keptOf = async (options: SurveyOptions = {}) =>
    (await survey(disk, { format: "raw", ...options })).worthless.map(({ kept }) => kept);
  assert.deepEqual(await keptOf(), [null]);
  assert.match((await keptOf({ proof: "bitmap", also: ["pagefile"] }))[0]!, /proof full/);

  const cluster = async (file: string, at: number) => (await placeIn(disk, file, at)) / (4 * KiB);
  const runOf128 = (lcn: number) => Buffer.from([0x22, 0x80, 0x00, lcn % 256, lcn >> 8]);
  const bytes = readFileSync(disk);
  const at = bytes.indexOf(runOf128(await cluster("/kept", 0)));
  assert.ok(at > 0, "its only run stands in its record");
  bytes.set(runOf128(await cluster("/pagefile.sys", MiB)), at);
  writeFileSync(disk, bytes);
  assert.match((await keptOf({ also: ["pagefile"] }))[0]!, /belongs to another/);
});

test("of a folder with many files, so many are counted and no more", async (t) => {
  if (!available(t)) return;
  const disk = guest(t);
  withMount(disk, FILESYSTEM, "rw", (root) => {
    mkdirSync(join(root, "tmp"));
    for (let i = 0; i < 1100; i++) writeFileSync(join(root, `tmp/${i}`), "x");
  });
  const { worthless } = await survey(disk, { format: "raw" });
  const [temporary] = worthless.filter(({ path }) => path === "/tmp");
  assert.deepEqual([temporary?.bytes, temporary?.isPartial], [1000 * 4 * KiB, true]);
  assert.ok(worthless.filter(({ path }) => path !== "/tmp").every(({ isPartial }) => !isPartial));
});

/**
 * An ext4 whose folder `/swapfile` looks like a swap area to who takes it for a file: the header lies where the kernel
 * took names out, in what the entry `..` now covers.
 */
async function folderLikeSwap(t: TestContext): Promise<string> {
  const disk = join(scratch(t), "folder.raw");
  run("truncate", ["-s", `${FILESYSTEM.end}`, disk]);
  const plain = ["-t", "ext4", "-b", "4096", "-O", "^metadata_csum,^dir_index"];
  makeFilesystem(disk, FILESYSTEM, plain);
  withMount(disk, FILESYSTEM, "rw", (root) => {
    const folder = join(root, "swapfile");
    mkdirSync(folder);
    for (let i = 0; i < 400; i++) writeFileSync(join(folder, `${i}`.padStart(240, "n")), "");
    for (let i = 0; i < 16; i++) rmSync(join(folder, `${i}`.padStart(240, "n")));
  });
  const area = Buffer.alloc(4 * KiB);
  area.writeUInt32LE(1, 1024);
  area.writeUInt32LE(23, 1028);
  area.write("SWAPSPACE2", 4 * KiB - 10);
  const bytes = readFileSync(disk);
  const at = await placeIn(disk, "/swapfile", 0);
  assert.equal(bytes.readUInt16LE(at + 12 + 4), 4 * KiB - 12, "the entry `..` covers the rest of its block");
  bytes.set(area.subarray(KiB), at + KiB);
  writeFileSync(disk, bytes);
  return disk;
}

test("H1: a folder is no swap file, whatever it is called and looks like", async (t) => {
  if (!available(t)) return;
  const disk = await folderLikeSwap(t);
  const names = () => withMount(disk, FILESYSTEM, "ro", (root) => readdirSync(join(root, "swapfile")).sort());
  const before = names();
  assert.equal(before.length, 384);
  assert.deepEqual(await swapsOf(disk, { also: ["swap"] }), []);
  await reclaim(disk, { format: "raw", also: ["swap"], verify: true });
  assert.deepEqual(names(), before);
  const { status, stdout } = e2fsck(disk, FILESYSTEM);
  assert.equal(status, 0, stdout);
});

test("H1: a folder on FAT is no page file", async (t) => {
  if (!requires(t, "mkfs.fat", "fsck.fat", "mcopy", "mdir")) return;
  const folder = scratch(t);
  const disk = join(folder, "disk.raw");
  run("mkfs.fat", ["-C", "-F", "16", disk, "32000"]);
  for (const name of ["pagefile.sys", "hiberfil.sys"]) {
    mkdirSync(join(folder, name));
    for (let i = 0; i < 150; i++) writeFileSync(join(folder, name, `${i}`.padStart(190, "n")), "");
    run("timeout", ["60", "mcopy", "-i", disk, "-s", join(folder, name), "::/"]);
  }
  const names = () => run("mdir", ["-b", "-/", "-i", disk, "::/"]);
  const before = names();
  assert.equal(before.split("\n").length, 303);
  const { worthless } = await survey(disk, { format: "raw", also: ["pagefile", "hiberfil"] });
  assert.deepEqual(worthless, []);
  await reclaim(disk, { format: "raw", also: ["pagefile", "hiberfil"], verify: true });
  assert.equal(names(), before);
  assert.equal(attempt("fsck.fat", ["-n", disk]).status, 0);
});

/** A reparse point: a symlink to `abab`. */
const SYMLINK = "0x0c0000a01800000004000800000004000100000061006200" + "6100620061006200";

test("H1: on NTFS a link is no page file, a compressed one stays, and of one with holes its own bytes go", async (t) => {
  if (!requires(t, ...NTFS_TOOLS, "setfattr") || !requiresRoot(t)) return;
  const disk = makeNtfs(join(scratch(t), "windows.raw"), 32 * MiB);
  inNtfs(
    disk,
    `head -c 300000 /dev/urandom > pagefile.sys
     mkdir packed
     setfattr -h -n system.ntfs_attrib_be -v 0x00000800 packed
     seq 100000 > packed/swapfile.sys
     mv packed/swapfile.sys .
     (printf wake; head -c 199996 /dev/urandom) > hiberfil.sys
     truncate -s 8M hiberfil.sys`,
  );
  const hashes = () => inNtfs(disk, "sha256sum pagefile.sys swapfile.sys");
  const before = hashes();
  inNtfs(disk, `setfattr -h -n system.ntfs_reparse_data -v ${SYMLINK} pagefile.sys`);
  const done = await reclaim(disk, { format: "raw", also: ["pagefile", "hiberfil"], verify: true });
  assert.deepEqual(
    done.survey.worthless.map(({ path, bytes, kept }) => [path, kept ?? bytes]),
    [
      ["/swapfile.sys", "it is compressed"],
      ["/hiberfil.sys", 49 * 4 * KiB - HEADER_BYTES],
    ],
  );
  inNtfs(disk, "setfattr -h -x system.ntfs_reparse_data pagefile.sys");
  assert.equal(hashes(), before);
  assert.equal(inNtfs(disk, "tail -c +65537 hiberfil.sys | tr -d '\\0' | wc -c"), "0\n");
});

test("names of Windows mean nothing where Windows cannot be", async (t) => {
  if (!available(t)) return;
  const disk = guest(t);
  withMount(disk, FILESYSTEM, "rw", (root) => {
    for (const name of ["pagefile.sys", "hiberfil.sys"])
      writeFileSync(join(root, name), new Random(6).bytes(MiB));
  });
  const { worthless } = await survey(disk, { format: "raw", also: ["pagefile", "hiberfil"] });
  assert.deepEqual(
    worthless.filter(({ path }) => path.endsWith(".sys")),
    [],
  );
});

test("H2: what nobody can read may know of a guest that runs on", async (t) => {
  if (!available(t)) return;
  const filesystem = readFileSync(guest(t));
  const random = new Random(7).bytes(MiB);
  const locked = join(scratch(t), "locked");
  writeFileSync(locked, new Uint8Array(4 * MiB));
  run(
    "cryptsetup",
    ["luksFormat", "-q", "--luks2-metadata-size=16k", "--luks2-keyslots-size=1m", "--pbkdf=pbkdf2"].concat([
      "--pbkdf-force-iterations=1000",
      "--key-file=-",
      locked,
    ]),
    "secret",
  );
  for (const [type, content, kept] of [
    ["21686148-6449-6E6F-744E-656564454649", random, false],
    ["L", random, true],
    ["L", readFileSync(locked), true],
  ] as const) {
    const disk = join(scratch(t), "disk.raw");
    const bytes = Buffer.alloc(72 * MiB);
    writeFileSync(disk, bytes);
    run("sfdisk", ["-q", disk], `label: gpt\nstart=2048, size=131072\nsize=8192, type=${type}\n`);
    const made = readFileSync(disk);
    made.set(filesystem, MiB);
    made.set(content, 65 * MiB);
    writeFileSync(disk, made);
    const swaps = await swapsOf(disk, { also: ["swap"] });
    assert.equal(swaps.length, 2);
    for (const [, why] of swaps) assert.equal(why !== null, kept, `${type}: ${why}`);
    const at = await placeIn(disk, "1:/swapfile", MiB);
    const { offsets } = await explain(disk, { format: "raw", offsets: [at] });
    assert.equal(offsets[0]!.class, kept ? "used" : "worthless");
  }
});

test("H2: nothing is worthless on a guest that was not shut down", async (t) => {
  if (!available(t)) return;
  const disk = guest(t);
  run("debugfs", ["-w", "-R", "feature needs_recovery", disk]);
  const { worthless } = await survey(disk, { format: "raw", also: ["swap"] });
  assert.deepEqual(worthless, []);
  const allowed = await survey(disk, { format: "raw", also: ["swap"], allow: { replay: true } });
  assert.ok(allowed.witnesses.every(({ witness, bytes }) => witness !== "swap" || bytes === 0));
});

test("H3: a swap file that holds a hibernated guest refuses the disk", async (t) => {
  if (!available(t)) return;
  const disk = guest(t);
  withMount(disk, FILESYSTEM, "rw", (root) => {
    const mark = ["bs=1", "seek=4086", "conv=notrunc", "status=none"];
    run("dd", [`of=${join(root, "srv-swap")}`, ...mark], "S1SUSPEND\0");
    writeFileSync(join(root, "removed"), new Random(8).bytes(MiB));
  });
  const removed = await placeIn(disk, "/removed", 0);
  withMount(disk, FILESYSTEM, "rw", (root) => rmSync(join(root, "removed")));
  const { volumes, reclaimableBytes } = await survey(disk, { format: "raw", also: ["swap"] });
  assert.deepEqual(
    volumes.map(({ state, reason }) => [state, reason?.code]),
    [["refused", "hibernated"]],
  );
  assert.equal(reclaimableBytes, 0);
  const [explained] = (await explain(disk, { format: "raw", offsets: [removed] })).offsets;
  assert.equal(explained!.class, "unknown");
  assert.match(explained!.trail.join(), /hibernated/);
});
