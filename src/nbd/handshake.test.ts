import assert from "node:assert/strict";
import { test } from "node:test";
import { SimulatedFile } from "../testing/simulated-file.ts";
import {
  contextData,
  infoData,
  option,
  repliesIn,
  ScriptedChannel,
  text,
  u16,
  u32,
} from "../testing/nbd-script.ts";
import { ChannelClosed } from "./channel.ts";
import type { Export, Exports, MetaContext, Session } from "./export.ts";
import { handshake } from "./handshake.ts";
import type { HandshakePolicy } from "./handshake.ts";
import { OPT, ProtocolBreach, REP, TRANSMISSION_FLAG } from "./protocol.ts";

const context = (name: string): MetaContext => ({
  name,
  status: ({ start, end }) => Promise.resolve([{ bytes: end - start, flags: 0 }]),
});

const BYTES = 5 * 2 ** 32 + 7;

const disk: Export = {
  name: "disk.raw",
  description: "a disk",
  device: new SimulatedFile(BYTES),
  isReadOnly: false,
  blocks: { minimum: 1, preferred: 4096, maximum: 0x0200_0000 },
  canMultiConn: true,
  contexts: ["base:allocation", "qemu:allocation-depth", "ullage:usage"].map(context),
};

const coarse: Export = {
  ...disk,
  name: "coarse",
  description: "",
  blocks: { minimum: 512, preferred: 4096, maximum: 0x0200_0000 },
  device: new SimulatedFile(8192),
  isReadOnly: true,
  isRotational: true,
  canMultiConn: false,
};

const all: Exports = {
  list: () => [disk, coarse],
  find: (name) => (name === "" ? disk : [disk, coarse].find((each) => each.name === name)),
};

const PLAIN: HandshakePolicy = { tls: "off", allowExtended: false };
const ALLOW: HandshakePolicy = { tls: "allow", allowExtended: true };
const REQUIRE: HandshakePolicy = { tls: "require", allowExtended: true };

/** FIXED_NEWSTYLE and NO_ZEROES. */
const FLAGS = u32(3);
const GREETING = Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(3)]);
const ABORT = option(OPT.ABORT);
const STRUCTURED = option(OPT.STRUCTURED_REPLY);

interface Met {
  readonly session: Session | undefined;
  readonly failure: unknown;
  /** What was heard after the greeting. */
  readonly heard: Buffer;
  readonly channel: ScriptedChannel;
}

async function meet(policy: HandshakePolicy, ...segments: readonly Uint8Array[]): Promise<Met> {
  const channel = new ScriptedChannel(...segments);
  let session: Session | undefined;
  let failure: unknown;
  try {
    session = await handshake(channel, all, policy);
  } catch (error) {
    failure = error;
  }
  assert.deepEqual(channel.heard.subarray(0, GREETING.length), GREETING);
  return { session, failure, heard: channel.heard.subarray(GREETING.length), channel };
}

/** Says `options` and ABORT, and returns the types of the replies before the last ACK. */
async function typesFor(policy: HandshakePolicy, ...options: readonly Uint8Array[]): Promise<number[]> {
  const { session, failure, heard } = await meet(policy, Buffer.concat([FLAGS, ...options, ABORT]));
  assert.equal(failure, undefined);
  assert.equal(session, undefined);
  const types = repliesIn(heard).map(({ type }) => type);
  assert.equal(types.pop(), REP.ACK, "ABORT is answered");
  return types;
}

async function breach(policy: HandshakePolicy, ...segments: readonly Uint8Array[]): Promise<Met> {
  const met = await meet(policy, ...segments);
  assert.ok(met.failure instanceof ProtocolBreach, String(met.failure));
  return met;
}

