/**
 * Encrypted guests as a whole: what is free inside comes back only when allowed, and what is used reads the same to
 * cryptsetup and QEMU (H34).
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { DiskError, explain, open, reclaim, type Survey, survey } from "../src/index.ts";
import {
  decryptedByCryptsetup,
  editJson,
  encryptedByCryptsetup,
  filledByQemu,
  keyFile,
  newHeader,
  PASSPHRASE,
  PBKDF2,
  readByQemu,
  SMALL,
} from "../src/testing/luks.ts";
import { otherKernel } from "../src/testing/other-kernel.ts";
import { Random } from "../src/testing/seeds.ts";
import { onTerminal } from "../src/testing/terminal.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";

const MiB = 2 ** 20;
const KEY = Buffer.from(PASSPHRASE);
const MAIN = join(import.meta.dirname, "../src/cli/main.ts");

/** An ext4 of 16 MiB with one file, and a hole in its use where another one was. */
function makeGuest(t: TestContext): Uint8Array {
  const folder = scratch(t);
  const [tree, path] = [join(folder, "tree"), join(folder, "ext4")];
  mkdirSync(tree);
  writeFileSync(join(tree, "kept"), new Random(3).bytes(3 * MiB));
  writeFileSync(join(tree, "removed"), new Random(4).bytes(5 * MiB));
  run("mke2fs", ["-q", "-t", "ext4", "-b", "4096", "-d", tree, path, "16M"]);
  run("debugfs", ["-w", "-R", "rm removed", path]);
  return new Uint8Array(readFileSync(path));
}

function kept(path: string): string {
  assert.equal(attempt("e2fsck", ["-fn", path]).status, 0);
  return run("debugfs", ["-R", "dump kept /dev/stdout", path]);
}

const hostBytes = (path: string): number => statSync(path).blocks * 512;

/** Argon2 ends its threads by it, which no list of libraries says. */
const LIBGCC = "/lib/x86_64-linux-gnu/libgcc_s.so.1";

const TOOLS = ["cryptsetup", "mke2fs", "debugfs", "e2fsck"];

test("LUKS2: what is free inside comes back only with discards, and cryptsetup reads the rest", async (t) => {
  if (!requires(t, ...TOOLS)) return;
  const { path } = encryptedByCryptsetup(t, [...PBKDF2, "--sector-size", "4096"], makeGuest(t));
  const before = kept(decryptedByCryptsetup(t, path));
  const ciphertext = readFileSync(path);

  for (const options of [{}, { keys: [Buffer.from("wrong")] }, { keys: [KEY] }]) {
    const { reclaimedBytes } = await reclaim(path, { ...options, also: ["gaps"] });
    assert.equal(reclaimedBytes, 0);
    assert.ok(readFileSync(path).equals(ciphertext));
  }
  const [locked] = (await survey(path)).volumes;
  assert.equal(locked!.reason?.code, "locked");
  const [open] = (await survey(path, { keys: [KEY] })).volumes;
  assert.equal(open!.filesystem, "ext4");
  assert.ok(open!.freeBytes > 7 * MiB);
  const discards = { keys: [KEY], allow: { discards: true } };
  const offsets = [(await survey(path, discards)).regions.get("returnable")!.start(0)];
  const [byte] = (await explain(path, { keys: [KEY], offsets })).offsets;
  assert.equal(byte!.class, "used");
  assert.match(byte!.trail.join(), /--allow discards/);
  assert.equal((await explain(path, { ...discards, offsets })).offsets[0]!.class, "returnable");

  const onHost = hostBytes(path);
  const done = await reclaim(path, { ...discards, verify: true });
  assert.equal(done.verified, true);
  assert.ok(done.reclaimedBytes > 7 * MiB);
  assert.equal(onHost - hostBytes(path), done.reclaimedBytes);
  assert.equal(kept(decryptedByCryptsetup(t, path)), before);
});

test("LUKS1 in a partition of a qcow2: QEMU reads what is left", async (t) => {
  if (!requires(t, ...TOOLS, "qemu-img", "sfdisk")) return;
  const partition = readFileSync(filledByQemu(t, [], makeGuest(t)).path);
  const folder = scratch(t);
  const [image, raw, plain] = [join(folder, "disk.qcow2"), join(folder, "raw"), join(folder, "plain")];
  writeFileSync(raw, new Uint8Array(partition.length + 2 * MiB));
  run("sfdisk", ["-q", raw], `label: gpt\nstart=2048, size=${partition.length / 512}\n`);
  const disk = readFileSync(raw);
  disk.set(partition, MiB);
  writeFileSync(raw, disk);
  run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, image]);
  const read = (): string => {
    run("qemu-img", ["convert", "-O", "raw", image, raw]);
    writeFileSync(raw, readFileSync(raw).subarray(MiB, MiB + partition.length));
    writeFileSync(plain, readByQemu(t, raw));
    return kept(plain);
  };
  const before = read();
  const { reclaimedBytes } = await reclaim(image, { keys: [KEY], allow: { discards: true } });
  assert.ok(reclaimedBytes > 7 * MiB);
  assert.equal((await survey(image, { keys: [KEY] })).volumes[0]!.name, "1/luks");
  run("qemu-img", ["check", image]);
  assert.equal(read(), before);
});

