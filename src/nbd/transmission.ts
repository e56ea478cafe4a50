/**
 * The transmission phase of one connection, without its socket: requests come in by an `Inbox`, replies go out by an
 * `Outbox`.
 *
 *   take ─→ parse ─→ judge ─┬─ straight: done before the next request is looked at       (docs/LIVE.md)
 *                           └─ long: a promise; its reply joins the outbox when it is there
 *
 * What a client may have pending is bounded in requests and, with all clients of the server, in bytes.
 */
import type { BlockDevice, HostFile, Place, WritableDevice } from "../device/device.ts";
import { HostReader } from "../host/file.ts";
import { errnoOf, messageOf } from "./errno.ts";
import type { Session, StatusDescriptor } from "./export.ts";
import type { Inbox } from "./inbox.ts";
import type { Outbox, Part } from "./outbox.ts";
import { CMD, CMD_FLAG, DESCRIPTORS_MAX, ProtocolBreach, REQUEST_BYTES_MAX } from "./protocol.ts";
import {
  doneBytes,
  emptyReply,
  errorReply,
  putDone,
  putReadHead,
  readHeadBytes,
  statusChunk,
} from "./reply.ts";
import { emptyRequest, judge, parseRequest, type Request } from "./request.ts";

/** Hears of every answer. */
export interface Watcher {
  /** @param milliseconds since the request was taken up. @param error 0, or the number that was answered */
  answered(command: number, bytes: number, milliseconds: number, error: number): void;
}

/** Bytes that all connections of a server may hold for requests on the long way, until their replies are sent. */
export class Budget {
  left: number;

  constructor(bytes: number) {
    this.left = bytes;
  }
}

export interface TransmissionOptions {
  readonly watcher: Watcher;
  readonly budget: Budget;
  /** The sink can send ranges of files. */
  readonly sendsFiles: boolean;
  /** A reply has joined the outbox on the long way, or a request may be taken up again. */
  readonly onNews: () => void;
}

const PENDING_MAX = 128;
/** So much more of a WRITE is worth being written before the rest is there. */
const AHEAD_BYTES_MIN = 32 * 1024;
const PAGE_BYTES = 4096;
/** From here on sending pages is cheaper than copying them. */
const SEND_FILE_BYTES_MIN = 64 * 1024;
const CACHE_BYTES_MAX = 32 * 1024 * 1024;
const CACHE_SLICE_BYTES = 1024 * 1024;
/** A longer answer is cut: the client asks on. */
const DESCRIPTORS = Math.min(DESCRIPTORS_MAX, 8 * 1024);
const DESCRIPTOR_BYTES_MAX = 16;

export class Transmission {
  readonly session: Session;
  readonly headerBytes: number;
  readonly outbox: Outbox;
  readonly #device: BlockDevice;
  readonly #options: TransmissionOptions;
  readonly #request = emptyRequest();
  /** When what is being taken up now was received. */
  #now = 0;
  #isOver = false;
  /** Bytes of the request at the front of the inbox that were written ahead. */
  #ahead = 0;
  #isAbandoned = false;
  pending = 0;

  constructor(session: Session, outbox: Outbox, options: TransmissionOptions) {
    this.session = session;
    this.headerBytes = session.extended ? 32 : 28;
    this.outbox = outbox;
    this.#device = session.export.device;
    this.#options = options;
  }

  /** The client has said goodbye: nothing more is taken up. */
  get isOver(): boolean {
    return this.#isOver;
  }

  /** Nothing is taken up before something was answered, or sent. */
  get isFull(): boolean {
    return this.pending >= PENDING_MAX || this.outbox.isFull;
  }

  /**
   * Whether a request that had to wait is taken up, now that everything was sent: there was no room for its answer before,
   * or nothing is left that would ever wake it.
   */
  goesOn(wasFull: boolean): boolean {
    return this.pending === 0 || (wasFull && !this.isFull);
  }