test("GO: what was asked for, then the session; nothing follows the ACK", async () => {
  const words = Buffer.concat([FLAGS, STRUCTURED, option(OPT.GO, infoData("", [3, 1, 2, 77]))]);
  const { session, heard, channel } = await meet(PLAIN, words);
  assert.equal(session?.export, disk);
  assert.deepEqual([session.structured, session.extended, session.contexts], [true, false, []]);
  const replies = repliesIn(heard);
  assert.deepEqual(
    replies.map(({ option: code, type }) => [code, type]),
    [
      [8, REP.ACK],
      [7, REP.INFO],
      [7, REP.INFO],
      [7, REP.INFO],
      [7, REP.INFO],
      [7, REP.ACK],
    ],
  );
  const F = TRANSMISSION_FLAG;
  const flags = 1 | F.SEND_FLUSH | F.SEND_FUA | F.SEND_TRIM | F.SEND_WRITE_ZEROES | F.SEND_DF;
  const more = F.CAN_MULTI_CONN | F.SEND_CACHE | F.SEND_FAST_ZERO;
  assert.deepEqual(
    replies.slice(1).map(({ data }) => data.toString("hex")),
    [
      `00000000000500000007${(flags | more).toString(16).padStart(4, "0")}`,
      `0001${Buffer.from("disk.raw").toString("hex")}`,
      `0002${Buffer.from("a disk").toString("hex")}`,
      "0003000000010000100002000000",
      "",
    ],
  );
  assert.equal(channel.readTo, words.length);
});

test("GO for a read-only rotating disk; without structured replies there is no DF", async () => {
  const { heard } = await meet(PLAIN, Buffer.concat([FLAGS, option(OPT.GO, infoData("coarse", [3]))]));
  const F = TRANSMISSION_FLAG;
  const flags = F.HAS_FLAGS | F.READ_ONLY | F.SEND_FLUSH | F.SEND_FUA | F.ROTATIONAL | F.SEND_CACHE;
  assert.equal(repliesIn(heard)[0]!.data.readUInt16BE(10), flags);
});

test("GO and INFO refuse who does not ask for block sizes that matter, and tell them first", async () => {
  for (const code of [OPT.INFO, OPT.GO]) {
    assert.deepEqual(await typesFor(PLAIN, option(code, infoData("coarse"))), [
      REP.INFO,
      REP.INFO,
      REP.ERR_BLOCK_SIZE_REQD,
    ]);
  }
  assert.deepEqual(await typesFor(PLAIN, option(OPT.INFO, infoData("coarse", [3]))), [
    REP.INFO,
    REP.INFO,
    REP.ACK,
  ]);
  assert.deepEqual(await typesFor(PLAIN, option(OPT.INFO, infoData("disk.raw"))), [REP.INFO, REP.ACK]);
});

test("EXPORT_NAME: with zeroes, and without", async () => {
  for (const [flags, bytes] of [
    [0, 134],
    [1, 134],
    [2, 10],
    [3, 10],
  ] as const) {
    const words = Buffer.concat([u32(flags), option(OPT.EXPORT_NAME, Buffer.from("disk.raw"))]);
    const { session, heard } = await meet(PLAIN, words);
    assert.equal(session?.export, disk);
    assert.equal(heard.length, bytes);
    assert.equal(Number(heard.readBigUInt64BE()), BYTES);
    assert.equal(heard.readUInt16BE(8) & TRANSMISSION_FLAG.SEND_DF, 0);
    assert.ok(heard.subarray(10).every((byte) => byte === 0));
  }
});

test("EXPORT_NAME that cannot be granted ends the connection without a word", async () => {
  const named = (name: Uint8Array | string): Buffer =>
    Buffer.concat([FLAGS, option(OPT.EXPORT_NAME, Buffer.from(name))]);
  for (const words of [
    named("other"),
    named("coarse"),
    named("a\0b"),
    named(Buffer.of(0xff)),
    named("x".repeat(4097)),
    named("x".repeat(70_000)),
  ]) {
    assert.equal((await breach(PLAIN, words)).heard.length, 0);
  }
  assert.equal((await breach(REQUIRE, named("disk.raw"))).heard.length, 0);
  const extended = Buffer.concat([
    FLAGS,
    option(OPT.EXTENDED_HEADERS),
    option(OPT.EXPORT_NAME, Buffer.from("disk.raw")),
  ]);
  assert.equal(repliesIn((await breach(ALLOW, extended)).heard).length, 1);
});

