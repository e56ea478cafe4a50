/**
 * Connections of a server, from the first byte to the last: handshake within its time, then a line; no more of them than
 * allowed (H31).
 *
 *   socket ── StreamChannel ── handshake ── Session ──┬─ StraightLine, where the socket is plain and the host has the calls
 *                                                     └─ StreamLine
 */
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { type SocketCalls, socketCalls } from "../host/straight.ts";
import { ChannelClosed } from "./channel.ts";
import type { Export, Exports, Session } from "./export.ts";
import { handshake, type HandshakePolicy } from "./handshake.ts";
import { type Line, type LineOptions, StraightLine, whyEnded } from "./line.ts";
import { StraightLoop } from "./loop.ts";
import { type Secure, StreamChannel } from "./stream-channel.ts";
import { StreamLine } from "./stream-line.ts";
import { Budget, type Watcher } from "./transmission.ts";

export interface NbdServerOptions extends HandshakePolicy {
  readonly exports: Exports;
  readonly secure?: Secure;
  readonly connectionsMax: number;
  /** A handshake that takes longer is broken off. */
  readonly handshakeMs: number;
  /** What all requests on the long way may hold in memory together. */
  readonly budgetBytes: number;
  readonly watcherOf: (served: Export) => Watcher;
  /** A client came, or went. */
  readonly onConnections?: (served: Export, change: 1 | -1) => void;
  /** Something that its owner may want to know: a client that broke the protocol. */
  readonly log: (message: string) => void;
  /** False: Node's streams alone, as on hosts without the calls. */
  readonly straight?: boolean;
}

export class NbdServer {
  readonly #options: NbdServerOptions;
  readonly #calls: SocketCalls | undefined;
  readonly #loop: StraightLoop | undefined;
  readonly #budget: Budget;
  readonly #shaking = new Set<Socket>();
  readonly #lines = new Set<Line>();
  #isStopping = false;

  constructor(options: NbdServerOptions) {
    this.#options = options;
    this.#calls = options.straight === false ? undefined : socketCalls();
    this.#loop = this.#calls && new StraightLoop(this.#calls);
    this.#budget = new Budget(options.budgetBytes);
  }

  get connections(): number {
    return this.#shaking.size + this.#lines.size;
  }

  /** Takes over a connection. */
  accept(socket: Socket): void {
    if (this.#isStopping || this.connections >= this.#options.connectionsMax) {
      this.#options.log(`a connection was turned away: ${this.#options.connectionsMax} are open`);
      socket.destroy();
      return;
    }
    socket.on("error", () => socket.destroy());
    this.#shaking.add(socket);
    void this.#welcome(socket);
  }

  async #welcome(socket: Socket): Promise<void> {
    const { exports, handshakeMs, secure } = this.#options;
    const channel = new StreamChannel(socket, secure);
    const timer = setTimeout(() => socket.destroy(), handshakeMs);
    try {
      const session = await handshake(channel, exports, this.#options);
      // Whether or not the client closes its end.
      if (session === undefined) socket.destroySoon();
      else if (!socket.destroyed) this.#serve(session, channel);
    } catch (error) {
      if (!(error instanceof ChannelClosed)) this.#options.log(whyEnded(error));
      socket.destroy();
    } finally {
      clearTimeout(timer);
      this.#shaking.delete(socket);
    }
  }

  #serve(session: Session, channel: StreamChannel): void {
    const { log, watcherOf, onConnections } = this.#options;
    const options = { watcher: watcherOf(session.export), budget: this.#budget, log };
    const { stream, isPlain, received } = channel.release();
    const line =
      (isPlain ? this.#straight(stream, session, received, options) : undefined) ??
      new StreamLine(stream, session, received, options);
    this.#lines.add(line);
    onConnections?.(session.export, 1);
    void line.closed.then(() => {
      this.#lines.delete(line);
      onConnections?.(session.export, -1);
    });
  }

  /** Takes the descriptor away from Node, which offers no other way to it than its handle. */
  #straight(stream: Duplex, session: Session, received: Uint8Array, options: LineOptions): Line | undefined {
    const loop = this.#loop;
    const fd = (stream as { _handle?: { readonly fd?: unknown } })._handle?.fd;
    if (loop === undefined || typeof fd !== "number" || fd < 0) return undefined;
    // What Node still has to send must not be lost.
    if (stream.writableLength > 0) return undefined;
    const own = this.#calls!.duplicate(fd);
    stream.destroy();
    const line = new StraightLine(own, this.#calls!, session, received, options, loop.wake);
    loop.add(line);
    return line;
  }

  /**
   * Takes nothing more up; returns when everything that was taken up is answered.
   * @param patienceMs so long a client may take to receive its answers
   */
  async stop(patienceMs: number): Promise<void> {
    this.#isStopping = true;
    for (const socket of this.#shaking) socket.destroy();
    const lines = [...this.#lines];
    const timer = setTimeout(() => lines.forEach((line) => line.close()), patienceMs);
    await Promise.all(lines.map((line) => line.finish()));
    clearTimeout(timer);
    this.#loop?.close();
  }
}
