/**
 * The guard where something goes wrong around it: an image whose flush fails, an image that others are built on.
 */
import assert from "node:assert/strict";
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { test } from "node:test";
import type { Extent } from "../src/bytes/extents.ts";
import { readBytes, type WritableDevice, type Zeroing } from "../src/device/device.ts";
import { Borrowed, Filter } from "../src/device/filter.ts";
import { openGuard } from "../src/disk/guarded.ts";
import { openWritable } from "../src/disk/open.ts";
import { undo } from "../src/disk.ts";
import { DiskError } from "../src/error.ts";
import { Guard } from "../src/live/guard.ts";
import type { FileStamp } from "../src/live/guard/stamp.ts";
import { Stack } from "../src/serve/stack.ts";
import { Random } from "../src/testing/seeds.ts";
import { type Operation, SimulatedFile } from "../src/testing/simulated-file.ts";
import { requires, run, scratch } from "../src/testing/tools.ts";

const KIB = 1024;
const DISK_BYTES = 256 * KIB;
const ALL = { start: 0, end: DISK_BYTES };
const SETTINGS = { forMs: 24 * 3600 * 1000, maxBytes: 1024 ** 3 };

/** A disk that cannot be made durable from some time on. */
class Undurable extends Filter {
  isFailing = false;

  override flush(): Promise<void> {
    if (this.isFailing) return Promise.reject(new DiskError("io", "no flush"));
    return super.flush();
  }
}

/** Every change takes its time, and there is an end to them. */
class Slow extends Filter {
  left = Infinity;
  readonly #tick: () => void;

  constructor(below: WritableDevice, tick: () => void) {
    super(below);
    this.#tick = tick;
  }

  override async write(at: number, from: Uint8Array): Promise<void> {
    this.#count();
    await super.write(at, from);
  }

  override async zero(range: Extent, how?: Zeroing): Promise<void> {
    this.#count();
    await super.zero(range, how);
  }

  #count(): void {
    if (this.left-- <= 0) throw new DiskError("io", "killed");
    this.#tick();
  }
}

/** Opens an image with its guard, works on it, and closes both, as far as that goes. */
async function served(path: string, work: (guard: Guard, below: Undurable) => Promise<void>): Promise<void> {
  await using stack = new AsyncDisposableStack();
  let seal = async (): Promise<void> => {};
  stack.defer(() => seal());
  const disk = stack.use(await openWritable(path, { withGuard: true }));
  const below = new Undurable(new Borrowed(disk.image));
  const opened = await openGuard(disk, below, SETTINGS);
  seal = () => opened.seal();
  stack.use(opened.guard);
  await work(opened.guard, below);
}

test("a guard whose bytes came back to a disk that cannot keep them is not removed", async (t) => {
  const path = join(scratch(t), "disk.raw");
  const content = new Random(1).bytes(DISK_BYTES);
  writeFileSync(path, content);
  await served(path, (guard) => guard.zero(ALL));
  assert.ok(readFileSync(path).every((byte) => byte === 0));
  await assert.rejects(
    served(path, async (guard, below) => {
      below.isFailing = true;
      await guard.restore({ since: 0, overWrites: false });
    }),
  );
  assert.ok(existsSync(`${path}.ullage-guard`), "its log has the only bytes that are certain");
  run("dd", ["if=/dev/zero", `of=${path}`, "bs=256K", "count=1", "conv=notrunc", "status=none"]);
  await undo(path, { since: 0, allow: { guard: true } });
  assert.equal(readFileSync(path).compare(content), 0);
});

test("whoever writes for long renews the stamp, so that the same command does the rest when it is killed", async () => {
  const content = new Random(2).bytes(DISK_BYTES);
  for (const way of ["restore", "forget", "settle"] as const) {
    const image = SimulatedFile.from(content, { name: "image" });
    const log = new SimulatedFile(0, { name: "log" });
    let now = 1_000_000;
    let modified = now;
    const stamp = (): Promise<readonly FileStamp[]> =>
      Promise.resolve([
        { name: "", bytes: DISK_BYTES, modified: String(BigInt(modified) * 1_000_000n), identity: "file" },
      ]);
    const slow = new Slow(image, () => (modified = now += 500));
    const options = { ...SETTINGS, now: () => now, stamp };
    const first = await Guard.open(image, log, options);
    for (let at = 0; at < DISK_BYTES; at += 1024) await first.zero({ start: at, end: at + 512 });
    await first.flush();
    if (way === "restore") await first.expire();
    const guard = await Guard.open(slow, log, options);
    now += 3_600_000;
    const work = {
      restore: () => guard.restore({ since: 0, overWrites: false }),
      forget: () => guard.forget(),
      settle: () => guard[Symbol.asyncDispose](),
    };
    slow.left = 200;
    await assert.rejects(work[way](), /killed/);
    await Guard.open(image.fork(), log.fork(), options);
  }
});

test("nothing is undone in an image while another is built on it", async (t) => {
  if (!requires(t, "qemu-img")) return;
  const folder = scratch(t);
  const path = join(folder, "disk.qcow2");
  run("qemu-img", ["create", "-f", "qcow2", path, String(DISK_BYTES)]);
  await served(path, async (guard) => {
    await guard.write(0, new Random(3).bytes(DISK_BYTES));
    await guard.zero(ALL);
  });
  const child = join(folder, "child.qcow2");
  run("qemu-img", ["create", "-f", "qcow2", "-b", path, "-F", "qcow2", child]);
  const hasChild = (error: DiskError): boolean => error.code === "has-children";
  await assert.rejects(undo(path, { last: true }), hasChild);
  await assert.rejects(undo(path, { forget: true }), hasChild);
  const { applied } = await undo(path, { last: true, allow: { children: true } });
  assert.ok(applied);
});

