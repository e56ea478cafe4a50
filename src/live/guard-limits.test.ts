import assert from "node:assert/strict";
import { test } from "node:test";
import { ExtentSet } from "../bytes/extents.ts";
import { type Place, readBytes, wholeMap } from "../device/device.ts";
import { Filter } from "../device/filter.ts";
import { DiskError } from "../error.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import type { GuardEvent } from "./guard/alarms.ts";
import { bare, cut, PieceList } from "./guard/pieces.ts";
import { type FileStamp, STAMP_SLACK_MS, whyStale } from "./guard/stamp.ts";
import { Guard, type GuardOptions } from "./guard.ts";

const KIB = 1024;
const DISK_BYTES = 256 * KIB;

interface Parts {
  readonly image: SimulatedFile;
  readonly log: SimulatedFile;
  readonly guard: Guard;
  readonly events: GuardEvent[];
  now: number;
}

/** A disk whose bytes lie in a file as they are. */
class InPlace extends Filter {
  override locate(at: number, bytes: number): Place {
    return { file: this.below, at, bytes };
  }
}

async function guarded(options: Partial<GuardOptions> = {}): Promise<Parts> {
  const image = SimulatedFile.from(new Random(1).bytes(DISK_BYTES), { name: "image" });
  const log = new SimulatedFile(0, { name: "log" });
  const events: GuardEvent[] = [];
  const parts: Parts = { image, log, events, now: 1_000_000, guard: undefined as never };
  const guard = await Guard.open(new InPlace(image), log, {
    forMs: 1e9,
    maxBytes: 1e9,
    now: () => parts.now,
    onEvent: (event) => events.push(event),
    ...options,
  });
  return Object.assign(parts, { guard });
}

/** A failed comparison of buffers by `assert` would print them. */
function same(found: Uint8Array, expected: Uint8Array, message?: string): void {
  assert.ok(Buffer.compare(found, expected) === 0, message);
}

const isZero = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === 0);

test("pieces stay in order, disjoint and cut where they should be, as a plain array says", () => {
  const SIZE = 20_000;
  for (const seed of seeds(6)) {
    const random = new Random(seed);
    let bytes = 0;
    const list = new PieceList((piece, sign) => (bytes += sign * (piece.end - piece.start)));
    const shadow = new Uint8Array(SIZE);
    for (let i = 0; i < 8000; i++) {
      const start = random.below(SIZE - 1);
      const length = random.oneIn(400) ? random.below(SIZE / 2) : 1 + random.below(6);
      const range = { start, end: Math.min(SIZE, start + length) };
      const time = random.oneIn(4) ? 0 : 1 + random.below(5);
      const keeps = time > 0 && random.oneIn(2);
      list.rewrite(range, {
        piece: (piece) => (keeps ? piece : time === 0 ? undefined : { ...piece, time }),
        ...(time > 0 && { gap: (from: number, to: number) => bare(from, to, time, 0) }),
      });
      for (let at = range.start; at < range.end; at++) if (!keeps || shadow[at] === 0) shadow[at] = time;
      if (i % 500 === 0) assertSame(list, shadow, bytes, `SEED=${seed}: change ${i}`);
    }
    const range = { start: 1000, end: 1500 };
    const covered = new Uint8Array(SIZE);
    for (const { start, end, time } of [...list.within(range)].map((piece) => cut(piece, range)))
      covered.fill(time, start, end);
    same(covered.subarray(1000, 1500), shadow.subarray(1000, 1500));
    assert.ok(isZero(covered.subarray(0, 1000)) && isZero(covered.subarray(1500)));
  }
});

function assertSame(list: PieceList, shadow: Uint8Array, bytes: number, label: string): void {
  const found = new Uint8Array(shadow.length);
  let [end, count, sum] = [0, 0, 0];
  for (const piece of list) {
    assert.ok(piece.start >= end && piece.end > piece.start, `${label}: in order`);
    found.fill(piece.time, piece.start, piece.end);
    end = piece.end;
    count++;
    sum += piece.end - piece.start;
  }
  same(found, shadow, label);
  assert.equal(list.count, count, label);
  assert.equal(bytes, sum, label);
  for (let at = 0; at < shadow.length; at += 997) {
    assert.equal(list.touches({ start: at, end: at + 1 }), shadow[at] !== 0, label);
  }
}

test("a full guard gives nothing back, zeroes without guarding, and says so; nothing guarded is dropped", async () => {
  const { guard, image, events } = await guarded({ maxBytes: 64 * KIB });
  const before = image.peek();
  await guard.discard({ start: 0, end: 64 * KIB });
  assert.equal(guard.counters.guardedBytes, 64 * KIB);
  await guard.discard({ start: 64 * KIB, end: 128 * KIB });
  same(await readBytes(guard, 64 * KIB, 64 * KIB), before.slice(64 * KIB, 128 * KIB), "kept");
  await guard.zero({ start: 60 * KIB, end: 132 * KIB });
  assert.ok(isZero(await readBytes(guard, 0, 132 * KIB)));
  assert.ok(isZero(image.peek(64 * KIB, 68 * KIB)), "really zeroed");
  const fast = guard.zero({ start: 132 * KIB, end: 140 * KIB }, { fast: true });
  await assert.rejects(fast, (error: DiskError) => error.kind === "unsupported");
  assert.deepEqual(
    await readBytes(guard, 132 * KIB, 8 * KIB),
    before.slice(132 * KIB, 140 * KIB),
    "unaltered",
  );
  assert.equal(guard.counters.guardedBytes, 64 * KIB);
  assert.equal(guard.counters.refused, 2);
  assert.deepEqual(
    events.map((event) => event.kind === "full" && event.what),
    ["trim", "zero"],
  );
  await guard.restore({ since: 0, overWrites: true });
  same(await readBytes(guard, 0, 64 * KIB), before.slice(0, 64 * KIB));
});

