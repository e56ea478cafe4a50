import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, linkSync, mkdirSync, openSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { setTimeout } from "node:timers/promises";
import { attached } from "../testing/mounted.ts";
import { attempt, requires, run, scratch } from "../testing/tools.ts";
import { inUse } from "./inuse.ts";
import { hostSource } from "./source.ts";

const BUSY = /Failed to get (shared )?"(write|resize|consistent read)" lock/;

function qcow2(t: TestContext): string {
  const path = join(scratch(t), "disk.qcow2");
  run("qemu-img", ["create", "-q", "-f", "qcow2", path, "10M"]);
  return path;
}

/** qemu-nbd holding an image until the test ends. */
async function served(t: TestContext, image: string, ...options: readonly string[]): Promise<ChildProcess> {
  const socket = `${image}.${options.length}.sock`;
  const server = spawn("qemu-nbd", ["--persistent", "--socket", socket, ...options, image], {
    stdio: "ignore",
  });
  t.after(() => ended(server));
  // It listens before it has opened, and so locked, the image: only an answer tells that it has.
  const answers = () => attempt("qemu-img", ["info", `nbd+unix:///?socket=${socket}`]).status === 0;
  for (let i = 0; i < 200 && server.exitCode === null; i++) {
    if (existsSync(socket) && answers()) return server;
    await setTimeout(25);
  }
  assert.fail("qemu-nbd did not start");
}

async function ended(child: ChildProcess, signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exit = once(child, "exit");
  child.kill(signal);
  await exit;
}

test("QEMU that writes keeps our writers out, not our readers (H16)", async (t) => {
  if (!requires(t, "qemu-img", "qemu-nbd")) return;
  const path = qcow2(t);
  assert.equal(await inUse(path), false);
  const server = await served(t, path, "--format=qcow2");
  await assert.rejects(hostSource(path).openWritable(), {
    kind: "busy",
    code: "locked",
    message: new RegExp(`disk.qcow2: qemu-nbd \\(process ${server.pid}\\)`),
  });
  await using reader = await hostSource(path).open();
  await reader.read(0, new Uint8Array(4));
  assert.equal(await inUse(path), true);
  await ended(server);
  assert.equal(await inUse(path), false);
  await using writer = await hostSource(path).openWritable();
  assert(writer.bytes > 0);
});

test("QEMU that only reads keeps our writers out, and figures stay exact", async (t) => {
  if (!requires(t, "qemu-img", "qemu-nbd")) return;
  const path = qcow2(t);
  await served(t, path, "--format=qcow2", "--read-only");
  await assert.rejects(hostSource(path).openWritable(), { kind: "busy", message: /lets nobody change it/ });
  assert.equal(await inUse(path), false);
});

test("an image that QEMU uses as a backing file is busy", async (t) => {
  if (!requires(t, "qemu-img", "qemu-nbd")) return;
  const base = qcow2(t);
  const child = join(base, "../child.qcow2");
  run("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "disk.qcow2", child]);
  await served(t, child, "--format=qcow2");
  await assert.rejects(hostSource(base).openWritable(), { kind: "busy" });
});

test("QEMU refuses an image that we are writing, and takes it afterwards (H16)", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io", "qemu-nbd")) return;
  const path = qcow2(t);
  const write = ["-f", "qcow2", "-c", "write 0 64k", path];
  const socket = `${path}.refused`;
  const serve = ["--format=qcow2", "--socket", socket, path];
  {
    await using writer = await hostSource(path).openWritable();
    assert(writer.bytes > 0);
    for (const [tool, args] of [
      ["qemu-io", write],
      ["qemu-img", ["check", path]],
      ["qemu-img", ["snapshot", "-c", "s", path]],
      ["qemu-nbd", serve],
      ["qemu-nbd", ["--read-only", ...serve]],
    ] as const) {
      const { status, stderr } = attempt(tool, args);
      assert.notEqual(status, 0, `${tool} ${args.join(" ")}`);
      assert.match(stderr, BUSY);
    }
    assert.equal(
      attempt("qemu-img", ["info", "--force-share", path]).status,
      0,
      "forced readers stay possible",
    );
    assert.equal(await inUse(path), true);
  }
  run("qemu-io", write);
});

test("a new file is locked from the start", async (t) => {
  if (!requires(t, "qemu-io")) return;
  const path = join(scratch(t), "new");
  await using file = await hostSource(path).create();
  await file.truncate(1024 * 1024);
  const { status, stderr } = attempt("qemu-io", ["-f", "raw", "-c", "write 0 512", path]);
  assert.notEqual(status, 0);
  assert.match(stderr, BUSY);
  await assert.rejects(hostSource(path).create(), { kind: "usage", code: "exists" });
});

/** Another process that holds an image as our writer. */
async function writerProcess(t: TestContext, path: string): Promise<ChildProcess> {
  const script = `
    import { hostSource } from ${JSON.stringify(import.meta.resolve("./source.ts"))};
    const file = await hostSource(${JSON.stringify(path)}).openWritable();
    console.log("locked");
    setInterval(() => file.bytes, 1000);`;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", script], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  t.after(() => ended(child, "SIGKILL"));
  const [line] = (await once(child.stdout, "data")) as [Buffer];
  assert.equal(String(line), "locked\n");
  return child;
}

