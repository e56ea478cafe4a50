/**
 * Random lives against the model as in `nbd-model.test.ts`, over real sockets and a real file: the straight way with its
 * system calls, and Node's streams; several clients that see one disk (H27).
 *
 *   clients ── UNIX socket ── NbdServer ── format ── LockedFile in a scratch folder
 *
 * `SEED=n` replays one seed, `OPERATIONS=n` makes each life so long.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { open, openWritable } from "../src/disk/open.ts";
import { readBytes } from "../src/device/device.ts";
import { FORMATS } from "../src/formats/all.ts";
import { HostReader } from "../src/host/file.ts";
import { hostSource } from "../src/host/source.ts";
import { allocation } from "../src/nbd/contexts.ts";
import { Life } from "../src/testing/nbd-life.ts";
import { sessionOf } from "../src/testing/nbd-memory.ts";
import { servedOn } from "../src/testing/nbd-served.ts";
import { SocketClient } from "../src/testing/nbd-socket.ts";
import type { Dialect } from "../src/testing/nbd-wire.ts";
import { Random, seeds } from "../src/testing/seeds.ts";
import { ShadowDisk } from "../src/testing/shadow-disk.ts";
import { scratch } from "../src/testing/tools.ts";

const OPERATIONS = Number(process.env["OPERATIONS"] ?? 6_000);
const BYTES = 3 * 1024 * 1024;
const DIALECTS: readonly Dialect[] = ["simple", "structured", "extended"];
const KINDS: readonly (readonly [string, Readonly<Record<string, string>>])[] = [
  ["raw", {}],
  ["qcow2", { cluster_size: "4096" }],
  ["qcow2", { cluster_size: "65536", extended_l2: "on" }],
  ["vdi", { block_size: "65536" }],
];

for (const [format, options] of KINDS) {
  for (const straight of [true, false]) {
    const name = `${format} ${Object.values(options).join(" ")}, ${straight ? "straight" : "streams"}`;
    test(`H27: ${name}: three clients and one disk`, async (t) => {
      for (const seed of seeds(1)) {
        const random = new Random(seed);
        const path = join(scratch(t), "disk");
        const source = hostSource(path);
        const made = FORMATS.find((each) => each.name === format)!;
        await (await made.create!(source, { virtualBytes: BYTES, options }))[Symbol.asyncDispose]();
        const shadow = new ShadowDisk(new Uint8Array(BYTES));
        await lives(path, format, straight, { shadow, random, label: `SEED=${seed}` }, t);
        await using disk = await open(path, { format });
        for await (const { kind, message } of disk.image.check())
          assert.fail(`SEED=${seed} ${kind}: ${message}`);
        const look = shadow.look(0, BYTES);
        shadow.saw(look, await readBytes(disk.image, 0, BYTES), `SEED=${seed} opened anew`);
      }
    });
  }
}

async function lives(
  path: string,
  format: string,
  straight: boolean,
  { shadow, random, label }: { shadow: ShadowDisk; random: Random; label: string },
  t: Parameters<typeof servedOn>[0],
): Promise<void> {
  await using disk = await openWritable(path, { format });
  const { image } = disk;
  for (const file of image.files.values()) if (file instanceof HostReader) file.isLive = true;
  const { export: served } = sessionOf(image, { contexts: [allocation(image)] });
  const server = await servedOn(t, served, { straight });
  const clients = await Promise.all(DIALECTS.map((dialect) => SocketClient.connect(server.path, dialect)));
  const allocations = clients.map((client) => client.allocation);
  assert.deepEqual([allocations[0], allocations[1] === undefined], [undefined, false]);
  const life = new Life(clients, shadow, random, {
    operations: OPERATIONS,
    inFlightMax: 30,
    grains: [1, 512, 4096, 4096, 65536],
    bytesMax: 300 * 1024,
    label,
    turn: () => new Promise((resolve) => setImmediate(resolve)),
  });
  await life.live();
  t.diagnostic(JSON.stringify(life.answered));
  await Promise.all(clients.map((client) => client.leave()));
  await server.stop();
  assert.deepEqual(server.log, []);
}
