/**
 * The server's side of the handshake: fixed newstyle, from the greeting to an export or to a good-bye.
 *
 *   greeting ── flags ──┬─ option ── replies ─┐
 *                       └──────── again ──────┴── GO, EXPORT_NAME → Session │ ABORT → undefined
 *
 * Invariants (H31):
 * (1) Where TLS is required nothing about exports is said, and none is chosen, before it runs.
 * (2) STARTTLS forgets everything that was agreed on in the clear; only the client's flags stay.
 * (3) Contexts belong to the export that they were selected for, by the name it was called.
 * (4) What a client may say has limits: options, bytes, the length of each. The time is the caller's to limit.
 *
 * A client that breaks the protocol where no error can be told is `ProtocolBreach`: the caller closes the connection.
 */
import type { Channel } from "./channel.ts";
import { ChannelClosed } from "./channel.ts";
import type { Export, Exports, Session } from "./export.ts";
import {
  addInformation,
  addServers,
  exportNameAnswer,
  needsBlockSizes,
  readInfoRequest,
} from "./handshake/info.ts";
import { listed, readContextRequest, selected } from "./handshake/meta-contexts.ts";
import { decodeText, OptionRefused, Payload } from "./handshake/payload.ts";
import { encodeText, number32, Replies } from "./handshake/replies.ts";
import {
  ClientFlags,
  HANDSHAKE_FLAG,
  OPT,
  OPTION_MAGIC,
  OptionHeader,
  ProtocolBreach,
  REP,
  SERVER_MAGIC,
  ServerGreeting,
} from "./protocol.ts";

export interface HandshakePolicy {
  /** `off`: there is none; `allow`: as the client likes; `require`: nothing goes without. */
  readonly tls: "off" | "allow" | "require";
  /** 64-bit headers may be agreed on. */
  readonly allowExtended: boolean;
}

const OPTIONS_MAX = 10_000;
/** The longest data of an option that are looked at. */
const OPTION_BYTES_MAX = 64 * 1024;
/** What a client may say in one handshake, with everything that is skipped. */
const INPUT_BYTES_MAX = 64 * 1024 * 1024;
const SKIP_BYTES = 64 * 1024;

/** Options whose data matter. */
const KNOWN: ReadonlySet<number> = new Set(Object.values(OPT));

const FLAGS = HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES;

/**
 * @returns what was agreed on, or undefined where the client left in good order
 * @throws ProtocolBreach, ChannelClosed: the connection is to be closed
 */
export async function handshake(
  channel: Channel,
  exports: Exports,
  policy: HandshakePolicy,
): Promise<Session | undefined> {
  const greeting = new Uint8Array(ServerGreeting.bytes);
  ServerGreeting.encode({ magic: SERVER_MAGIC, optionMagic: OPTION_MAGIC, flags: FLAGS }, greeting);
  await channel.write(greeting);
  const { flags } = ClientFlags.decode(await channel.read(ClientFlags.bytes));
  if ((flags & ~FLAGS) !== 0) throw new ProtocolBreach(`unknown client flags 0x${flags.toString(16)}`);
  return new Negotiation(channel, exports, policy, flags).run();
}

/** What was agreed on so far. */
interface Agreed {
  readonly structured: boolean;
  readonly extended: boolean;
  readonly contexts: { readonly exportName: string; readonly selected: Session["contexts"] } | undefined;
}

const NOTHING: Agreed = { structured: false, extended: false, contexts: undefined };

/** What an option leads to, besides its replies: nothing, TLS, the end. */
type Outcome = Session | "tls" | "leave" | undefined;

class Negotiation {
  private readonly channel: Channel;
  private readonly exports: Exports;
  private readonly policy: HandshakePolicy;
  private readonly clientFlags: number;
  private agreed = NOTHING;
  private isTls = false;
  private inputLeft = INPUT_BYTES_MAX;

  constructor(channel: Channel, exports: Exports, policy: HandshakePolicy, clientFlags: number) {
    this.channel = channel;
    this.exports = exports;
    this.policy = policy;
    this.clientFlags = clientFlags;
  }

  async run(): Promise<Session | undefined> {
    for (let options = 0; options < OPTIONS_MAX; options++) {
      const header = OptionHeader.decode(await this.channel.read(OptionHeader.bytes));
      if (header.magic !== OPTION_MAGIC) throw new ProtocolBreach("an option does not begin with IHAVEOPT");
      this.spend(OptionHeader.bytes + header.bytes);
      const data = await this.data(header.bytes);
      if (header.option === OPT.EXPORT_NAME) return this.exportName(data);
      if ((this.clientFlags & HANDSHAKE_FLAG.FIXED_NEWSTYLE) === 0) {
        throw new ProtocolBreach(`option ${header.option} from a client that knows EXPORT_NAME alone`);
      }
      const outcome = await this.answer(header.option, data);
      if (outcome === "leave") return undefined;
      if (outcome === "tls") await this.secure();
      else if (outcome !== undefined) return outcome;
    }
    throw new ProtocolBreach(`more than ${OPTIONS_MAX} options`);
  }

  /** (4) */
  private spend(bytes: number): void {
    if (bytes > this.inputLeft) throw new ProtocolBreach(`more than ${INPUT_BYTES_MAX} bytes of options`);
    this.inputLeft -= bytes;
  }

  /** The data of an option; undefined where they are too long to be looked at. */
  private async data(bytes: number): Promise<Uint8Array | undefined> {
    if (bytes <= OPTION_BYTES_MAX) return bytes === 0 ? new Uint8Array() : this.channel.read(bytes);
    for (let left = bytes; left > 0; left -= SKIP_BYTES) await this.channel.read(Math.min(left, SKIP_BYTES));
    return undefined;
  }

