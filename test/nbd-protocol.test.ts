/**
 * A served disk as a raw client sees it, which keeps to no rule: every option, every command, every error; what a client may
 * hold, and for how long. What we say of an export beside what qemu-nbd and nbdkit say of the same image.
 */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { CMD, CMD_FLAG, ERRNO, INFO, OPT, REP, TRANSMISSION_FLAG } from "../src/nbd/protocol.ts";
import { Served, type ServeOptions } from "../src/serve.ts";
import { granted, NbdClient, type OpenOptions } from "../src/testing/nbd-client.ts";
import { Breach } from "../src/testing/nbd-replies.ts";
import { contextData, infoData, option, text, u16, u32 } from "../src/testing/nbd-script.ts";
import { Random } from "../src/testing/seeds.ts";
import { serving } from "../src/testing/serving.ts";
import { requires, run, scratch } from "../src/testing/tools.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const BYTES = 16 * MiB + 512;

/** A raw disk of zeros, with a MiB of sevens in it. */
function rawDisk(t: TestContext, bytes = BYTES): string {
  const path = join(scratch(t), "disk.raw");
  writeFileSync(path, Buffer.alloc(MiB, 7));
  run("truncate", ["-s", String(bytes), path]);
  return path;
}

interface Here {
  readonly path: string;
  readonly served: Served;
  readonly log: readonly string[];
  readonly open: (options?: OpenOptions) => Promise<NbdClient>;
  readonly connect: () => Promise<NbdClient>;
}

/** A server in this process. */
async function here(t: TestContext, options: Partial<ServeOptions> = {}): Promise<Here> {
  const path = join(scratch(t), "socket");
  const log: string[] = [];
  const served = await Served.start({
    images: [rawDisk(t)],
    open: { format: "raw" },
    readOnly: false,
    snapshots: false,
    address: { path },
    log: (message) => log.push(message),
    ...options,
  });
  t.after(() => served.stop());
  return {
    path,
    served,
    log,
    open: (how) => NbdClient.open({ path }, how),
    connect: () => NbdClient.connect({ path }),
  };
}

const typeOf = (replies: readonly { type: number }[]): number => replies.at(-1)!.type;

test("H31: every option and every error, by `ullage serve`", async (t) => {
  await using server = await serving(t, [rawDisk(t)], { format: "raw" });
  const client = await NbdClient.connect({ path: server.socket });
  await client.greet();
  const ask = async (code: number, ...data: Uint8Array[]): Promise<number> =>
    typeOf(await client.option(code, ...data));
  const list = await client.option(OPT.LIST);
  assert.deepEqual(
    list.map(({ type }) => type),
    [REP.SERVER, REP.ACK],
  );
  assert.equal(list[0]!.data.readUInt32BE(), 8);
  assert.match(list[0]!.data.toString("latin1", 4), /^disk\.rawraw, /);
  assert.equal(await ask(OPT.LIST, Buffer.of(0)), REP.ERR_INVALID);
  assert.equal(await ask(OPT.STARTTLS), REP.ERR_UNSUP);
  assert.equal(await ask(OPT.EXTENDED_HEADERS), REP.ERR_UNSUP);
  for (const code of [0, 4, 12, 0xffff_ffff]) assert.equal(await ask(code, Buffer.alloc(20)), REP.ERR_UNSUP);
  assert.equal(await ask(OPT.SET_META_CONTEXT, contextData("")), REP.ERR_INVALID);
  assert.equal(await ask(OPT.STRUCTURED_REPLY), REP.ACK);
  const contexts = await client.option(OPT.LIST_META_CONTEXT, contextData("disk.raw"));
  assert.deepEqual(
    contexts.slice(0, -1).map(({ data }) => data.toString("utf8", 4)),
    ["base:allocation", "qemu:allocation-depth", "ullage:usage"],
  );
  assert.equal(await ask(OPT.SET_META_CONTEXT, contextData("other", ["base:allocation"])), REP.ERR_UNKNOWN);
  assert.equal(await ask(OPT.SET_META_CONTEXT, contextData("", ["nothing"])), REP.ERR_INVALID);
  assert.equal(await ask(OPT.SET_META_CONTEXT, Buffer.alloc(5 * MiB)), REP.ERR_TOO_BIG);
  for (const code of [OPT.INFO, OPT.GO]) {
    assert.equal(await ask(code, infoData("other")), REP.ERR_UNKNOWN);
    assert.equal(await ask(code, infoData("x".repeat(4097))), REP.ERR_TOO_BIG);
    assert.equal(await ask(code, text(""), u16(3)), REP.ERR_INVALID);
    assert.equal(await ask(code, Buffer.alloc(70_000)), REP.ERR_TOO_BIG);
  }
  assert.equal(typeOf(await client.info("", [0, 1, 2, 3, 4])), REP.ACK);
  assert.equal(await ask(OPT.ABORT, Buffer.alloc(10)), REP.ACK);
  await client.ended();
});