test("LIST: every export with its description", async () => {
  const { heard } = await meet(PLAIN, Buffer.concat([FLAGS, option(OPT.LIST), ABORT]));
  assert.deepEqual(
    repliesIn(heard).map(({ type, data }) => [type, data.toString("latin1")]),
    [
      [REP.SERVER, "\0\0\0\x08disk.rawa disk"],
      [REP.SERVER, "\0\0\0\x06coarse"],
      [REP.ACK, ""],
      [REP.ACK, ""],
    ],
  );
});

test("ABORT is answered, and who does not wait for the answer left in good order too", async () => {
  assert.deepEqual(await typesFor(PLAIN), []);
  class Gone extends ScriptedChannel {
    override write(bytes: Uint8Array): Promise<void> {
      return bytes.length > GREETING.length ? Promise.reject(new ChannelClosed()) : super.write(bytes);
    }
  }
  assert.equal(await handshake(new Gone(Buffer.concat([FLAGS, ABORT])), all, PLAIN), undefined);
  const list = Buffer.concat([FLAGS, option(OPT.LIST)]);
  await assert.rejects(handshake(new Gone(list), all, PLAIN), ChannelClosed);
});

test("each error is told, and the handshake goes on", async () => {
  const errors: [string, Uint8Array, number][] = [
    ["an unknown option", option(77, Buffer.from("abc")), REP.ERR_UNSUP],
    ["option 0", option(0), REP.ERR_UNSUP],
    ["an unknown option, too long", option(77, Buffer.alloc(70_000)), REP.ERR_UNSUP],
    ["PEEK_EXPORT, withdrawn", option(4), REP.ERR_UNSUP],
    ["64-bit headers", option(OPT.EXTENDED_HEADERS), REP.ERR_UNSUP],
    ["no TLS here", option(OPT.STARTTLS), REP.ERR_UNSUP],
    ["LIST with data", option(OPT.LIST, Buffer.of(1)), REP.ERR_INVALID],
    ["STARTTLS with data", option(OPT.STARTTLS, Buffer.of(1)), REP.ERR_INVALID],
    ["STRUCTURED_REPLY with data", option(OPT.STRUCTURED_REPLY, Buffer.of(1)), REP.ERR_INVALID],
    ["INFO without data", option(OPT.INFO), REP.ERR_INVALID],
    ["GO with a name past the end", option(OPT.GO, u32(7), Buffer.from("abc")), REP.ERR_INVALID],
    ["a name of 4 GiB", option(OPT.GO, u32(0xffff_ffff), Buffer.from("abc")), REP.ERR_INVALID],
    ["GO without a count", option(OPT.GO, text("disk.raw")), REP.ERR_INVALID],
    ["too few requests", option(OPT.GO, text("disk.raw"), u16(2), u16(3)), REP.ERR_INVALID],
    ["too many requests", option(OPT.GO, text("disk.raw"), u16(1), u16(3), u16(1)), REP.ERR_INVALID],
    ["half a request", option(OPT.GO, text("disk.raw"), u16(1), u16(3), Buffer.of(1)), REP.ERR_INVALID],
    ["a NUL", option(OPT.GO, infoData("disk\0.raw")), REP.ERR_INVALID],
    ["no UTF-8", option(OPT.GO, u32(1), Buffer.of(0xc3), u16(0)), REP.ERR_INVALID],
    ["a name of 4097 bytes", option(OPT.GO, infoData("ü".repeat(2048) + "x")), REP.ERR_TOO_BIG],
    ["a name of 4096 bytes", option(OPT.GO, infoData("ü".repeat(2048))), REP.ERR_UNKNOWN],
    ["no such export", option(OPT.GO, infoData("other")), REP.ERR_UNKNOWN],
    ["no such export", option(OPT.INFO, infoData("other")), REP.ERR_UNKNOWN],
    ["a long GO", option(OPT.GO, Buffer.alloc(65_537)), REP.ERR_TOO_BIG],
    ["a long LIST", option(OPT.LIST, Buffer.alloc(65_537)), REP.ERR_TOO_BIG],
    ["contexts unstructured", option(OPT.SET_META_CONTEXT, contextData("")), REP.ERR_INVALID],
  ];
  for (const [what, words, type] of errors) {
    assert.deepEqual(await typesFor(PLAIN, words), [type], what);
    assert.deepEqual(await typesFor(PLAIN, words, words), [type, type], what);
  }
});

