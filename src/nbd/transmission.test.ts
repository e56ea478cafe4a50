/**
 * The transmission phase without sockets and without images: what is asked, what the device is told, what is answered.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { WritableDevice, Zeroing } from "../device/device.ts";
import { Filter } from "../device/filter.ts";
import { DiskError } from "../error.ts";
import { MemoryClient, sessionOf } from "../testing/nbd-memory.ts";
import { type Dialect, requestBytes } from "../testing/nbd-wire.ts";
import { Random } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import type { MetaContext } from "./export.ts";
import { CMD, CMD_FLAG, ERRNO } from "./protocol.ts";
import { Budget } from "./transmission.ts";

const { READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS } = CMD;
const { FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO } = CMD_FLAG;
const KiB = 1024;
const MiB = 1024 * KiB;
const DISK = 4 * MiB;
const DIALECTS: readonly Dialect[] = ["simple", "structured", "extended"];

/** Writes down what it is told, waits where it should, and fails where it should. */
class Told extends Filter {
  readonly log: string[] = [];
  /** What is asked from now on waits for this. */
  gate: Promise<void> = Promise.resolve();
  failure: Error | undefined;

  async #tell(what: string): Promise<void> {
    this.log.push(what);
    await this.gate;
    if (this.failure !== undefined) throw this.failure;
  }

  override locate(): undefined {
    return undefined;
  }

  override async read(at: number, into: Uint8Array): Promise<void> {
    await this.#tell(`read ${at}+${into.length}`);
    await super.read(at, into);
  }

  override async write(at: number, from: Uint8Array): Promise<void> {
    await this.#tell(`write ${at}+${from.length}`);
    await super.write(at, from);
  }

  override async zero(range: { start: number; end: number }, how: Zeroing = {}): Promise<void> {
    const words = `${how.keep ? " keep" : ""}${how.fast ? " fast" : ""}`;
    await this.#tell(`zero ${range.start}-${range.end}${words}`);
    await super.zero(range, how);
  }

  override async discard(range: { start: number; end: number }): Promise<void> {
    await this.#tell(`discard ${range.start}-${range.end}`);
    await super.discard(range);
  }

  override async flush(): Promise<void> {
    await this.#tell("flush");
    await super.flush();
  }
}

const content = new Random(5).bytes(DISK);
const filled = SimulatedFile.from(content);

function disk(): Told {
  return new Told(filled.fork());
}

/** A gate that is opened later. */
function gated(device: Told): () => void {
  const { promise, resolve } = Promise.withResolvers<void>();
  device.gate = promise;
  return resolve;
}

const turns = async (count = 20): Promise<void> => {
  for (let i = 0; i < count; i++) await Promise.resolve();
};

const context = (name: string, states: readonly [number, number][]): MetaContext => ({
  name,
  status: (_, max) => Promise.resolve(states.slice(0, max).map(([bytes, flags]) => ({ bytes, flags }))),
});

function inEveryDialect(what: string, check: (dialect: Dialect) => Promise<void>): void {
  for (const dialect of DIALECTS) {
    test(`${dialect === "extended" ? "H30: " : ""}${dialect}: ${what}`, () => check(dialect));
  }
}

inEveryDialect("every command reaches the device as it was asked, and is answered", async (dialect) => {
  const device = disk();
  const client = new MemoryClient(sessionOf(device, { dialect }));
  const read = await client.ask({ command: READ, offset: 12345, bytes: 54321 });
  assert.ok(read.data!.equals(content.subarray(12345, 12345 + 54321)));
  const data = new Random(6).bytes(777);
  assert.equal((await client.ask({ command: WRITE, offset: 4097, data })).error, 0);
  assert.equal((await client.ask({ command: TRIM, offset: 0, bytes: 4096 })).error, 0);
  assert.equal((await client.ask({ command: WRITE_ZEROES, offset: 8192, bytes: 100 })).error, 0);
  const kept = { command: WRITE_ZEROES, offset: 9000, bytes: 5, flags: NO_HOLE | FAST_ZERO };
  assert.equal((await client.ask(kept)).error, 0);
  assert.equal((await client.ask({ command: CACHE, offset: 10, bytes: 20 })).error, 0);
  assert.equal((await client.ask({ command: FLUSH })).error, 0);
  assert.deepEqual(device.log, [
    "read 12345+54321",
    "write 4097+777",
    "discard 0-4096",
    "zero 8192-8292",
    "zero 9000-9005 keep fast",
    "read 10+20",
    "flush",
  ]);
  assert.ok((await client.ask({ command: READ, offset: 4097, bytes: 777 })).data!.equals(data));
});

