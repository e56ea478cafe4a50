/**
 * Clients that others wrote meet our server; the same questions go to qemu-nbd and nbdkit, whose answers are the
 * measure. `nbd-tester-client` is missing: Debian does not ship it.
 */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import {
  fio,
  HOLE,
  nbdInfo,
  nbdMap,
  nbdsh,
  type MapPiece,
  requiresClients,
  ZERO,
} from "../src/testing/nbd-clients.ts";
import { qemuCheck } from "../src/testing/qemu.ts";
import { Random } from "../src/testing/seeds.ts";
import { type Server, serving } from "../src/testing/serving.ts";
import { attempt, run, scratch } from "../src/testing/tools.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const DISK_BYTES = 24 * MiB;

/** Servers that the same test is put to, and the formats they serve. */
const SUBJECTS: readonly { readonly server: Server; readonly format: "qcow2" | "raw" }[] = [
  { server: "ullage", format: "qcow2" },
  { server: "ullage", format: "raw" },
  { server: "qemu-nbd", format: "qcow2" },
  { server: "nbdkit", format: "raw" },
];

function emptyImage(t: TestContext, format: string, bytes = DISK_BYTES): string {
  const path = join(scratch(t), `disk.${format}`);
  run("qemu-img", ["create", "-q", "-f", format, path, `${bytes}`]);
  return path;
}

/** Random bytes with runs of zeros between them. */
function content(t: TestContext, seed: number, bytes = DISK_BYTES): string {
  const random = new Random(seed);
  const all = new Uint8Array(bytes);
  for (let at = 0; at < bytes; at += 192 * KiB) all.set(random.bytes(Math.min(130_000, bytes - at)), at);
  const path = join(scratch(t), "content");
  writeFileSync(path, all);
  return path;
}

