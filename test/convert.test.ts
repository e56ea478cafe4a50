/**
 * Convert: copies are judged by QEMU, freed data are absent from them, and whatever happens meanwhile, the destination
 * is the old one or the new one.
 */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { convert, type ConvertOptions, create, info } from "../src/disk.ts";
import { formatNamed, parentsOf, sourceOf } from "../src/disk/open.ts";
import { DiskError, type ErrorKind } from "../src/error.ts";
import { dumpe2fsFree } from "../src/testing/ext.ts";
import { FORMATS } from "../src/formats/all.ts";
import { makeGuest } from "../src/testing/guest.ts";
import { mounted } from "../src/testing/mounted.ts";
import { Random } from "../src/testing/seeds.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";
import { DELETED_BYTES, DISK_BYTES, DISK_TOOLS, makeDisk } from "./small-disk.ts";

const BINARY = path.resolve(import.meta.dirname, "../bin/ullage.js");
const MiB = 2 ** 20;

/** QEMU's names of formats; it does not recognise a fixed VHD. */
const QEMU_FORMATS: Readonly<Record<string, string>> = { vhd: "vpc" };

/** Whether two images read the same, as QEMU sees it. */
function same(first: string, second: string, format?: string): void {
  const stated = format === undefined ? [] : ["-F", QEMU_FORMATS[format] ?? format];
  run("qemu-img", ["compare", "-U", ...stated, first, second]);
}

/** The disk as it is, with zeros where `dumpe2fs` calls it free. */
function withoutFree(image: string): string {
  const clean = `${image}.clean.raw`;
  run("qemu-img", ["convert", "-O", "raw", image, clean]);
  const content = readFileSync(clean);
  for (const { start, end } of dumpe2fsFree(clean)) content.fill(0, start, end);
  writeFileSync(clean, content);
  return clean;
}

async function fails(kind: ErrorKind, work: Promise<unknown>, message: RegExp): Promise<void> {
  await assert.rejects(work, (error) => {
    assert.ok(error instanceof DiskError, String(error));
    assert.equal(error.kind, kind, error.message);
    assert.match(error.message, message);
    return true;
  });
}

/** What a conversion that failed must leave of it: nothing. */
function nothingLeft(folder: string): void {
  assert.deepEqual(
    readdirSync(folder).filter((name) => name.startsWith(".ullage-")),
    [],
  );
}

const COPIES: readonly (readonly [name: string, options: ConvertOptions["options"]])[] = [
  ["copy.raw", {}],
  ["copy.img", {}],
  ["copy.qcow2", {}],
  ["copy.qcow2", { cluster_size: "4096" }],
  ["copy.qcow2", { cluster_size: "2M" }],
  ["copy.qcow2", { cluster_size: "128k", extended_l2: "on" }],
  ["copy.qcow2", { compat: "0.10" }],
  ["copy.vhdx", {}],
  ["copy.vhdx", { block_size: "1M" }],
  ["copy.vhdx", { subformat: "fixed" }],
  ["copy.vhd", { subformat: "dynamic" }],
  ["copy.vpc", { subformat: "fixed" }],
  ...(FORMATS.some(({ name }) => name === "vdi") ? [["copy.vdi", {}] as const] : []),
  ["copy.vmdk", { subformat: "monolithicSparse" }],
  ["copy.vmdk", { subformat: "monolithicFlat" }],
  ["copy.vmdk", { subformat: "twoGbMaxExtentSparse" }],
  ["copy.vmdk", { subformat: "twoGbMaxExtentFlat" }],
  ["copy.vmdk", { subformat: "streamOptimized" }],
  ["copy.hds", {}],
  ["copy.hdd", { cluster_size: "65536" }],
  ["copy.sparsebundle", {}],
  ["copy.sparseimage", {}],
];

/** Every file below a folder, as one. */
function bytesBelow(folder: string): Buffer {
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) =>
    entry.isFile(),
  );
  return Buffer.concat(files.map((file) => readFileSync(path.join(file.parentPath, file.name))));
}

/** The copy as a file that QEMU reads. */
async function forQemu(copy: string, format: string) {
  if (!format.startsWith("sparse")) return { judged: copy, format };
  const judged = `${copy}.raw`;
  await convert(copy, judged, { includeFree: true });
  return { judged, format: "raw" };
}

