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

/** So much may wait in the stream before nothing more is taken up. */
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
    if (this.#stream.destroyed && this.#transmission.pending === 0) this.#end();
  };

  #takeWhatIsThere(): void {
    const stream = this.#stream;
    const transmission = this.#transmission;
    for (;;) {
      const isStuck = !this.#takesNoMore && transmission.take(this.#inbox);
      const wasFull = transmission.isFull;
      this.#outbox.flush(this);
      if (transmission.isOver) this.#takesNoMore = true;
      if (this.#takesNoMore) {
        if (transmission.pending === 0) stream.end(() => stream.destroy());
        return;
      }
      const isBehind = stream.writableLength > STREAM_BYTES_MAX;
      if (isStuck) {
        // Where the stream took everything, neither an answer nor a drain would bring us back.
        if (wasFull && !transmission.isFull && !isBehind) continue;
        return;
      }
      if (this.#waiting.length === 0 || isBehind) break;
      this.#waiting = this.#waiting.subarray(this.#inbox.add(this.#waiting, transmission.headerBytes));
    }
    if (this.#waiting.length === 0 && stream.isPaused()) stream.resume();
  }

  /** The stream keeps what it is given. */
  send(from: Uint8Array, offset: number, bytes: number): number {
    this.#stream.write(from.slice(offset, offset + bytes));
    return bytes;
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
