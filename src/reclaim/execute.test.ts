import assert from "node:assert/strict";
import { test } from "node:test";
import type { HostFile } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { recording } from "../testing/crash.ts";
import { Random } from "../testing/seeds.ts";
import { type Operation, SimulatedFile } from "../testing/simulated-file.ts";
import { execute } from "./execute.ts";
import { EMPTY_PLAN, type Plan, type Step } from "./plan.ts";

function planOf(...batches: Step[][]): Plan {
  return {
    ...EMPTY_PLAN,
    async *batches() {
      yield* batches;
    },
  };
}

const patch = (at: number, before: number[], after: number[], file = ""): Step => ({
  file,
  op: "patch",
  at,
  before: Uint8Array.from(before),
  after: Uint8Array.from(after),
});

const filled = (bytes: number) => SimulatedFile.from(new Uint8Array(bytes).fill(1));

/** The trace without its data: `write 0+512`. */
const summary = (trace: readonly Operation[]) =>
  trace.map((done) => {
    const file = done.file ? `${done.file}: ` : "";
    if (done.op === "write") return `${file}write ${done.at}+${done.data.length}`;
    if (done.op === "punch" || done.op === "zero") {
      return `${file}${done.op} ${done.range.start}-${done.range.end}`;
    }
    return done.op === "truncate" ? `${file}truncate ${done.bytes}` : `${file}flush`;
  });

test("patches become whole sectors, neighbours one write, and every batch ends with a flush", async () => {
  const { files, trace } = recording(new Map([["", filled(1_000_000)]]));
  const executed = await execute(
    planOf(
      [patch(600, [1], [2]), patch(0, [1, 1], [3, 4]), patch(510, [1, 1], [5, 6]), patch(9000, [1], [7])],
      [patch(600, [2], [8])],
    ),
    files,
  );
  assert.deepEqual(summary(trace), ["write 0+1024", "write 8704+512", "flush", "write 512+512", "flush"]);
  const file = files.get("")!;
  assert.deepEqual(
    [0, 1, 510, 511, 600, 9000, 9001].map((at) => file.peek(at, 1)[0]),
    [3, 4, 5, 6, 8, 7, 1],
  );
  assert.deepEqual([executed.patches, executed.batches, executed.interrupted], [5, 2, false]);
});

test("two patches of one sector both arrive", async () => {
  const file = filled(512);
  await execute(
    planOf([patch(0, [1], [2]), patch(0, [2], [3]), patch(100, [1], [4])]),
    new Map([["", file]]),
  );
  assert.deepEqual([file.peek(0, 1)[0], file.peek(100, 1)[0]], [3, 4]);
});

test("a last sector that is cut short is patched too", async () => {
  const file = filled(700);
  await execute(planOf([patch(699, [1], [2])]), new Map([["", file]]));
  assert.deepEqual([file.bytes, file.peek(699, 1)[0]], [700, 2]);
});

test("H16: a place that does not hold what the plan saw stops the run before it is written", async () => {
  const { files, trace } = recording(new Map([["", filled(4096)]]));
  await assert.rejects(
    execute(planOf([patch(0, [1], [2]), patch(8, [9], [2])], [patch(100, [1], [2])]), files),
    (error) =>
      error instanceof DiskError &&
      error.kind === "busy" &&
      /bytes at 8 are 01, expected 09/.test(error.message),
  );
  assert.deepEqual(trace, []);
  const cut = new Map([["", filled(100)]]);
  await assert.rejects(execute(planOf([patch(512, [1], [2])]), cut), { kind: "busy" });
  await assert.rejects(execute(planOf([{ file: "", op: "punch", range: { start: 0, end: 101 } }]), cut), {
    kind: "busy",
  });
});

test("a patch across two sectors is a bug of the plan", async () => {
  await assert.rejects(
    execute(planOf([patch(511, [1, 1], [2, 2])]), new Map([["", filled(4096)]])),
    /internal error.*one sector/,
  );
});

test("neighbouring punches are one; bytes are counted", async () => {
  const { files, trace } = recording(new Map([["", filled(10 * 4096)]]));
  const punch = (start: number, end: number): Step => ({
    file: "",
    op: "punch",
    range: { start: start * 4096, end: end * 4096 },
  });
  const executed = await execute(
    planOf([
      punch(4, 6),
      punch(1, 2),
      punch(2, 3),
      { file: "", op: "zero", range: { start: 0, end: 5 } },
      { file: "", op: "truncate", bytes: 8 * 4096 },
    ]),
    files,
  );
  assert.deepEqual(summary(trace), [
    "zero 0-5",
    "punch 4096-12288",
    "punch 16384-24576",
    "truncate 32768",
    "flush",
  ]);
  assert.deepEqual(
    [executed.punches, executed.punchedBytes, executed.zeroedBytes, executed.cutBytes],
    [2, 4 * 4096, 5, 2 * 4096],
  );
});

test("every file of a batch is flushed", async () => {
  const before = new Map(["a", "b"].map((name) => [name, filled(4096)]));
  const { files, trace } = recording(before);
  await execute(planOf([patch(0, [1], [2], "b"), patch(0, [1], [2], "a")], [patch(1, [1], [2], "a")]), files);
  assert.deepEqual(
    summary(trace),
    ["b: write 0+512", "a: write 0+512", "b: flush", "a: flush"].concat(["a: write 0+512", "a: flush"]),
  );
});