for (const [name, options] of COPIES) {
  const words = Object.entries(options!).map(([key, value]) => `${key}=${value}`);
  test([name, ...words].join(" ") + ": what is used is the same, what is free is absent", async (t) => {
    if (!requires(t, ...DISK_TOOLS, "dumpe2fs")) return;
    const folder = scratch(t);
    const source = makeDisk(folder, "disk.qcow2");
    const untouched = readFileSync(source);
    const out = path.join(folder, "out");
    mkdirSync(out);
    const copy = path.join(out, name);
    const result = await convert(source, copy, { options: options!, verify: true });
    assert.equal(result.verified, true);
    assert.ok(result.virtualBytes >= DISK_BYTES && result.virtualBytes < DISK_BYTES + MiB);
    assert.ok(result.copiedBytes < DISK_BYTES - DELETED_BYTES);
    nothingLeft(out);
    assert.equal(bytesBelow(out).includes("gonegone"), false, "the deleted file is not in the copy");
    if (options!["subformat"] !== "streamOptimized") assert.equal(bytesBelow(out).includes("keptkept"), true);
    const { judged, format } = await forQemu(copy, result.format);
    same(withoutFree(source), judged, format);
    const checked = attempt("qemu-img", ["check", judged]);
    assert.ok([0, 63].includes(checked.status), checked.stdout + checked.stderr);
    assert.deepEqual(readFileSync(source), untouched);
  });
}

test("--include-free copies all that is mapped", async (t) => {
  if (!requires(t, ...DISK_TOOLS)) return;
  const folder = scratch(t);
  const source = makeDisk(folder, "disk.qcow2");
  for (const name of ["copy.raw", "copy.qcow2"]) {
    await convert(source, path.join(folder, name), { includeFree: true, verify: true });
    same(source, path.join(folder, name));
  }
});

test("what is not understood is copied whole; zeros and holes are left out", async (t) => {
  if (!requires(t, "qemu-img")) return;
  const folder = scratch(t);
  const noise = path.join(folder, "noise.raw");
  const content = Buffer.alloc(9 * MiB + 512);
  for (const at of [0, 5000, 65536 + 512, 4 * MiB - 1, 8 * MiB, 9 * MiB]) {
    content.set(
      new Random(at).bytes(512).map((byte) => byte | 1),
      at,
    );
  }
  writeFileSync(noise, content);
  for (const name of ["copy.qcow2", "copy.raw", "tiny.qcow2"]) {
    const copy = path.join(folder, name);
    const options = name === "tiny.qcow2" ? { options: { cluster_size: "512" } } : {};
    const { hostBytes, notes } = await convert(noise, copy, { format: "raw", verify: true, ...options });
    run("qemu-img", ["compare", "-f", "raw", noise, copy]);
    assert.ok(hostBytes! <= 600 * 1024, `${name} takes ${hostBytes} bytes`);
    assert.match(notes.join(), /the whole disk is copied/);
  }
});

test("a chain is flattened; --keep-chain keeps it, and blanks what is free in the copy", async (t) => {
  if (!requires(t, ...DISK_TOOLS, "dumpe2fs", "qemu-io")) return;
  const folder = scratch(t);
  makeDisk(folder, "base.qcow2");
  const child = path.join(folder, "child.qcow2");
  run("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", child]);
  // The last block is free: what the child holds there is garbage.
  run("qemu-io", ["-c", `write -P 90 ${DISK_BYTES - 65536} 64k`, "-c", "write -P 0 512 512", child]);
  const flat = path.join(folder, "flat.qcow2");
  await convert(child, flat, { verify: true });
  same(withoutFree(child), flat);
  assert.equal(JSON.parse(run("qemu-img", ["info", "--output=json", flat]))["backing-filename"], undefined);

  const kept = path.join(folder, "kept.qcow2");
  const { copiedBytes } = await convert(child, kept, { keepChain: true, verify: true });
  assert.ok(copiedBytes <= 65536, `${copiedBytes} are the child's own`);
  assert.equal(
    JSON.parse(run("qemu-img", ["info", "--output=json", kept]))["backing-filename"],
    "base.qcow2",
  );
  run("qemu-io", ["-c", `read -P 0 ${DISK_BYTES - 65536} 64k`, kept]);
  run("qemu-io", ["-c", `write -z ${DISK_BYTES - 65536} 64k`, child]);
  same(child, kept);

  await fails("refused", convert(child, path.join(folder, "k.raw"), { keepChain: true }), /chain/);
  const elsewhere = path.join(folder, "elsewhere");
  mkdirSync(elsewhere);
  await fails(
    "refused",
    convert(child, path.join(elsewhere, "k.qcow2"), { keepChain: true }),
    /beside the source/,
  );
  const base = path.join(folder, "base.qcow2");
  await fails("usage", convert(child, base, { force: true }), /the source is made of it/);
  await fails("refused", convert(flat, base, { force: true }), /is built on this image/);
  nothingLeft(folder);
  nothingLeft(elsewhere);
});

