/**
 * Connections and their ends, over sockets: what a client leaves behind, and what it keeps from others.
 */
import assert from "node:assert/strict";
import { pbkdf2 } from "node:crypto";
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { describe, test, type TestContext } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { promisify } from "node:util";
import { Filter } from "../device/filter.ts";
import { NbdClient } from "../testing/nbd-client.ts";
import { sessionOf } from "../testing/nbd-memory.ts";
import { option, u32 } from "../testing/nbd-script.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { scratch } from "../testing/tools.ts";
import { CMD, OPT } from "./protocol.ts";
import { NbdServer, type NbdServerOptions } from "./server.ts";

const MiB = 1024 * 1024;

/** Every request takes the long way, and waits as long as is wished. */
class Slow extends Filter {
  milliseconds = 0;
  takesThreads = false;
  takenThreads = 0;

  override locate(): undefined {
    return undefined;
  }

  override async read(at: number, into: Uint8Array): Promise<void> {
    if (this.milliseconds > 0) await pause(this.milliseconds);
    if (this.takesThreads) this.takenThreads++;
    if (this.takesThreads) await promisify(pbkdf2)("", "", 300_000, 64, "sha512");
    await super.read(at, into);
  }
}

async function here(t: TestContext, options: Partial<NbdServerOptions>) {
  const device = new Slow(new SimulatedFile(64 * MiB));
  const { export: disk } = sessionOf(device);
  const nbd = new NbdServer({
    tls: "off",
    allowExtended: false,
    exports: { list: () => [disk], find: () => disk },
    connectionsMax: 64,
    handshakeMs: 10_000,
    budgetBytes: 64 * MiB,
    watcherOf: () => ({ answered() {} }),
    log: () => {},
    ...options,
  });
  const sockets: Socket[] = [];
  const listener = createServer({ allowHalfOpen: false }, (socket) => {
    sockets.push(socket);
    nbd.accept(socket);
  });
  const path = join(scratch(t), "socket");
  await once(listener.listen(path), "listening");
  t.after(async () => {
    listener.close();
    await nbd.stop(100);
  });
  return { device, nbd, sockets, path };
}

const within = (milliseconds: number, promise: Promise<unknown>): Promise<boolean> =>
  Promise.race([promise.then(() => true), pause(milliseconds, false, { ref: false })]);

test("H31: who floods a server does not flood its log", async (t) => {
  const log: string[] = [];
  const { path } = await here(t, { connectionsMax: 1, log: (message) => log.push(message) });
  await using client = await NbdClient.open({ path });
  for (let i = 0; i < 5; i++) await (await NbdClient.connect({ path })).ended();
  assert.equal(log.length, 1);
  await client.close();
});

for (const straight of [true, false]) {
  describe(straight ? "the straight way" : "streams", () => {
    test("H31: who has nothing pending is served, although others hold the budget and answers were on their way", async (t) => {
      const { path } = await here(t, { straight, budgetBytes: 0 });
      await using client = await NbdClient.open({ path });
      // Both come in at once: the answer to the first is not sent yet when the second is looked at.
      const unknown = client.send({ command: 77, bytes: 0 });
      const read = client.send({ command: CMD.READ, bytes: 512 });
      assert.ok(await within(2000, Promise.all([unknown, read])), "the READ is never answered");
    });

    test("who says ABORT is forgotten, although it keeps its end open", async (t) => {
      const { path, sockets } = await here(t, { straight });
      const client = connect({ path, allowHalfOpen: true });
      t.after(() => client.destroy());
      client.resume().write(Buffer.concat([u32(3), option(OPT.ABORT)]));
      await once(client, "end");
      const [socket] = sockets;
      if (!socket!.closed) assert.ok(await within(2000, once(socket!, "close")), "the socket stays open");
    });

    test("a client that is gone with requests pending costs no processor", async (t) => {
      const { device, path } = await here(t, { straight });
      device.milliseconds = 1500;
      const client = await NbdClient.open({ path });
      client.send({ command: CMD.READ, bytes: 512 }).catch(() => {});
      await pause(300);
      client.destroy();
      await pause(300);
      const before = process.cpuUsage();
      await pause(700);
      const { user, system } = process.cpuUsage(before);
      assert.ok(user + system < 200_000, `${user + system} us`);
    });

    test("promises that take all threads keep nobody waiting who needs none", async (t) => {
      const { device, path } = await here(t, { straight });
      const [slow, quick] = [await NbdClient.open({ path }), await NbdClient.open({ path })];
      t.after(() => [slow, quick].forEach((client) => client.destroy()));
      device.takesThreads = true;
      const asked = Array.from({ length: 8 }, () => slow.send({ command: CMD.READ, bytes: 512 }));
      while (device.takenThreads < asked.length) await pause(1);
      // By now the loop has seen that nothing comes.
      await pause(50);
      device.takesThreads = false;
      let isWaiting = true;
      void Promise.race(asked).then(() => (isWaiting = false));
      assert.equal((await quick.send({ command: CMD.READ, bytes: 512 })).error, 0);
      assert.ok(isWaiting, "the quick READ waited for a slow one");
      await Promise.all(asked);
    });

    test("a stop ends clients that take no answers", async (t) => {
      const { nbd, path } = await here(t, { straight });
      const client = await NbdClient.open({ path });
      t.after(() => client.destroy());
      client.pause(true);
      for (let i = 0; i < 4; i++) client.send({ command: CMD.READ, bytes: 8 * MiB }).catch(() => {});
      await pause(300);
      assert.ok(await within(3000, nbd.stop(200)), "it does not stop");
      // Its socket is closed when the poll that looks at it has returned.
      await pause(100);
      client.raw(Buffer.of(0));
      assert.ok(await within(2000, client.ended()), "the client is still connected");
    });
  });
}
