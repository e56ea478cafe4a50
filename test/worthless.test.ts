/**
 * Content that a stopped guest can do without: cleared only on demand, only where it is safe, and nothing else with it.
 * The kernel makes the files, e2fsck and the kernel judge what is left.
 */
import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { explain, reclaim, survey } from "../src/disk.ts";
import { e2fsck, makeFilesystem, withMount } from "../src/testing/kernel-guest.ts";
import { Random } from "../src/testing/seeds.ts";
import { requires, requiresRoot, run, scratch } from "../src/testing/tools.ts";

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
  });
  const { volumes, reclaimableBytes } = await survey(disk, { format: "raw", also: ["swap"] });
  assert.deepEqual(
    volumes.map(({ state, reason }) => [state, reason?.code]),
    [["refused", "hibernated"]],
  );
  assert.equal(reclaimableBytes, 0);
});