test("with guarded writes a full guard fails the write, and the disk stays as it is", async () => {
  const { guard, image } = await guarded({ maxBytes: 8 * KIB, writes: true });
  await guard.write(0, new Uint8Array(8 * KIB).fill(1));
  const before = image.peek();
  const full = (error: DiskError): boolean => error.kind === "io" && error.code === "no-space";
  await assert.rejects(guard.write(16 * KIB, new Uint8Array(512)), full);
  same(image.peek(), before);
  await guard.write(0, new Uint8Array(8 * KIB).fill(2));
});

test("very many pieces: no new masks, and writes into masks do not split them any further", async () => {
  const { guard, image } = await guarded({ piecesMax: 20, granuleBytes: 512 });
  const before = image.peek();
  for (let i = 0; i < 40; i++) await guard.discard({ start: i * 2048, end: i * 2048 + 1024 });
  const { count } = guard.state;
  assert.equal(count, 20);
  for (let i = 0; i < 20; i++) await guard.write(i * 2048 + 256, new Uint8Array(64).fill(9));
  assert.ok(guard.state.count <= count + 2, `${guard.state.count} pieces`);
  const content = await readBytes(guard, 0, 2048);
  assert.ok(isZero(content.subarray(0, 256)) && content[256] === 9 && isZero(content.subarray(320, 1024)));
  await guard.restore({ since: 0, overWrites: true });
  same(await readBytes(guard, 0, DISK_BYTES), before);
});

test("what a TRIM frees goes back when its time is over, and not before", async () => {
  const parts = await guarded({ forMs: 60_000 });
  const { guard, image } = parts;
  await guard.discard({ start: 0, end: 64 * KIB });
  parts.now += 59_000;
  await guard.expire();
  assert.equal(image.hostBytes, DISK_BYTES);
  parts.now += 2000;
  await guard.expire();
  assert.equal(image.hostBytes, DISK_BYTES - 64 * KIB, "given back to the host");
  assert.ok(guard.state.isEmpty);
  assert.deepEqual(guard.offered({ since: 0, overWrites: true }), []);
});

test("a clock that is set forward makes nothing too old before that time has really gone by", async () => {
  let elapsed = 7000;
  const parts = await guarded({ forMs: 60_000, elapsed: () => elapsed });
  await parts.guard.discard({ start: 0, end: 64 * KIB });
  parts.now += 1e12;
  for (const [more, guardedBytes] of [
    [59_000, 64 * KIB],
    [2000, 0],
  ] as const) {
    elapsed += more;
    await parts.guard.expire();
    assert.equal(parts.guard.counters.guardedBytes, guardedBytes);
  }
});

test("zeros that the guest was promised become real in the background, and can still be taken back", async () => {
  const { guard, image } = await guarded();
  const before = image.peek();
  await guard.zero({ start: 4096, end: 12_000 });
  assert.ok(!isZero(image.peek(4096, 4096)));
  await guard.expire();
  assert.ok(isZero(image.peek(4096, 12_000 - 4096)));
  assert.equal(guard.counters.maskedBytes, 0);
  await guard.restore({ since: 0, overWrites: false });
  same(await readBytes(guard, 0, DISK_BYTES), before);
});

test("masked ranges have no place, neither for readers nor in the map; writers go the long way", async () => {
  const { guard, now } = await guarded();
  const located = (at: number, bytes: number, access: "read" | "write"): number | undefined =>
    guard.locate(at, bytes, access)?.bytes;
  await guard.zero({ start: 8192, end: 16_384 });
  for (const access of ["read", "write"] as const) {
    assert.equal(located(0, 4096, access), 4096);
    assert.equal(located(4096, 8192, access), 4096, "up to the mask");
    assert.equal(located(8192, 512, access), undefined);
    assert.equal(located(16_384, 4096, access), 4096);
  }
  assert.deepEqual(
    (await wholeMap(guard)).map(({ start, end, kind, place }) => [start, end, kind, place?.at]),
    [
      [0, 8192, "data", 0],
      [8192, 16_384, "zero", undefined],
      [16_384, DISK_BYTES, "data", 16_384],
    ],
  );
  await guard.expire(now);
  assert.equal(located(8192, 512, "read"), 512, "real zeros can be read where they are");
  assert.equal(located(8192, 512, "write"), undefined, "a write there must be noted");
  const { guard: saving } = await guarded({ writes: true });
  assert.equal(saving.locate(0, 512, "write"), undefined);
});

