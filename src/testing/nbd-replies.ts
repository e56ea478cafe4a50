/**
 * What our own NBD client demands of a server's replies: one `PendingReply` for each request collects its chunks and
 * throws `Breach` at the first that the specification does not allow.
 */
import {
  CHUNK,
  CHUNK_ERROR,
  CMD,
  CMD_FLAG,
  DESCRIPTORS_MAX,
  ERRNO,
  REPLY_FLAG_DONE,
} from "../nbd/protocol.ts";

/** A server broke the protocol. */
export class Breach extends Error {
  override readonly name = "Breach";
}

export function demand(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Breach(message);
}

export interface SentRequest {
  readonly command: number;
  readonly flags: number;
  readonly offset: number;
  readonly bytes: number;
}

export interface Descriptor {
  readonly bytes: number;
  readonly flags: number;
}

export interface Answer {
  /** 0, or the number of the first error. */
  readonly error: number;
  readonly message: string;
  /** Where errors were told to lie. */
  readonly errorOffsets: readonly number[];
  /** Of READ: all of it, in order; undefined when it failed. */
  readonly data: Buffer | undefined;
  /** Of READ: chunks that said "hole". */
  readonly holes: readonly { readonly start: number; readonly end: number }[];
  /** Of BLOCK_STATUS, by the context's name. */
  readonly status: ReadonlyMap<string, readonly Descriptor[]>;
  /** Types of the chunks in the order they came; none for a simple reply. */
  readonly chunks: readonly number[];
}

/** What was agreed on. */
export interface Agreement {
  readonly structured: boolean;
  readonly extended: boolean;
  /** Names by id. */
  readonly contexts: ReadonlyMap<number, string>;
}

const KNOWN_ERRORS: ReadonlySet<number> = new Set(Object.values(ERRNO));
const utf8 = new TextDecoder("utf-8", { fatal: true });

export class PendingReply {
  readonly request: SentRequest;
  readonly #agreement: Agreement;
  #data: Buffer | undefined;
  readonly #covered: { start: number; end: number }[] = [];
  readonly #holes: { start: number; end: number }[] = [];
  readonly #status = new Map<string, readonly Descriptor[]>();
  readonly #chunks: number[] = [];
  readonly #errorOffsets: number[] = [];
  #error = 0;
  #message = "";

  constructor(request: SentRequest, agreement: Agreement) {
    this.request = request;
    this.#agreement = agreement;
  }