  /** The replies are sent before anything follows from them. */
  private async answer(option: number, data: Uint8Array | undefined): Promise<Outcome> {
    const replies = new Replies(option);
    let outcome: Outcome;
    try {
      outcome = this.carryOut(option, data, replies);
      replies.add(REP.ACK);
    } catch (error) {
      if (!(error instanceof OptionRefused)) throw error;
      replies.add(error.type, encodeText(error.message));
    }
    try {
      await this.channel.write(replies.whole());
    } catch (error) {
      // Who leaves need not wait for the reply.
      if (!(outcome === "leave" && error instanceof ChannelClosed)) throw error;
    }
    return outcome;
  }

  /** @throws OptionRefused what the final reply says instead of ACK */
  private carryOut(option: number, data: Uint8Array | undefined, replies: Replies): Outcome {
    if (option === OPT.ABORT) return "leave";
    if (this.policy.tls === "require" && !this.isTls && option !== OPT.STARTTLS) {
      throw new OptionRefused(REP.ERR_TLS_REQD, "this server speaks through TLS only"); // (1)
    }
    // Also when it fails.
    if (option === OPT.SET_META_CONTEXT) this.agreed = { ...this.agreed, contexts: undefined };
    if (data === undefined && KNOWN.has(option)) {
      throw new OptionRefused(REP.ERR_TOO_BIG, `more than ${OPTION_BYTES_MAX} bytes of data`);
    }
    const payload = new Payload(data ?? new Uint8Array());
    switch (option) {
      case OPT.LIST:
        payload.end();
        addServers(replies, this.exports.list());
        return undefined;
      case OPT.STARTTLS:
        payload.end();
        this.requireTls();
        return "tls";
      case OPT.INFO:
        this.inform(payload, replies);
        return undefined;
      case OPT.GO:
        return this.inform(payload, replies);
      case OPT.STRUCTURED_REPLY:
        payload.end();
        this.agreed = { ...this.agreed, structured: true };
        return undefined;
      case OPT.EXTENDED_HEADERS:
        if (!this.policy.allowExtended)
          throw new OptionRefused(REP.ERR_UNSUP, "this server has no 64-bit headers");
        payload.end();
        this.agreed = { ...this.agreed, structured: true, extended: true };
        return undefined;
      case OPT.LIST_META_CONTEXT:
        this.listContexts(payload, replies);
        return undefined;
      case OPT.SET_META_CONTEXT:
        this.selectContexts(payload, replies);
        return undefined;
      default:
        throw new OptionRefused(REP.ERR_UNSUP, `option ${option} is not supported`);
    }
  }

  private requireTls(): void {
    if (this.isTls) throw new OptionRefused(REP.ERR_INVALID, "TLS is running already");
    if (this.policy.tls === "off" || this.channel.startTls === undefined) {
      throw new OptionRefused(REP.ERR_UNSUP, "this server has no TLS");
    }
  }

  /** @returns the session that GO would begin */
  private inform(payload: Payload, replies: Replies): Session {
    const request = readInfoRequest(payload);
    const offered = this.find(request.name);
    addInformation(replies, offered, request, this.agreed.structured);
    return this.session(request.name, offered);
  }

  private listContexts(payload: Payload, replies: Replies): void {
    const { name, queries } = readContextRequest(payload);
    for (const context of listed(this.find(name).contexts, queries)) {
      replies.add(REP.META_CONTEXT, number32(0), encodeText(context.name));
    }
  }

  private selectContexts(payload: Payload, replies: Replies): void {
    if (!this.agreed.structured) {
      throw new OptionRefused(REP.ERR_INVALID, "block status needs structured replies: ask for them first");
    }
    const { name, queries } = readContextRequest(payload);
    const chosen = selected(this.find(name).contexts, queries).map((context, i) => ({ id: i + 1, context }));
    for (const { id, context } of chosen) {
      replies.add(REP.META_CONTEXT, number32(id), encodeText(context.name));
    }
    this.agreed = { ...this.agreed, contexts: { exportName: name, selected: chosen } };
  }

  private find(name: string): Export {
    const found = this.exports.find(name);
    if (found === undefined) throw new OptionRefused(REP.ERR_UNKNOWN, "there is no export of that name");
    return found;
  }

  private session(name: string, offered: Export): Session {
    const { structured, extended, contexts } = this.agreed;
    const isSame = contexts?.exportName === name; // (3)
    return { export: offered, structured, extended, contexts: isSame ? contexts.selected : [] };
  }

  private async secure(): Promise<void> {
    await this.channel.startTls!();
    this.isTls = true;
    this.agreed = NOTHING; // (2)
  }

  /** The oldest way to choose, which cannot be answered with an error. */
  private async exportName(data: Uint8Array | undefined): Promise<Session> {
    if (this.policy.tls === "require" && !this.isTls) throw new ProtocolBreach("EXPORT_NAME before TLS"); // (1)
    if (this.agreed.extended) throw new ProtocolBreach("EXPORT_NAME after EXTENDED_HEADERS");
    if (data === undefined) throw new ProtocolBreach("EXPORT_NAME with a name that is too long");
    let session: Session;
    try {
      const name = decodeText(data, "the export's name");
      session = this.session(name, this.find(name));
    } catch (error) {
      if (error instanceof OptionRefused) throw new ProtocolBreach(`EXPORT_NAME: ${error.message}`);
      throw error;
    }
    if (needsBlockSizes(session.export))
      throw new ProtocolBreach("EXPORT_NAME where block sizes have to be known");
    const isPadded = (this.clientFlags & HANDSHAKE_FLAG.NO_ZEROES) === 0;
    await this.channel.write(exportNameAnswer(session.export, session.structured, isPadded));
    return session;
  }
}
