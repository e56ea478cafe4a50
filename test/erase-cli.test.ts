/**
 * `ullage erase` as scripts and people meet it, and a disk that is served with `--erase`.
 */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import test from "node:test";
import { mounted } from "../src/testing/mounted.ts";
import { qemuCheck } from "../src/testing/qemu.ts";
import { serving } from "../src/testing/serving.ts";
import { onTerminal } from "../src/testing/terminal.ts";
import { requires, run, scratch } from "../src/testing/tools.ts";
import { DELETED_BYTES, DISK_TOOLS, makeDisk } from "./small-disk.ts";

const BINARY = path.resolve(import.meta.dirname, "../bin/ullage.js");

interface Ran {
  readonly exit: number | null;
  readonly out: string;
  readonly err: string;
}

function ullage(...words: string[]): Ran {
  const { status, stdout, stderr } = spawnSync(process.execPath, [BINARY, ...words], {
    timeout: 60_000,
    encoding: "utf8",
    env: { PATH: process.env["PATH"], LANG: "C.UTF-8" },
  });
  return { exit: status, out: stdout, err: stderr };
}

test("the contract: exit codes, one JSON document, and words for people", (t) => {
  if (!requires(t, ...DISK_TOOLS)) return;
  const image = makeDisk(scratch(t), "disk.qcow2");
  assert.equal(ullage("erase", image, "--json").exit, 2, "nobody is asked where nobody sits");
  assert.equal(ullage("erase", "--yes", "--pattern", "ones", image).exit, 2);
  assert.equal(ullage("erase", "--yes", "--pack", image).exit, 2, "it has no other method");
  const before = statSync(image);
  const dry = ullage("erase", "--dry-run", image);
  assert.equal(dry.exit, 0);
  assert.match(dry.out, /erases +20\.\d MiB, with random bytes, before it is returned/);
  assert.match(dry.out, /grade +at best "logical"/);
  assert.match(dry.out, /encryption, with its key destroyed/);
  assert.equal(statSync(image).mtimeMs, before.mtimeMs);
  const { exit, out } = ullage("erase", "--yes", "--verify", "--json", image);
  assert.equal(exit, 0);
  const { schema, images } = JSON.parse(out) as { schema: number; images: Record<string, unknown>[] };
  assert.equal(schema, 1);
  const [done] = images;
  assert.ok(done);
  for (const key of [
    "path",
    "applied",
    "grade",
    "reasons",
    "erasedBytes",
    "beforeHostBytes",
    "afterHostBytes",
  ])
    assert.ok(key in done, key);
  assert.deepEqual(
    [done["applied"], done["pattern"], done["verified"], done["survey"]],
    [true, "random", true, undefined],
  );
  assert.ok(Number(done["erasedBytes"]) >= DELETED_BYTES);
  assert.equal((done["canaries"] as { planted: number; found: number }).found, 0);
  assert.ok(!readFileSync(image).includes("gonegonegone"));
  const again = ullage("erase", "--yes", image);
  assert.equal(again.exit, 0);
});

test("on a terminal it asks, and only y acts", async (t) => {
  if (!requires(t, ...DISK_TOOLS, "script")) return;
  const image = makeDisk(scratch(t), "disk.qcow2");
  const before = readFileSync(image);
  const answer = (key: string) =>
    onTerminal([process.execPath, BINARY, "erase", image], [[/Overwrite 20\.\d MiB and return it to/, key]]);
  const no = await answer("n\r");
  assert.equal(no.exit, 0);
  assert.match(no.out, /Nothing was changed/);
  assert.ok(readFileSync(image).equals(before));
  const yes = await answer("y\r");
  assert.equal(yes.exit, 0);
  assert.match(yes.out, /grade +"logical"/);
  assert.ok(!readFileSync(image).includes("gonegonegone"));
});