  /** Bytes of data behind the header of a simple reply. */
  simple(error: number): number {
    const { command, bytes } = this.request;
    const { structured, extended } = this.#agreement;
    demand(!extended, "a simple reply where headers are extended");
    demand(!(structured && command === CMD.READ), "a simple reply to READ where replies are structured");
    demand(!(structured && command === CMD.BLOCK_STATUS && error === 0), "a simple reply to BLOCK_STATUS");
    demand(this.#chunks.length === 0, "a simple reply behind chunks");
    if (error !== 0) this.#fail(error, "");
    return command === CMD.READ && error === 0 ? bytes : 0;
  }

  simpleData(data: Buffer): void {
    this.#cover(this.request.offset, data.length);
    data.copy(this.#room());
  }

  /** Takes a chunk. @returns whether it was the last */
  chunk(flags: number, type: number, payload: Buffer): boolean {
    demand(this.#agreement.structured, "a chunk where replies are simple");
    demand((flags & ~REPLY_FLAG_DONE) === 0, `chunk flags 0x${flags.toString(16)}`);
    const isDone = flags === REPLY_FLAG_DONE;
    this.#chunks.push(type);
    if ((type & CHUNK_ERROR) !== 0) this.#errorChunk(type, payload);
    else if (type === CHUNK.NONE) {
      demand(payload.length === 0, "NONE with a payload");
      demand(isDone, "NONE that is not the last");
    } else if (type === CHUNK.OFFSET_DATA) this.#dataChunk(payload);
    else if (type === CHUNK.OFFSET_HOLE) this.#holeChunk(payload);
    else this.#statusChunk(type, payload);
    return isDone;
  }

  /** The whole answer. @throws Breach where something is missing from it */
  answer(): Answer {
    const { command, bytes } = this.request;
    const isGood = this.#error === 0;
    const covered = this.#covered.reduce((sum, { start, end }) => sum + end - start, 0);
    if (command === CMD.READ && isGood) demand(covered === bytes, `${covered} bytes of ${bytes}`);
    if (command === CMD.BLOCK_STATUS && isGood) {
      const names = [...this.#agreement.contexts.values()];
      demand(
        names.every((name) => this.#status.has(name)),
        "a context has no status",
      );
    }
    return {
      error: this.#error,
      message: this.#message,
      errorOffsets: this.#errorOffsets,
      data: isGood && command === CMD.READ ? this.#room() : undefined,
      holes: this.#holes,
      status: this.#status,
      chunks: this.#chunks,
    };
  }

  /** Made when it is wanted: a READ that is to be refused may be of any length. */
  #room(): Buffer {
    return (this.#data ??= Buffer.alloc(this.request.bytes));
  }

  #fail(error: number, message: string): void {
    demand(KNOWN_ERRORS.has(error), `error ${error} is none of the protocol's`);
    if (this.#error !== 0) return;
    this.#error = error;
    this.#message = message;
  }

  #errorChunk(type: number, payload: Buffer): void {
    demand(type === CHUNK.ERROR || type === CHUNK.ERROR_OFFSET, `an error chunk of type ${type}`);
    const fixedBytes = type === CHUNK.ERROR ? 6 : 14;
    demand(payload.length >= fixedBytes, "an error chunk that is too short");
    const messageBytes = payload.readUInt16BE(4);
    demand(payload.length === fixedBytes + messageBytes, "an error chunk whose message does not fit");
    const error = payload.readUInt32BE(0);
    demand(error !== 0, "an error chunk without an error");
    let message: string;
    try {
      message = utf8.decode(payload.subarray(6, 6 + messageBytes));
    } catch {
      throw new Breach("a message that is not UTF-8");
    }
    this.#fail(error, message);
    if (type === CHUNK.ERROR) return;
    const at = Number(payload.readBigUInt64BE(6 + messageBytes));
    const { offset, bytes } = this.request;
    demand(at >= offset && at < offset + bytes, `an error at ${at}, outside of ${offset}+${bytes}`);
    this.#errorOffsets.push(at);
  }

  #dataChunk(payload: Buffer): void {
    demand(payload.length > 8, "OFFSET_DATA without data");
    const at = Number(payload.readBigUInt64BE(0));
    this.#cover(at, payload.length - 8);
    payload.copy(this.#room(), at - this.request.offset, 8);
  }

  #holeChunk(payload: Buffer): void {
    demand(payload.length === 12, `OFFSET_HOLE of ${payload.length} bytes`);
    const [at, bytes] = [Number(payload.readBigUInt64BE(0)), payload.readUInt32BE(8)];
    demand(bytes > 0, "a hole of no bytes");
    this.#cover(at, bytes);
    this.#holes.push({ start: at, end: at + bytes });
  }

  #cover(start: number, length: number): void {
    const { command, flags, offset, bytes } = this.request;
    const end = start + length;
    demand(command === CMD.READ, `content in the answer to command ${command}`);
    demand(
      start >= offset && end <= offset + bytes,
      `content at ${start}+${length}, outside of ${offset}+${bytes}`,
    );
    demand(
      !this.#covered.some((each) => start < each.end && end > each.start),
      `content at ${start} for the second time`,
    );
    demand(!this.#errorOffsets.some((at) => at >= start && at < end), "content behind its own error");
    demand((flags & CMD_FLAG.DF) === 0 || this.#covered.length === 0, "READ with DF was answered in pieces");
    this.#covered.push({ start, end });
  }

  #statusChunk(type: number, payload: Buffer): void {
    const { command, flags, bytes } = this.request;
    const { extended, contexts } = this.#agreement;
    demand(type === (extended ? CHUNK.BLOCK_STATUS_EXT : CHUNK.BLOCK_STATUS), `a chunk of type ${type}`);
    demand(command === CMD.BLOCK_STATUS, `a status in the answer to command ${command}`);
    const [headBytes, eachBytes] = extended ? [8, 16] : [4, 8];
    const count = (payload.length - headBytes) / eachBytes;
    demand(
      Number.isInteger(count) && count > 0 && count <= DESCRIPTORS_MAX,
      `a status of ${payload.length} bytes`,
    );
    if (extended) demand(payload.readUInt32BE(4) === count, "a status that miscounts itself");
    const id = payload.readUInt32BE(0);
    const name = contexts.get(id);
    demand(name !== undefined, `a status of context ${id}, which was not chosen`);
    demand(!this.#status.has(name), `the status of ${name} for the second time`);
    const found: Descriptor[] = [];
    for (let at = headBytes; at < payload.length; at += eachBytes) {
      found.push(
        extended
          ? { bytes: Number(payload.readBigUInt64BE(at)), flags: Number(payload.readBigUInt64BE(at + 8)) }
          : { bytes: payload.readUInt32BE(at), flags: payload.readUInt32BE(at + 4) },
      );
    }
    demand(
      found.every((each) => each.bytes > 0),
      "a descriptor of no bytes",
    );
    const total = found.reduce((sum, each) => sum + each.bytes, 0);
    demand(total - found.at(-1)!.bytes < bytes, "descriptors behind the end of what was asked for");
    if ((flags & CMD_FLAG.REQ_ONE) !== 0)
      demand(count === 1 && total <= bytes, "more than REQ_ONE asked for");
    this.#status.set(name, found);
  }
}