for (const { server, format } of SUBJECTS) {
  const subject = `${server}, ${format}`;

  test(`${subject}: nbdcopy in and out, by one and by four connections`, async (t) => {
    if (!requiresClients(t, "qemu-nbd", "nbdkit", "fio")) return;
    for (const connections of [1, 4]) {
      const image = emptyImage(t, format);
      const source = content(t, connections);
      const copy = join(scratch(t), "copy");
      const served = await serving(t, [image], { server, format });
      run("nbdcopy", [`--connections=${connections}`, "--flush", source, served.uri()]);
      run("nbdcopy", [`--connections=${connections}`, served.uri(), copy]);
      assert.ok(readFileSync(source).equals(readFileSync(copy)), `${connections} connections`);
      assert.equal((await served.stop()).code, 0);
      compare(source, "raw", image, format);
      if (format === "qcow2") assert.deepEqual(qemuCheck(image), { errors: 0, leaks: 0 });
    }
  });

  test(`${subject}: QEMU converts, compares and maps`, async (t) => {
    if (!requiresClients(t, "qemu-nbd", "nbdkit", "fio")) return;
    const image = emptyImage(t, format);
    const source = content(t, 3);
    await using served = await serving(t, [image], { server, format });
    run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", source, served.uri()]);
    compare(source, "raw", served.uri(), "raw");
    const copy = join(scratch(t), "copy.qcow2");
    run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", served.uri(), copy]);
    compare(source, "raw", copy, "qcow2");
    const map = JSON.parse(run("qemu-img", ["map", "--output=json", "-f", "raw", served.uri()])) as {
      start: number;
      length: number;
      zero: boolean;
    }[];
    const bytes = readFileSync(source);
    for (const { start, length, zero } of map) {
      if (zero) assert.ok(isZero(bytes.subarray(start, start + length)), `zeros at ${start}`);
    }
    assert.equal(
      map.reduce((sum, { length }) => sum + length, 0),
      DISK_BYTES,
    );
  });

  test(`${subject}: qemu-io writes, discards and zeroes`, async (t) => {
    if (!requiresClients(t, "qemu-nbd", "nbdkit", "fio")) return;
    const image = emptyImage(t, format);
    const served = await serving(t, [image], { server, format });
    qemuIo(served.uri(), [
      "write -P 7 0 8M",
      "write -P 9 8M 3M",
      "writev -P 5 12345k 3k 4k 513",
      "aio_write -P 6 16M 300k",
      "aio_flush",
      "flush",
      "discard 1M 64k",
      "discard 2100k 3k",
      "discard 3M 1M",
      "write -z 4097k 6k",
      "write -z -u 5M 1M",
      "write -z -u 6145k 1027k",
      "write -f -P 8 7800k 8k",
      "write -z 8388607 2",
      "flush",
    ]);
    const reads = [
      "read -P 7 0 1M",
      "read -P 7 1088k 1012k",
      "read -P 7 2103k 969k",
      "read -P 7 4M 1k",
      "read -P 0 4097k 6k",
      "read -P 7 4103k 1017k",
      "read -P 0 5M 1M",
      "read -P 7 6M 1k",
      "read -P 0 6145k 1027k",
      "read -P 7 7172k 628k",
      "read -P 8 7800k 8k",
      "read -P 7 7808k 391167",
      "read -P 0 8388607 2",
      "read -P 9 8388609 3145727",
      "read -P 5 12345k 7681",
      "read -P 6 16M 300k",
    ];
    qemuIo(served.uri(), reads);
    assert.equal((await served.stop()).code, 0);
    qemuIo(image, reads, format);
    if (format === "qcow2") assert.deepEqual(qemuCheck(image), { errors: 0, leaks: 0 });
  });

  test(`${subject}: fio verifies what it wrote and trims`, async (t) => {
    if (!requiresClients(t, "qemu-nbd", "nbdkit", "fio")) return;
    const image = emptyImage(t, format);
    const served = await serving(t, [image], { server, format });
    const verify = { verify: "crc32c", verify_fatal: 1, size: "16M" };
    fio(served.uri(), { ...verify, rw: "randwrite", bsrange: "4k-64k", bs_unaligned: 1, iodepth: 16 });
    fio(served.uri(), { ...verify, rw: "randtrimwrite", bs: "4k", iodepth: 8, serialize_overlap: 1 });
    fio(served.uri(), { ...verify, rw: "trimwrite", bs: "64k", iodepth: 4, serialize_overlap: 1 });
    fio(served.uri(), { ...verify, rw: "randwrite", bs: "1M", iodepth: 8, fsync: 4, verify_backlog: 4 });
    fio(served.uri(), { rw: "randtrim", bs: "12k", iodepth: 8, size: "16M" });
    assert.equal((await served.stop()).code, 0);
    if (format === "qcow2") assert.deepEqual(qemuCheck(image), { errors: 0, leaks: 0 });
  });

  test(`${subject}: nbdkit's proxy between`, async (t) => {
    if (!requiresClients(t, "qemu-nbd", "nbdkit", "fio")) return;
    const image = emptyImage(t, format);
    const source = content(t, 4);
    await using served = await serving(t, [image], { server, format });
    await using proxy = await serving(t, [], {
      server: "nbdkit",
      plugin: "nbd",
      words: [`socket=${served.socket}`, "shared=true"],
    });
    run("nbdcopy", ["--flush", source, proxy.uri()]);
    const copy = join(scratch(t), "copy");
    run("nbdcopy", [served.uri(), copy]);
    assert.ok(readFileSync(source).equals(readFileSync(copy)));
    assert.deepEqual(nbdMap(proxy.uri()), nbdMap(served.uri()));
  });
}

function compare(a: string, aFormat: string, b: string, bFormat: string): void {
  const { status, stdout, stderr } = attempt("qemu-img", ["compare", "-f", aFormat, "-F", bFormat, a, b]);
  assert.equal(status, 0, stdout + stderr);
}

/** @throws Error when a command fails, or a read finds something else */
function qemuIo(where: string, commands: readonly string[], format = "raw"): void {
  const words = commands.flatMap((command) => ["-c", command]);
  const { status, stdout, stderr } = attempt("qemu-io", ["-d", "unmap", "-f", format, ...words, where]);
  assert.ok(status === 0 && !/fail|error/i.test(stdout + stderr), stdout + stderr);
}

const isZero = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === 0);

const ERRORS = `
h.set_strict_mode(0)
n = h.get_size()
print(json.dumps({
    "read past the end": code(lambda: h.pread(10, n - 5)),
    "write past the end": code(lambda: h.pwrite(b"x" * 10, n - 5)),
    "write far away": code(lambda: h.pwrite(b"x" * 10, 2**63 - 1)),
    "trim past the end": code(lambda: h.trim(10, n - 5)),
    "zero past the end": code(lambda: h.zero(10, n - 5)),
    "cache past the end": code(lambda: h.cache(10, n - 5)),
    "status past the end": code(lambda: h.block_status(10, n - 5, lambda *a: 0)),
    "write": code(lambda: h.pwrite(b"x" * 10, 5)),
    "write, FUA": code(lambda: h.pwrite(b"x" * 10, 5, nbd.CMD_FLAG_FUA)),
    "trim": code(lambda: h.trim(4096, 0)),
    "trim of everything": code(lambda: h.trim(n, 0)),
    "zero": code(lambda: h.zero(10, 3)),
    "zero, no hole": code(lambda: h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE)),
    "flush": code(lambda: h.flush()),
    "cache": code(lambda: h.cache(4096, 0)),
    "status of one": code(lambda: h.block_status(n, 0, lambda *a: 0, nbd.CMD_FLAG_REQ_ONE)),
    "read": code(lambda: h.pread(10, 0)),
}))`;