test("H31: what cannot be answered with an error ends the connection, and that one alone", async (t) => {
  const { connect, open, log } = await here(t);
  const other = await open();
  for (const words of [
    Buffer.concat([u32(4)]),
    Buffer.concat([u32(3), Buffer.alloc(16, 1)]),
    Buffer.concat([u32(3), option(OPT.EXPORT_NAME, Buffer.from("other"))]),
    Buffer.concat([u32(0), option(OPT.LIST)]),
    Buffer.concat([u32(3), option(OPT.LIST).subarray(0, 12), u32(0x7fff_ffff)]),
  ]) {
    const client = await connect();
    await client.take(18);
    client.raw(words);
    await client.ended();
    await assert.rejects(client.take(1), Breach);
  }
  assert.equal(log.length, 5, log.join("\n"));
  assert.equal((await other.send({ command: CMD.READ, bytes: 512 })).error, 0);
  await other.close();
});

const STYLES: readonly OpenOptions[] = [
  { contexts: ["base:allocation"] },
  { structured: false },
  { oldStyle: true, structured: false, noZeroes: false },
  { extended: true, contexts: ["base:allocation", "qemu:allocation-depth"] },
];

test("all styles of replies: many requests in flight, beside a disk in memory", async (t) => {
  for (const [i, style] of STYLES.entries()) {
    for (const straight of [true, false]) {
      const { open, served } = await here(t, { allowExtended: true, straight });
      const client = await open(style);
      assert.equal(client.bytes, BYTES);
      const shadow = Buffer.alloc(BYTES);
      shadow.fill(7, 0, MiB);
      const random = new Random(i);
      for (let round = 0; round < 4; round++) {
        // Ranges of one round do not touch each other, so that their order does not matter.
        const answers = Array.from({ length: 40 }, (_, lane) => {
          const start = lane * 400 * KiB + random.below(100 * KiB);
          return laneRequest(
            client,
            shadow,
            start,
            1 + random.below(random.pick([10, 5000, 250 * KiB])),
            random,
          );
        });
        await Promise.all(answers);
        assert.equal((await client.send({ command: CMD.FLUSH })).error, 0);
      }
      const { data } = await client.send({ command: CMD.READ, bytes: BYTES });
      assert.ok(shadow.equals(data!), `${JSON.stringify(style)}`);
      await client.close();
      await served.stop();
    }
  }
});

async function laneRequest(
  client: NbdClient,
  shadow: Buffer,
  offset: number,
  bytes: number,
  random: Random,
): Promise<void> {
  const flags = random.oneIn(5) ? CMD_FLAG.FUA : 0;
  const range = { offset, bytes };
  switch (random.below(6)) {
    case 0:
    case 1: {
      const data = random.bytes(bytes);
      shadow.set(data, offset);
      assert.equal((await client.send({ command: CMD.WRITE, flags, offset, data })).error, 0);
      return;
    }
    case 2: {
      shadow.fill(0, offset, offset + bytes);
      const more = random.oneIn(2) ? CMD_FLAG.NO_HOLE : 0;
      assert.equal(
        (await client.send({ command: CMD.WRITE_ZEROES, flags: flags | more, ...range })).error,
        0,
      );
      return;
    }
    case 3: {
      const status = client.contexts.size > 0;
      if (!status) return;
      const { error } = await client.send({ command: CMD.BLOCK_STATUS, ...range });
      assert.equal(error, 0);
      return;
    }
    default: {
      const canDf = (client.flags & TRANSMISSION_FLAG.SEND_DF) !== 0;
      const df = canDf && random.oneIn(3) && bytes <= 65_536 ? CMD_FLAG.DF : 0;
      const { data } = await client.send({ command: CMD.READ, flags: df, ...range });
      assert.ok(shadow.subarray(offset, offset + bytes).equals(data!));
    }
  }
}

test("H26: what was trimmed reads as it did, or as zeros", async (t) => {
  const { open } = await here(t);
  const client = await open();
  await client.send({ command: CMD.TRIM, offset: 1000, bytes: 300 * KiB });
  const { data } = await client.send({ command: CMD.READ, bytes: MiB });
  assert.ok(data!.subarray(0, 1000).every((byte) => byte === 7));
  assert.ok(data!.subarray(1000, 1000 + 300 * KiB).every((byte) => byte === 7 || byte === 0));
  assert.ok(data!.subarray(1000 + 300 * KiB).every((byte) => byte === 7));
  await client.close();
});

