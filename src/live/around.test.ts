import assert from "node:assert/strict";
import { test } from "node:test";
import { readBytes, wholeMap, type WritableDevice } from "../device/device.ts";
import type { DiskError } from "../error.ts";
import { Random } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { byOperation, OPERATIONS, type Operation } from "./around.ts";
import { Delayed, parseDelays } from "./delay.ts";
import { Failing, parseFailures } from "./error.ts";
import { Logged } from "./log.ts";
import { ReadOnly } from "./readonly.ts";

const file = (): SimulatedFile => SimulatedFile.from(new Random(1).bytes(40_960));

/** A device with a way around `read` and `write`. */
function withWay(below: SimulatedFile): WritableDevice {
  return Object.assign(below, {
    locate: (at: number, bytes: number) => ({ file: below, at, bytes }),
  });
}

/** Asks for one of each kind. */
const ASK: Readonly<Record<Operation, (device: WritableDevice) => Promise<unknown>>> = {
  read: (device) => readBytes(device, 512, 100),
  write: (device) => device.write(1024, Uint8Array.of(1, 2)),
  trim: (device) => device.discard({ start: 4096, end: 8192 }),
  zero: (device) => device.zero({ start: 100, end: 300 }),
  flush: (device) => device.flush(),
  extents: (device) => wholeMap(device),
};

/** Which kinds of request fail, and with what. */
async function failures(device: WritableDevice): Promise<Partial<Record<Operation, string>>> {
  const failed: Partial<Record<Operation, string>> = {};
  for (const operation of OPERATIONS) {
    await ASK[operation](device).catch((error: DiskError) => {
      failed[operation] = `${error.kind} ${error.code}`;
    });
  }
  return failed;
}

test("a read-only disk refuses what would change it, and gives no way to write", async () => {
  const below = file();
  const before = below.peek();
  const device = new ReadOnly(withWay(below));
  assert.deepEqual(await failures(device), {
    write: "refused read-only",
    trim: "refused read-only",
    zero: "refused read-only",
  });
  assert.deepEqual(below.peek(), before);
  assert.equal(device.locate(0, 512, "write"), undefined);
  assert.equal(device.locate(512, 512, "read")?.at, 512);
});

test("a delay holds up its own kind of request alone, and no other request", async () => {
  const below = file();
  const waits: { ms: number; go: () => void }[] = [];
  const device = new Delayed(withWay(below), parseDelays("write=10ms,flush=0.5s"), (ms) => {
    return new Promise<void>((resolve) => waits.push({ ms, go: resolve }));
  });
  const first = device.write(0, Uint8Array.of(7));
  const second = device.write(1, Uint8Array.of(8));
  assert.equal((await readBytes(device, 100, 4)).length, 4, "a read goes on meanwhile");
  assert.deepEqual([waits.map(({ ms }) => ms), below.operations], [[10, 10], 0]);
  waits[1]!.go();
  await second;
  assert.equal(below.operations, 1, "each waits for itself");
  waits[0]!.go();
  await first;
  void device.flush();
  assert.equal(waits[2]!.ms, 500);
  assert.equal(device.locate(0, 10, "write"), undefined);
  assert.equal(device.locate(0, 10, "read")?.at, 0);
});

test("a delay really takes its time", async () => {
  const device = new Delayed(file(), parseDelays("read=40ms"));
  const startMs = performance.now();
  await Promise.all([readBytes(device, 0, 10), readBytes(device, 10, 10), readBytes(device, 20, 10)]);
  const tookMs = performance.now() - startMs;
  assert.ok(tookMs > 38, `${tookMs} ms`);
});

test("errors come for their kind of request, with their name, and nothing is carried out", async () => {
  const below = file();
  const before = below.peek();
  const device = new Failing(withWay(below), parseFailures("write=1:ENOSPC,trim=100%,zero=after0:EPERM"));
  assert.deepEqual(await failures(device), { write: "io no-space", trim: "io EIO", zero: "refused EPERM" });
  assert.deepEqual(below.peek(), before);
  assert.equal(device.locate(0, 10, "write"), undefined);
  assert.equal(device.locate(0, 10, "read")?.at, 0);
  assert.deepEqual(Object.keys(await failures(new Failing(file(), parseFailures("1")))), [...OPERATIONS]);
  assert.deepEqual(await failures(new Failing(file(), parseFailures("0"))), {});
});

