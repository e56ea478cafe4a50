/**
 * A server's life: every format, a block device, snapshots, several disks; a clean stop and a killed one; locks.
 */
import assert from "node:assert/strict";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { test, type TestContext } from "node:test";
import { check, convert, create } from "../src/disk.ts";
import { attached } from "../src/testing/mounted.ts";
import { nbdInfo, nbdsh, nbdshAside, requiresClients } from "../src/testing/nbd-clients.ts";
import { qemuCheck } from "../src/testing/qemu.ts";
import { Random } from "../src/testing/seeds.ts";
import { type Server, serving } from "../src/testing/serving.ts";
import { attempt, run, scratch } from "../src/testing/tools.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const BLOCK_BYTES = 64 * KiB;
const BLOCKS = 160;

/**
 * Random writes, zeros, TRIMs and flushes of blocks. What a block may hold: `current`, where the server lives on;
 * `allowed`, where it dies: all since the last flush. Says "flushed" each time, and both when the server is gone.
 */
const lives = (seed: number, operations: number): string => `
import random
random.seed(${seed})
current = [{0} for _ in range(${BLOCKS})]
allowed = [{0} for _ in range(${BLOCKS})]
ended, block = "done", 0
try:
    for i in range(${operations}):
        block = random.randrange(${BLOCKS})
        at = block * ${BLOCK_BYTES}
        kind = random.choice(["write", "write", "write", "zero", "trim", "flush"])
        value = random.randrange(1, 256)
        if kind == "flush":
            h.flush()
            allowed = [set(values) for values in current]
            print("flushed", flush=True)
        else:
            current[block] = {"write": {value}, "zero": {0}, "trim": current[block] | {0}}[kind]
            allowed[block] |= current[block]
            if kind == "write": h.pwrite(bytes([value]) * ${BLOCK_BYTES}, at)
            elif kind == "zero": h.zero(${BLOCK_BYTES}, at)
            else: h.trim(${BLOCK_BYTES}, at)
except nbd.Error as error:
    ended = str(error)
print(json.dumps({"ended": ended, "unanswered": block, "current": [*map(list, current)], "allowed": [*map(list, allowed)]}))`;

interface Lived {
  readonly ended: string;
  /** Block of the request that had no answer. */
  readonly unanswered: number;
  readonly current: readonly (readonly number[])[];
  readonly allowed: readonly (readonly number[])[];
}

const lived = (lines: readonly string[]): Lived => JSON.parse(lines.at(-1)!) as Lived;

/** The guest's bytes, as QEMU reads them. */
function bytesOf(t: TestContext, image: string, format: string): Buffer {
  const raw = join(scratch(t), "raw");
  run("qemu-img", ["convert", "-f", format, "-O", "raw", image, raw]);
  return readFileSync(raw);
}

function holdsOnly(bytes: Uint8Array, values: readonly (readonly number[])[], what: string): void {
  for (const [block, allowed] of values.entries()) {
    const found = new Set(bytes.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES));
    for (const value of found) assert.ok(allowed.includes(value), `${what}: block ${block} has ${value}`);
  }
}

function emptyImage(t: TestContext, name: string, format: string, options: readonly string[] = []): string {
  const path = join(scratch(t), name);
  run("qemu-img", ["create", "-q", "-f", format, ...options, path, `${BLOCKS * BLOCK_BYTES}`]);
  return path;
}

const GUARD = ["--guard-for", "1h", "--guard-max", "1GiB"];

interface Subject {
  readonly server: Server;
  readonly format: "qcow2" | "raw";
  readonly words?: readonly string[];
}

const SUBJECTS: readonly Subject[] = [
  { server: "ullage", format: "qcow2" },
  { server: "ullage", format: "raw" },
  { server: "ullage", format: "qcow2", words: GUARD },
  { server: "ullage", format: "raw", words: [...GUARD, "--guard-writes"] },
  { server: "qemu-nbd", format: "qcow2" },
  { server: "nbdkit", format: "raw" },
];