test("H29: bounds, flags, commands: each error has its number, and nothing was done", async (t) => {
  const { READ, WRITE, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, FLUSH, RESIZE } = CMD;
  const { EINVAL, ENOSPC } = ERRNO;
  const data = Buffer.alloc(1024, 1);
  const cases = [
    [{ command: READ, offset: BYTES - 511, bytes: 512 }, EINVAL],
    [{ command: READ, offset: BYTES + 1, bytes: 0 }, EINVAL],
    [{ command: READ, offset: -1, bytes: 2 }, EINVAL],
    [{ command: READ, offset: -4096, bytes: 4096 }, EINVAL],
    [{ command: READ, bytes: 0xffff_ffff }, EINVAL],
    [{ command: WRITE, offset: BYTES - 1023, data }, ENOSPC],
    [{ command: WRITE, offset: -1024, data }, ENOSPC],
    [{ command: TRIM, offset: MiB, bytes: 0xffff_ffff }, EINVAL],
    [{ command: CACHE, offset: MiB, bytes: BYTES }, EINVAL],
    [{ command: WRITE_ZEROES, offset: MiB, bytes: BYTES }, ENOSPC],
    [{ command: BLOCK_STATUS, offset: MiB, bytes: BYTES }, EINVAL],
    [{ command: BLOCK_STATUS, offset: 0, bytes: 0 }, EINVAL],
    [{ command: RESIZE, bytes: 4096 }, EINVAL],
    [{ command: 9, bytes: 4096 }, EINVAL],
    [{ command: 0xffff }, EINVAL],
    [{ command: READ, flags: CMD_FLAG.NO_HOLE, bytes: 512 }, EINVAL],
    [{ command: READ, flags: 1 << 15, bytes: 512 }, EINVAL],
    [{ command: WRITE, flags: CMD_FLAG.DF, data }, EINVAL],
    [{ command: WRITE, flags: CMD_FLAG.PAYLOAD_LEN, data }, EINVAL],
    [{ command: TRIM, flags: CMD_FLAG.NO_HOLE, bytes: 4096 }, EINVAL],
    [{ command: FLUSH, flags: CMD_FLAG.DF }, EINVAL],
    [{ command: WRITE_ZEROES, flags: CMD_FLAG.REQ_ONE, bytes: 4096 }, EINVAL],
    [{ command: BLOCK_STATUS, flags: CMD_FLAG.FAST_ZERO, bytes: 4096 }, EINVAL],
  ] as const;
  for (const style of STYLES.slice(0, 3)) {
    const { open, served } = await here(t);
    const client = await open(style);
    for (const [request, error] of cases) {
      const answer = await client.send(request);
      assert.equal(answer.error, error, `${JSON.stringify(request)} ${JSON.stringify(style)}`);
    }
    if (style.structured === false) {
      for (const request of [
        { command: READ, flags: CMD_FLAG.DF, bytes: 512 },
        { command: BLOCK_STATUS, bytes: 512 },
      ]) {
        assert.equal((await client.send(request)).error, EINVAL);
      }
    }
    const whole = await client.send({ command: READ, bytes: BYTES });
    assert.ok(whole.data!.subarray(0, MiB).every((byte) => byte === 7));
    assert.ok(whole.data!.subarray(MiB).every((byte) => byte === 0));
    await client.close();
    await served.stop();
  }
});

test("H29: FUA is no error with any command", async (t) => {
  const { open } = await here(t);
  const client = await open({ contexts: ["base:allocation"] });
  for (const command of [CMD.READ, CMD.TRIM, CMD.CACHE, CMD.WRITE_ZEROES, CMD.BLOCK_STATUS, CMD.FLUSH]) {
    const bytes = command === CMD.FLUSH ? 0 : 4096;
    assert.equal((await client.send({ command, flags: CMD_FLAG.FUA, bytes })).error, 0);
  }
  await client.close();
});

test("H29: a read-only export is written to by nobody", async (t) => {
  const { open } = await here(t, { readOnly: true });
  for (const style of STYLES.slice(0, 3)) {
    const client = await open(style);
    assert.ok((client.flags & TRANSMISSION_FLAG.READ_ONLY) !== 0);
    for (const request of [
      { command: CMD.WRITE, data: Buffer.alloc(512) },
      { command: CMD.TRIM, bytes: 4096 },
      { command: CMD.WRITE_ZEROES, bytes: 4096 },
    ]) {
      assert.equal((await client.send(request)).error, ERRNO.EPERM);
    }
    assert.equal((await client.send({ command: CMD.FLUSH })).error, 0);
    const { data } = await client.send({ command: CMD.READ, bytes: 4096 });
    assert.ok(data!.every((byte) => byte === 7));
    await client.close();
  }
});