const CHAINS: readonly (readonly [format: string, options: ConvertOptions["options"]])[] = [
  ["vhdx", {}],
  ["vhd", {}],
  ["vdi", {}],
  ["vmdk", {}],
  ["vmdk", { subformat: "twoGbMaxExtentSparse", zeroed_grain: "on" }],
];

for (const [format, copyOptions] of CHAINS) {
  test(`${[format, ...Object.values(copyOptions!)].join(" ")}: a copy has the same parent, and reads the same`, async (t) => {
    if (!requires(t, ...DISK_TOOLS)) return;
    const folder = scratch(t);
    const [base, child, copy, raw] = [`base.${format}`, `child.${format}`, `copy.${format}`, "flat.raw"].map(
      (name) => path.join(folder, name),
    ) as [string, string, string, string];
    await convert(makeDisk(folder, "disk.qcow2"), base);
    const options = { backing_file: path.basename(base), backing_fmt: format };
    await create({ path: child, format, virtualBytes: DISK_BYTES, options });
    {
      const source = sourceOf(child, {});
      await using image = await formatNamed(format).openWritable!(source, parentsOf(source));
      await image.write(512, new Uint8Array(512).fill(7));
      await image.write(DISK_BYTES - 65536, new Uint8Array(65536).fill(90));
      await image.flush();
    }
    writeFileSync(copy, "an older copy");
    await convert(child, copy, { keepChain: true, verify: true, options: copyOptions!, force: true });
    const parentOf = async (image: string) =>
      (await info(image)).references.filter(({ role }) => role === "backing");
    assert.deepEqual(await parentOf(copy), await parentOf(child));
    const mixed = path.join(folder, "mixed.qcow2");
    await convert(child, mixed, { keepChain: true, verify: true });
    assert.deepEqual(await parentOf(mixed), await parentOf(child));
    await convert(copy, raw, { includeFree: true });
    const content = readFileSync(raw);
    assert.deepEqual(content.subarray(512, 1024), Buffer.alloc(512, 7));
    assert.ok(content.includes("keptkept"), "the parent's bytes are there");
    assert.equal(content.includes("ZZZZ"), false, "what is free in the child is not in the copy");
    if (format === "vmdk") same(raw, copy, format);

    const elsewhere = path.join(folder, "elsewhere");
    mkdirSync(elsewhere);
    const away = convert(child, path.join(elsewhere, `copy.${format}`), { keepChain: true });
    await fails("refused", away, /beside the source/);
    const fixed = { subformat: format === "vmdk" ? "monolithicFlat" : "fixed" };
    const alone = path.join(folder, `fixed.${format}`);
    await assert.rejects(convert(child, alone, { keepChain: true, options: fixed }), { kind: "usage" });
    assert.equal(existsSync(alone), false);
    nothingLeft(folder);
    nothingLeft(elsewhere);
  });
}

test("snapshots stay behind, and that is said", async (t) => {
  if (!requires(t, ...DISK_TOOLS, "qemu-io")) return;
  const folder = scratch(t);
  const source = makeDisk(folder, "disk.qcow2");
  run("qemu-img", ["snapshot", "-c", "before", source]);
  run("qemu-io", ["-c", "write -P 7 0 512", source]);
  const copy = path.join(folder, "copy.raw");
  const { notes } = await convert(source, copy, { includeFree: true, verify: true });
  same(source, copy);
  assert.match(notes.join(), /1 snapshots are not copied/);
});

test("nothing is overwritten without --force, also when it comes while the copy is made", async (t) => {
  if (!requires(t, ...DISK_TOOLS)) return;
  const folder = scratch(t);
  const source = makeDisk(folder, "disk.qcow2");
  const copy = path.join(folder, "copy.raw");
  writeFileSync(copy, "mine");
  await fails("usage", convert(source, copy), /exists/);
  await fails("usage", convert(source, source, { force: true }), /the source is made of it/);
  await fails("usage", convert(source, folder, { to: "raw", force: true }), /directory/);
  await fails("usage", convert(source, path.join(folder, "copy")), /no format/);
  assert.equal(readFileSync(copy, "utf8"), "mine");
  await convert(source, copy, { force: true });
  same(copy, withoutFreeOf(copy));
  rmSync(copy);
  const onProgress = () => writeFileSync(copy, "theirs");
  await fails("usage", convert(source, copy, { onProgress }), /exists/);
  assert.equal(readFileSync(copy, "utf8"), "theirs");
  nothingLeft(folder);
});