  /**
   * Takes up the requests that are there as a whole.
   * @returns whether one is left that waits for something to be answered or sent
   * @throws ProtocolBreach
   */
  take(inbox: Inbox): boolean {
    this.#now = performance.now();
    const request = this.#request;
    while (!this.#isOver) {
      const bytesAtHand = inbox.end - inbox.start;
      if (bytesAtHand < this.headerBytes) {
        inbox.need(this.headerBytes);
        return false;
      }
      parseRequest(inbox.view, inbox.start, this.session.extended, request);
      const payloadBytes = this.#payloadBytes(request);
      if (bytesAtHand < this.headerBytes + payloadBytes) {
        if (request.command === CMD.WRITE) this.#writeAhead(request, inbox);
        inbox.need(this.headerBytes + payloadBytes);
        return false;
      }
      if (this.isFull) return true;
      const error = request.command === CMD.DISC ? 0 : judge(request, this.session);
      if (error === 0 && !this.#do(request, inbox)) return true;
      if (error !== 0) this.#fail(request, error, "not possible here", this.#now);
      inbox.start += this.headerBytes + payloadBytes;
      this.#ahead = 0;
    }
    return false;
  }

  /** Bytes that follow the header. @throws ProtocolBreach where they are more than anybody may send */
  #payloadBytes({ command, flags, bytes }: Request): number {
    const follows = command === CMD.WRITE || (this.session.extended && (flags & CMD_FLAG.PAYLOAD_LEN) !== 0);
    if (!follows) return 0;
    if (bytes > REQUEST_BYTES_MAX) throw new ProtocolBreach(`a request with ${bytes} bytes of data`);
    return bytes;
  }