test("H28: BLOCK_STATUS without a chosen context; contexts of another export are none", async (t) => {
  const { open, connect } = await here(t);
  const client = await open();
  assert.equal((await client.send({ command: CMD.BLOCK_STATUS, bytes: 4096 })).error, ERRNO.EINVAL);
  await client.close();
  const other = await connect();
  await other.greet();
  granted(await other.option(OPT.STRUCTURED_REPLY));
  granted(await other.option(OPT.SET_META_CONTEXT, contextData("disk.raw", ["base:allocation"])));
  other.contexts.clear();
  granted(await other.go(""));
  assert.equal((await other.send({ command: CMD.BLOCK_STATUS, bytes: 4096 })).error, ERRNO.EINVAL);
  await other.close();
});

test("H30: 64-bit requests: a TRIM and a status of more than 4 GiB", async (t) => {
  const bytes = 20 * 2 ** 30;
  const { open } = await here(t, { allowExtended: true, images: [rawDisk(t, bytes)] });
  const client = await open({ extended: true, contexts: ["base:allocation"] });
  const { status } = await client.send({ command: CMD.BLOCK_STATUS, offset: MiB, bytes: bytes - MiB });
  assert.deepEqual(status.get("base:allocation"), [{ bytes: bytes - MiB, flags: 3 }]);
  assert.equal((await client.send({ command: CMD.TRIM, bytes })).error, 0);
  assert.equal((await client.send({ command: CMD.TRIM, bytes: bytes + 1 })).error, ERRNO.EINVAL);
  const after = await client.send({ command: CMD.BLOCK_STATUS, bytes });
  assert.deepEqual(after.status.get("base:allocation"), [{ bytes, flags: 3 }]);
  await client.close();
});

test("H29: requests that nobody may send end the connection: a wrong magic, 4 GiB of data", async (t) => {
  const { open, served } = await here(t);
  const other = await open();
  for (const words of [
    Buffer.alloc(28),
    other.encode({ command: CMD.WRITE, flags: 0, offset: 0, bytes: 0xffff_ffff }, 1n),
  ]) {
    const client = await open();
    client.raw(words);
    await client.ended();
    assert.ok(client.failure instanceof Breach);
  }
  assert.equal((await other.send({ command: CMD.FLUSH })).error, 0);
  await other.close();
  assert.equal(served.images[0]!.meter.connections, 0);
});

test("H31: a handshake has its time, however slowly it is said; the number of clients is limited", async (t) => {
  const { connect, open, log } = await here(t, { handshakeMs: 400, connectionsMax: 3 });
  const slow = await connect();
  const silent = await connect();
  const quick = await open();
  const fourth = await connect();
  await fourth.ended();
  assert.match(log.join(), /turned away/);
  const dripping = (async () => {
    for (const byte of Buffer.concat([u32(3), option(OPT.LIST), option(OPT.LIST)])) {
      slow.raw(Buffer.of(byte));
      await pause(50);
    }
  })();
  const began = Date.now();
  await Promise.all([slow.ended(), silent.ended()]);
  assert.ok(Date.now() - began < 1500);
  await dripping;
  await pause(450);
  assert.equal((await quick.send({ command: CMD.FLUSH })).error, 0, "a session has no such limit");
  const next = await open();
  await next.close();
  await quick.close();
});

test("H31: who says much and hears nothing is not served without bounds", async (t) => {
  await using server = await serving(t, [rawDisk(t)], { format: "raw" });
  const held = (): number => {
    const status = readFileSync(`/proc/${server.pid}/status`, "utf8");
    return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)![1]) * KiB;
  };
  const before = held();
  const clients = await Promise.all(
    Array.from({ length: 10 }, () => NbdClient.connect({ path: server.socket })),
  );
  const many = Buffer.concat(Array.from({ length: 9000 }, () => option(OPT.LIST)));
  for (const client of clients) {
    await client.greet();
    client.pause(true);
    client.raw(many);
  }
  await pause(1500);
  assert.ok(held() - before < 96 * MiB, `${held() - before} bytes`);
  for (const client of clients) client.destroy();
});

/** What a server tells of an export, as libnbd understands it. */
type Told = Readonly<Record<string, unknown>>;

function listed(uri: string): Told {
  const words = ["--json", "--list", uri];
  const { exports } = JSON.parse(run("nbdinfo", words)) as { exports: Told[] };
  return exports[0]!;
}