/** The same bytes, for a copy that has no free data. */
function withoutFreeOf(image: string): string {
  copyFileSync(image, `${image}.same.raw`);
  return `${image}.same.raw`;
}

test("--verify notices a byte that is not the same, and nothing is put into place", async (t) => {
  if (!requires(t, ...DISK_TOOLS)) return;
  const folder = scratch(t);
  const source = makeDisk(folder, "disk.qcow2");
  const copy = path.join(folder, "copy.raw");
  let isPlanted = false;
  const plant = (): void => {
    const [hidden] = readdirSync(folder).filter((name) => name.startsWith(".ullage-"));
    const draft = path.join(folder, hidden!, "copy.raw");
    const content = readFileSync(draft);
    const at = content.lastIndexOf("keptkept");
    content[at]! ^= 1;
    writeFileSync(draft, content);
    isPlanted = true;
  };
  const onProgress: ConvertOptions["onProgress"] = ({ phase }) => {
    if (phase === "verifying" && !isPlanted) plant();
  };
  await fails(
    "io",
    convert(source, copy, { verify: true, onProgress }),
    /the copy reads \d+ at offset \d+, expected/,
  );
  assert.ok(isPlanted);
  assert.equal(existsSync(copy), false);
  nothingLeft(folder);
});

test("a source that is in use is not copied", async (t) => {
  if (!requires(t, ...DISK_TOOLS, "qemu-io")) return;
  const folder = scratch(t);
  const source = makeDisk(folder, "disk.qcow2");
  const holder = spawn("qemu-io", [source], { stdio: ["pipe", "pipe", "ignore"] });
  t.after(() => holder.kill());
  await once(holder.stdout, "data");
  await fails("busy", convert(source, path.join(folder, "copy.raw")), /torn/);
  assert.deepEqual(readdirSync(folder), ["disk.qcow2"]);
});

test("a host that is full, at first or on the way, is left as it was", async (t) => {
  const point = mounted(t, "tmpfs", 32);
  if (point === undefined) return;
  const source = path.join(scratch(t), "noise.raw");
  writeFileSync(source, new Random(1).bytes(24 * MiB));
  const copy = path.join(point, "copy.raw");
  const filler = path.join(point, "filler");
  const onProgress = () => {
    if (!existsSync(filler)) writeFileSync(filler, Buffer.alloc(16 * MiB, 1));
  };
  await fails("io", convert(source, copy, { onProgress }), /no space/);
  assert.deepEqual(readdirSync(point), ["filler"]);
  await fails("io", convert(source, copy), /are to be copied/);
  assert.deepEqual(readdirSync(point), ["filler"]);
});

for (const filesystem of ["btrfs", "xfs"] as const) {
  test(`${filesystem}: the copy shares the source's blocks`, async (t) => {
    if (!requires(t, "qemu-img")) return;
    const point = mounted(t, filesystem, 128);
    if (point === undefined) return;
    const source = path.join(point, "noise.raw");
    writeFileSync(source, new Random(1).bytes(5 * MiB + 512));
    for (const name of ["copy.raw", "copy.qcow2"]) {
      const { sharedBytes, copiedBytes } = await convert(source, path.join(point, name), { verify: true });
      assert.equal(copiedBytes, 5 * MiB + 512);
      assert.equal(sharedBytes, 5 * MiB);
      run("qemu-img", ["compare", "-f", "raw", source, path.join(point, name)]);
    }
  });
}

test("blocks that are shared stay what they are between blocks that are not", async (t) => {
  if (!requires(t, "mke2fs", "debugfs", "qemu-img")) return;
  const folder = mounted(t, "btrfs", 128);
  if (folder === undefined) return;
  // Its blocks are of 1 KiB: much of what is used begins or ends inside a block of the host.
  const source = makeGuest({
    folder,
    name: "guest.raw",
    bytes: 32 * MiB,
    mke2fs: ["-t", "ext4", "-b", "1024"],
    files: 200,
    fileBytesMax: 16 * 1024,
  });
  for (const name of ["copy.raw", "copy.qcow2"]) {
    const copy = path.join(folder, name);
    const { sharedBytes, copiedBytes } = await convert(source, copy, { format: "raw", verify: true });
    assert.ok(sharedBytes > 0 && sharedBytes < copiedBytes, `${sharedBytes} of ${copiedBytes}`);
    same(withoutFree(source), copy);
  }
});