inEveryDialect("nothing is asked of the device for a length of zero, and all is well", async (dialect) => {
  const device = disk();
  const client = new MemoryClient(sessionOf(device, { dialect }));
  for (const command of [READ, WRITE, TRIM, WRITE_ZEROES, CACHE]) {
    const { error, data } = await client.ask({ command, offset: 512, bytes: 0 });
    assert.equal(error, 0, `command ${command}`);
    assert.equal(data?.length, command === READ ? 0 : undefined);
  }
  assert.deepEqual(device.log, []);
});

inEveryDialect("H27: with FUA the reply comes after a flush of what was written", async (dialect) => {
  const device = disk();
  const client = new MemoryClient(sessionOf(device, { dialect }));
  await client.ask({ command: WRITE, offset: 0, data: new Uint8Array(512), flags: FUA });
  await client.ask({ command: WRITE_ZEROES, offset: 0, bytes: 512, flags: FUA });
  await client.ask({ command: TRIM, offset: 0, bytes: 4096, flags: FUA });
  assert.deepEqual(device.log, ["write 0+512", "flush", "zero 0-512", "flush", "discard 0-4096", "flush"]);
  const open = gated(device);
  let isAnswered = false;
  const asked = client
    .ask({ command: WRITE, offset: 0, data: new Uint8Array(512), flags: FUA })
    .then(() => void (isAnswered = true));
  await turns();
  assert.equal(isAnswered, false);
  open();
  await asked;
  device.failure = new DiskError("io", "the disk is gone");
  const { error } = await client.ask({ command: TRIM, offset: 0, bytes: 4096, flags: FUA });
  assert.equal(error, ERRNO.EIO);
});

inEveryDialect("H20: failures are told with their number", async (dialect) => {
  const device = disk();
  const client = new MemoryClient(sessionOf(device, { dialect }));
  const told = async (failure: Error, flags = 0): Promise<number> => {
    device.failure = failure;
    return (await client.ask({ command: WRITE_ZEROES, offset: 0, bytes: 512, flags })).error;
  };
  assert.equal(await told(new DiskError("io", "read failed")), ERRNO.EIO);
  assert.equal(await told(new DiskError("io", "full", { code: "no-space" })), ERRNO.ENOSPC);
  assert.equal(await told(new DiskError("corrupt", "a table is damaged")), ERRNO.EIO);
  assert.equal(await told(new DiskError("refused", "not here")), ERRNO.EPERM);
  assert.equal(await told(new TypeError("a bug of ours")), ERRNO.EIO);
  assert.equal(await told(new DiskError("unsupported", "slow"), FAST_ZERO), ERRNO.ENOTSUP);
  assert.equal(
    await told(new DiskError("unsupported", "no way")),
    ERRNO.EINVAL,
    "ENOTSUP says something else",
  );
  for (const [name, number] of Object.entries(ERRNO)) {
    assert.equal(await told(new DiskError("io", "wished for", { code: name })), number);
  }
  device.failure = new DiskError("io", "x".repeat(100_000));
  for (const command of [READ, TRIM, CACHE]) {
    assert.equal((await client.ask({ command, offset: 0, bytes: 512 })).error, ERRNO.EIO);
  }
  assert.equal((await client.ask({ command: FLUSH })).error, ERRNO.EIO);
  const write = { command: WRITE, offset: 0, data: new Uint8Array(512) };
  assert.equal((await client.ask(write)).error, ERRNO.EIO);
  device.failure = undefined;
  assert.equal((await client.ask(write)).error, 0, "the connection goes on");
});

