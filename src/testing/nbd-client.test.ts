import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { CHUNK, CMD, CMD_FLAG, INFO, OPT, REP } from "../nbd/protocol.ts";
import { NbdClient, type OpenOptions } from "./nbd-client.ts";
import { type Agreement, Breach, PendingReply, type SentRequest } from "./nbd-replies.ts";
import { infoData, option, u16, u32 } from "./nbd-script.ts";
import { serving } from "./serving.ts";
import { requires, run, scratch } from "./tools.ts";

const MiB = 1024 * 1024;

function image(t: TestContext): string {
  const path = join(scratch(t), "disk.raw");
  run("truncate", ["-s", "8M", path]);
  run("qemu-io", ["-f", "raw", "-c", "write -P 7 1M 1M", path]);
  return path;
}

async function everyCommand(client: NbdClient): Promise<void> {
  const { error, data } = await client.send({ command: CMD.READ, offset: MiB - 512, bytes: 1024 });
  assert.equal(error, 0);
  assert.deepEqual(data, Buffer.concat([Buffer.alloc(512), Buffer.alloc(512, 7)]));
  const answers = await Promise.all([
    client.send({ command: CMD.WRITE, offset: 4 * MiB, data: Buffer.alloc(4096, 1) }),
    client.send({ command: CMD.WRITE, flags: CMD_FLAG.FUA, offset: 5 * MiB, data: Buffer.alloc(100, 2) }),
    client.send({ command: CMD.WRITE_ZEROES, flags: CMD_FLAG.NO_HOLE, offset: MiB, bytes: 4096 }),
    client.send({ command: CMD.TRIM, offset: 6 * MiB, bytes: 65_536 }),
    client.send({ command: CMD.CACHE, offset: 0, bytes: 4096 }),
  ]);
  assert.deepEqual(
    answers.map((answer) => answer.error),
    [0, 0, 0, 0, 0],
  );
  assert.equal((await client.send({ command: CMD.FLUSH })).error, 0);
  const reads = Array.from({ length: 64 }, (_, i) =>
    client.send({ command: CMD.READ, offset: i * 100_003, bytes: 99_999 }),
  );
  for (const answer of await Promise.all(reads)) assert.equal(answer.data?.length, 99_999);
  const zeros = await client.send({ command: CMD.READ, offset: MiB, bytes: 8192 });
  assert.deepEqual(zeros.data, Buffer.concat([Buffer.alloc(4096), Buffer.alloc(4096, 7)]));
  const behind = await client.send({ command: CMD.READ, offset: 8 * MiB, bytes: 1 });
  assert.notEqual(behind.error, 0);
}

test("our client and the servers of others understand each other, in every style", async (t) => {
  if (!requires(t, "qemu-nbd", "nbdkit", "qemu-io")) return;
  for (const server of ["qemu-nbd", "nbdkit"] as const) {
    await using served = await serving(t, [image(t)], { server, format: "raw" });
    const styles: OpenOptions[] = [
      {},
      { structured: false },
      { oldStyle: true, noZeroes: false },
      { oldStyle: true, structured: false },
      { contexts: ["base:allocation"] },
    ];
    for (const style of styles) {
      const client = await NbdClient.open({ path: served.socket }, style);
      assert.equal(client.bytes, 8 * MiB);
      await everyCommand(client);
      await client.send({ command: CMD.WRITE, offset: MiB, data: Buffer.alloc(4096, 7) });
      if (style.contexts) {
        const { status } = await client.send({ command: CMD.BLOCK_STATUS, offset: 0, bytes: 8 * MiB });
        const found = status.get("base:allocation")!;
        assert.equal(
          found.reduce((sum, { bytes }) => sum + bytes, 0),
          8 * MiB,
        );
        assert.deepEqual(found[0], { bytes: MiB, flags: 3 });
        const one = await client.send({ command: CMD.BLOCK_STATUS, flags: CMD_FLAG.REQ_ONE, bytes: 8 * MiB });
        assert.equal(one.status.get("base:allocation")!.length, 1);
      }
      await client.close();
    }
    const client = await NbdClient.connect({ path: served.socket });
    await client.greet();
    assert.equal((await client.option(OPT.LIST)).at(-1)!.type, REP.ACK);
    assert.equal((await client.option(99)).at(-1)!.type, REP.ERR_UNSUP);
    assert.ok((await client.info("", [INFO.BLOCK_SIZE])).length >= 2);
    assert.equal((await client.option(OPT.ABORT)).at(-1)!.type, REP.ACK);
    await client.ended();
  }
});

const SIMPLE = { structured: false, extended: false, contexts: new Map<number, string>() };
const STRUCTURED = { structured: true, extended: false, contexts: new Map([[5, "base:allocation"]]) };
const EXTENDED = { ...STRUCTURED, extended: true };

const u64 = (value: number): Buffer =>
  Buffer.concat([u32(Math.floor(value / 2 ** 32)), u32(value % 2 ** 32)]);