test("a copy keeps holes, and reads what the map calls zeros (H8)", async () => {
  const mebibyte = 2 ** 20;
  const file = new SimulatedFile(8 * mebibyte);
  const random = new Random(1);
  await file.write(4 * mebibyte + 8192, random.bytes(5000));
  await file.write(0, random.bytes(4 * mebibyte));
  file.preallocate({ start: 6 * mebibyte, end: 6 * mebibyte + 4096 });
  const expected = file.peek(4 * mebibyte, 3 * mebibyte);
  const before = file.hostBytes;
  const copy: Step = {
    file: "",
    op: "copy",
    from: { start: 4 * mebibyte, end: 7 * mebibyte },
    to: mebibyte,
  };
  const executed = await execute(planOf([copy]), new Map([["", file]]));
  assert.ok(Buffer.from(file.peek(mebibyte, 3 * mebibyte)).equals(expected));
  assert.equal(executed.movedBytes, 3 * mebibyte);
  assert.equal(file.hostBytes, before - 3 * mebibyte + 8192);

  const lying = file.fork();
  lying.map = async function* (range) {
    yield [{ ...range, kind: "hole", shared: false, depth: 0 }];
  };
  await lying.zero({ start: mebibyte, end: 4 * mebibyte });
  await execute(planOf([copy]), new Map([["", lying]]));
  assert.ok(Buffer.from(lying.peek(mebibyte, 3 * mebibyte)).equals(expected));
});

test("a host without holes is given zeros by a copy", async () => {
  const file = filled(8192);
  await file.punch({ start: 0, end: 4096 });
  file.punch = () => Promise.reject(new DiskError("unsupported", "no holes here"));
  await execute(
    planOf([{ file: "", op: "copy", from: { start: 0, end: 4096 }, to: 4096 }]),
    new Map([["", file]]),
  );
  assert.deepEqual(file.peek(), new Uint8Array(8192));
});

test("aborts between two batches", async () => {
  const abort = new AbortController();
  const { files, trace } = recording(new Map([["", filled(4096)]]));
  const file = files.get("")!;
  const flush = file.flush.bind(file);
  file.flush = () => {
    abort.abort();
    return flush();
  };
  const plan = planOf([patch(0, [1], [2]), patch(600, [1], [2])], [patch(1, [1], [2])]);
  const executed = await execute(plan, files, { signal: abort.signal });
  assert.deepEqual([executed.interrupted, executed.batches], [true, 1]);
  assert.deepEqual(summary(trace), ["write 0+1024", "flush"]);
});

test("H13: any failure stops at once, nothing is tried again", async () => {
  const plan = planOf(
    [patch(0, [1], [2])],
    [{ file: "", op: "punch", range: { start: 4096, end: 8192 } }],
    [{ file: "", op: "truncate", bytes: 8192 }],
  );
  for (let operation = 0; operation < 6; operation++) {
    const file = filled(3 * 4096);
    file.fault = { operation };
    await assert.rejects(execute(plan, new Map([["", file]])), { kind: "io" });
    assert.equal(file.operations, operation + 1);
  }
  const file = filled(3 * 4096);
  file.fault = { read: 0 };
  await assert.rejects(execute(plan, new Map([["", file]])), { kind: "io" });
  assert.equal(file.operations, 0);
});

test("two million punches: other events get their turn", async () => {
  const count = 2_000_000;
  const file = {
    bytes: count * 8192,
    punch: () => Promise.resolve(),
    flush: () => Promise.resolve(),
  } as unknown as HostFile;
  let turns = 0;
  let progress = 0;
  const timer = setInterval(() => turns++, 5);
  const executed = await execute(
    {
      ...EMPTY_PLAN,
      async *batches() {
        for (let first = 0; first < count; first += 50_000) {
          yield Array.from({ length: 50_000 }, (_, i): Step => {
            const start = (first + i) * 8192;
            return { file: "", op: "punch", range: { start, end: start + 4096 } };
          });
        }
      },
    },
    new Map([["", file]]),
    { onProgress: (bytes) => (progress = bytes) },
  );
  clearInterval(timer);
  assert.equal(executed.punchedBytes, count * 4096);
  assert.ok(turns > 3, `${turns} turns`);
  assert.equal(progress, count * 4096);
});

test("an interruption ends a long batch in its middle, with what was done flushed", async () => {
  const file = filled(4 * 4096);
  const punch = file.punch.bind(file);
  const stop = new AbortController();
  file.punch = async (range) => {
    const until = performance.now() + 30;
    while (performance.now() < until); // A slow host.
    await punch(range);
    stop.abort();
  };
  const trace = (file.trace = []);
  const batch = [0, 8192].map((start): Step => ({
    file: "",
    op: "zero",
    range: { start, end: start + 4096 },
  }));
  file.zero = (range) => file.punch(range);
  const executed = await execute(planOf(batch), new Map([["", file]]), { signal: stop.signal });
  assert.equal(executed.interrupted, true);
  assert.deepEqual(summary(trace), ["punch 0-4096", "flush"]);
});