/** A raw image that takes a while. */
function longDisk(folder: string): string {
  const image = path.join(folder, "long.raw");
  const noise = Buffer.from(new Random(1).bytes(8 * MiB));
  writeFileSync(image, Buffer.concat(Array.from({ length: 40 }, () => noise)));
  return image;
}

/** Starts the command, and ends it with a signal once it has begun to write. */
async function ended(folder: string, words: readonly string[], signal: NodeJS.Signals) {
  const child = spawn(process.execPath, [BINARY, "convert", ...words], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  let err = "";
  child.stderr.on("data", (chunk: Buffer) => (err += chunk.toString()));
  const closed = once(child, "close") as Promise<[number | null]>;
  const timer = setInterval(() => {
    const [hidden] = readdirSync(folder).filter((name) => name.startsWith(".ullage-"));
    if (hidden !== undefined && readdirSync(path.join(folder, hidden)).length > 0) child.kill(signal);
  }, 2);
  const [exit] = await closed;
  clearInterval(timer);
  return { exit, err };
}

test("Ctrl-C leaves nothing: exit 130", async (t) => {
  const folder = scratch(t);
  const source = longDisk(folder);
  const { exit, err } = await ended(folder, [source, path.join(folder, "copy.qcow2"), "--verify"], "SIGINT");
  assert.equal(exit, 130, err);
  assert.deepEqual(readdirSync(folder), ["long.raw"]);
});

test("a process that is killed leaves the destination as it was, and the next one clears up", async (t) => {
  const folder = scratch(t);
  const source = longDisk(folder);
  const copy = path.join(folder, "copy.raw");
  writeFileSync(copy, "old");
  const { exit } = await ended(folder, [source, copy, "--force", "--verify"], "SIGKILL");
  assert.equal(exit, null);
  assert.equal(readFileSync(copy, "utf8"), "old");
  const left = readdirSync(folder).filter((name) => name.startsWith(".ullage-"));
  assert.equal(left.length, 1);
  await convert(source, copy, { force: true });
  nothingLeft(folder);
  assert.equal(statSync(copy).size, statSync(source).size);
});

test("the command: what it says to people and to scripts, and its exit codes", (t) => {
  if (!requires(t, ...DISK_TOOLS)) return;
  const folder = scratch(t);
  makeDisk(folder, "disk.qcow2");
  const ullage = (...words: string[]) => {
    const { status, stdout, stderr } = spawnSync(process.execPath, [BINARY, "convert", ...words], {
      cwd: folder,
      encoding: "utf8",
    });
    return { exit: status, out: stdout, err: stderr };
  };
  const { exit, out, err } = ullage("disk.qcow2", "copy.vhdx", "--verify", "--json");
  assert.equal(exit, 0, err);
  const { schema, images } = JSON.parse(out) as { schema: number; images: Record<string, unknown>[] };
  assert.equal(schema, 1);
  const { copiedBytes, sharedBytes: _, fileBytes, hostBytes, ...facts } = images[0]!;
  assert.deepEqual(facts, {
    path: "disk.qcow2",
    destination: "copy.vhdx",
    format: "vhdx",
    sourceFormat: "qcow2",
    virtualBytes: DISK_BYTES,
    verified: true,
    notes: [],
  });
  assert.ok((copiedBytes as number) >= 3 * MiB && (copiedBytes as number) < 6 * MiB);
  assert.equal(fileBytes, statSync(path.join(folder, "copy.vhdx")).size);
  assert.equal(hostBytes, statSync(path.join(folder, "copy.vhdx")).blocks * 512);

  const again = ullage("disk.qcow2", "copy.vhdx");
  assert.equal(again.exit, 2);
  assert.match(again.err, /copy\.vhdx.*exists already.*hint: --force/s);
  const said = ullage("disk.qcow2", "copy.vhdx", "--force", "--subformat", "fixed");
  assert.equal(said.exit, 0);
  assert.match(said.out, /^disk\.qcow2 -> copy\.vhdx\n copied .*of 64 MiB.*\n vhdx .*\n compared +no/);
  assert.equal(ullage("disk.qcow2", "absent/copy.raw").exit, 7);
  assert.equal(ullage("disk.qcow2", "copy.raw", "-o", "cluster_size=4096").exit, 2);
  assert.deepEqual(readdirSync(folder).sort(), ["copy.vhdx", "disk.qcow2"]);
});