const read: SentRequest = { command: CMD.READ, flags: 0, offset: 1000, bytes: 100 };
const status: SentRequest = { command: CMD.BLOCK_STATUS, flags: 0, offset: 1000, bytes: 100 };
const write: SentRequest = { command: CMD.WRITE, flags: 0, offset: 1000, bytes: 100 };
const content = (at: number, bytes: number): Buffer => Buffer.concat([u64(at), Buffer.alloc(bytes)]);
const hole = (at: number, bytes: number): Buffer => Buffer.concat([u64(at), u32(bytes)]);
const failure = (error: number, message = "", ...more: Buffer[]): Buffer =>
  Buffer.concat([u32(error), u16(message.length), Buffer.from(message, "latin1"), ...more]);
const state = (...words: number[]): Buffer => Buffer.concat(words.map(u32));

type Chunks = readonly (readonly [flags: number, type: number, payload: Buffer])[];

test("what no reply may be is a breach", () => {
  const { OFFSET_DATA, OFFSET_HOLE, NONE, ERROR, ERROR_OFFSET, BLOCK_STATUS, BLOCK_STATUS_EXT } = CHUNK;
  const none = Buffer.alloc(0);
  const cases: [RegExp, SentRequest, Agreement, Chunks][] = [
    [/replies are simple/, read, SIMPLE, [[1, OFFSET_DATA, content(1000, 100)]]],
    [/chunk flags/, read, STRUCTURED, [[3, OFFSET_DATA, content(1000, 100)]]],
    [/99 bytes of 100/, read, STRUCTURED, [[1, OFFSET_DATA, content(1000, 99)]]],
    [/0 bytes of 100/, read, STRUCTURED, [[1, NONE, none]]],
    [/not the last/, read, STRUCTURED, [[0, NONE, none]]],
    [/with a payload/, read, STRUCTURED, [[1, NONE, u32(0)]]],
    [/outside of/, read, STRUCTURED, [[1, OFFSET_DATA, content(999, 100)]]],
    [/outside of/, read, STRUCTURED, [[1, OFFSET_DATA, content(1001, 100)]]],
    [/without data/, read, STRUCTURED, [[1, OFFSET_DATA, content(1000, 0)]]],
    [/no bytes/, read, STRUCTURED, [[1, OFFSET_HOLE, hole(1000, 0)]]],
    [/OFFSET_HOLE of 13/, read, STRUCTURED, [[1, OFFSET_HOLE, Buffer.alloc(13)]]],
    [
      /second time/,
      read,
      STRUCTURED,
      [
        [0, OFFSET_DATA, content(1000, 60)],
        [1, OFFSET_HOLE, hole(1059, 41)],
      ],
    ],
    [
      /in pieces/,
      { ...read, flags: CMD_FLAG.DF },
      STRUCTURED,
      [
        [0, OFFSET_DATA, content(1000, 60)],
        [1, OFFSET_HOLE, hole(1060, 40)],
      ],
    ],
    [/content in the answer/, write, STRUCTURED, [[1, OFFSET_DATA, content(1000, 100)]]],
    [
      /own error/,
      read,
      STRUCTURED,
      [
        [0, ERROR_OFFSET, failure(5, "", u64(1010))],
        [1, OFFSET_DATA, content(1000, 100)],
      ],
    ],
    [/an error at/, read, STRUCTURED, [[1, ERROR_OFFSET, failure(5, "", u64(1100))]]],
    [/does not fit/, read, STRUCTURED, [[1, ERROR, failure(5, "abc", none).subarray(0, 8)]]],
    [/too short/, read, STRUCTURED, [[1, ERROR, u32(5)]]],
    [/without an error/, read, STRUCTURED, [[1, ERROR, failure(0)]]],
    [/none of the protocol's/, read, STRUCTURED, [[1, ERROR, failure(2)]]],
    [/not UTF-8/, read, STRUCTURED, [[1, ERROR, failure(5, "\xff")]]],
    [/error chunk of type/, read, STRUCTURED, [[1, 0x8003, failure(5)]]],
    [/chunk of type/, read, STRUCTURED, [[1, 77, none]]],
    [/status in the answer/, read, STRUCTURED, [[1, BLOCK_STATUS, state(5, 100, 0)]]],
    [/not chosen/, status, STRUCTURED, [[1, BLOCK_STATUS, state(6, 100, 0)]]],
    [/status of 4 bytes/, status, STRUCTURED, [[1, BLOCK_STATUS, state(5)]]],
    [/status of 16 bytes/, status, STRUCTURED, [[1, BLOCK_STATUS, state(5, 1, 2, 3)]]],
    [/no bytes/, status, STRUCTURED, [[1, BLOCK_STATUS, state(5, 0, 0)]]],
    [/behind the end/, status, STRUCTURED, [[1, BLOCK_STATUS, state(5, 100, 0, 1, 1)]]],
    [
      /second time/,
      status,
      STRUCTURED,
      [
        [0, BLOCK_STATUS, state(5, 9, 0)],
        [1, BLOCK_STATUS, state(5, 9, 0)],
      ],
    ],
    [/no status/, status, STRUCTURED, [[1, NONE, none]]],
    [
      /REQ_ONE/,
      { ...status, flags: CMD_FLAG.REQ_ONE },
      STRUCTURED,
      [[1, BLOCK_STATUS, state(5, 9, 0, 9, 1)]],
    ],
    [/REQ_ONE/, { ...status, flags: CMD_FLAG.REQ_ONE }, STRUCTURED, [[1, BLOCK_STATUS, state(5, 101, 0)]]],
    [/chunk of type/, status, EXTENDED, [[1, BLOCK_STATUS, state(5, 9, 0)]]],
    [/chunk of type/, status, STRUCTURED, [[1, BLOCK_STATUS_EXT, state(5, 1, 0, 9, 0, 0)]]],
    [/miscounts/, status, EXTENDED, [[1, BLOCK_STATUS_EXT, state(5, 2, 0, 9, 0, 0)]]],
  ];
  for (const [message, request, agreement, chunks] of cases) {
    const reply = new PendingReply(request, agreement);
    const hear = (): void => {
      for (const [flags, type, payload] of chunks) reply.chunk(flags, type, payload);
      reply.answer();
    };
    assert.throws(hear, (error) => error instanceof Breach && message.test(error.message), String(message));
  }
  for (const [request, agreement, error] of [
    [read, STRUCTURED, 0],
    [read, STRUCTURED, 5],
    [status, STRUCTURED, 0],
    [write, EXTENDED, 0],
    [write, SIMPLE, 2],
  ] as const) {
    assert.throws(() => new PendingReply(request, agreement).simple(error), Breach);
  }
});

test("what a reply may be", () => {
  const reply = new PendingReply(read, STRUCTURED);
  assert.equal(reply.chunk(0, CHUNK.OFFSET_HOLE, hole(1050, 50)), false);
  assert.equal(reply.chunk(1, CHUNK.OFFSET_DATA, content(1000, 50)), true);
  assert.deepEqual([reply.answer().data?.length, reply.answer().holes], [100, [{ start: 1050, end: 1100 }]]);
  const failed = new PendingReply(read, STRUCTURED);
  failed.chunk(0, CHUNK.OFFSET_DATA, content(1000, 50));
  failed.chunk(1, CHUNK.ERROR_OFFSET, failure(5, "bad", u64(1040)));
  const { error, message, errorOffsets, data } = failed.answer();
  assert.deepEqual([error, message, errorOffsets, data], [5, "bad", [1040], undefined]);
  const extended = new PendingReply(status, EXTENDED);
  extended.chunk(1, CHUNK.BLOCK_STATUS_EXT, state(5, 1, 1, 0, 0, 3));
  assert.deepEqual(extended.answer().status.get("base:allocation"), [{ bytes: 2 ** 32, flags: 3 }]);
});

/** A server that grants a disk of 1 MiB, then says `words` whatever it hears, and closes. */
async function liar(t: TestContext, words: Buffer): Promise<NbdClient> {
  const path = join(scratch(t), "socket");
  const server = createServer((socket) => {
    const heard = option(OPT.GO, infoData("", [3])).length + 4;
    let bytes = 0;
    socket.write(Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(3)]));
    socket.on("error", () => {});
    socket.on("data", (chunk) => {
      const before = bytes;
      bytes += chunk.length;
      const reply = (type: number, data: Buffer): Buffer =>
        Buffer.concat([
          Buffer.from("0003e889045565a9", "hex"),
          u32(OPT.GO),
          u32(type),
          u32(data.length),
          data,
        ]);
      if (before < heard && bytes >= heard) {
        const info = Buffer.concat([u16(INFO.EXPORT), u64(MiB), u16(1)]);
        socket.write(Buffer.concat([reply(REP.INFO, info), reply(REP.ACK, Buffer.alloc(0))]));
      } else if (before >= heard) socket.end(words);
    });
  }).listen(path);
  t.after(() => server.close());
  await once(server, "listening");
  return NbdClient.open({ path }, { structured: false });
}

test("a server that speaks without being asked, with a wrong magic, or ends early", async (t) => {
  const simple = (cookie: number, magic = "67446698"): Buffer =>
    Buffer.concat([Buffer.from(magic, "hex"), u32(0), u64(cookie)]);
  for (const [words, message] of [
    [simple(77), /cookie 77 is nobody's/],
    [simple(1, "67446699"), /magic/],
    [simple(1, "668e33ef"), /magic|closed|simple/],
    [simple(1).subarray(0, 15), /closed after 15 of 16/],
    [Buffer.alloc(0), /closed after 0/],
    [Buffer.concat([simple(1), Buffer.alloc(50)]), /closed after 50 of 100/],
  ] as const) {
    const client = await liar(t, words);
    await assert.rejects(client.send({ command: CMD.READ, bytes: 100 }), (error) => {
      return error instanceof Breach && message.test(error.message);
    });
  }
  const twice = await liar(t, Buffer.concat([simple(1), simple(1)]));
  assert.equal((await twice.send({ command: CMD.FLUSH })).error, 0);
  await twice.ended();
  assert.match(String(twice.failure), /cookie 1 is nobody's/);
});