test("errors come at their rate, the same for the same seed", async () => {
  const draw = async (seed: number): Promise<string> => {
    const device = new Failing(file(), parseFailures("read=25%"), { seed });
    let drawn = "";
    for (let i = 0; i < 400; i++) {
      drawn += await readBytes(device, 0, 1).then(
        () => ".",
        () => "!",
      );
    }
    return drawn;
  };
  const first = await draw(1);
  assert.equal(await draw(1), first);
  assert.notEqual(await draw(2), first);
  const failed = first.replaceAll(".", "").length;
  assert.ok(failed > 70 && failed < 130, `${failed} of 400`);
});

test("errors after a count, and while they are switched on", async () => {
  let isOn = true;
  const device = new Failing(file(), parseFailures("read=after3"), { isOn: () => isOn });
  for (let i = 0; i < 3; i++) await readBytes(device, 0, 1);
  await assert.rejects(readBytes(device, 0, 1), { kind: "io", code: "EIO" });
  isOn = false;
  await readBytes(device, 0, 1);
  isOn = true;
  await assert.rejects(readBytes(device, 0, 1), { kind: "io" });
});

test("a log has one line for each request: when, what, where, how it went, how long", async () => {
  const lines: string[] = [];
  const below = withWay(file());
  const device = new Logged(new Failing(below, parseFailures("zero=1:ENOSPC")), (line) => lines.push(line));
  assert.deepEqual(await failures(device), { zero: "io no-space" });
  assert.equal(device.locate(0, 10, "read"), undefined, "no request passes by");
  const shape = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (.+) \d+\.\d{3}ms$/;
  assert.deepEqual(
    lines.map((line) => shape.exec(line)?.[1]),
    [
      "read    offset=0x200 bytes=0x64 ok",
      "write   offset=0x400 bytes=0x2 ok",
      "trim    offset=0x1000 bytes=0x1000 ok",
      "zero    offset=0x64 bytes=0xc8 no-space",
      "flush   ok",
      "extents offset=0x0 bytes=0xa000 ok",
    ],
  );
});

test("filters pass on all of a map", async () => {
  const below = new SimulatedFile(4096 * 6000);
  for (let block = 0; block < 6000; block += 2) await below.write(block * 4096, Uint8Array.of(1));
  const device = new Logged(below, () => {});
  assert.deepEqual(
    (await wholeMap(device)).map(({ start, end, kind }) => [start, end, kind]),
    (await wholeMap(below)).map(({ start, end, kind }) => [start, end, kind]),
  );
});

test("words for filters", () => {
  assert.deepEqual(
    [...parseDelays("10ms")],
    OPERATIONS.map((operation) => [operation, 10]),
  );
  assert.deepEqual(
    [...parseDelays("read=0.5s,trim=2,read=1ms")],
    [
      ["read", 1],
      ["trim", 2000],
    ],
  );
  assert.deepEqual(
    [...parseFailures("trim=0.1:EINVAL,write=after100:ENOSPC,read=1%")],
    [
      ["trim", { rate: 0.1, after: 0, name: "EINVAL" }],
      ["write", { rate: 1, after: 100, name: "ENOSPC" }],
      ["read", { rate: 0.01, after: 0, name: "EIO" }],
    ],
  );
  for (const words of [
    "",
    "read",
    "reed=1ms",
    "read=",
    "read=1h",
    "read=-1s",
    "read=2h",
    "read=9999s",
    "10ms,",
  ]) {
    assert.throws(() => parseDelays(words), { kind: "usage" }, words);
  }
  for (const words of [
    "",
    "1.1",
    "101%",
    "-1",
    "read=1:EFOO",
    "read=1:toString",
    "1:EIO:2",
    "after",
    "after-1",
  ]) {
    assert.throws(() => parseFailures(words), { kind: "usage" }, words);
  }
  assert.deepEqual([...byOperation("flush=a=b")], [["flush", "a=b"]]);
});
