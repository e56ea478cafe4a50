/**
 * A client and a server in one process without a socket: requests go into the `Inbox` as they might come off the wire, and
 * replies leave the `Outbox` as somebody might read them. Both may be cut anywhere.
 *
 *   const client = new MemoryClient(sessionOf(device), "structured");
 *   const { data } = await client.ask({ command: CMD.READ, offset: 0, bytes: 512 });
 */
import type { BlockDevice, WritableDevice } from "../device/device.ts";
import type { Export, MetaContext, Session } from "../nbd/export.ts";
import { Inbox } from "../nbd/inbox.ts";
import { Outbox, type Sink } from "../nbd/outbox.ts";
import { REQUEST_BYTES_MAX } from "../nbd/protocol.ts";
import { Budget, Transmission, type Watcher } from "../nbd/transmission.ts";
import { type Dialect, type Question, type Reply, requestBytes, Wire } from "./nbd-wire.ts";

export interface SessionKind {
  readonly dialect?: Dialect;
  readonly readOnly?: boolean;
  readonly contexts?: readonly MetaContext[];
  readonly minimum?: number;
  readonly maximum?: number;
}

/** What a handshake about one device might have come to. */
export function sessionOf(device: BlockDevice | WritableDevice, kind: SessionKind = {}): Session {
  const { dialect = "structured", readOnly = false, contexts = [], minimum = 1 } = kind;
  const offer = {
    name: "",
    description: "",
    blocks: { minimum, preferred: 4096, maximum: kind.maximum ?? REQUEST_BYTES_MAX },
    canMultiConn: true,
    contexts,
  };
  const disk: Export = readOnly
    ? { ...offer, isReadOnly: true, device }
    : { ...offer, isReadOnly: false, device: device as WritableDevice };
  return {
    export: disk,
    structured: dialect !== "simple",
    extended: dialect === "extended",
    contexts: contexts.map((context, i) => ({ id: 7 + i, context })),
  };
}

export interface MemoryClientOptions {
  readonly budget?: Budget;
  readonly watcher?: Watcher;
  /** So many bytes the sink takes at most in one call; 0: none. Default: all. */
  readonly takes?: () => number;
  /** So many bytes of what was said come in at once. Default: all. */
  readonly gives?: () => number;
}

const nobody: Watcher = { answered() {} };

export class MemoryClient {
  readonly wire: Wire;
  /** The number of `base:allocation`, where it was agreed on. */
  readonly allocation: number | undefined;
  readonly transmission: Transmission;
  readonly outbox = new Outbox();
  readonly inbox = new Inbox();
  readonly #options: MemoryClientOptions;
  #said: Buffer = Buffer.alloc(0);
  readonly #waiting = new Map<bigint, PromiseWithResolvers<Reply>>();
  /** Why the connection ended. */
  broken: unknown;
  isStuck = false;
  heardBytes = 0;

  constructor(session: Session, options: MemoryClientOptions = {}) {
    this.wire = new Wire(session.extended ? "extended" : session.structured ? "structured" : "simple");
    this.allocation = session.contexts.find(({ context }) => context.name === "base:allocation")?.id;
    this.#options = options;
    this.transmission = new Transmission(session, this.outbox, {
      watcher: options.watcher ?? nobody,
      budget: options.budget ?? new Budget(64 * 1024 * 1024),
      sendsFiles: false,
      onNews: () => this.step(),
    });
  }

  /** Says a request, and hears its reply some time. */
  ask(question: Question): Promise<Reply> {
    const asked = this.wire.name(question);
    const waiting = Promise.withResolvers<Reply>();
    waiting.promise.catch(() => {});
    this.#waiting.set(asked.cookie, waiting);
    this.say(requestBytes(this.wire.dialect, asked));
    return waiting.promise;
  }

  /** Any bytes, as if they came off the wire. */
  say(bytes: Uint8Array): void {
    this.#said = Buffer.concat([this.#said, bytes]);
    this.step();
  }

  /** As the line of a socket does it. */
  step(): void {
    if (this.broken !== undefined) return;
    try {
      while (this.#stepOnce());
    } catch (error) {
      this.broken = error;
      for (const { reject } of this.#waiting.values()) reject(error);
    }
  }

  /** @returns whether there may be more to do at once */
  #stepOnce(): boolean {
    if (!this.#flush()) return false;
    this.isStuck = this.transmission.take(this.inbox);
    const wasFull = this.transmission.isFull;
    if (!this.#flush()) return false;
    if (this.isStuck) return this.transmission.goesOn(wasFull);
    if (this.#said.length === 0 || this.transmission.isOver) return false;
    const part = this.#said.subarray(0, this.#options.gives?.() ?? this.#said.length);
    this.#said = this.#said.subarray(this.inbox.add(part));
    return true;
  }

  #flush(): boolean {
    const parts: Uint8Array[] = [];
    const sink: Sink = {
      send: (from, offset, bytes) => {
        const taken = Math.min(bytes, this.#options.takes?.() ?? bytes);
        parts.push(from.slice(offset, offset + taken));
        return taken;
      },
    };
    const isEmpty = this.outbox.flush(sink);
    const heard = Buffer.concat(parts);
    this.heardBytes += heard.length;
    for (const reply of this.wire.hear(heard)) {
      this.#waiting.get(reply.asked.cookie)?.resolve(reply);
      this.#waiting.delete(reply.asked.cookie);
    }
    return isEmpty;
  }
}
