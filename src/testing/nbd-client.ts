/**
 * Our own NBD client: every option, command and flag, any number of requests in flight, raw bytes where a test wants to
 * break the rules, and no mercy with the server: what its replies must not be is `Breach`.
 *
 *   const client = await NbdClient.open({ path }, { contexts: ["base:allocation"] });
 *   const { data } = await client.send({ command: CMD.READ, offset: 0, bytes: 4096 });
 *   await client.close();                                                 // DISC, and nothing may follow
 *
 * Step by step: `connect`, `greet`, `option`, `startTls`, then `go` or `exportName`.
 */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { connect as connectTls, type ConnectionOptions } from "node:tls";
import {
  Chunk,
  CMD,
  ExtendedChunk,
  EXTENDED_REPLY_MAGIC,
  EXTENDED_REQUEST_MAGIC,
  ExtendedRequest,
  HANDSHAKE_FLAG,
  INFO,
  OPT,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  OptionReply,
  REP,
  Request,
  REQUEST_MAGIC,
  SERVER_MAGIC,
  ServerGreeting,
  SIMPLE_REPLY_MAGIC,
  SimpleReply,
  STRUCTURED_REPLY_MAGIC,
  TRAILING_ZEROES,
} from "../nbd/protocol.ts";
import { type Answer, Breach, demand, PendingReply, type SentRequest } from "./nbd-replies.ts";
import { contextData, type HeardReply, infoData, option, u32 } from "./nbd-script.ts";

export type NbdAddress = { readonly path: string } | { readonly host: string; readonly port: number };

export interface OpenOptions {
  readonly exportName?: string;
  /** Default true. */
  readonly structured?: boolean;
  readonly extended?: boolean;
  /** Contexts to choose. */
  readonly contexts?: readonly string[];
  readonly tls?: ConnectionOptions;
  /** Choose by EXPORT_NAME instead of GO. */
  readonly oldStyle?: boolean;
  readonly noZeroes?: boolean;
}

export interface ClientRequest extends Partial<SentRequest> {
  readonly command: number;
  /** Of WRITE; gives `bytes`. */
  readonly data?: Uint8Array;
}

/** The longest chunk that a server may send us. */
const CHUNK_BYTES_MAX = 64 * 1024 * 1024 + 1024;

const REPLY_ERROR = 0x8000_0000;