test("what nbdinfo hears from us, from qemu-nbd and from nbdkit of the same disk", async (t) => {
  if (!requires(t, "nbdinfo", "qemu-nbd", "nbdkit")) return;
  const told = new Map<string, Told>();
  for (const server of ["ullage", "qemu-nbd", "nbdkit"] as const) {
    await using served = await serving(t, [rawDisk(t)], { server, format: "raw" });
    told.set(server, listed(served.uri()));
  }
  const ours = told.get("ullage")!;
  for (const server of ["qemu-nbd", "nbdkit"]) {
    const theirs = told.get(server)!;
    assert.equal(ours["export-size"], theirs["export-size"], server);
    assert.equal(ours["is_read_only"], theirs["is_read_only"], server);
    const wanting = Object.entries(theirs).filter(([key, can]) => {
      return key.startsWith("can_") && can === true && ours[key] !== true;
    });
    assert.deepEqual(wanting, [], `${server} offers what we do not`);
    const contexts = (theirs["contexts"] ?? []) as string[];
    assert.deepEqual(
      contexts.filter((name) => !(ours["contexts"] as string[]).includes(name)),
      [],
    );
  }
  assert.equal(ours["export-name"], "disk.raw");
  assert.match(String(ours["description"]), /^raw, /);
  assert.deepEqual(
    ["minimum", "preferred", "maximum"].map((size) => ours[`block_size_${size}`]),
    [1, 4096, 32 * MiB],
  );
});

test("qemu-nbd and nbd-client list what we serve", async (t) => {
  if (!requires(t, "qemu-nbd", "nbd-client")) return;
  const disk = rawDisk(t);
  const other = join(scratch(t), "other disk.raw");
  writeFileSync(other, Buffer.alloc(MiB));
  await using server = await serving(t, [disk, other], { format: "raw", words: ["--read-only"] });
  const told = run("qemu-nbd", ["--list", "-k", server.socket]).replace(/^ +/gm, "");
  assert.match(told, /^exports available: 2\nexport: 'disk\.raw'\n/);
  assert.match(
    told,
    /^export: 'other disk\.raw'\ndescription: raw, .*\nsize: {2}1048576\nflags: .* readonly /m,
  );
  for (const line of ["min block: 1", "opt block: 4096", "max block: 33554432"])
    assert.ok(told.includes(line));
  assert.match(told, /^available meta contexts: 3\nbase:allocation\nqemu:allocation-depth\nullage:usage$/m);
  const names = run("nbd-client", ["-unix", server.socket, "-l"]);
  assert.match(names, /^disk\.raw: raw, .*\nother disk\.raw: raw, /m);
});

test("INFO says the same as GO, and what it says can be relied on", async (t) => {
  const { connect } = await here(t);
  const client = await connect();
  await client.greet();
  const kinds = [INFO.NAME, INFO.DESCRIPTION, INFO.BLOCK_SIZE];
  const asked = await client.info("disk.raw", kinds);
  const got = await client.go("disk.raw", kinds);
  assert.deepEqual(
    got.map(({ type, data }) => [type, data.toString("hex")]),
    asked.map(({ type, data }) => [type, data.toString("hex")]),
  );
  const [, , maximum] = client.blocks!;
  const { data } = await client.send({ command: CMD.READ, bytes: Math.min(maximum!, BYTES) });
  assert.equal(data?.length, Math.min(maximum!, BYTES));
  await client.close();
});

test("DISC: what was asked before is answered, then the server closes", async (t) => {
  for (const straight of [true, false]) {
    const { open } = await here(t, { straight });
    const client = await open();
    const reads = Array.from({ length: 100 }, () => client.send({ command: CMD.READ, bytes: 100 * KiB }));
    const zeros = client.send({ command: CMD.WRITE_ZEROES, bytes: MiB });
    const closed = client.close();
    for (const { error } of await Promise.all([...reads, zeros])) assert.equal(error, 0);
    await closed;
  }
});

test("a client that is gone takes nobody along", async (t) => {
  const { open, served } = await here(t);
  const other = await open();
  for (let i = 0; i < 5; i++) {
    const client = await open();
    const asked = Array.from({ length: 50 }, () => client.send({ command: CMD.READ, bytes: MiB }));
    for (const each of asked) each.catch(() => {});
    client.destroy();
    await client.ended();
  }
  assert.equal((await other.send({ command: CMD.READ, bytes: 512 })).error, 0);
  await other.close();
  for (let i = 0; served.images[0]!.meter.connections > 0 && i < 100; i++) await pause(10);
  assert.equal(served.images[0]!.meter.connections, 0);
});
