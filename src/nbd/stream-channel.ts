/**
 * A handshake's channel over Node's sockets, which may turn into TLS on the way, and is handed over afterwards.
 */
import type { Duplex } from "node:stream";
import type { Socket } from "node:net";
import { type Channel, ChannelClosed } from "./channel.ts";
import { ProtocolBreach } from "./protocol.ts";

/** Puts a socket under TLS, as its server. */
export type Secure = (socket: Socket) => Promise<Duplex>;

export class StreamChannel implements Channel {
  #stream: Duplex;
  readonly #socket: Socket;
  readonly #secure: Secure | undefined;
  #chunks: Uint8Array[] = [];
  #bytes = 0;
  #wake: (() => void) | undefined;
  #isOver = false;

  constructor(socket: Socket, secure: Secure | undefined) {
    this.#socket = socket;
    this.#secure = secure;
    this.#stream = socket;
    this.#listen();
  }

  #onReadable = (): void => {
    // Only as much as is asked for, so that nothing is taken off a socket that is about to change hands.
    this.#wake?.();
  };

  #onOver = (): void => {
    this.#isOver = true;
    this.#wake?.();
  };

  #listen(): void {
    this.#stream.on("readable", this.#onReadable);
    for (const event of ["end", "close", "error"]) this.#stream.on(event, this.#onOver);
  }

  async read(bytes: number): Promise<Uint8Array> {
    while (this.#bytes < bytes) {
      const chunk = this.#stream.read() as Uint8Array | null;
      if (chunk !== null) {
        this.#chunks.push(chunk);
        this.#bytes += chunk.length;
        continue;
      }
      if (this.#isOver) throw new ChannelClosed();
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    // Many small options in one chunk are not moved for each of them.
    const all = this.#chunks.length === 1 ? this.#chunks[0]! : Buffer.concat(this.#chunks);
    this.#chunks = all.length > bytes ? [all.subarray(bytes)] : [];
    this.#bytes = all.length - bytes;
    return new Uint8Array(all.subarray(0, bytes));
  }

  async write(bytes: Uint8Array): Promise<void> {
    if (this.#isOver || this.#stream.destroyed) throw new ChannelClosed();
    const error = await new Promise((resolve) => this.#stream.write(bytes, resolve));
    if (error) throw new ChannelClosed();
  }

  async startTls(): Promise<void> {
    if (this.#secure === undefined) throw new ProtocolBreach("there is no TLS here");
    const early = this.#stream.readableLength + this.#bytes;
    if (early > 0) throw new ProtocolBreach(`${early} bytes in the clear behind STARTTLS`);
    this.#leave();
    this.#stream = await this.#secure(this.#socket);
    this.#listen();
  }

  /** Lets go of the stream, with what was received and not read. */
  release(): { readonly stream: Duplex; readonly isPlain: boolean; readonly received: Uint8Array } {
    this.#leave();
    const rest = this.#stream.read() as Uint8Array | null;
    const received = Buffer.concat(rest === null ? this.#chunks : [...this.#chunks, rest]);
    return { stream: this.#stream, isPlain: this.#stream === this.#socket, received };
  }

  #leave(): void {
    this.#stream.off("readable", this.#onReadable);
    for (const event of ["end", "close", "error"]) this.#stream.off(event, this.#onOver);
  }
}