export class NbdClient {
  #socket: Socket;
  #chunks: Buffer[] = [];
  #bytesAtHand = 0;
  #wanted = 0;
  #wake: (() => void) | undefined;
  #isEnded = false;
  #clientFlags = 0;
  readonly #pending = new Map<bigint, { reply: PendingReply; done: PromiseWithResolvers<Answer> }>();
  #cookies = 1n;
  #isClosing = false;
  #listening: Promise<void> | undefined;
  /** Why the connection can no longer be used. */
  failure: Error | undefined;
  structured = false;
  extended = false;
  /** Names of the chosen contexts by their ids. */
  contexts = new Map<number, string>();
  /** Length of the export. */
  bytes = 0;
  /** Transmission flags. */
  flags = 0;
  /** Minimum, preferred, maximum, where they were told. */
  blocks: readonly number[] | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    this.#attend(socket);
  }

  static async connect(address: NbdAddress): Promise<NbdClient> {
    const socket = connect({ ...address, noDelay: true });
    await once(socket, "connect");
    return new NbdClient(socket);
  }

  /** The whole handshake. @throws Breach, Error where the server declines something */
  static async open(address: NbdAddress, options: OpenOptions = {}): Promise<NbdClient> {
    const {
      exportName = "",
      structured = true,
      extended = false,
      contexts = [],
      tls,
      oldStyle,
      noZeroes,
    } = options;
    const client = await NbdClient.connect(address);
    await client.greet(HANDSHAKE_FLAG.FIXED_NEWSTYLE | (noZeroes === false ? 0 : HANDSHAKE_FLAG.NO_ZEROES));
    if (tls) await client.startTls(tls);
    if (structured) granted(await client.option(OPT.STRUCTURED_REPLY));
    if (extended) granted(await client.option(OPT.EXTENDED_HEADERS));
    if (contexts.length > 0)
      granted(await client.option(OPT.SET_META_CONTEXT, contextData(exportName, contexts)));
    if (oldStyle === true) await client.exportName(exportName);
    else granted(await client.go(exportName));
    return client;
  }

  /** Takes the greeting and says our flags. */
  async greet(clientFlags: number = HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES): Promise<void> {
    const { magic, optionMagic, flags } = ServerGreeting.decode(await this.take(ServerGreeting.bytes));
    demand(magic === SERVER_MAGIC && optionMagic === OPTION_MAGIC, "no greeting of NBD");
    demand(flags === (HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES), `handshake flags ${flags}`);
    this.#clientFlags = clientFlags;
    this.raw(u32(clientFlags));
  }

  /** Says an option and takes all its replies; the last one is an ACK or an error. */
  async option(code: number, ...data: readonly Uint8Array[]): Promise<HeardReply[]> {
    this.raw(option(code, ...data));
    const replies: HeardReply[] = [];
    for (;;) {
      const reply = await this.#reply(code);
      replies.push(reply);
      if (reply.type === REP.ACK || reply.type >= REPLY_ERROR) break;
    }
    if (replies.at(-1)!.type === REP.ACK) this.#agree(code, replies);
    return replies;
  }

  async #reply(code: number): Promise<HeardReply> {
    const header = OptionReply.decode(await this.take(OptionReply.bytes));
    demand(header.magic === OPTION_REPLY_MAGIC, "no reply to an option");
    demand(header.option === code, `a reply to option ${header.option} instead of ${code}`);
    demand(header.bytes <= 65_536, `a reply of ${header.bytes} bytes`);
    return { option: code, type: header.type, data: await this.take(header.bytes) };
  }

  #agree(code: number, replies: readonly HeardReply[]): void {
    if (code === OPT.STRUCTURED_REPLY) this.structured = true;
    if (code === OPT.EXTENDED_HEADERS) this.structured = this.extended = true;
    if (code !== OPT.SET_META_CONTEXT) return;
    const named = replies.filter(({ type }) => type === REP.META_CONTEXT);
    this.contexts = new Map(named.map(({ data }) => [data.readUInt32BE(), data.toString("utf8", 4)]));
    demand(this.contexts.size === named.length, "two contexts of one id");
  }

  /** @param injected what is said in the clear behind STARTTLS, as an attacker on the way would */
  async startTls(options: ConnectionOptions, injected: Uint8Array = new Uint8Array()): Promise<void> {
    this.raw(option(OPT.STARTTLS), injected);
    granted([await this.#reply(OPT.STARTTLS)]);
    demand(this.#bytesAtHand === 0, "words in the clear behind STARTTLS");
    const plain = this.#socket;
    plain.removeAllListeners();
    const secret = connectTls({ ...options, socket: plain });
    await once(secret, "secureConnect");
    this.#socket = secret;
    this.#attend(secret);
    this.structured = this.extended = false;
    this.contexts.clear();
  }

  /** INFO's replies are kept as they are. */
  info(name: string, kinds: readonly number[] = []): Promise<HeardReply[]> {
    return this.option(OPT.INFO, infoData(name, kinds));
  }

  /** GO; where it is granted the transmission begins. */
  async go(name: string, kinds: readonly number[] = [INFO.BLOCK_SIZE]): Promise<HeardReply[]> {
    const replies = await this.option(OPT.GO, infoData(name, kinds));
    if (replies.at(-1)!.type !== REP.ACK) return replies;
    const infos = new Map(
      replies.filter(({ type }) => type === REP.INFO).map(({ data }) => [data.readUInt16BE(), data]),
    );
    const told = infos.get(INFO.EXPORT);
    demand(told?.length === 12, "GO without the export's length");
    const blocks = infos.get(INFO.BLOCK_SIZE);
    if (blocks) this.blocks = [2, 6, 10].map((at) => blocks.readUInt32BE(at));
    this.#begin(told.subarray(2));
    return replies;
  }

  /** EXPORT_NAME: the transmission begins, or the server closes. */
  async exportName(name: string): Promise<void> {
    this.raw(option(OPT.EXPORT_NAME, Buffer.from(name)));
    const told = await this.take(10);
    if ((this.#clientFlags & HANDSHAKE_FLAG.NO_ZEROES) === 0) {
      demand(
        (await this.take(TRAILING_ZEROES)).every((byte) => byte === 0),
        "zeroes that are none",
      );
    }
    this.#begin(told);
  }

  #begin(told: Buffer): void {
    this.bytes = Number(told.readBigUInt64BE());
    this.flags = told.readUInt16BE(8);
    demand((this.flags & 1) === 1, "no HAS_FLAGS");
    this.#listening = this.#listen();
  }

  /** Sends a request; resolves to its answer. @throws Breach, now or when it is answered */
  send({ command, flags = 0, offset = 0, data, bytes = data?.length ?? 0 }: ClientRequest): Promise<Answer> {
    if (this.failure) return Promise.reject(this.failure);
    const cookie = this.#cookies++;
    const request = { command, flags, offset, bytes };
    const done = Promise.withResolvers<Answer>();
    this.#pending.set(cookie, { reply: new PendingReply(request, this), done });
    this.raw(this.encode(request, cookie), ...(data ? [data] : []));
    return done.promise;
  }

  /** The header of a request as it goes over the wire. */
  encode({ command, flags, offset, bytes }: SentRequest, cookie: bigint): Buffer {
    const layout = this.extended ? ExtendedRequest : Request;
    const header = Buffer.alloc(layout.bytes);
    const common = { flags, command, cookie, offset: BigInt.asUintN(64, BigInt(offset)) };
    if (this.extended) {
      ExtendedRequest.encode({ ...common, magic: EXTENDED_REQUEST_MAGIC, bytes: BigInt(bytes) }, header);
    } else Request.encode({ ...common, magic: REQUEST_MAGIC, bytes }, header);
    return header;
  }

  /** What the server shall hear, whatever that is. */
  raw(...parts: readonly Uint8Array[]): void {
    this.#socket.cork();
    for (const part of parts) this.#socket.write(part);
    this.#socket.uncork();
  }

  get pending(): number {
    return this.#pending.size;
  }

  /** Stops, or goes on, listening to the server. */
  pause(isPaused: boolean): void {
    if (isPaused) this.#socket.pause();
    else this.#socket.resume();
  }

  /** DISC: everything that is pending is answered, then the server closes and says no more. */
  async close(): Promise<void> {
    if (this.failure) throw this.failure;
    this.#isClosing = true;
    this.raw(this.encode({ command: CMD.DISC, flags: 0, offset: 0, bytes: 0 }, this.#cookies++));
    await this.ended();
    if (this.failure) throw this.failure;
  }

  /** Returns when the server has closed. */
  async ended(): Promise<void> {
    if (!this.#socket.closed)
      await new Promise<void>((resolve) => this.#socket.once("close", () => resolve()));
    await this.#listening;
  }

  destroy(): void {
    this.#isClosing = true;
    this.#socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.destroy();
    await this.ended();
  }

  /** Exactly so many bytes. @throws Breach when the server closed before them */
  async take(bytes: number): Promise<Buffer> {
    const first = await this.#peek(bytes);
    this.#bytesAtHand -= bytes;
    if (first.length > bytes) this.#chunks[0] = first.subarray(bytes);
    else this.#chunks.shift();
    return first.subarray(0, bytes);
  }

  /** At least so many bytes, which stay. */
  async #peek(bytes: number): Promise<Buffer> {
    while (this.#bytesAtHand < bytes) {
      if (this.#isEnded) throw new Breach(`the server closed after ${this.#bytesAtHand} of ${bytes} bytes`);
      this.#wanted = bytes;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    if ((this.#chunks[0]?.length ?? 0) < bytes || this.#chunks.length === 0)
      this.#chunks = [Buffer.concat(this.#chunks)];
    return this.#chunks[0]!;
  }

  #attend(socket: Socket): void {
    socket.on("data", (chunk: Buffer) => {
      this.#chunks.push(chunk);
      this.#bytesAtHand += chunk.length;
      if (this.#bytesAtHand >= this.#wanted) this.#wake?.();
    });
    socket.on("error", () => {});
    socket.on("close", () => {
      this.#isEnded = true;
      this.#wake?.();
    });
  }

  async #listen(): Promise<void> {
    try {
      for (;;) await this.#hear();
    } catch (error) {
      const isGoodbye =
        this.#isClosing && this.#isEnded && this.#bytesAtHand === 0 && this.#pending.size === 0;
      if (!isGoodbye) this.failure = error as Error;
      for (const { done } of this.#pending.values()) done.reject(error);
      this.#pending.clear();
      this.#socket.destroy();
    }
  }

  /** Takes one simple reply, or one chunk. */
  async #hear(): Promise<void> {
    const magic = (await this.#peek(4)).readUInt32BE();
    if (magic === SIMPLE_REPLY_MAGIC) return this.#simple();
    demand(
      magic === (this.extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC),
      `magic 0x${magic.toString(16)}`,
    );
    const header = await this.#chunkHeader();
    demand(header.bytes <= CHUNK_BYTES_MAX, `a chunk of ${header.bytes} bytes`);
    const waiting = this.#waiting(header.cookie);
    if (header.offset !== undefined) {
      const expected = BigInt.asUintN(64, BigInt(waiting.reply.request.offset));
      demand(header.offset === expected, "an extended chunk without the request's offset");
    }
    const isDone = waiting.reply.chunk(header.flags, header.type, await this.take(header.bytes));
    if (isDone) this.#settle(header.cookie);
  }

  async #chunkHeader(): Promise<{
    flags: number;
    type: number;
    cookie: bigint;
    bytes: number;
    offset?: bigint;
  }> {
    if (!this.extended) return Chunk.decode(await this.take(Chunk.bytes));
    const header = ExtendedChunk.decode(await this.take(ExtendedChunk.bytes));
    return { ...header, bytes: Number(header.bytes) };
  }

  async #simple(): Promise<void> {
    const { error, cookie } = SimpleReply.decode(await this.take(SimpleReply.bytes));
    const { reply } = this.#waiting(cookie);
    const bytes = reply.simple(error);
    if (bytes > 0) reply.simpleData(await this.take(bytes));
    this.#settle(cookie);
  }

  #waiting(cookie: bigint): { reply: PendingReply; done: PromiseWithResolvers<Answer> } {
    const waiting = this.#pending.get(cookie);
    demand(waiting !== undefined, `cookie ${cookie} is nobody's`);
    return waiting;
  }

  #settle(cookie: bigint): void {
    const { reply, done } = this.#waiting(cookie);
    const answer = reply.answer();
    this.#pending.delete(cookie);
    done.resolve(answer);
  }
}

/** @throws Error where the last reply is none of consent */
export function granted(replies: readonly HeardReply[]): readonly HeardReply[] {
  const { option: code, type, data } = replies.at(-1)!;
  if (type === REP.ACK) return replies;
  throw new Error(`option ${code} was answered with 0x${type.toString(16)}: ${data.toString()}`);
}