test("an image that is held is busy, one with a guard is refused", async (t) => {
  if (!requires(t, ...DISK_TOOLS, "qemu-io")) return;
  const image = makeDisk(scratch(t), "disk.qcow2");
  const holder = spawn("qemu-io", [image], { stdio: ["pipe", "pipe", "ignore"] });
  t.after(() => holder.kill());
  await once(holder.stdout, "data");
  assert.equal(ullage("erase", "--yes", image).exit, 6);
  holder.kill();
  await once(holder, "close");
  writeFileSync(`${image}.ullage-guard`, Buffer.alloc(8192, "something"));
  const { exit, err } = ullage("erase", "--yes", image);
  assert.equal(exit, 5);
  assert.match(err, /guard/);
  assert.ok(readFileSync(image).includes("gonegonegone"));
});

const SECRET = "THE-SECRET-OF-THE-TEST";
const MIB = 1024 * 1024;

/** An image of 16 MiB with secrets from 1 MiB and from 8 MiB on, a MiB each, and the byte 7 between them. */
function secretImage(folder: string, format: string): string {
  const secrets = path.join(folder, "secrets");
  writeFileSync(secrets, Buffer.alloc(MIB, `${SECRET} abcdefghijklmnop\n`));
  const image = path.join(folder, `disk.${format}`);
  run("qemu-img", ["create", "-q", "-f", format, image, "16M"]);
  qemuIo(image, format, `write -s ${secrets} 1M 1M`, "write -P 7 3M 4M", `write -s ${secrets} 8M 1M`);
  return image;
}

const qemuIo = (where: string, format: string, ...commands: string[]): string =>
  run("qemu-io", ["-d", "unmap", "-f", format, ...commands.flatMap((command) => ["-c", command]), where]);

for (const format of ["raw", "qcow2"]) {
  test(`${format}: what a client trims on a disk served with --erase is not left on the device below`, async (t) => {
    if (!requires(t, "qemu-img", "qemu-io", "setpriv")) return;
    for (const words of [[], ["--erase", "random"]]) {
      const point = mounted(t, "ext4", 64);
      if (point === undefined) return;
      const image = path.join(point, "disk");
      run("cp", ["--sparse=always", secretImage(scratch(t), format), image]);
      run("sync", ["-f", point]);
      const served = await serving(t, [image], { format, words });
      const later = "write -P 5 1M 64k";
      qemuIo(
        served.uri(),
        "raw",
        "discard 1M 1M",
        later,
        "write -z -u 8M 1M",
        "read -P 5 1M 64k",
        "read -P 0 8M 1M",
      );
      if (words.length > 0) requireGrade(served.socket);
      assert.equal((await served.stop()).code, 0);
      run("sync", ["-f", point]);
      const isLeft = readFileSync(path.join(point, "../image")).includes(SECRET);
      assert.equal(isLeft, words.length === 0, "a hole alone leaves it there");
      assert.ok(!readFileSync(image).includes(SECRET));
      const zeros = "read -P 0 1114112 983040";
      qemuIo(image, format, "read -P 5 1M 64k", zeros, "read -P 7 3M 4M", "read -P 0 8M 1M");
      assert.ok(statSync(image).blocks * 512 < 5 * MIB, "and its space came back");
    }
  });

  test(`${format}: a server that is killed while it erases leaves every used byte`, async (t) => {
    if (!requires(t, "qemu-img", "qemu-io", "setpriv")) return;
    const image = secretImage(scratch(t), format);
    for (const offset of ["1M", "8M"]) {
      const served = await serving(t, [image], { format, words: ["--erase", "random"] });
      qemuIo(served.uri(), "raw", `discard ${offset} 1M`);
      await served.kill();
      qemuIo(image, format, "read -P 7 3M 4M");
      if (format === "qcow2") assert.equal(qemuCheck(image).errors, 0, "leaks at worst");
    }
  });
}

/** While it is served: how far it is, and what it is worth, which here is no more than that it reads as zeros. */
function requireGrade(socket: string): void {
  const { out } = ullage("top", socket, "--once", "--json");
  const { exports } = JSON.parse(out) as { exports: { erase: Record<string, unknown> }[] };
  const { grade, reasons, failedBytes } = exports[0]!.erase;
  assert.deepEqual([grade, failedBytes], ["logical", 0]);
  assert.match(String(reasons), /loop\d+.*encryption/);
  assert.match(ullage("top", socket, "--once").out, /erased .*grade "logical"/);
}