test("volumes that a kernel filled through dm-crypt are read, and their files survive", async (t) => {
  if (!requires(t, "cryptsetup", "mke2fs", "e2fsck", "qemu-img")) return;
  const folder = scratch(t);
  const argon2 = ["--pbkdf", "argon2id", "--pbkdf-memory", "8192", "--pbkdf-force-iterations", "4"];
  const small = ["--type", "luks2", ...SMALL];
  const headers = [
    newHeader(t, [...small, "--sector-size", "4096", ...argon2], 16 * MiB),
    newHeader(t, [...small, "--cipher", "aes-xts-plain64", ...PBKDF2], 16 * MiB),
    newHeader(t, ["--type", "luks1", "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"], 16 * MiB),
  ];
  const disks = headers.map((header, i) => {
    const path = join(folder, `disk${i}`);
    writeFileSync(path, header);
    return path;
  });
  const commands = disks.map((_, i) => {
    const disk = `/dev/vd${"abc"[i]}`;
    return `echo -n '${PASSPHRASE}' | cryptsetup open --key-file - ${disk} c${i}
/usr/sbin/mke2fs -q -t ext4 -b 4096 /dev/mapper/c${i}
mount -t ext4 /dev/mapper/c${i} /mnt
dd if=/dev/urandom of=/mnt/removed bs=64k count=32 2>/dev/null
dd if=/dev/urandom of=/mnt/kept bs=64k count=16 2>/dev/null
sync; rm /mnt/removed
echo "$(sha256sum < /mnt/kept)"
umount /mnt
cryptsetup close c${i}`;
  });
  const printed = await otherKernel(t, {
    modules: [
      "dm_crypt",
      "ext4",
      "crc32c_generic",
      "xts",
      "ecb",
      "cbc",
      "essiv",
      "aes_generic",
      "sha256_generic",
      "algif_skcipher",
    ],
    disks,
    tools: ["/usr/sbin/cryptsetup", "/usr/sbin/mke2fs", LIBGCC],
    script: `export DM_DISABLE_UDEV=1; mkdir -p /run/cryptsetup\n${commands.join("\n")}\n`,
  });
  if (printed === undefined) return;
  const prints = printed
    .trim()
    .split(/\s+-\s*/)
    .filter((print) => print !== "");
  for (const [i, path] of disks.entries()) {
    const { reclaimedBytes } = await reclaim(path, { keys: [KEY], allow: { discards: true } });
    assert.ok(reclaimedBytes > 4 * MiB, path);
    const plain = join(folder, "plain");
    writeFileSync(plain, i < 2 ? await decrypted(path) : readByQemu(t, path));
    assert.equal(attempt("e2fsck", ["-fn", plain]).status, 0);
    run("debugfs", ["-R", `dump kept ${join(folder, "kept")}`, plain]);
    const print = createHash("sha256")
      .update(readFileSync(join(folder, "kept")))
      .digest("hex");
    assert.equal(print, prints[i]);
  }
});

test("a passphrase is asked for once, and only where no key file fits", async (t) => {
  if (!requires(t, ...TOOLS)) return;
  const { path } = encryptedByCryptsetup(t, PBKDF2, makeGuest(t));
  const asked: string[] = [];
  const askKey = async (volume: string): Promise<Uint8Array> => {
    asked.push(volume);
    return KEY;
  };
  const wrong = Buffer.from("wrong");
  await survey(path, { keys: [wrong, KEY], askKey });
  assert.deepEqual(asked, []);
  await reclaim(path, { keys: [wrong], askKey, allow: { discards: true } });
  assert.deepEqual(asked.length, 1);
  assert.match(asked[0]!, /^LUKS volume [0-9a-f-]{36}$/);
  const found = await explain(path, { askKey, file: "/kept" });
  assert.equal(found.file?.bytes, 3 * MiB);
  assert.equal(asked.length, 1);
  const interrupted = async () => {
    throw new DiskError("interrupted", "Ctrl-C");
  };
  await assert.rejects(survey(path, { askKey: interrupted }), /Ctrl-C/);
  const unknown = await survey(path, { askKey: async () => undefined });
  assert.equal(unknown.volumes[0]!.reason?.code, "locked");
});

