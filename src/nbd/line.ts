/**
 * The transmission phase on a socket, in two ways that share the `Transmission`:
 *
 *   StraightLine   plain system calls on the descriptor, driven by `StraightLoop`      Linux, in the clear
 *   StreamLine     Node's stream (`stream-line.ts`): TLS, and hosts without the calls
 */
import { closeSync } from "node:fs";
import { SystemError } from "../host/native.ts";
import type { PolledLine, SocketCalls } from "../host/straight.ts";
import { Inbox } from "./inbox.ts";
import { Outbox, type Sink } from "./outbox.ts";
import type { Session } from "./export.ts";
import { ProtocolBreach } from "./protocol.ts";
import { Transmission, type TransmissionOptions } from "./transmission.ts";

/** What a line needs to know of its server. */
export interface LineOptions extends Pick<TransmissionOptions, "watcher" | "budget"> {
  /** Why a connection ended, where the client did not just leave. */
  readonly log: (message: string) => void;
}

/** A connection that can be asked to end. */
export interface Line {
  /** Receives nothing more; returns when what was received is answered and sent, or the client does not take it. */
  finish(): Promise<void>;
  /** Ends at once. */
  close(): void;
  /** Resolves when the connection is over and nothing of it is pending. */
  readonly closed: Promise<void>;
}

/** So often a line receives in its turn: one does not keep the others waiting. */
const RECEIVES_MAX = 16;

export class StraightLine implements Line, PolledLine, Sink {
  readonly #fd: number;
  readonly closed: Promise<void>;
  readonly #calls: SocketCalls;
  readonly #inbox = new Inbox();
  readonly #outbox = new Outbox();
  readonly #transmission: Transmission;
  readonly #end: () => void;
  /** Something happened besides the socket. */
  hasNews = true;
  readonly #onNews: () => void;
  readonly #options: LineOptions;
  #takesNoMore = false;
  #isClosed = false;
  /** A request was left in the inbox. */
  #isStuck = false;

  /**
   * @param fd taken over
   * @param received what came in already, after the handshake
   */
  constructor(
    fd: number,
    calls: SocketCalls,
    session: Session,
    received: Uint8Array,
    options: LineOptions,
    onNews: () => void,
  ) {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.closed = promise;
    this.#end = resolve;
    this.#fd = fd;
    this.#options = options;
    this.#calls = calls;
    this.#onNews = () => {
      this.hasNews = true;
      onNews();
    };
    this.#transmission = new Transmission(session, this.#outbox, {
      ...options,
      sendsFiles: true,
      onNews: this.#onNews,
    });
    this.#inbox.need(received.length);
    this.#inbox.add(received);
  }

  /** Once closed its number may be somebody else's: nobody waits for that. */
  get fd(): number {
    return this.#isClosed ? -1 : this.#fd;
  }

  get wantsToReceive(): boolean {
    return !this.#takesNoMore && this.#outbox.isEmpty && !this.#isStuck;
  }

  get wantsToSend(): boolean {
    return !this.#outbox.isEmpty;
  }

  get pending(): number {
    return this.#transmission.pending;
  }

  /** A request waits for something to be answered, perhaps to another client. */
  get isStuck(): boolean {
    return this.#isStuck;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Does what can be done now. Never waits. */
  step(): void {
    this.hasNews = false;
    if (this.#isClosed) return this.#endWhenIdle();
    try {
      this.#step();
    } catch (error) {
      this.#options.log(whyEnded(error));
      this.close();
    }
  }

  #step(): void {
    if (!this.#outbox.flush(this)) return;
    const inbox = this.#inbox;
    const transmission = this.#transmission;
    let isDrained = false;
    for (let i = 0; ; i++) {
      this.#isStuck = transmission.take(inbox);
      const wasFull = transmission.isFull;
      const isSent = this.#outbox.flush(this);
      if (transmission.isOver) this.#takesNoMore = true;
      if (!isSent) return;
      // What did not fit into the outbox does now; what waits for a promise goes on when that is settled.
      if (this.#isStuck && transmission.goesOn(wasFull)) continue;
      if (this.#takesNoMore) break;
      if (this.#isStuck || isDrained || i >= RECEIVES_MAX) return;
      const room = inbox.room();
      const got = this.#calls.receive(this.#fd, inbox.bytes, inbox.end, room);
      if (got < 0) return;
      if (got === 0) return this.close();
      inbox.end += got;
      isDrained = got < room;
    }
    if (this.pending === 0 && !this.#isStuck) this.close();
  }

  send(from: Uint8Array, offset: number, bytes: number, more: boolean): number {
    return this.#calls.send(this.#fd, from, offset, bytes, more);
  }

  sendFile(file: number, at: number, bytes: number): number {
    const sent = this.#calls.sendFile(this.#fd, file, at, bytes);
    if (sent === 0) throw new ProtocolBreach("the file ended within a reply");
    return sent;
  }

  finish(): Promise<void> {
    this.#takesNoMore = true;
    this.#onNews();
    return this.closed;
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    closeSync(this.#fd);
    this.#transmission.abandon();
    this.#endWhenIdle();
    // The loop may be asleep on it.
    this.#onNews();
  }

  #endWhenIdle(): void {
    if (this.pending === 0) this.#end();
  }
}

/** One connection is over, and nothing else: whatever it was, the other clients and the disk go on. */
export function whyEnded(error: unknown): string {
  if (error instanceof ProtocolBreach) return `the client broke the protocol: ${error.message}`;
  if (error instanceof SystemError) return `the connection broke off (${error.code})`;
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
