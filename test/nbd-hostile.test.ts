/**
 * Clients that mean harm (H31): slow ones, silent ones, greedy ones, and those that never read. Whatever they do, the server's
 * memory stays bounded, and the others are served.
 */
import assert from "node:assert/strict";
import { connect, type Socket } from "node:net";
import { test, type TestContext } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { Filter } from "../src/device/filter.ts";
import { CMD } from "../src/nbd/protocol.ts";
import { sessionOf } from "../src/testing/nbd-memory.ts";
import { servedOn } from "../src/testing/nbd-served.ts";
import { SocketClient } from "../src/testing/nbd-socket.ts";
import { requestBytes } from "../src/testing/nbd-wire.ts";
import { SimulatedFile } from "../src/testing/simulated-file.ts";

const MiB = 1024 * 1024;

/** Counts the bytes that were read from it. */
class Counting extends Filter {
  readBytes = 0;

  override async read(at: number, into: Uint8Array): Promise<void> {
    this.readBytes += into.length;
    await super.read(at, into);
  }
}

const disk = (): Counting => new Counting(new SimulatedFile(64 * MiB));

function knock(path: string): { socket: Socket; closed: Promise<unknown> } {
  const socket = connect(path);
  socket.on("error", () => {});
  return { socket, closed: new Promise((resolve) => socket.on("close", resolve)) };
}

async function isServed(path: string): Promise<void> {
  const client = await SocketClient.connect(path, "structured");
  assert.equal((await client.ask({ command: CMD.READ, offset: 4096, bytes: 4096 })).error, 0);
  await client.leave();
}

/** @throws where it takes longer than any test should wait */
async function within(milliseconds: number, what: string, work: Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} took more than ${milliseconds} ms`)), milliseconds);
  });
  await Promise.race([work, late]).finally(() => clearTimeout(timer));
}

for (const straight of [true, false]) {
  const how = straight ? "straight" : "streams";

  test(`H31: ${how}: a handshake that takes too long is broken off, byte by byte or in silence`, async (t) => {
    const { path } = await servedOn(t, sessionOf(disk()).export, { straight, handshakeMs: 300 });
    const silent = knock(path);
    const slow = knock(path);
    slow.socket.resume();
    const drip = setInterval(() => slow.socket.write(Buffer.alloc(1)), 50);
    t.after(() => {
      clearInterval(drip);
      for (const { socket } of [silent, slow]) socket.destroy();
    });
    silent.socket.resume();
    await within(5000, "the end of the silent", silent.closed);
    await within(5000, "the end of the slow", slow.closed);
    await isServed(path);
  });

  test(`H31: ${how}: no more connections than allowed, and room again when one has gone`, async (t) => {
    const { path, server, log } = await servedOn(t, sessionOf(disk()).export, {
      straight,
      connectionsMax: 3,
    });
    const clients = await Promise.all([1, 2, 3].map(() => SocketClient.connect(path, "simple")));
    const more = knock(path);
    more.socket.resume();
    await within(5000, "the end of the fourth", more.closed);
    assert.equal(server.connections, 3);
    assert.match(log.join(), /turned away/);
    await clients[0]!.leave();
    while (server.connections > 2) await pause(5);
    await isServed(path);
  });

  test(`H31: ${how}: clients that ask and never read hold their share, and the others are served`, async (t) => {
    const device = disk();
    const { path, server } = await servedOn(t, sessionOf(device).export, { straight, budgetBytes: 8 * MiB });
    const greedy = await Promise.all([1, 2, 3].map(() => SocketClient.connect(path, "structured")));
    for (const { socket, wire } of greedy) {
      socket.pause();
      for (let i = 0; i < 3000; i++) {
        socket.write(requestBytes("structured", wire.name({ command: CMD.READ, offset: 0, bytes: 2 * MiB })));
      }
    }
    await pause(500);
    // The budget, one request for each beyond it, and what sockets and streams hold.
    const most = 8 * MiB + 3 * (2 + 4 + 4) * MiB;
    assert.ok(device.readBytes <= most, `${device.readBytes / MiB} MiB were read for nobody`);
    const before = device.readBytes;
    await pause(200);
    assert.equal(device.readBytes, before, "and it stays so");
    await within(5000, "another client", isServed(path));
    for (const { socket } of greedy) socket.destroy();
    while (server.connections > 0) await pause(5);
    await within(5000, "a client afterwards", isServed(path));
  });

  test(`H31: ${how}: a request that never comes to its end, and one without its magic`, async (t) => {
    const { path, server, log } = await servedOn(t, sessionOf(disk()).export, { straight });
    const cut = await SocketClient.connect(path, "structured");
    const write = { command: CMD.WRITE, offset: 0, bytes: 32 * MiB, cookie: 1n };
    cut.socket.write(requestBytes("structured", write));
    cut.socket.write(Buffer.alloc(MiB));
    await isServed(path);
    cut.socket.destroy();
    const liar = await SocketClient.connect(path, "structured");
    liar.socket.write(Buffer.alloc(28));
    await within(5000, "the end of the liar", liar.closed);
    const giant = await SocketClient.connect(path, "structured");
    giant.socket.write(requestBytes("structured", { ...write, bytes: 2 ** 32 - 1 }));
    await within(5000, "the end of the giant", giant.closed);
    assert.match(log.join("\n"), /without its magic[^]*4294967295 bytes/);
    while (server.connections > 0) await pause(5);
  });

  test(`H31: ${how}: who leaves with requests in flight leaves nothing behind`, async (t: TestContext) => {
    const { promise: gate, resolve: open } = Promise.withResolvers<void>();
    class Gated extends Counting {
      override async read(at: number, into: Uint8Array): Promise<void> {
        await gate;
        await super.read(at, into);
      }
    }
    const device = new Gated(new SimulatedFile(MiB));
    const { path, server } = await servedOn(t, sessionOf(device).export, { straight });
    const client = await SocketClient.connect(path, "structured");
    for (let i = 0; i < 50; i++) void client.ask({ command: CMD.READ, offset: 0, bytes: 4096 });
    await pause(50);
    client.socket.destroy();
    open();
    const gone = (async () => {
      while (server.connections > 0) await pause(5);
    })();
    await within(5000, "the end of the connection", gone);
    await isServed(path);
  });
}
