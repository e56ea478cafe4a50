/**
 * What must not take the guest's disk away: the control socket and its clients, listeners without descriptors, sockets of
 * others.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, writeFileSync } from "node:fs";
import { connect, Server } from "node:net";
import { join } from "node:path";
import { mock, test, type TestContext } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { NbdClient } from "../testing/nbd-client.ts";
import { requires, scratch } from "../testing/tools.ts";
import { CMD } from "../nbd/protocol.ts";
import { Served, type ServeOptions } from "./server.ts";

async function here(t: TestContext, options: Partial<ServeOptions> = {}) {
  const folder = scratch(t);
  const image = join(folder, "disk.raw");
  writeFileSync(image, Buffer.alloc(1024 * 1024, 7));
  const path = join(folder, "socket");
  const control = `${path}.control`;
  const log: string[] = [];
  const served = await Served.start({
    images: [image],
    open: { format: "raw" },
    readOnly: false,
    snapshots: false,
    address: { path },
    control,
    log: (message) => log.push(message),
    ...options,
  });
  t.after(() => served.stop());
  const serves = async (): Promise<void> => {
    await using client = await NbdClient.open({ path });
    assert.equal((await client.send({ command: CMD.READ, bytes: 512 })).data![0], 7);
  };
  return { served, path, control, log, serves };
}

async function heard(path: string, said: string): Promise<string[]> {
  const socket = connect({ path, allowHalfOpen: true });
  socket.on("error", () => {}).end(said);
  let text = "";
  socket.setEncoding("utf8").on("data", (chunk: string) => void (text += chunk));
  await new Promise((resolve) => socket.on("close", resolve));
  return text.split("\n").slice(0, -1);
}

test("counters that cannot be had end one question, and nothing else", async (t) => {
  const { served, control, log, serves } = await here(t);
  const counters = mock.method(served.images[0]!, "counters", () =>
    Promise.reject(new Error("stale handle")),
  );
  assert.deepEqual(await heard(control, "counters\n"), []);
  assert.match(log.join(), /stale handle/);
  await serves();
  counters.mock.restore();
  assert.equal((await heard(control, "counters\n")).length, 1);
});

test("each line is answered, also when it comes in pieces; what is no question ends the connection", async (t) => {
  const { control, serves } = await here(t);
  assert.equal((await heard(control, "counters\ncounters\ncounters\n")).length, 3);
  assert.deepEqual(await heard(control, "GET / HTTP/1.1\n"), []);
  assert.deepEqual(await heard(control, "c".repeat(1024 * 1024)), []);
  const socket = connect(control);
  socket.setEncoding("utf8").write("coun");
  await pause(50);
  socket.write("ters\n");
  assert.equal((JSON.parse(String(await once(socket, "data"))) as { pid: number }).pid, process.pid);
  socket.destroy();
  await serves();
});

test("a stop waits for nobody at the control socket", async (t) => {
  const { served, control } = await here(t);
  const socket = connect(control);
  await once(socket, "connect");
  socket.write("counters\n");
  await once(socket, "data");
  const closed = once(socket, "close").then(() => true);
  await served.stop();
  assert.ok(await Promise.race([closed, pause(2000, false, { ref: false })]), "the server's end stays open");
});

test("a listener's failure, such as a want of descriptors, ends nothing", async (t) => {
  const listeners: Server[] = [];
  const emit = Reflect.get(Server.prototype, "emit") as (...words: unknown[]) => boolean;
  const spy = mock.method(Server.prototype, "emit", function (this: Server, ...words: unknown[]) {
    if (words[0] === "listening") listeners.push(this);
    return emit.apply(this, words);
  });
  const { log, serves } = await here(t);
  spy.mock.restore();
  for (const each of listeners) each.emit("error", new Error("accept EMFILE"));
  assert.equal(log.filter((line) => line.includes("EMFILE")).length, 2);
  await serves();
});

test("a socket whose server has no time is not removed", async (t) => {
  if (!requires(t, "python3")) return;
  const path = join(scratch(t), "socket");
  const other = spawn("python3", ["-c", NEVER_ACCEPTS, path]);
  t.after(() => other.kill());
  await once(other.stdout, "data");
  const waiting = connect(path);
  await once(waiting, "connect");
  await assert.rejects(here(t, { address: { path } }), /somebody listens there already/);
  assert.ok(existsSync(path));
  waiting.destroy();
});

/** One client waits in its queue; the next one hears EAGAIN. */
const NEVER_ACCEPTS = `
import socket, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(0)
print("listening", flush=True)
time.sleep(60)`;