for (const { server, format, words = [] } of SUBJECTS) {
  const subject = [server, format, ...words].join(" ");
  const options = { server, format, words };

  test(`${subject}: what a killed server had flushed is there, and the image is whole`, async (t) => {
    if (!requiresClients(t, "qemu-nbd", "nbdkit")) return;
    for (let seed = 1; seed <= 3; seed++) {
      const image = emptyImage(t, `disk.${format}`, format);
      const served = await serving(t, [image], options);
      let flushes = 0;
      const lines = await nbdshAside(served.uri(), lives(seed, 100_000), (line) => {
        if (line === "flushed" && ++flushes === seed * 9) setTimeout(() => void served.kill(), seed);
      });
      const { ended, allowed } = lived(lines);
      assert.notEqual(ended, "done");
      if (format === "qcow2") assert.equal(qemuCheck(image).errors, 0);
      await using again = await serving(t, [image], options);
      const copy = join(scratch(t), "copy");
      run("nbdcopy", [again.uri(), copy]);
      holdsOnly(readFileSync(copy), allowed, `seed ${seed}`);
      await again.stop();
      holdsOnly(bytesOf(t, image, format), allowed, `seed ${seed}, read by QEMU`);
    }
  });

  test(`${subject}: a server that is told to stop leaves the image whole, durable and unlocked`, async (t) => {
    if (!requiresClients(t, "qemu-nbd", "nbdkit")) return;
    const image = emptyImage(t, `disk.${format}`, format);
    const served = await serving(t, [image], options);
    let flushes = 0;
    let stopped: ReturnType<typeof served.stop> | undefined;
    const lines = await nbdshAside(served.uri(), lives(9, 100_000), (line) => {
      if (line === "flushed" && ++flushes === 20) stopped = served.stop();
    });
    assert.equal((await stopped!).code, 0);
    const { ended, unanswered, current, allowed } = lived(lines);
    assert.notEqual(ended, "done");
    const possible = current.map((values, block) => (block === unanswered ? allowed[block]! : values));
    holdsOnly(bytesOf(t, image, format), possible, "stopped");
    if (format === "qcow2") assert.deepEqual(qemuCheck(image), { errors: 0, leaks: 0 });
    run("qemu-io", ["-f", format, "-c", "write -P 1 0 64k", "-c", "flush", image]);
  });
}

interface AtOnce {
  readonly blockBytes: number;
  readonly pieces: number;
  readonly requests: number;
}

/**
 * Many requests at once, from four connections, to pieces of 4 KiB of which two lie in each block of `blockBytes`. No two
 * requests that are under way meet in a piece: so what each piece may hold is known.
 */
const atOnce = (uri: string, { blockBytes, pieces, requests }: AtOnce): string => `
import random
random.seed(1)
clients = [nbd.NBD() for _ in range(4)]
for one in clients: one.connect_uri("${uri}")
PIECE, STRIDE, COUNT = 4096, ${blockBytes} // 2, ${pieces}
may = [{0}] * COUNT
free = list(range(COUNT))
wrong = []
def start(client):
    piece = free.pop(random.randrange(len(free)))
    at = piece * STRIDE
    kind = random.choices(["write", "zero", "trim", "read"], [5, 0.2, 8, 2])[0]
    value = random.randrange(1, 256)
    buffer = nbd.Buffer.from_bytearray(bytearray([value]) * PIECE)
    def done(error):
        if error.value if hasattr(error, "value") else error: wrong.append([piece, kind, "failed"])
        if kind == "write": may[piece] = {value}
        elif kind == "zero": may[piece] = {0}
        elif kind == "trim": may[piece] = may[piece] | {0}
        else:
            found = set(bytes(buffer.to_bytearray()))
            if not found <= may[piece]: wrong.append([piece, kind, [*found], [*may[piece]]])
        free.append(piece)
        return 1
    if kind == "write": client.aio_pwrite(buffer, at, done)
    elif kind == "read": client.aio_pread(buffer, at, done)
    elif kind == "trim": client.aio_trim(PIECE, at, done)
    else: client.aio_zero(PIECE, at, done)
left = ${requests}
while (left > 0 or len(free) < COUNT) and not wrong:
    while left > 0 and len(free) > COUNT // 5:
        start(clients[left % 4]); left -= 1
    for one in clients:
        if one.aio_in_flight(): one.poll(0)
for one in clients: one.flush()
print(json.dumps(wrong))`;

