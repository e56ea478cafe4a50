/**
 * `ullage serve` as a process: messages that find no room, and places where it cannot listen.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { CMD } from "../src/nbd/protocol.ts";
import { NbdClient } from "../src/testing/nbd-client.ts";
import { serving } from "../src/testing/serving.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";

const BINARY = join(import.meta.dirname, "../bin/ullage.js");

test(
  "a full host that takes no messages takes no disk away",
  { skip: process.platform !== "linux" },
  async (t) => {
    const folder = scratch(t);
    const [image, socket] = [join(folder, "disk.raw"), join(folder, "socket")];
    writeFileSync(image, Buffer.alloc(1024 * 1024));
    const full = openSync("/dev/full", "w");
    const words = [BINARY, "serve", image, "--format", "raw", "--socket", socket];
    const server = spawn(process.execPath, words, { stdio: ["ignore", "pipe", full] });
    t.after(() => void server.kill("SIGKILL"));
    closeSync(full);
    await once(server.stdout!, "data");
    for (let i = 0; i < 2; i++) {
      const client = await NbdClient.connect({ path: socket });
      client.raw(Buffer.alloc(64, 7));
      await client.ended();
    }
    const client = await NbdClient.open({ path: socket });
    await client.close();
    const ended = once(server, "exit");
    server.kill("SIGTERM");
    assert.deepEqual(await ended, [0, null]);
  },
);

test("where it cannot listen it says where, and why", (t) => {
  const folder = scratch(t);
  const image = join(folder, "disk.raw");
  writeFileSync(image, Buffer.alloc(1024 * 1024));
  const socket = join(folder, "nowhere", "socket");
  const words = [BINARY, "serve", image, "--format", "raw", "--socket", socket];
  const { status, stderr } = attempt(process.execPath, words);
  assert.equal(status, 7);
  assert.match(stderr, /nowhere\/socket: listen: .*ENOENT/s);
});

test("a log that cannot be written is an I/O error before anything is served", (t) => {
  const folder = scratch(t);
  const image = join(folder, "disk.raw");
  writeFileSync(image, Buffer.alloc(1024 * 1024));
  const words = [
    BINARY,
    "serve",
    image,
    "--socket",
    join(folder, "socket"),
    "--log",
    join(folder, "no", "log"),
  ];
  const { status, stderr } = attempt(process.execPath, words);
  assert.equal(status, 7);
  assert.match(stderr, /ENOENT/);
});

test("a second signal ends a server that has to wait", async (t) => {
  const folder = scratch(t);
  const [image, socket] = [join(folder, "disk.raw"), join(folder, "socket")];
  writeFileSync(image, Buffer.alloc(1024 * 1024));
  const words = [BINARY, "serve", image, "--format", "raw", "--socket", socket, "--delay", "read=300s"];
  const server = spawn(process.execPath, words, { stdio: ["ignore", "pipe", "ignore"] });
  t.after(() => void server.kill("SIGKILL"));
  await once(server.stdout!, "data");
  const client = await NbdClient.open({ path: socket });
  client.send({ command: CMD.READ, bytes: 512 }).catch(() => {});
  await pause(200);
  const ended = once(server, "exit");
  server.kill("SIGTERM");
  await pause(500);
  assert.equal(server.exitCode, null, "it waits for what it has taken up");
  server.kill("SIGTERM");
  assert.deepEqual(await ended, [130, null]);
});

test("H21: a guest makes no qcow2 of its raw disk or fixed VHD, unless its format was said", async (t) => {
  if (!requires(t, "qemu-img", "qemu-io")) return;
  const folder = scratch(t);
  const header = join(folder, "header");
  run("qemu-img", ["create", "-q", "-f", "qcow2", header, "1M"]);
  for (const [format, words] of [
    ["raw", []],
    ["vpc", ["-o", "subformat=fixed,force_size"]],
  ] as const) {
    const image = join(folder, `disk.${format}`);
    run("qemu-img", ["create", "-q", "-f", format, ...words, image, "4M"]);
    for (const said of [null, format === "raw" ? "raw" : "vhd"]) {
      const served = await serving(t, [image], { format: said });
      const write = attempt("qemu-io", ["-f", "raw", "-c", `write -s ${header} 0 512`, served.uri()]);
      if (said === null) assert.match(write.stdout + write.stderr, /Operation not permitted/);
      else assert.match(write.stdout, /^wrote 512/);
      await served.stop();
      const { format: taken } = JSON.parse(run("qemu-img", ["info", "--output=json", image])) as {
        format: string;
      };
      assert.equal(taken === "qcow2", said !== null, "what QEMU takes it for");
    }
  }
});