test("alarms: a partition table, a share of the disk, what the guest still uses", async () => {
  const table = ExtentSet.of({ start: 0, end: 4096 });
  const used = ExtentSet.of({ start: 100 * KIB, end: 104 * KIB });
  const parts = await guarded({
    alarms: {
      critical: [{ name: "partition table", ranges: table }],
      share: { ofDisk: 0.25, withinMs: 60_000 },
      stillUsed: (ranges) => Promise.resolve(ranges.intersect(used)),
    },
  });
  const { guard, events } = parts;
  await guard.discard({ start: 32 * KIB, end: 64 * KIB });
  assert.equal(events.length, 0);
  await guard.zero({ start: 512, end: 1024 });
  assert.deepEqual(
    events.map(({ kind }) => kind),
    ["critical"],
  );
  await guard.discard({ start: 96 * KIB, end: 160 * KIB });
  assert.equal(events.at(-1)!.kind, "share");
  await guard.flush();
  await new Promise((resolve) => setImmediate(resolve));
  const last = events.at(-1)!;
  assert.ok(last.kind === "used" && last.ranges.equals(used));
});

test("a stamp: exact after a clean stop, a minute's grace after a crash, renewed before the first write after a pause", async () => {
  const file = (modified: number, bytes = 1): FileStamp => ({
    name: "",
    bytes,
    modified: String(BigInt(modified) * 1_000_000n),
    identity: "file",
  });
  const closed = { time: 5000, isClosed: true, files: [file(4000)] };
  assert.equal(whyStale(closed, [file(4000)]), undefined);
  assert.match(whyStale(closed, [file(4001)])!, /written to/);
  assert.match(whyStale(closed, [file(4000, 2)])!, /bytes/);
  const open = { ...closed, isClosed: false };
  assert.equal(whyStale(open, [file(5000 + STAMP_SLACK_MS, 2)]), undefined);
  assert.match(whyStale(open, [file(5001 + STAMP_SLACK_MS)])!, /died/);
  const late = { ...open, time: 90_000_000, files: [file(90_000_000)] };
  assert.equal(whyStale(late, [file(90_000_000 - STAMP_SLACK_MS)]), undefined);
  assert.match(whyStale(late, [file(89_999_999 - STAMP_SLACK_MS)])!, /older/);
  assert.notEqual(whyStale(open, undefined), undefined);

  let modified = 1_000_000;
  const parts: Parts = await guarded({ stamp: () => Promise.resolve([file(modified)]) });
  await parts.guard.discard({ start: 0, end: 8192 });
  await parts.guard.flush();
  // An hour of silence; then a write, and the server is killed at once.
  for (const pause of [20_000, 3_600_000]) {
    parts.now += pause;
    await parts.guard.expire();
  }
  await parts.guard.write(100 * KIB, new Uint8Array(512));
  modified = parts.now;
  const reopened = await Guard.open(parts.image.fork(), parts.log.fork(), {
    forMs: 1e9,
    maxBytes: 1e9,
    stamp: () => Promise.resolve([file(modified)]),
  });
  assert.equal(reopened.counters.guardedBytes, 8192);
  modified += STAMP_SLACK_MS + 1;
  const foreign = Guard.open(parts.image.fork(), parts.log.fork(), {
    forMs: 1e9,
    maxBytes: 1e9,
    stamp: () => Promise.resolve([file(modified)]),
  });
  await assert.rejects(foreign, (error: DiskError) => error.code === "guard-stale");
});

test("a failure of any read or change of image or log shows nothing old, and loses nothing that was flushed", async () => {
  for (const which of ["image", "log"] as const) {
    for (let fault = 0; fault < 14; fault++) {
      const { guard, image, log } = await guarded();
      const before = image.peek();
      await guard.zero({ start: 0, end: 64 * KIB });
      await guard.flush();
      const failing = which === "image" ? image : log;
      failing.fault = { operation: failing.operations + fault, forever: true };
      const attempts = [
        () => guard.write(4096, new Uint8Array(4096).fill(5)),
        () => guard.discard({ start: 96 * KIB, end: 128 * KIB }),
        () => guard.flush(),
        () => guard.write(8192, new Uint8Array(4096).fill(6)),
        () => guard.expire(),
        () => guard.flush(),
      ];
      for (const attempt of attempts) {
        await attempt().catch((error: unknown) => assert.ok(error instanceof DiskError, String(error)));
        const content = await readBytes(guard, 0, 64 * KIB);
        const isFine = content.every((byte) => byte === 0 || byte === 5 || byte === 6);
        assert.ok(isFine, `${which} fails from change ${fault} on: nothing old shows`);
      }
      const copies = [image.fork(), log.fork()] as const;
      const again = await Guard.open(...copies, { forMs: 1e9, maxBytes: 1e9 });
      assert.ok((await readBytes(again, 0, 64 * KIB)).every((byte) => [0, 5, 6].includes(byte)));
      await again.restore({ since: 0, overWrites: true });
      same(await readBytes(again, 0, 64 * KIB), before.slice(0, 64 * KIB), `${which} ${fault}`);
    }
  }
});