test("an error has a message that is fit for a string of the protocol", async () => {
  const { heard } = await meet(
    PLAIN,
    Buffer.concat([FLAGS, STRUCTURED, option(OPT.LIST_META_CONTEXT, contextData("", ["ä".repeat(2048)]))]),
  );
  const { type, data } = repliesIn(heard)[1]!;
  assert.equal(type, REP.ERR_INVALID);
  assert.match(data.toString(), /^a query has no namespace: ä/);
  assert.ok(data.length <= 4096);
});

test("LIST_META_CONTEXT: all, a namespace, a name; what is unknown is passed over", async () => {
  const listing = async (...queries: string[]): Promise<string[]> => {
    const words = option(OPT.LIST_META_CONTEXT, contextData("disk.raw", queries));
    const { heard } = await meet(PLAIN, Buffer.concat([FLAGS, STRUCTURED, words]));
    const replies = repliesIn(heard).slice(1);
    assert.equal(replies.pop()?.type, REP.ACK);
    assert.ok(replies.every(({ type, data }) => type === REP.META_CONTEXT && data.readUInt32BE() === 0));
    return replies.map(({ data }) => data.toString("utf8", 4));
  };
  const names = disk.contexts.map(({ name }) => name);
  assert.deepEqual(await listing(), names);
  assert.equal(
    (await typesFor(PLAIN, option(OPT.LIST_META_CONTEXT, contextData("")))).length,
    names.length + 1,
  );
  assert.deepEqual(await listing("base:"), ["base:allocation"]);
  assert.deepEqual(await listing("ullage:", "qemu:", "base:allocation", "base:"), names);
  assert.deepEqual(await listing("qemu:allocation-depth"), ["qemu:allocation-depth"]);
  assert.deepEqual(await listing("base:alloc", "x-other:", "qemu:dirty-bitmap:a"), []);
});

test("contexts: malformed requests", async () => {
  for (const code of [OPT.LIST_META_CONTEXT, OPT.SET_META_CONTEXT]) {
    for (const [data, type] of [
      [[contextData("other")], REP.ERR_UNKNOWN],
      [[text("")], REP.ERR_INVALID],
      [[text(""), u32(1)], REP.ERR_INVALID],
      [[text(""), u32(0x4000_0000)], REP.ERR_INVALID],
      [[text(""), u32(1), u32(9), Buffer.from("base:")], REP.ERR_INVALID],
      [[contextData("", ["base:"]), Buffer.of(0)], REP.ERR_INVALID],
      [[contextData("", ["base"])], REP.ERR_INVALID],
      [[contextData("", [""])], REP.ERR_INVALID],
      [[contextData("", [":allocation"])], REP.ERR_INVALID],
      [[contextData("", ["base:\0"])], REP.ERR_INVALID],
      [[contextData("", [`base:${"x".repeat(4092)}`])], REP.ERR_TOO_BIG],
      [
        [
          contextData(
            "",
            Array.from({ length: 1025 }, () => "base:"),
          ),
        ],
        REP.ERR_TOO_BIG,
      ],
      [
        [
          contextData(
            "",
            Array.from({ length: 20_000 }, () => "base:"),
          ),
        ],
        REP.ERR_TOO_BIG,
      ],
    ] as const) {
      assert.deepEqual(await typesFor(PLAIN, STRUCTURED, option(code, ...data)), [REP.ACK, type]);
    }
  }
});