inEveryDialect(
  "H29: what is not possible is answered, its data is skipped, and nothing is touched",
  async (dialect) => {
    const device = disk();
    const client = new MemoryClient(sessionOf(device, { dialect }));
    const data = new Uint8Array(1000);
    const huge = 2n ** 64n - 512n;
    const asked = [
      client.ask({ command: WRITE, offset: DISK - 10, data }),
      client.ask({ command: WRITE, offset: huge, data }),
      client.ask({ command: WRITE, offset: 0, data, flags: NO_HOLE }),
      client.ask({ command: WRITE_ZEROES, offset: DISK, bytes: 1 }),
      client.ask({ command: TRIM, offset: huge, bytes: 4096 }),
      client.ask({ command: READ, offset: DISK - 1, bytes: 2 }),
      client.ask({ command: 99, offset: 0, bytes: 512 }),
      client.ask({ command: FLUSH, offset: 0, bytes: 1 }),
      client.ask({ command: BLOCK_STATUS, offset: 0, bytes: 512 }),
    ];
    const errors = (await Promise.all(asked)).map(({ error }) => error);
    const { EINVAL, ENOSPC } = ERRNO;
    assert.deepEqual(errors, [ENOSPC, ENOSPC, EINVAL, ENOSPC, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL]);
    assert.deepEqual(device.log, []);
    assert.equal((await client.ask({ command: READ, offset: 0, bytes: 512 })).error, 0);
  },
);

inEveryDialect(
  "read-only: what writes is EPERM, its data is skipped; a flush has nothing to do",
  async (dialect) => {
    const device = disk();
    const client = new MemoryClient(sessionOf(device, { dialect, readOnly: true }));
    const asked = [
      client.ask({ command: WRITE, offset: 0, data: new Uint8Array(100_000) }),
      client.ask({ command: TRIM, offset: 0, bytes: 4096 }),
      client.ask({ command: WRITE_ZEROES, offset: 0, bytes: 4096, flags: FUA }),
      client.ask({ command: FLUSH, flags: FUA }),
      client.ask({ command: CACHE, offset: 0, bytes: 10, flags: FUA }),
    ];
    const { EPERM } = ERRNO;
    assert.deepEqual(
      (await Promise.all(asked)).map(({ error }) => error),
      [EPERM, EPERM, EPERM, 0, 0],
    );
    assert.deepEqual(device.log, ["read 0+10"]);
  },
);

inEveryDialect(
  "a TRIM and zeros longer than any payload are carried out; a WRITE like that ends the connection",
  async (dialect) => {
    const large = new SimulatedFile(2 ** 32);
    const device = new Told(large);
    const client = new MemoryClient(sessionOf(device, { dialect }));
    const bytes = 2 ** 32 - 4096;
    assert.equal((await client.ask({ command: TRIM, offset: 4096, bytes })).error, 0);
    assert.equal((await client.ask({ command: WRITE_ZEROES, offset: 0, bytes })).error, 0);
    assert.equal((await client.ask({ command: READ, offset: 0, bytes: 32 * MiB + 1 })).error, ERRNO.EINVAL);
    assert.equal(client.broken, undefined);
    const largest = new Uint8Array(32 * MiB).fill(1);
    assert.equal((await client.ask({ command: WRITE, offset: 0, data: largest })).error, 0);
    client.say(requestBytes(dialect, { command: WRITE, offset: 0, bytes: 32 * MiB + 1, cookie: 1n }));
    assert.equal((client.broken as unknown as Error).name, "ProtocolBreach");
  },
);

inEveryDialect("a request without its magic ends the connection, whatever is pending", async (dialect) => {
  const device = disk();
  const client = new MemoryClient(sessionOf(device, { dialect }));
  const open = gated(device);
  void client.ask({ command: FLUSH });
  client.say(new Uint8Array(64));
  assert.equal((client.broken as unknown as Error).name, "ProtocolBreach");
  open();
  await turns();
  assert.equal(client.transmission.pending, 0);
});