  /** @returns false where the request has to wait, untouched */
  #do(request: Request, inbox: Inbox): boolean {
    const { command, bytes } = request;
    if (command === CMD.DISC) {
      this.#isOver = true;
      return true;
    }
    try {
      if (command === CMD.READ && this.#readStraight(request)) return true;
      if (command === CMD.WRITE && this.#writeStraight(request, inbox)) return true;
    } catch (error) {
      this.#fail(request, errnoOf(error, request), messageOf(error), this.#now);
      return true;
    }
    const held = this.#heldBytes(request);
    // Whoever holds nothing may always have one request, so that nobody waits for ever.
    if (held > this.#options.budget.left && (this.pending > 0 || !this.outbox.isEmpty)) return false;
    const at = inbox.start + this.headerBytes;
    const data = command === CMD.WRITE ? inbox.bytes.slice(at, at + bytes) : undefined;
    void this.#takeTheLongWay({ ...request }, data, held);
    return true;
  }

  /** A READ whose bytes are in memory, where they lie in place. */
  #readStraight(request: Request): boolean {
    const { offset, bytes } = request;
    const device = this.#device;
    if (device.locate === undefined || bytes === 0) return false;
    let place = device.locate(offset, bytes, "read");
    if (place === undefined) return false;
    if (bytes >= SEND_FILE_BYTES_MIN && place.bytes >= bytes && this.#sendStraight(request, place))
      return true;
    const { outbox, session } = this;
    const headBytes = readHeadBytes(session);
    const at = outbox.reserve(headBytes + bytes);
    if (at < 0) return false;
    for (let done = 0; ;) {
      const file = place.file as HostReader;
      const want = Math.min(place.bytes, bytes - done);
      const got = file.tryRead?.(place.at, outbox.bytes, at + headBytes + done, want) ?? 0;
      if (got < want) return false;
      done += got;
      if (done === bytes) break;
      place = device.locate(offset + done, bytes - done, "read");
      if (place === undefined) return false;
    }
    putReadHead(outbox.view, at, session, request);
    outbox.commit(headBytes + bytes);
    this.#answered(request, 0, this.#now);
    return true;
  }

  /** Leaves it to the kernel to move the pages, where they will not become somebody else's (H14). */
  #sendStraight(request: Request, place: Place): boolean {
    const { file, at, isStable } = place;
    const { bytes } = request;
    if (isStable !== true || !this.#options.sendsFiles || !(file instanceof HostReader)) return false;
    if (at + bytes > file.bytes || !file.isCached(at, bytes)) return false;
    const head = new Uint8Array(readHeadBytes(this.session));
    putReadHead(new DataView(head.buffer), 0, this.session, request);
    this.outbox.push({ head, file: { fd: file.fd, at, bytes } });
    this.#answered(request, 0, this.#now);
    return true;
  }

  /** A WRITE to bytes that lie in place. What it could not finish is written again, all of it, on the long way. */
  #writeStraight(request: Request, inbox: Inbox): boolean {
    const { bytes, flags } = request;
    if (this.#device.locate === undefined || (flags & CMD_FLAG.FUA) !== 0) return false;
    const { outbox, session } = this;
    const headBytes = doneBytes(session);
    const at = outbox.reserve(headBytes);
    if (at < 0) return false;
    if (this.#writeInPlace(request, inbox, this.#ahead, bytes) < bytes) return false;
    putDone(outbox.view, at, session, request);
    outbox.commit(headBytes);
    this.#answered(request, 0, this.#now);
    return true;
  }

  /** What a request takes in memory on the long way, at most. */
  #heldBytes({ command, flags, bytes }: Request): number {
    switch (command) {
      case CMD.READ:
      case CMD.WRITE:
        return bytes;
      case CMD.CACHE:
        return Math.min(bytes, CACHE_SLICE_BYTES);
      case CMD.BLOCK_STATUS: {
        const most = (flags & CMD_FLAG.REQ_ONE) !== 0 ? 1 : Math.min(DESCRIPTORS, bytes);
        return most * DESCRIPTOR_BYTES_MAX * this.session.contexts.length;
      }
      default:
        return 0;
    }
  }

  /**
   * Writes what is there of a long WRITE, in whole pages, while its rest is still on the way: meanwhile the client fills the
   * socket again. Nobody was promised anything yet; who breaks off in the midst of a WRITE has written a part of it, as in a
   * power cut. What fails here is met again by the whole.
   */
  #writeAhead(request: Request, inbox: Inbox): void {
    const { flags, offset } = request;
    const end = offset + inbox.end - inbox.start - this.headerBytes;
    const whole = end - (end % PAGE_BYTES) - offset;
    if (whole - this.#ahead < AHEAD_BYTES_MIN || (flags & CMD_FLAG.FUA) !== 0) return;
    if (this.#device.locate === undefined || judge(request, this.session) !== 0) return;
    try {
      this.#ahead = this.#writeInPlace(request, inbox, this.#ahead, whole);
    } catch {
      this.#ahead = 0;
    }
  }

  /** Writes data of a WRITE, from one byte of them to another, where they lie in place. @returns how far it came */
  #writeInPlace({ offset }: Request, inbox: Inbox, from: number, to: number): number {
    let done = from;
    while (done < to) {
      const place = this.#device.locate!(offset + done, to - done, "write");
      if (place === undefined) break;
      const file = place.file as Place["file"] & Pick<HostFile, "tryWrite">;
      const want = Math.min(place.bytes, to - done);
      const put = file.tryWrite?.(place.at, inbox.bytes, inbox.start + this.headerBytes + done, want) ?? 0;
      if (put < want) break;
      done += put;
    }
    return done;
  }

  async #takeTheLongWay(request: Request, data: Uint8Array | undefined, held: number): Promise<void> {
    const { budget, onNews } = this.#options;
    const began = this.#now;
    this.pending++;
    budget.left -= held;
    let reply: Part;
    try {
      reply = await this.#answer(request, data);
      this.#answered(request, 0, began);
    } catch (error) {
      const errno = errnoOf(error, request);
      reply = { head: errorReply(this.session, request, errno, messageOf(error)) };
      this.#answered(request, errno, began);
    }
    budget.left += held;
    this.pending--;
    this.#push(reply);
    onNews();
  }

  /** A reply counts until it is sent. */
  #push(reply: Part): void {
    if (this.#isAbandoned) return;
    const { budget } = this.#options;
    const held = reply.head.length + (reply.body?.length ?? 0);
    budget.left -= held;
    this.outbox.push({ ...reply, onGone: () => void (budget.left += held) });
  }

  /** The connection is gone: what is still answered goes nowhere. */
  abandon(): void {
    this.#isOver = this.#isAbandoned = true;
    this.outbox.clear();
  }

  async #answer(request: Request, data: Uint8Array | undefined): Promise<Part> {
    const { command, flags, offset, bytes } = request;
    const range = { start: offset, end: offset + bytes };
    const disk = this.#device as WritableDevice;
    switch (command) {
      case CMD.READ:
        return this.#read(request);
      case CMD.BLOCK_STATUS:
        return this.#status(request);
      case CMD.CACHE:
        await this.#cache(offset, bytes);
        break;
      case CMD.WRITE:
        if (bytes > 0) await disk.write(offset, data!);
        break;
      case CMD.TRIM:
        if (bytes > 0) await disk.discard(range);
        break;
      case CMD.WRITE_ZEROES: {
        const how = { keep: (flags & CMD_FLAG.NO_HOLE) !== 0, fast: (flags & CMD_FLAG.FAST_ZERO) !== 0 };
        if (bytes > 0) await disk.zero(range, how);
        break;
      }
      case CMD.FLUSH:
        if (!this.session.export.isReadOnly) await disk.flush();
        break;
    }
    if ((flags & CMD_FLAG.FUA) !== 0 && !this.session.export.isReadOnly) await disk.flush();
    const done = new Uint8Array(doneBytes(this.session));
    putDone(new DataView(done.buffer), 0, this.session, request);
    return { head: done };
  }

