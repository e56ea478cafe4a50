/**
 * A client on a socket, as raw as it can be: the handshake in as few words as possible, then requests, many in flight.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { CMD, OPT, OptionReply, REP } from "../nbd/protocol.ts";
import { contextData, infoData, option, u32 } from "./nbd-script.ts";
import { type Dialect, type Question, type Reply, requestBytes, Wire } from "./nbd-wire.ts";

const CLIENT_FLAGS = 3;
const GREETING_BYTES = 18;

export class SocketClient {
  readonly wire: Wire;
  readonly socket: Socket;
  /** The number of `base:allocation`, where it was agreed on. */
  readonly allocation: number | undefined;
  readonly closed: Promise<unknown>;
  readonly #waiting = new Map<bigint, PromiseWithResolvers<Reply>>();

  private constructor(socket: Socket, dialect: Dialect, allocation: number | undefined, rest: Uint8Array) {
    this.wire = new Wire(dialect);
    this.socket = socket;
    this.allocation = allocation;
    this.closed = new Promise((resolve) => socket.on("close", resolve));
    socket.on("data", (chunk) => this.#hear(chunk));
    void this.closed.then(() => this.#leave(new Error("the server closed the connection")));
    this.#hear(rest);
  }

  static async connect(path: string, dialect: Dialect): Promise<SocketClient> {
    const socket = connect(path);
    socket.on("error", () => {});
    let heard: Buffer = Buffer.alloc(0);
    const hear = (chunk: Buffer): void => void (heard = Buffer.concat([heard, chunk]));
    socket.on("data", hear);
    const closed = new Promise<never>((_, reject) =>
      socket.on("close", () => reject(new Error("turned away"))),
    );
    closed.catch(() => {});
    const take = async (bytes: number): Promise<Buffer> => {
      while (heard.length < bytes) await Promise.race([once(socket, "data"), closed]);
      const taken = heard.subarray(0, bytes);
      heard = heard.subarray(bytes);
      return taken;
    };
    /** @returns the data of the replies before the acknowledgement */
    const agree = async (words: Buffer): Promise<Buffer[]> => {
      socket.write(words);
      for (const told: Buffer[] = []; ;) {
        const { type, bytes } = OptionReply.decode(await take(OptionReply.bytes));
        const data = await take(bytes);
        if (type === REP.ACK) return told;
        assert.ok(type < 2 ** 31, `an option was refused: ${data.toString()}`);
        told.push(data);
      }
    };
    await take(GREETING_BYTES);
    socket.write(u32(CLIENT_FLAGS));
    let allocation: number | undefined;
    if (dialect !== "simple") {
      await agree(option(dialect === "extended" ? OPT.EXTENDED_HEADERS : OPT.STRUCTURED_REPLY));
      const [context] = await agree(option(OPT.SET_META_CONTEXT, contextData("", ["base:allocation"])));
      allocation = context?.readUInt32BE(0);
    }
    await agree(option(OPT.GO, infoData("")));
    socket.off("data", hear);
    return new SocketClient(socket, dialect, allocation, heard);
  }

  ask(question: Question): Promise<Reply> {
    const asked = this.wire.name(question);
    const waiting = Promise.withResolvers<Reply>();
    waiting.promise.catch(() => {});
    this.#waiting.set(asked.cookie, waiting);
    this.socket.write(requestBytes(this.wire.dialect, asked));
    return waiting.promise;
  }

  /** Says goodbye, and waits for the server to hang up. */
  async leave(): Promise<void> {
    this.socket.write(this.wire.ask({ command: CMD.DISC }));
    await this.closed;
  }

  #hear(chunk: Uint8Array): void {
    try {
      for (const reply of this.wire.hear(chunk)) {
        this.#waiting.get(reply.asked.cookie)!.resolve(reply);
        this.#waiting.delete(reply.asked.cookie);
      }
    } catch (error) {
      this.#leave(error);
      this.socket.destroy();
    }
  }

  #leave(error: unknown): void {
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}