test("two writers of ours exclude each other, also in one process; a killed one leaves no lock", async (t) => {
  const path = join(scratch(t), "a");
  writeFileSync(path, "content");
  {
    await using first = await hostSource(path).openWritable();
    assert.equal(first.bytes, 7);
    await assert.rejects(hostSource(path).openWritable(), { kind: "busy", code: "locked" });
  }
  const child = await writerProcess(t, path);
  await assert.rejects(hostSource(path).openWritable(), {
    kind: "busy",
    message: new RegExp(`process ${child.pid}`),
  });
  await ended(child, "SIGKILL");
  await using second = await hostSource(path).openWritable();
  assert.equal(second.bytes, 7);
});

test("a reader that closes its file leaves the writer's lock alone", async (t) => {
  const path = join(scratch(t), "a");
  writeFileSync(path, "content");
  await using writer = await hostSource(path).openWritable();
  await (await hostSource(path).open())[Symbol.asyncDispose]();
  await assert.rejects(hostSource(path).openWritable(), { kind: "busy" });
  assert.equal(writer.bytes, 7);
});

test("a stranger's lock counts as in use", async (t) => {
  if (!requires(t, "python3")) return;
  const path = join(scratch(t), "a");
  writeFileSync(path, "content");
  const script = `
import fcntl, sys, time
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX, 1, 0)
print("locked", flush=True)
time.sleep(60)`;
  const child = spawn("python3", ["-c", script, path], { stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => ended(child, "SIGKILL"));
  await once(child.stdout, "data");
  await assert.rejects(hostSource(path).openWritable(), { kind: "busy", message: /has locked it/ });
  assert.equal(await inUse(path), true);
});

test("a file that somebody writes to without any lock is busy, one that is read is not (H16)", async (t) => {
  const path = join(scratch(t), "disk.raw");
  writeFileSync(path, "guest");
  const hypervisor = openSync(path, "r+");
  await assert.rejects(hostSource(path).openWritable(), { kind: "busy", code: "open" });
  closeSync(hypervisor);
  const reader = openSync(path, "r");
  await (await hostSource(path).openWritable())[Symbol.asyncDispose]();
  closeSync(reader);
});

test("a loop device is found by whatever name it knows its file", async (t) => {
  const path = join(scratch(t), "disk.raw");
  writeFileSync(path, Buffer.alloc(65536));
  linkSync(path, `${path}.link`);
  if (attached(t, path) === undefined) return;
  unlinkSync(path);
  await assert.rejects(hostSource(`${path}.link`).openWritable(), { kind: "busy" });
});

test("a file behind a loop device is busy: the device writes without a lock", async (t) => {
  const path = join(scratch(t), "disk.raw");
  writeFileSync(path, Buffer.alloc(1024 * 1024));
  const device = attached(t, path);
  if (device === undefined) return;
  await assert.rejects(hostSource(path).openWritable(), {
    kind: "busy",
    message: `${path}: it is attached to ${device}`,
  });
  assert.equal(await inUse(path), true);
  run("losetup", ["--detach", device]);
  for (let i = 0; i < 40 && (await inUse(path)); i++) await setTimeout(25);
  await using file = await hostSource(path).openWritable();
  assert.equal(file.bytes, 1024 * 1024);
});

async function assertBusyWhileMounted(device: string, mounted: string, point: string): Promise<void> {
  assert.equal(await inUse(device), false);
  await (await hostSource(device).openWritable())[Symbol.asyncDispose]();
  run("mount", ["-o", "ro", mounted, point]);
  try {
    await assert.rejects(hostSource(device).openWritable(), { kind: "busy", message: /the host uses it/ });
    assert.equal(await inUse(device), true);
    await using reader = await hostSource(device).open();
    await reader.read(0, new Uint8Array(512));
  } finally {
    run("umount", [point]);
  }
  assert.equal(await inUse(device), false);
}

test("a mounted block device is busy (H16)", async (t) => {
  if (!requires(t, "mke2fs", "mount")) return;
  const folder = scratch(t);
  const path = join(folder, "disk.raw");
  writeFileSync(path, Buffer.alloc(8 * 1024 * 1024));
  run("mke2fs", ["-q", "-F", path]);
  const device = attached(t, path);
  if (device === undefined) return;
  mkdirSync(join(folder, "mount"));
  await assertBusyWhileMounted(device, device, join(folder, "mount"));
});

test("a disk with a mounted partition is busy (H16)", async (t) => {
  if (!requires(t, "mke2fs", "mount", "sfdisk")) return;
  const folder = scratch(t);
  const path = join(folder, "disk.raw");
  writeFileSync(path, Buffer.alloc(8 * 1024 * 1024));
  run("sfdisk", ["--quiet", path], "start=2048\n");
  const device = attached(t, path, "--partscan");
  if (device === undefined) return;
  if (!existsSync(`${device}p1`)) return t.skip("this kernel shows no partitions on loop devices");
  run("mke2fs", ["-q", `${device}p1`]);
  mkdirSync(join(folder, "mount"));
  await assertBusyWhileMounted(device, `${device}p1`, join(folder, "mount"));
});
