/**
 * Fuzzing of the NBD handshake (H31): whatever a client says ends in a session, in a good-bye or in a closed connection,
 * with replies that can be read and are not many more than what was said. Where TLS is required nothing is told in the
 * clear.
 *
 * A sample is all that a client says; what follows STARTTLS in it is taken for what comes through TLS.
 */
import { ChannelClosed } from "../../src/nbd/channel.ts";
import type { Export, Exports, MetaContext, Session } from "../../src/nbd/export.ts";
import { handshake, type HandshakePolicy } from "../../src/nbd/handshake.ts";
import {
  INFO,
  OPT,
  OPTION_MAGIC,
  OptionHeader,
  ProtocolBreach,
  REP,
  ServerGreeting,
} from "../../src/nbd/protocol.ts";
import { assert } from "../../src/error.ts";
import { type FuzzTarget, type Sample, type Spot, spotOf } from "../../src/testing/fuzz.ts";
import {
  contextData,
  infoData,
  option,
  repliesIn,
  ScriptedChannel,
  u32,
} from "../../src/testing/nbd-script.ts";
import { SimulatedFile } from "../../src/testing/simulated-file.ts";

const context = (name: string): MetaContext => ({
  name,
  status: ({ start, end }) => Promise.resolve([{ bytes: end - start, flags: 0 }]),
});

const secretDisk: Export = {
  name: "secret-disk",
  description: "secret",
  device: new SimulatedFile(1024 * 1024),
  isReadOnly: false,
  blocks: { minimum: 1, preferred: 4096, maximum: 0x0200_0000 },
  canMultiConn: true,
  contexts: ["base:allocation", "qemu:allocation-depth", "ullage:usage"].map(context),
};
const coarse: Export = {
  ...secretDisk,
  name: "secret-coarse",
  blocks: { ...secretDisk.blocks, minimum: 512 },
};

const EXPORTS: Exports = {
  list: () => [secretDisk, coarse],
  find: (name) => (name === "" ? secretDisk : [secretDisk, coarse].find((each) => each.name === name)),
};

const POLICIES: readonly HandshakePolicy[] = [
  { tls: "off", allowExtended: false },
  { tls: "allow", allowExtended: true },
  { tls: "require", allowExtended: true },
];

class OneStream extends ScriptedChannel {
  heardInClear: number | undefined;

  override startTls(): Promise<void> {
    assert(this.heardInClear === undefined, "TLS starts once");
    this.heardInClear = this.heardBytes;
    return Promise.resolve();
  }
}

const EXPORT_NAME_ANSWERS = [10, 134];
const REPLY_BYTES_MAX = 2048;

export const nbdHandshake: FuzzTarget = {
  name: "nbd-handshake",
  needs: [],
  samples: () => Promise.resolve(samples()),

  async run(bytes, random) {
    const policy = random.pick(POLICIES);
    const channel = new OneStream(bytes);
    let session: Session | undefined;
    let end = "left";
    try {
      session = await handshake(channel, EXPORTS, policy);
      if (session) end = "session";
    } catch (error) {
      if (!(error instanceof ProtocolBreach || error instanceof ChannelClosed)) throw error;
      end = error.name;
    }
    const optionsMax = bytes.length / OptionHeader.bytes + 1;
    assert(channel.heardBytes <= REPLY_BYTES_MAX * optionsMax, `${channel.heardBytes} bytes of replies`);
    assert(channel.longestRead <= 64 * 1024, `${channel.longestRead} bytes read at once`);
    const clear = channel.heard.subarray(0, channel.heardInClear);
    if (policy.tls === "require") assert(!clear.includes("secret"), "told in the clear");
    requireReadable(channel.heard.subarray(ServerGreeting.bytes), end);
    if (session) requireSound(session, policy, channel.heardInClear !== undefined);
    return `${policy.tls} ${end}`;
  },
};

/** Nothing but replies, and at their end what answers EXPORT_NAME. */
function requireReadable(heard: Buffer, end: string): void {
  const tails = end === "session" ? [0, ...EXPORT_NAME_ANSWERS] : [0];
  const isReadable = tails.some((tail) => {
    try {
      const replies = repliesIn(heard.subarray(0, heard.length - tail));
      return replies.every(({ type, data }) => type >= REP.ACK && data.length <= 4096 + 4);
    } catch {
      return false;
    }
  });
  assert(isReadable, "replies that cannot be read");
}

function requireSound(session: Session, policy: HandshakePolicy, isTls: boolean): void {
  const { structured, extended, contexts } = session;
  assert(policy.tls !== "require" || isTls, "a session without TLS");
  assert(!extended || (policy.allowExtended && structured), "64-bit headers that nobody allowed");
  assert(contexts.length === 0 || structured, "contexts without structured replies");
  assert(new Set(contexts.map(({ id }) => id)).size === contexts.length, "each context has an id of its own");
  assert(
    contexts.every((each) => session.export.contexts.includes(each.context)),
    "contexts of another export",
  );
}

function samples(): Sample[] {
  const name = "secret-disk";
  const all = [INFO.NAME, INFO.DESCRIPTION, INFO.BLOCK_SIZE];
  const structured = option(OPT.STRUCTURED_REPLY);
  const queries = ["base:allocation", "qemu:allocation-depth", "x-other:"];
  const set = option(OPT.SET_META_CONTEXT, contextData(name, queries));
  const go = option(OPT.GO, infoData(name, all));
  return [
    sample("go", structured, option(OPT.LIST_META_CONTEXT, contextData("", ["base:"])), set, go),
    sample("list", option(OPT.LIST), option(OPT.INFO, infoData("secret-coarse", all)), option(OPT.ABORT)),
    sample("export name", structured, set, option(OPT.EXPORT_NAME, Buffer.from(name))),
    sample("tls", option(OPT.LIST), structured, set, option(OPT.STARTTLS), structured, set, go),
    sample("extended", option(OPT.STARTTLS), option(OPT.EXTENDED_HEADERS), set, go),
    sample("long", option(77, Buffer.alloc(70_000)), option(OPT.LIST), go),
  ];
}

function sample(name: string, ...options: readonly Buffer[]): Sample {
  const bytes = new Uint8Array(Buffer.concat([u32(3), ...options]));
  const spots: Spot[] = [{ at: 0, bytes: 4 }];
  const headers: number[] = [];
  let at = 4;
  for (const { length } of options) {
    headers.push(at);
    spots.push(spotOf(OptionHeader, at));
    const dataBytes = Math.min(length - OptionHeader.bytes, 256);
    if (dataBytes > 0) spots.push({ at: at + OptionHeader.bytes, bytes: dataBytes });
    at += length;
  }
  return {
    name,
    bytes,
    spots,
    fix(mutant) {
      for (const each of headers) {
        if (each + OptionHeader.bytes <= mutant.length)
          OptionHeader.encode({ magic: OPTION_MAGIC }, mutant, each);
      }
    },
  };
}