for (const [format, blockBytes, pieces, requests] of [
  ["qcow2", 64 * KiB, 48, 8000],
  ["raw", 64 * KiB, 48, 8000],
  ["vhdx", MiB, 28, 1500],
] as const) {
  test(`H14: writes and TRIMs meet in a block of ${format}, from several connections`, async (t) => {
    if (!requiresClients(t)) return;
    const image = join(scratch(t), `disk.${format}`);
    const options: Readonly<Record<string, string>> = format === "vhdx" ? { block_size: "1M" } : {};
    await create({ path: image, virtualBytes: 16 * MiB, format, options });
    const served = await serving(t, [image], { format });
    assert.deepEqual(nbdsh(served.uri(), atOnce(served.uri(), { blockBytes, pieces, requests })), []);
    assert.equal((await served.stop()).code, 0);
    const { errors, leaks } = await check(image, { format });
    assert.deepEqual([errors, leaks], [0, 0]);
  });
}

/** A disk of which a third is written, a part of that trimmed, and a part made zeros; and what it may read as. */
const PATTERN = `
import random
random.seed(5)
n = h.get_size()
h.pwrite(random.randbytes(3 * 2**20 + 12345), 1234567)
h.pwrite(random.randbytes(300000), n - 300000)
h.zero(500001, 2000000)
h.trim(2**20, 3 * 2**20)
h.flush()
print(json.dumps(n))`;

/** Formats, and what QEMU calls those of them that it reads. */
const FORMATS: Readonly<Record<string, string | undefined>> = {
  raw: "raw",
  qcow2: "qcow2",
  vhdx: "vhdx",
  vhd: "vpc",
  vdi: "vdi",
  vmdk: "vmdk",
  parallels: "parallels",
  sparsebundle: undefined,
  sparseimage: undefined,
};

test("every format of the project is written over NBD, and read by QEMU afterwards", async (t) => {
  if (!requiresClients(t)) return;
  const folder = scratch(t);
  for (const [format, foreign] of Object.entries(FORMATS)) {
    const image = join(folder, `disk.${format}`);
    await create({ path: image, virtualBytes: 12 * MiB, format });
    const served = await serving(t, [image], { format });
    const bytes = nbdsh(served.uri(), PATTERN) as number;
    const copy = join(folder, `${format}.copy`);
    run("nbdcopy", [served.uri(), copy]);
    assert.equal((await served.stop()).code, 0, format);
    const seen = readFileSync(copy);
    assert.equal(seen.length, bytes);
    assert.ok(isZero(seen.subarray(2_000_000, 2_500_001)), `${format}: zeros`);
    assert.ok(!isZero(seen.subarray(1_234_567, 1_300_000)), `${format}: data`);
    if (foreign !== undefined) compare(copy, "raw", image, foreign);
    const converted = join(folder, `${format}.raw`);
    await convert(image, converted, { format, to: "raw", includeFree: true });
    compare(copy, "raw", converted, "raw");
    assert.deepEqual(
      await check(image, { format }).then(({ errors, leaks }) => [errors, leaks]),
      [0, 0],
      format,
    );
  }
});

test("a block device is served, and a TRIM of it reaches the file behind it", async (t) => {
  if (!requiresClients(t)) return;
  const file = join(scratch(t), "behind");
  writeFileSync(file, new Random(3).bytes(4 * MiB));
  const device = attached(t, file);
  if (device === undefined) return;
  const before = readFileSync(file);
  const served = await serving(t, [device], { format: "raw" });
  assert.equal(nbdInfo(served.uri())["export-size"], 4 * MiB);
  nbdsh(
    served.uri(),
    "h.pwrite(b'new' * 1000, 777); h.trim(2**20, 2**20); h.zero(2**20, 2**21); h.flush(); print(1)",
  );
  const copy = join(scratch(t), "copy");
  run("nbdcopy", [served.uri(), copy]);
  assert.equal((await served.stop()).code, 0);
  run("blockdev", ["--flushbufs", device]);
  before.write("new".repeat(1000), 777);
  before.fill(0, MiB, 3 * MiB);
  assert.ok(readFileSync(file).equals(before));
  assert.ok(readFileSync(copy).equals(before));
  assert.ok(statSync(file).blocks * 512 < 3 * MiB, "space came back");
});

