/**
 * What the options of `ullage serve` do, as clients that others wrote see it: filters, the meter, our own context.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { CLASSES, survey } from "../src/disk.ts";
import { makeGuest } from "../src/testing/guest.ts";
import { nbdMap, nbdsh, nbdshAside, requiresClients } from "../src/testing/nbd-clients.ts";
import { qemuCheck } from "../src/testing/qemu.ts";
import { serving } from "../src/testing/serving.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";

const MiB = 1024 * 1024;
const BINARY = join(import.meta.dirname, "../bin/ullage.js");

function patterned(t: TestContext): string {
  const image = join(scratch(t), "disk.qcow2");
  run("qemu-img", ["create", "-q", "-f", "qcow2", image, "16M"]);
  run("qemu-io", ["-f", "qcow2", "-c", "write -P 5 1M 3M", "-c", "write -P 6 10000k 777k", image]);
  return image;
}

test("ullage:usage says over NBD what survey says by the bitmaps", async (t) => {
  if (!requiresClients(t) || !requires(t, "mke2fs", "debugfs")) return;
  const folder = scratch(t);
  const made = makeGuest({ folder, name: "made.raw", bytes: 24 * MiB });
  // Without extents that are allocated and not written, which survey counts, and a server does not look for.
  const image = join(folder, "guest.raw");
  run("cp", ["--sparse=always", made, image]);
  const mapped = join(folder, "guest.qcow2");
  run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", image, mapped]);
  for (const [path, format] of [
    [image, "raw"],
    [mapped, "qcow2"],
  ] as const) {
    const { regions } = await survey(path, { format, proof: "bitmap" });
    await using served = await serving(t, [path], { format });
    const pieces = nbdMap(served.uri(), "ullage:usage");
    for (const [type, name] of CLASSES.entries()) {
      const said = pieces.filter((piece) => piece.type === type);
      assert.deepEqual(
        said.map(({ offset, length }) => ({ start: offset, end: offset + length })),
        [...(regions.get(name) ?? [])],
        `${name} in ${format}`,
      );
    }
    assert.ok(regions.get("returnable")!.bytes > MiB / 2);
  }
});

test("what is under way when the server is told to stop is done and answered", async (t) => {
  if (!requiresClients(t)) return;
  const image = patterned(t);
  const served = await serving(t, [image], { words: ["--delay", "write=700ms,trim=500ms"] });
  let stopped: ReturnType<typeof served.stop> | undefined;
  const script = `
answers = []
def answered(error):
    answers.append(error.value if hasattr(error, "value") else error)
    return 1
for i in range(24):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i + 1]) * 65536), i * 65536, answered)
h.aio_trim(65536, 32 * 65536, answered)
while h.aio_in_flight() > 0 and h.poll(300) > 0: pass
print("sent", flush=True)
while h.aio_in_flight() > 0 and not h.aio_is_dead():
    try: h.poll(-1)
    except nbd.Error: break
print(json.dumps(answers))`;
  const lines = await nbdshAside(served.uri(), script, (line) => {
    if (line === "sent") stopped = served.stop();
  });
  assert.deepEqual(JSON.parse(lines.at(-1)!), Array(25).fill(0));
  assert.equal((await stopped!).code, 0);
  const commands = Array.from({ length: 24 }, (_, i) => ["-c", `read -P ${i + 1} ${i * 64}k 64k`]).flat();
  const { status, stdout } = attempt("qemu-io", ["-f", "qcow2", ...commands, image]);
  assert.ok(status === 0 && !stdout.includes("failed"), stdout);
  assert.deepEqual(qemuCheck(image), { errors: 0, leaks: 0 });
});

test("errors on order reach QEMU and libnbd by their names, and the meter counts them", async (t) => {
  if (!requiresClients(t)) return;
  const image = patterned(t);
  const log = join(scratch(t), "log");
  const served = await serving(t, [image], {
    words: ["--error", "trim=1:EIO,write=after2:ENOSPC", "--log", log],
  });
  const script = `
print(json.dumps([
    code(lambda: h.pwrite(b"1" * 512, 0)), code(lambda: h.pwrite(b"2" * 512, 512)),
    code(lambda: h.pwrite(b"3" * 512, 1024)), code(lambda: h.trim(4096, 0)), code(lambda: h.zero(4096, 4096)),
    code(lambda: h.flush()), code(lambda: h.pread(512, 0)),
]))`;
  const answers = nbdsh(served.uri(), script);
  assert.deepEqual(answers, ["done", "done", "ENOSPC", "EIO", "done", "done", "done"]);
  const theirs = attempt("qemu-io", ["-f", "raw", "-c", "write 0 4k", served.uri()]);
  assert.match(theirs.stdout + theirs.stderr, /No space left/);
  const counted = JSON.parse(run(process.execPath, [BINARY, "top", served.socket, "--once", "--json"])) as {
    exports: Record<string, { requests: number; errors: number; bytes: number }>[];
  };
  const { write, trim, zero } = counted.exports[0]!;
  assert.deepEqual(
    [write, trim, zero].map((kind) => [kind!.requests, kind!.errors]),
    [
      [4, 2],
      [1, 1],
      [1, 0],
    ],
  );
  assert.equal((await served.stop()).code, 0);
  assert.match(readFileSync(log, "utf8"), /trim +offset=0x0 bytes=0x1000 .*EIO/);
});