/** The names of the contexts after `options` and a GO for `name`. */
async function chosen(name: string, ...options: readonly Uint8Array[]): Promise<string[]> {
  const go = option(OPT.GO, infoData(name, [3]));
  const { session } = await meet(PLAIN, Buffer.concat([FLAGS, STRUCTURED, ...options, go]));
  const ids = session!.contexts.map(({ id }) => id);
  assert.equal(new Set(ids).size, ids.length);
  return session!.contexts.map(({ context: { name: called } }) => called);
}

test("SET_META_CONTEXT: the last one counts, for the export that it named", async () => {
  const set = (name: string, ...queries: string[]): Buffer =>
    option(OPT.SET_META_CONTEXT, contextData(name, queries));
  const both = set("disk.raw", "qemu:allocation-depth", "base:allocation", "base:allocation", "x-a:b");
  assert.deepEqual(await chosen("disk.raw", both), ["base:allocation", "qemu:allocation-depth"]);
  assert.deepEqual(await chosen("disk.raw", both, set("disk.raw", "ullage:usage")), ["ullage:usage"]);
  assert.deepEqual(await chosen("disk.raw", both, set("disk.raw")), []);
  assert.deepEqual(await chosen("disk.raw", both, set("disk.raw", "base:")), []);
  assert.deepEqual(await chosen("disk.raw", both, set("disk.raw", "nothing")), [], "it failed");
  const long = option(OPT.SET_META_CONTEXT, Buffer.alloc(70_000));
  assert.deepEqual(await chosen("disk.raw", both, long), [], "it was too long");
  assert.deepEqual(await chosen("coarse", both), []);
  assert.deepEqual(await chosen("coarse", both, set("coarse", "base:allocation")), ["base:allocation"]);
  const other = option(OPT.INFO, infoData("coarse", [3]));
  assert.deepEqual(await chosen("disk.raw", set("disk.raw", "base:allocation"), other), ["base:allocation"]);
});

test("SET_META_CONTEXT tells the ids that the session has; EXPORT_NAME keeps them", async () => {
  const words = Buffer.concat([
    FLAGS,
    STRUCTURED,
    option(OPT.SET_META_CONTEXT, contextData("disk.raw", ["ullage:usage", "base:allocation"])),
    option(OPT.EXPORT_NAME, Buffer.from("disk.raw")),
  ]);
  const { session, heard } = await meet(PLAIN, words);
  const replies = repliesIn(heard.subarray(0, -10)).filter(({ type }) => type === REP.META_CONTEXT);
  assert.deepEqual(
    replies.map(({ data }) => [data.readUInt32BE(), data.toString("utf8", 4)]),
    session!.contexts.map(({ id, context: { name } }) => [id, name]),
  );
  assert.equal(replies.length, 2);
});

test("64-bit headers where they are allowed: structured replies come with them", async () => {
  const words = [option(OPT.EXTENDED_HEADERS, Buffer.of(1)), option(OPT.EXTENDED_HEADERS)];
  const set = option(OPT.SET_META_CONTEXT, contextData("", ["base:allocation"]));
  const go = option(OPT.GO, infoData(""));
  const { session, heard } = await meet(ALLOW, Buffer.concat([FLAGS, ...words, set, go]));
  assert.deepEqual([session!.structured, session!.extended, session!.contexts.length], [true, true, 1]);
  assert.deepEqual(
    repliesIn(heard)
      .slice(0, 2)
      .map(({ type }) => type),
    [REP.ERR_INVALID, REP.ACK],
  );
});

test("where TLS is required nothing is said before it", async () => {
  const words = Object.values(OPT)
    .filter((code) => code !== OPT.EXPORT_NAME && code !== OPT.ABORT && code !== OPT.STARTTLS)
    .map((code) => option(code, infoData("disk.raw")));
  const unknown = option(99, Buffer.alloc(70_000));
  const types = await typesFor(REQUIRE, ...words, unknown);
  assert.deepEqual(
    types,
    types.map(() => REP.ERR_TLS_REQD),
  );
  assert.equal(types.length, words.length + 1);
  assert.deepEqual(await typesFor(REQUIRE), [], "ABORT");
});