test("snapshots are exports that nobody can write to, and several disks are served by name", async (t) => {
  if (!requiresClients(t)) return;
  const image = emptyImage(t, "snapped.qcow2", "qcow2");
  const io = (pattern: number): void =>
    void run("qemu-io", ["-f", "qcow2", "-c", `write -P ${pattern} 0 1M`, image]);
  io(1);
  run("qemu-img", ["snapshot", "-c", "one", image]);
  io(2);
  run("qemu-img", ["snapshot", "-c", "two", image]);
  io(3);
  const other = emptyImage(t, "other.qcow2", "qcow2");
  await using served = await serving(t, [image, other], { words: ["--snapshots"] });
  const first = (name: string): unknown => nbdsh(served.uri(name), "print(h.pread(1, 4096)[0])");
  const name = basename(image);
  assert.deepEqual(["", name, `${name}@one`, `${name}@two`, "other.qcow2"].map(first), [3, 3, 1, 2, 0]);
  const listed = JSON.parse(run("nbdinfo", ["--json", "--list", served.uri()])) as {
    exports: { "export-name": string; is_read_only: boolean }[];
  };
  assert.deepEqual(
    listed.exports.map((one) => [one["export-name"], one.is_read_only]).filter(([name]) => name !== ""),
    [
      [name, false],
      [`${name}@one`, true],
      [`${name}@two`, true],
      ["other.qcow2", false],
    ],
  );
  nbdsh(served.uri(name), "h.pwrite(b'9' * 65536, 0); h.trim(65536, 65536); h.flush(); print(1)");
  const write = "h.set_strict_mode(0); print(json.dumps(code(lambda: h.pwrite(b'x', 0))))";
  assert.equal(nbdsh(served.uri(`${name}@one`), write), "EPERM");
  assert.deepEqual([`${name}@one`, `${name}@two`].map(first), [1, 2]);
  assert.equal(attempt("nbdinfo", [served.uri("no such name")]).status, 1);
});

test("H16: while a disk is served nobody else writes to it; the socket is its owner's alone", async (t) => {
  if (!requiresClients(t)) return;
  const image = emptyImage(t, "disk.qcow2", "qcow2");
  await using served = await serving(t, [image]);
  assert.equal(statSync(served.socket).mode & 0o777, 0o600);
  const theirs = attempt("qemu-io", ["-f", "qcow2", "-c", "write 0 64k", image]);
  assert.match(theirs.stderr, /lock/);
  assert.equal(attempt(process.execPath, [BINARY, "reclaim", image, "--yes"]).status, 6);
  const second = serving(t, [image]);
  await assert.rejects(second, /the server does not serve: 6/);
  // One that only reads may.
  await using reader = await serving(t, [image], { words: ["--read-only"] });
  assert.equal(nbdsh(reader.uri(), "print(h.pread(1, 0)[0])"), 0);
});

test("H27: multi-conn is promised, and true: what one connection flushed all others see", async (t) => {
  if (!requiresClients(t)) return;
  for (const format of ["qcow2", "raw"]) {
    const image = emptyImage(t, `disk.${format}`, format);
    await using served = await serving(t, [image], { format });
    assert.equal(nbdInfo(served.uri())["can_multi_conn"], true);
    const script = `
others = [nbd.NBD() for _ in range(3)]
for one in others: one.connect_uri("${served.uri()}")
wrong = 0
for i in range(1, 200):
    writer, reader = others[i % 3], others[(i + 1) % 3]
    at = (i * 7919 % ${BLOCKS}) * ${BLOCK_BYTES}
    writer.pwrite(bytes([i]) * ${BLOCK_BYTES}, at)
    if i % 3: h.flush()
    wrong += reader.pread(${BLOCK_BYTES}, at) != bytes([i]) * ${BLOCK_BYTES}
    if i % 5 == 0:
        reader.zero(${BLOCK_BYTES}, at)
        wrong += writer.pread(${BLOCK_BYTES}, at) != bytes(${BLOCK_BYTES})
print(wrong)`;
    assert.equal(nbdsh(served.uri(), script), 0, format);
  }
});

const BINARY = join(import.meta.dirname, "../bin/ullage.js");

function compare(a: string, aFormat: string, b: string, bFormat: string): void {
  const { status, stdout, stderr } = attempt("qemu-img", ["compare", "-f", aFormat, "-F", bFormat, a, b]);
  assert.equal(status, 0, `${b}: ${stdout}${stderr}`);
}

const isZero = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === 0);