test("a flush covers what an append that failed has left in the log", async () => {
  const trace: Operation[] = [];
  const image = SimulatedFile.from(new Random(4).bytes(DISK_BYTES));
  const log = new SimulatedFile(0, { trace });
  const guard = await Guard.open(image, log, SETTINGS);
  await guard.zero({ start: 0, end: 4096 });
  // The mask is appended, and what the write is to save is not.
  log.fault = { operation: log.operations + 1 };
  await assert.rejects(guard.write(0, new Uint8Array(512).fill(1)), { kind: "io" });
  assert.equal(trace.at(-1)!.op, "write");
  await guard.flush();
  assert.equal(trace.at(-1)!.op, "flush");
});

test("a short file in the log's place is nothing that may be written over", async () => {
  const log = SimulatedFile.from(Buffer.from("somebody's file"));
  await assert.rejects(Guard.open(new SimulatedFile(DISK_BYTES), log, SETTINGS), { kind: "corrupt" });
  assert.equal(Buffer.from(log.peek()).toString(), "somebody's file");
});

test("a log whose header has become zeros is damaged, not new", async () => {
  const image = SimulatedFile.from(new Random(5).bytes(DISK_BYTES));
  const log = new SimulatedFile(0);
  const guard = await Guard.open(image, log, SETTINGS);
  await guard.zero({ start: 0, end: 4096 });
  await guard.flush();
  await log.write(0, new Uint8Array(512));
  await assert.rejects(Guard.open(image, log, SETTINGS), { kind: "corrupt" });
});

test("a guard that holds nothing fits a disk of any length", async () => {
  const log = new SimulatedFile(0);
  const guard = await Guard.open(new SimulatedFile(DISK_BYTES), log, SETTINGS);
  await guard.flush();
  const longer = await Guard.open(new SimulatedFile(2 * DISK_BYTES), log, SETTINGS);
  assert.equal(longer.bytes, 2 * DISK_BYTES);
});

test("a guard that could give nothing back is asked again, and one alarm tells of each time that it fails", async (t) => {
  const path = join(scratch(t), "disk.raw");
  writeFileSync(path, new Uint8Array(DISK_BYTES));
  t.mock.timers.enable({ apis: ["setInterval"] });
  const outcomes = [false, false, true, false, true];
  const tidy = t.mock.method(Guard.prototype, "expire", () =>
    outcomes.shift() ? Promise.resolve(0) : Promise.reject(new DiskError("io", "full")),
  );
  const alarms: string[] = [];
  const options = { open: { format: "raw" }, readOnly: false, guard: SETTINGS };
  const stack = await Stack.open(path, options, ({ code }) => alarms.push(code));
  while (outcomes.length > 0) {
    t.mock.timers.tick(2000);
    await setImmediate();
  }
  await stack[Symbol.asyncDispose]();
  assert.equal(tidy.mock.callCount(), 5);
  assert.deepEqual(alarms, ["guard-failed", "guard-failed"]);
});

test("an image that is exchanged while it is served is not taken for the one that was guarded", async (t) => {
  const path = join(scratch(t), "disk.raw");
  writeFileSync(path, new Random(6).bytes(DISK_BYTES));
  const other = new Random(7).bytes(DISK_BYTES);
  await served(path, async (guard) => {
    await guard.discard(ALL);
    await guard.flush();
    writeFileSync(`${path}.restored`, other);
    renameSync(`${path}.restored`, path);
  });
  await assert.rejects(
    served(path, () => Promise.resolve()),
    (error: DiskError) => error.code === "guard-stale",
  );
  await undo(path, { forget: true });
  assert.equal(readFileSync(path).compare(other), 0);
});

test("an overlay that is interrupted leaves nothing behind", async (t) => {
  const folder = scratch(t);
  const path = join(folder, "disk.raw");
  writeFileSync(path, new Random(8).bytes(DISK_BYTES));
  await served(path, (guard) => guard.discard(ALL));
  const to = join(folder, "before.qcow2");
  const options = { last: true, to, format: "raw" };
  const why = new DiskError("interrupted", "stopped");
  await assert.rejects(undo(path, { ...options, signal: AbortSignal.abort(why) }), why);
  assert.ok(!existsSync(to));
  const { applied } = await undo(path, options);
  assert.ok(applied && existsSync(to));
});

test("saved bytes that have rotten do not keep back the rest, and stay guarded", async () => {
  const content = new Random(9).bytes(DISK_BYTES);
  const image = SimulatedFile.from(content);
  const log = new SimulatedFile(0);
  const guard = await Guard.open(image, log, SETTINGS);
  const first = { start: 0, end: 4096 };
  const second = { start: 8192, end: 12_288 };
  for (const range of [first, second]) {
    await guard.zero(range);
    await guard.expire();
  }
  const at = Buffer.from(log.peek()).indexOf(content.subarray(0, 4096));
  await log.write(at + 100, new Uint8Array(8));
  await assert.rejects(guard.restore({ since: 0, overWrites: false }), { kind: "corrupt" });
  const found = Buffer.from(await readBytes(guard, 0, DISK_BYTES));
  assert.ok(found.subarray(0, 4096).every((byte) => byte === 0));
  assert.equal(found.subarray(4096).compare(content.subarray(4096)), 0);
  assert.equal(guard.counters.savedBytes, 4096);
});