inEveryDialect("after DISC nothing more is taken up, and what is in flight is answered", async (dialect) => {
  const device = disk();
  const client = new MemoryClient(sessionOf(device, { dialect }));
  const open = gated(device);
  const asked = [READ, TRIM, FLUSH].map((command) =>
    client.ask(command === FLUSH ? { command } : { command, offset: 0, bytes: 4096 }),
  );
  client.say(client.wire.ask({ command: DISC }));
  client.say(requestBytes(dialect, { command: TRIM, offset: 0, bytes: 8192, cookie: 3n }));
  assert.ok(client.transmission.isOver);
  open();
  assert.deepEqual(
    (await Promise.all(asked)).map(({ error }) => error),
    [0, 0, 0],
  );
  assert.deepEqual(device.log, ["read 0+4096", "discard 0-4096", "flush"]);
  assert.equal(client.wire.unanswered, 0);
});

inEveryDialect("requests cut anywhere, replies taken in pieces", async (dialect) => {
  const random = new Random(11);
  const device = disk();
  const cut = (): number => 1 + random.below(random.pick([3, 40, 5000]));
  const client = new MemoryClient(sessionOf(device, { dialect }), { gives: cut, takes: cut });
  const asked = Array.from({ length: 60 }, async (_, i) => {
    const offset = i * 4096;
    const data = random.bytes(1 + random.below(4096));
    if (random.oneIn(2)) return client.ask({ command: WRITE, offset, data });
    const { data: found } = await client.ask({ command: READ, offset, bytes: data.length });
    assert.ok(found!.equals(content.subarray(offset, offset + data.length)), `request ${i}`);
  });
  while (client.wire.unanswered > 0) {
    client.step();
    await turns(1);
  }
  await Promise.all(asked);
  assert.equal(client.wire.cutBytes, 0);
});

describe("block status", () => {
  const states: readonly [number, number][] = [
    [64 * KiB, 0],
    [128 * KiB, 3],
    [DISK, 2],
  ];
  for (const dialect of ["structured", "extended"] as const) {
    test(`${dialect}: one chunk for each context; REQ_ONE: one descriptor, not past what was asked`, async () => {
      const device = disk();
      const contexts = [context("a:a", states), context("b:b", [[512, 77]])];
      const client = new MemoryClient(sessionOf(device, { dialect, contexts }));
      const all = await client.ask({ command: BLOCK_STATUS, offset: 0, bytes: MiB });
      assert.deepEqual([...all.status.keys()], [7, 8]);
      assert.deepEqual(
        all.status.get(7)!.map(({ bytes, flags }) => [bytes, flags]),
        states,
      );
      const one = { command: BLOCK_STATUS, offset: 0, bytes: 4096, flags: REQ_ONE };
      assert.deepEqual((await client.ask(one)).status.get(7), [{ bytes: 4096, flags: 0 }]);
      assert.deepEqual((await client.ask(one)).status.get(8), [{ bytes: 512, flags: 77 }]);
    });

    test(`${dialect}: a context that fails is an error, and no half of an answer`, async () => {
      const device = disk();
      const broken = { name: "b:b", status: () => Promise.reject(new DiskError("corrupt", "damaged")) };
      const contexts = [context("a:a", states), broken];
      const client = new MemoryClient(sessionOf(device, { dialect, contexts }));
      const { error, message, status } = await client.ask({ command: BLOCK_STATUS, offset: 0, bytes: MiB });
      assert.deepEqual([error, message, status.size], [ERRNO.EIO, "damaged", 0]);
    });
  }
});

test("DF: one piece of content, however much is asked", async () => {
  const device = disk();
  const client = new MemoryClient(sessionOf(device));
  const { data } = await client.ask({ command: READ, offset: 1, bytes: 3 * MiB, flags: DF });
  assert.ok(data!.equals(content.subarray(1, 1 + 3 * MiB)));
});