/** Header and data of one volume apart, the data behind zeros. */
function apart(t: TestContext, at: number): { readonly header: string; readonly disk: string } {
  const { path } = encryptedByCryptsetup(t, PBKDF2, makeGuest(t));
  const whole = new Uint8Array(readFileSync(path));
  let payloadAt = 0;
  const header = editJson(whole, ({ segments }) => {
    payloadAt = Number(segments["0"]!["offset"]);
    segments["0"]!["offset"] = String(at);
  });
  const folder = scratch(t);
  const paths = { header: join(folder, "header"), disk: join(folder, "disk") };
  writeFileSync(paths.header, header.subarray(0, payloadAt));
  writeFileSync(paths.disk, Buffer.concat([new Uint8Array(at), whole.subarray(payloadAt)]));
  return paths;
}

test("a header in a file of its own opens the disk; one that opens nothing refuses it", async (t) => {
  if (!requires(t, ...TOOLS)) return;
  const { header, disk } = apart(t, 0);
  assert.equal((await survey(disk, { keys: [KEY] })).volumes[0]!.filesystem, null);
  const options = { keys: [KEY], luksHeaders: [header], allow: { discards: true } };
  const { volumes, freeBytes } = await survey(disk, options);
  assert.equal(volumes[0]!.filesystem, "ext4");
  assert.ok(freeBytes > 7 * MiB);
  const isUnused = (error: unknown): boolean =>
    error instanceof DiskError && error.kind === "refused" && error.code === "luks-header-unused";
  await assert.rejects(survey(disk, { ...options, keys: [Buffer.from("wrong")] }), isUnused);

  // The filesystem that shows at the front is from before: what the header tells of lies behind it.
  const stale = apart(t, 4 * MiB);
  const front = join(scratch(t), "front");
  run("mke2fs", ["-q", "-t", "ext4", front, "4M"]);
  writeFileSync(stale.disk, Buffer.concat([readFileSync(front), readFileSync(stale.disk).subarray(4 * MiB)]));
  await assert.rejects(reclaim(stale.disk, { ...options, luksHeaders: [stale.header] }), isUnused);
  truncateSync(stale.disk, 4 * MiB);
  await assert.rejects(survey(stale.disk, { ...options, luksHeaders: [stale.header] }), isUnused);
});

test("the decrypted volume can be read through the library", async (t) => {
  if (!requires(t, ...TOOLS)) return;
  const plain = makeGuest(t);
  const { path } = encryptedByCryptsetup(t, PBKDF2, plain);
  assert.ok(
    Buffer.from(await decrypted(path))
      .subarray(0, plain.length)
      .equals(plain),
  );
});

async function decrypted(path: string): Promise<Uint8Array> {
  await using disk = await open(path, { keys: [KEY] });
  const { content } = (await disk.layout()).roots[0]!;
  assert.equal(content.kind, "table");
  const { device } = (content as Extract<typeof content, { kind: "table" }>).children[0]!;
  const bytes = new Uint8Array(device.bytes);
  await device.read(0, bytes);
  return bytes;
}

test("--key-file takes all of a file or of stdin", (t) => {
  if (!requires(t, ...TOOLS)) return;
  const { path } = encryptedByCryptsetup(t, PBKDF2, makeGuest(t));
  const folder = scratch(t);
  const ullage = (words: readonly string[], input = "") =>
    spawnSync(process.execPath, [MAIN, "survey", "--json", ...words, path], { encoding: "utf8", input });
  const filesystemOf = (result: { stdout: string }) =>
    (JSON.parse(result.stdout) as { images: Survey[] }).images[0]!.volumes[0]!.filesystem;
  const wrong = join(folder, "wrong");
  writeFileSync(wrong, `${PASSPHRASE}\n`);
  assert.equal(filesystemOf(ullage([])), null);
  assert.equal(filesystemOf(ullage(["--key-file", wrong])), null);
  assert.equal(filesystemOf(ullage(["--key-file", wrong, "--key-file", keyFile(folder)])), "ext4");
  assert.equal(filesystemOf(ullage(["--key-file", "-"], PASSPHRASE)), "ext4");
  for (const [words, message] of [
    [["--key-file", join(folder, "none")], "ENOENT"],
    [["--key-file", "-"], "empty"],
  ] as const) {
    const { status, stderr } = ullage(words);
    assert.equal(status, 2);
    assert.match(stderr, new RegExp(message));
  }
});

test("at a terminal the passphrase is asked for", async (t) => {
  if (!requires(t, ...TOOLS, "script")) return;
  const { path } = encryptedByCryptsetup(t, PBKDF2, makeGuest(t));
  const answering = (type: string) =>
    onTerminal([process.execPath, MAIN, "survey", path], [[/toggle visibility/, type]]);
  const { out } = await answering(`${PASSPHRASE}\r`);
  assert.match(out, /Passphrase of LUKS volume [0-9a-f-]{36}/);
  assert.match(out, /luks +ext4/);
  assert.match((await answering("\r")).out, /no key is given/);
  assert.equal((await answering("\x04")).exit, 130, "the terminal went away");
});