  async #read(request: Request): Promise<Part> {
    const { offset, bytes } = request;
    if (bytes === 0) return { head: emptyReply(this.session, request) };
    const body = new Uint8Array(bytes);
    await this.#device.read(offset, body);
    const head = new Uint8Array(readHeadBytes(this.session));
    putReadHead(new DataView(head.buffer), 0, this.session, request);
    return { head, body };
  }

  /** Advice: reading is what brings bytes into memory. */
  async #cache(offset: number, bytes: number): Promise<void> {
    const end = offset + Math.min(bytes, CACHE_BYTES_MAX);
    const into = new Uint8Array(Math.min(CACHE_SLICE_BYTES, end - offset));
    for (let at = offset; at < end; at += into.length) {
      await this.#device.read(at, into.subarray(0, Math.min(into.length, end - at)));
    }
  }

  async #status(request: Request): Promise<Part> {
    const { flags, offset, bytes } = request;
    const { contexts } = this.session;
    const isOne = (flags & CMD_FLAG.REQ_ONE) !== 0;
    const range = { start: offset, end: offset + bytes };
    const chunks: Uint8Array[] = [];
    for (const [i, { id, context }] of contexts.entries()) {
      const found = await context.status(range, isOne ? 1 : DESCRIPTORS);
      const told = isOne ? [within(found[0]!, bytes)] : found;
      chunks.push(statusChunk(this.session, request, id, told, i === contexts.length - 1));
    }
    return { head: Buffer.concat(chunks) };
  }

  #fail(request: Request, error: number, message: string, began: number): void {
    this.#push({ head: errorReply(this.session, request, error, message) });
    this.#answered(request, error, began);
  }

  #answered({ command, bytes }: Request, error: number, began: number): void {
    this.#options.watcher.answered(command, bytes, performance.now() - began, error);
  }
}

/** With REQ_ONE the answer must not reach past what was asked. */
function within({ bytes, flags }: StatusDescriptor, bytesMax: number): StatusDescriptor {
  return { bytes: Math.min(bytes, bytesMax), flags };
}