test("H31: so many requests are pending at most, and the next ones when those are answered", async () => {
  const device = disk();
  const client = new MemoryClient(sessionOf(device));
  const open = gated(device);
  const asked = Array.from({ length: 1000 }, () => client.ask({ command: TRIM, offset: 0, bytes: 4096 }));
  assert.equal(client.transmission.pending, 128);
  assert.ok(client.isStuck);
  open();
  await Promise.all(asked);
  assert.equal(device.log.length, 1000);
});

test("H31: a client that never reads holds its budget, and gets no more", async () => {
  for (const command of [READ, BLOCK_STATUS]) {
    const device = disk();
    const many: [number, number][] = Array.from({ length: 65_536 }, () => [16, 1]);
    const budget = new Budget(8 * MiB);
    const client = new MemoryClient(sessionOf(device, { contexts: [context("a:a", many)] }), {
      budget,
      takes: () => 0,
    });
    for (let i = 0; i < 500; i++) void client.ask({ command, offset: 0, bytes: MiB });
    for (let i = 0; i < 1000; i++) {
      await turns(2);
      client.step();
    }
    assert.equal(client.transmission.pending, 0);
    assert.ok(device.log.length <= 8, `${device.log.length} reads of a MiB`);
    assert.ok(budget.left < 7 * MiB && budget.left > -MiB, `${budget.left} left`);
    client.transmission.abandon();
    assert.equal(budget.left, 8 * MiB, "a connection that is gone holds nothing");
  }
});

test("H31: one budget for all: whoever holds nothing has one request, and the others wait", async () => {
  const budget = new Budget(4 * MiB);
  const device = disk();
  const open = gated(device);
  const clients = [1, 2, 3].map(() => new MemoryClient(sessionOf(device), { budget }));
  const asked = clients.flatMap((client) =>
    Array.from({ length: 10 }, () => client.ask({ command: READ, offset: 0, bytes: 2 * MiB })),
  );
  assert.deepEqual(
    clients.map(({ transmission }) => transmission.pending),
    [2, 1, 1],
  );
  open();
  for (const reply of asked) assert.equal((await reply).data!.length, 2 * MiB);
  assert.equal(budget.left, 4 * MiB);
});

test("H31: what a gone connection still asked for is answered to nobody, and held by nobody", async () => {
  const budget = new Budget(4 * MiB);
  const device = disk();
  const open = gated(device);
  const client = new MemoryClient(sessionOf(device), { budget, takes: () => 0 });
  void client.ask({ command: READ, offset: 0, bytes: 2 * MiB });
  client.transmission.abandon();
  open();
  await turns();
  assert.equal(client.transmission.pending, 0);
  assert.ok(client.outbox.isEmpty);
  assert.equal(budget.left, 4 * MiB);
});

test("the watcher hears of every answer once, with its error", async () => {
  const device = disk();
  const heard: (readonly [number, number, number])[] = [];
  const watcher = {
    answered: (command: number, bytes: number, milliseconds: number, error: number) => {
      assert.ok(milliseconds >= 0);
      heard.push([command, bytes, error]);
    },
  };
  const client = new MemoryClient(sessionOf(device), { watcher });
  await client.ask({ command: READ, offset: 0, bytes: 512 });
  await client.ask({ command: TRIM, offset: DISK, bytes: 512 });
  device.failure = new DiskError("io", "gone");
  await client.ask({ command: FLUSH });
  assert.deepEqual(heard, [
    [READ, 512, 0],
    [TRIM, 512, ERRNO.EINVAL],
    [FLUSH, 0, ERRNO.EIO],
  ]);
});

test("a device that can only be read is a disk, too", async () => {
  const file = SimulatedFile.from(new Random(1).bytes(8192)).readable() as unknown as WritableDevice;
  const client = new MemoryClient(sessionOf(file, { readOnly: true }));
  assert.equal((await client.ask({ command: READ, offset: 0, bytes: 8192 })).data!.length, 8192);
});
