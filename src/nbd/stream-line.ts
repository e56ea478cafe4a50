/**
 * The transmission phase on one of Node's streams: TLS, and hosts without the calls of the straight way.
 *
 *   stream ─ data ─→ inbox ─→ Transmission ─→ outbox ─→ stream, as far as it is not too far behind
 */
import type { Duplex } from "node:stream";
import type { Session } from "./export.ts";
import { Inbox } from "./inbox.ts";
import { type Line, type LineOptions, whyEnded } from "./line.ts";
import { Outbox, type Sink } from "./outbox.ts";
import { Transmission } from "./transmission.ts";

/** So much may wait in the stream; more stays in the outbox, and nothing more is taken up. */
const STREAM_BYTES_MAX = 4 * 1024 * 1024;

export class StreamLine implements Line, Sink {
  readonly closed: Promise<void>;
  readonly #stream: Duplex;
  readonly #options: LineOptions;
  readonly #transmission: Transmission;
  readonly #inbox = new Inbox();
  readonly #outbox = new Outbox();
  readonly #end: () => void;
  /** What came in and found no room yet. */
  #waiting: Uint8Array;
  #takesNoMore = false;

  /** @param received what came in already, after the handshake */
  constructor(stream: Duplex, session: Session, received: Uint8Array, options: LineOptions) {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.closed = promise;
    this.#end = resolve;
    this.#stream = stream;
    this.#options = options;
    this.#waiting = received;
    this.#transmission = new Transmission(session, this.#outbox, {
      ...options,
      sendsFiles: false,
      onNews: this.#step,
    });
    stream.on("data", (chunk: Uint8Array) => {
      stream.pause();
      this.#waiting = chunk;
      this.#step();
    });
    stream.on("drain", this.#step);
    stream.on("close", this.#step);
    for (const event of ["error", "end"]) stream.on(event, () => stream.destroy());
    stream.pause();
    setImmediate(this.#step);
  }

  #step = (): void => {
    try {
      this.#takeWhatIsThere();
    } catch (error) {
      this.#options.log(whyEnded(error));
      this.#stream.destroy();
    }
    if (!this.#stream.destroyed) return;
    this.#transmission.abandon();
    if (this.#transmission.pending === 0) this.#end();
  };

  #takeWhatIsThere(): void {
    const stream = this.#stream;
    const transmission = this.#transmission;
    if (stream.destroyed || !this.#outbox.flush(this)) return;
    for (;;) {
      const isStuck = transmission.take(this.#inbox);
      const wasFull = transmission.isFull;
      if (!this.#outbox.flush(this)) return;
      // What did not fit into the outbox does now; what waits for a promise goes on when that is settled.
      if (isStuck && transmission.goesOn(wasFull)) continue;
      if (isStuck) return;
      if (transmission.isOver || this.#takesNoMore) {
        if (transmission.pending === 0) stream.end(() => stream.destroy());
        return;
      }
      if (this.#waiting.length === 0) break;
      this.#waiting = this.#waiting.subarray(this.#inbox.add(this.#waiting));
    }
    if (stream.isPaused()) stream.resume();
  }

  /** What the stream cannot send at once it keeps. */
  send(from: Uint8Array, offset: number, bytes: number): number {
    const room = Math.min(bytes, STREAM_BYTES_MAX - this.#stream.writableLength);
    if (room > 0) this.#stream.write(from.slice(offset, offset + room));
    return room;
  }

  finish(): Promise<void> {
    this.#takesNoMore = true;
    this.#step();
    return this.closed;
  }

  close(): void {
    this.#stream.destroy();
  }
}