test("TLS: what was said before is forgotten", async () => {
  const set = option(OPT.SET_META_CONTEXT, contextData("", ["base:allocation"]));
  const clear = Buffer.concat([FLAGS, STRUCTURED, option(OPT.EXTENDED_HEADERS), set, option(OPT.STARTTLS)]);
  const go = option(OPT.GO, infoData(""));
  const { session } = await meet(ALLOW, clear, go);
  assert.deepEqual([session!.structured, session!.extended, session!.contexts], [false, false, []]);
  const again = Buffer.concat([STRUCTURED, set, go]);
  assert.equal((await meet(ALLOW, clear, again)).session!.contexts.length, 1);
});

test("TLS: required, started, not twice", async () => {
  const clear = Buffer.concat([FLAGS, option(OPT.LIST), option(OPT.STARTTLS)]);
  const secret = Buffer.concat([
    option(OPT.LIST),
    option(OPT.STARTTLS),
    option(OPT.EXPORT_NAME, Buffer.from("disk.raw")),
  ]);
  const { session, heard } = await meet(REQUIRE, clear, secret);
  assert.equal(session?.export, disk);
  assert.deepEqual(
    repliesIn(heard.subarray(0, -10)).map(({ type }) => type),
    [REP.ERR_TLS_REQD, REP.ACK, REP.SERVER, REP.SERVER, REP.ACK, REP.ERR_INVALID],
  );
});

test("TLS: words in the clear behind STARTTLS end the connection", async () => {
  const clear = Buffer.concat([FLAGS, option(OPT.STARTTLS), option(OPT.LIST)]);
  const { heard } = await breach(ALLOW, clear, option(OPT.GO, infoData("")));
  assert.equal(repliesIn(heard).length, 1);
});

test("TLS: a channel without it says so", async () => {
  class Plain extends ScriptedChannel {}
  Object.defineProperty(Plain.prototype, "startTls", { value: undefined });
  const channel = new Plain(Buffer.concat([FLAGS, option(OPT.STARTTLS), ABORT]));
  await handshake(channel, all, ALLOW);
  assert.equal(repliesIn(channel.heard.subarray(GREETING.length))[0]!.type, REP.ERR_UNSUP);
});

test("client flags that are unknown, and options of a client that knows none, end the connection", async () => {
  for (const flags of [4, 0x8000_0003, 0xffff_fffc]) await breach(PLAIN, Buffer.concat([u32(flags), ABORT]));
  for (const flags of [0, 2]) await breach(ALLOW, Buffer.concat([u32(flags), option(OPT.STARTTLS)]));
});

test("limits: options, bytes, a wrong magic, an early end", async () => {
  const many = Buffer.concat(Array.from({ length: 10_000 }, () => STRUCTURED));
  const { heard } = await breach(PLAIN, Buffer.concat([FLAGS, many, ABORT]));
  assert.equal(repliesIn(heard).length, 10_000);
  const claim = option(77);
  claim.writeUInt32BE(0xffff_ffff, 12);
  assert.equal((await breach(PLAIN, Buffer.concat([FLAGS, claim]))).heard.length, 0);
  const long = option(77, Buffer.alloc(20 * 1024 * 1024));
  const { channel } = await breach(PLAIN, Buffer.concat([FLAGS, long, long, long, long]));
  assert.ok(channel.longestRead <= 65_536, `${channel.longestRead}`);
  const wrong = option(OPT.LIST);
  wrong[0] = 0;
  await breach(PLAIN, Buffer.concat([FLAGS, wrong]));
  for (const words of [FLAGS.subarray(1), FLAGS, Buffer.concat([FLAGS, ABORT.subarray(0, 15)])]) {
    assert.ok((await meet(PLAIN, words)).failure instanceof ChannelClosed);
  }
});