const PAST_THE_END = {
  "read past the end": "EINVAL",
  "write past the end": "ENOSPC",
  "write far away": "ENOSPC",
  "trim past the end": "EINVAL",
  "zero past the end": "ENOSPC",
  "cache past the end": "EINVAL",
  "status past the end": "EINVAL",
};
const ALWAYS = { flush: "done", cache: "done", "status of one": "done", read: "done" };
const CHANGES = ["write", "write, FUA", "trim", "trim of everything", "zero", "zero, no hole"];
const all = (answer: string): Record<string, string> =>
  Object.fromEntries(CHANGES.map((change) => [change, answer]));

test("H29: libnbd out of bounds, and on an export that is read-only", async (t) => {
  if (!requiresClients(t, "nbdkit")) return;
  const subjects = [
    { server: "ullage", format: "qcow2", readOnly: "--read-only" },
    { server: "ullage", format: "raw", readOnly: "--read-only" },
    { server: "nbdkit", format: "raw", readOnly: "--readonly" },
  ] as const;
  for (const { server, format, readOnly } of subjects) {
    const image = emptyImage(t, format);
    {
      await using served = await serving(t, [image], { server, format });
      assert.deepEqual(nbdsh(served.uri(), ERRORS), { ...PAST_THE_END, ...all("done"), ...ALWAYS }, server);
    }
    const before = readFileSync(image);
    await using served = await serving(t, [image], { server, format, words: [readOnly] });
    assert.equal(nbdInfo(served.uri())["is_read_only"], true);
    const pastTheEnd = {
      "write past the end": "EPERM",
      "write far away": "EPERM",
      "trim past the end": "EPERM",
    };
    assert.deepEqual(
      nbdsh(served.uri(), ERRORS),
      { ...PAST_THE_END, ...pastTheEnd, "zero past the end": "EPERM", ...all("EPERM"), ...ALWAYS },
      `${server}, read-only`,
    );
    assert.ok(before.equals(readFileSync(image)));
  }
});

/** A chain of three: data, zeros, holes and compressed clusters, hidden and shining through. */
function chain(t: TestContext): string {
  const folder = scratch(t);
  const layers = [
    ["write -P 1 0 1M", "write -z 1M 512k", "write -c -P 7 6M 128k"],
    ["write -P 2 512k 256k", "write -z 64k 64k", "write -P 4 7M 64k", "discard 7M 64k"],
    [
      "write -P 3 2M 256k",
      "write -z 3M 64k",
      "write -P 3 128k 64k",
      "write -z 6M 64k",
      "write -c -P 8 4M 64k",
    ],
  ];
  const paths = layers.map((_, i) => join(folder, `layer${i}.qcow2`));
  for (const [i, path] of paths.entries()) {
    const backing = i === 0 ? [] : ["-b", paths[i - 1]!, "-F", "qcow2"];
    run("qemu-img", ["create", "-q", "-f", "qcow2", ...backing, path, `${8 * MiB + 5 * KiB}`]);
    qemuIo(path, layers[i]!, "qcow2");
  }
  return paths.at(-1)!;
}

test("H28: a chain's map says what qemu-nbd's says, and no zeros where there are none", async (t) => {
  if (!requiresClients(t, "qemu-nbd")) return;
  const image = chain(t);
  const raw = join(scratch(t), "raw");
  run("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", image, raw]);
  const bytes = readFileSync(raw);
  const maps = async (server: Server, words: readonly string[]): Promise<MapPiece[][]> => {
    await using served = await serving(t, [image], { server, words });
    return ["base:allocation", "qemu:allocation-depth"].map((context) => nbdMap(served.uri(), context));
  };
  const [allocation, depth] = await maps("ullage", []);
  const [theirAllocation, theirDepth] = await maps("qemu-nbd", ["--allocation-depth"]);
  for (const { offset, length, type, description } of allocation!) {
    const isAllZero = isZero(bytes.subarray(offset, offset + length));
    if ((type & ZERO) !== 0) assert.ok(isAllZero, `${description} at ${offset}`);
    if ((type & HOLE) !== 0) assert.ok(isAllZero, `${description} at ${offset}`);
  }
  assert.deepEqual(allocation, theirAllocation);
  assert.deepEqual(depth, theirDepth);
});
