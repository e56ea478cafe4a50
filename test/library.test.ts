/**
 * The library as a program uses it: the example of the documentation is run, and its types are checked with ours.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { info } from "../src/disk.ts";
import { CMD } from "../src/nbd/protocol.ts";
import { Served } from "../src/serve.ts";
import { NbdClient } from "../src/testing/nbd-client.ts";
import { requires, scratch } from "../src/testing/tools.ts";
import { DELETED_BYTES, DISK_TOOLS, makeDisk } from "./small-disk.ts";

const EXAMPLE = path.resolve(import.meta.dirname, "../examples/library.ts");

function example(...words: string[]): { exit: number | null; out: string } {
  const { status, stdout } = spawnSync(process.execPath, ["--conditions=ullage-source", EXAMPLE, ...words], {
    encoding: "utf8",
  });
  return { exit: status, out: stdout };
}

test("the example of the library runs", (t) => {
  if (!requires(t, ...DISK_TOOLS)) return;
  const { exit, out } = example(makeDisk(scratch(t), "disk.qcow2"));
  assert.equal(exit, 0);
  const [returnable] = /^\d+(?= of 67108864 bytes can be returned)/.exec(out)!;
  assert.ok(Math.abs(Number(returnable) - DELETED_BYTES) < DELETED_BYTES / 20, out);
  assert.match(out, /^volume "": ext4, \d+ bytes free, clean$/m);
  assert.match(out, /^first used byte: ext4 "root", block \d+/m);
  assert.match(out, RegExp(`^a reclaim would return ${returnable} bytes \\(applied: false\\)$`, "m"));
});

test("a failure has a kind", () => {
  const { exit, out } = example("absent.qcow2");
  assert.equal(exit, 1);
  assert.match(out, /^(usage|io): .*absent\.qcow2/);
});

test("a folder that is no bundle is named so", async (t) => {
  await assert.rejects(info(scratch(t)), { kind: "unsupported", message: /no bundle that is known/ });
});

test("a program serves a disk of its own", async (t) => {
  const image = path.join(scratch(t), "disk.raw");
  writeFileSync(image, Buffer.alloc(1024 * 1024, 5));
  await using served = await Served.start({
    images: [image],
    address: { host: "127.0.0.1", port: 0 },
    open: { format: "raw" },
    readOnly: true,
    snapshots: false,
    log: (message) => assert.fail(message),
  });
  const { hostname, port } = new URL(served.address);
  const client = await NbdClient.open({ host: hostname, port: Number(port) });
  const { data } = await client.send({ command: CMD.READ, offset: 4096, bytes: 512 });
  assert.deepEqual(data, Buffer.alloc(512, 5));
  await client.close();
});
