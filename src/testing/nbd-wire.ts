/**
 * The client's side of the transmission phase: requests as bytes, and bytes as replies. Everything that the specification
 * demands of a reply is asserted while it is parsed; nothing of it is shared with the server but the numbers.
 *
 *   const wire = new Wire("structured");
 *   socket.write(wire.ask({ command: CMD.READ, offset: 0, bytes: 512 }));
 *   for (const reply of wire.hear(received)) console.log(reply.cookie, reply.error, reply.data);
 */
import assert from "node:assert/strict";
import {
  CHUNK,
  CHUNK_ERROR,
  CMD,
  CMD_FLAG,
  EXTENDED_REPLY_MAGIC,
  EXTENDED_REQUEST_MAGIC,
  REPLY_FLAG_DONE,
  REQUEST_MAGIC,
  SIMPLE_REPLY_MAGIC,
  STRING_BYTES_MAX,
  STRUCTURED_REPLY_MAGIC,
} from "../nbd/protocol.ts";

export type Dialect = "simple" | "structured" | "extended";

export interface Question {
  readonly command: number;
  readonly flags?: number;
  readonly offset?: number | bigint;
  readonly bytes?: number | bigint;
  /** Of a WRITE. */
  readonly data?: Uint8Array;
}

/** What was asked, with its name on the wire. */
export interface Asked extends Question {
  readonly cookie: bigint;
}

export interface Reply {
  readonly asked: Asked;
  /** 0, or what the server says is wrong. */
  readonly error: number;
  readonly message: string;
  /** Of a READ that succeeded. */
  readonly data?: Buffer;
  /** Of a BLOCK_STATUS: for each context the descriptors. */
  readonly status: ReadonlyMap<number, readonly { readonly bytes: number; readonly flags: number }[]>;
}

/** A reply of which chunks are still to come. */
interface Open {
  error: number;
  message: string;
  data: Buffer | undefined;
  contentBytes: number;
  contentChunks: number;
  status: Map<number, { bytes: number; flags: number }[]>;
}

export function requestBytes(dialect: Dialect, { command, flags = 0, cookie, ...more }: Asked): Buffer {
  const { offset = 0, data = new Uint8Array(), bytes = data.length } = more;
  const isLong = dialect === "extended";
  const head = Buffer.alloc(isLong ? 32 : 28);
  head.writeUInt32BE(isLong ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC, 0);
  const payload = isLong && command === CMD.WRITE ? CMD_FLAG.PAYLOAD_LEN : 0;
  head.writeUInt16BE(flags | payload, 4);
  head.writeUInt16BE(command, 6);
  head.writeBigUInt64BE(cookie, 8);
  head.writeBigUInt64BE(BigInt(offset), 16);
  if (isLong) head.writeBigUInt64BE(BigInt(bytes), 24);
  else head.writeUInt32BE(Number(bytes), 24);
  return Buffer.concat([head, data]);
}

export class Wire {
  readonly dialect: Dialect;
  readonly #asked = new Map<bigint, Asked>();
  readonly #open = new Map<bigint, Open>();
  #nextCookie = 0xfeed_0000_ffff_fff0n;
  /** Received, and no whole message yet. */
  #rest: Buffer = Buffer.alloc(0);

  constructor(dialect: Dialect) {
    this.dialect = dialect;
  }

  /** Requests without an answer. */
  get unanswered(): number {
    return this.#asked.size;
  }

  /** Bytes that are no whole message yet. */
  get cutBytes(): number {
    return this.#rest.length;
  }

  /** Gives a request its name; the reply to it is waited for, unless there is none. */
  name(question: Question): Asked {
    const asked = { ...question, cookie: this.#nextCookie++ };
    if (question.command !== CMD.DISC) this.#asked.set(asked.cookie, asked);
    return asked;
  }

  ask(question: Question): Buffer {
    return requestBytes(this.dialect, this.name(question));
  }

  /** @returns the replies that are whole now. @throws AssertionError where the server breaks the specification */
  hear(received: Uint8Array): Reply[] {
    const bytes = this.#rest.length === 0 ? Buffer.from(received) : Buffer.concat([this.#rest, received]);
    const replies: Reply[] = [];
    let at = 0;
    for (;;) {
      const [used, reply] = this.#message(bytes.subarray(at));
      if (used === 0) break;
      at += used;
      if (reply !== undefined) replies.push(reply);
    }
    this.#rest = bytes.subarray(at);
    return replies;
  }

  /** One message at the front: its length, 0 where it is cut, and the reply that it makes whole. */
  #message(bytes: Buffer): [number, Reply | undefined] {
    if (bytes.length < 4) return [0, undefined];
    const magic = bytes.readUInt32BE(0);
    if (magic === SIMPLE_REPLY_MAGIC) return this.#simple(bytes);
    const isLong = this.dialect === "extended";
    const expected = isLong ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC;
    assert.equal(magic, expected, `magic of a ${this.dialect} reply`);
    assert.notEqual(this.dialect, "simple");
    const headBytes = isLong ? 32 : 20;
    if (bytes.length < headBytes) return [0, undefined];
    const payloadBytes = isLong ? Number(bytes.readBigUInt64BE(24)) : bytes.readUInt32BE(16);
    if (bytes.length < headBytes + payloadBytes) return [0, undefined];
    const asked = this.#askedAs(bytes.readBigUInt64BE(8));
    if (isLong) assert.equal(bytes.readBigUInt64BE(16), BigInt(asked.offset ?? 0), "the offset is echoed");
    const flags = bytes.readUInt16BE(4);
    assert.equal(flags & ~REPLY_FLAG_DONE, 0, "flags of a chunk");
    const isLast = flags === REPLY_FLAG_DONE;
    const type = bytes.readUInt16BE(6);
    this.#chunk(asked, type, isLast, bytes.subarray(headBytes, headBytes + payloadBytes));
    return [headBytes + payloadBytes, isLast ? this.#close(asked) : undefined];
  }

  #askedAs(cookie: bigint): Asked {
    const asked = this.#asked.get(cookie);
    assert.ok(asked !== undefined, `a reply to ${cookie}, which nobody asked`);
    return asked;
  }

  #simple(bytes: Buffer): [number, Reply | undefined] {
    if (bytes.length < 16) return [0, undefined];
    assert.notEqual(this.dialect, "extended", "with 64-bit headers no reply is simple");
    const asked = this.#askedAs(bytes.readBigUInt64BE(8));
    const error = bytes.readUInt32BE(4);
    const isRead = asked.command === CMD.READ;
    if (this.dialect === "structured") assert.ok(!isRead, "a structured READ is never answered simply");
    if (asked.command === CMD.BLOCK_STATUS) assert.notEqual(error, 0, "a status needs a chunk");
    const dataBytes = isRead && error === 0 ? Number(asked.bytes ?? 0) : 0;
    if (bytes.length < 16 + dataBytes) return [0, undefined];
    assert.ok(!this.#open.has(asked.cookie), "a simple reply among chunks");
    this.#asked.delete(asked.cookie);
    const data = isRead && error === 0 ? { data: Buffer.from(bytes.subarray(16, 16 + dataBytes)) } : {};
    return [16 + dataBytes, { asked, error, message: "", status: new Map(), ...data }];
  }

  #chunk(asked: Asked, type: number, isLast: boolean, payload: Buffer): void {
    const open = this.#openOf(asked);
    if ((type & CHUNK_ERROR) !== 0) return failedBy(open, type, payload);
    switch (type) {
      case CHUNK.NONE:
        assert.ok(isLast && payload.length === 0, "a NONE chunk is the last, and empty");
        break;
      case CHUNK.OFFSET_DATA: {
        assert.equal(asked.command, CMD.READ);
        assert.ok(payload.length >= 9, "content of at least one byte");
        const at = Number(payload.readBigUInt64BE(0) - BigInt(asked.offset ?? 0));
        const bytes = payload.length - 8;
        assert.ok(at >= 0 && at + bytes <= Number(asked.bytes), "content inside of what was asked");
        open.data ??= Buffer.alloc(Number(asked.bytes));
        payload.copy(open.data, at, 8);
        open.contentBytes += bytes;
        open.contentChunks++;
        break;
      }
      case CHUNK.BLOCK_STATUS:
      case CHUNK.BLOCK_STATUS_EXT:
        assert.equal(type === CHUNK.BLOCK_STATUS_EXT, this.dialect === "extended", "the kind of status");
        addStatus(open, asked, type, payload);
        break;
      default:
        assert.fail(`a chunk of type ${type}`);
    }
  }

  #openOf({ cookie }: Asked): Open {
    let open = this.#open.get(cookie);
    if (open === undefined) {
      open = {
        error: 0,
        message: "",
        data: undefined,
        contentBytes: 0,
        contentChunks: 0,
        status: new Map(),
      };
      this.#open.set(cookie, open);
    }
    return open;
  }

  #close(asked: Asked): Reply {
    const { error, message, data, contentBytes, contentChunks, status } = this.#openOf(asked);
    this.#open.delete(asked.cookie);
    this.#asked.delete(asked.cookie);
    if (error !== 0) return { asked, error, message, status };
    if (asked.command === CMD.BLOCK_STATUS) assert.ok(status.size > 0, "a status that says something");
    if (asked.command !== CMD.READ) return { asked, error, message, status };
    assert.equal(contentBytes, Number(asked.bytes ?? 0), "content for all that was asked");
    if (((asked.flags ?? 0) & CMD_FLAG.DF) !== 0) assert.ok(contentChunks <= 1, "DF: one chunk of content");
    return { asked, error, message, status, data: data ?? Buffer.alloc(0) };
  }
}

function failedBy(open: Open, type: number, payload: Buffer): void {
  assert.ok(type === CHUNK.ERROR || type === CHUNK.ERROR_OFFSET, `an error chunk of type ${type}`);
  const tail = type === CHUNK.ERROR_OFFSET ? 8 : 0;
  assert.ok(payload.length >= 6 + tail, "room for the error");
  open.error = payload.readUInt32BE(0);
  assert.notEqual(open.error, 0, "an error has a number");
  const length = payload.readUInt16BE(4);
  assert.ok(length <= STRING_BYTES_MAX, "a message of moderate length");
  assert.equal(payload.length, 6 + length + tail, "the message ends where the chunk does");
  open.message = payload.toString("utf8", 6, 6 + length);
}

function addStatus(open: Open, { bytes, flags }: Asked, type: number, payload: Buffer): void {
  const isLong = type === CHUNK.BLOCK_STATUS_EXT;
  const [fixed, each] = isLong ? [8, 16] : [4, 8];
  const id = payload.readUInt32BE(0);
  assert.ok(!open.status.has(id), "one chunk for each context");
  const count = (payload.length - fixed) / each;
  assert.ok(Number.isInteger(count) && count >= 1, `${payload.length} bytes of descriptors`);
  if (isLong) assert.ok([0, count].includes(payload.readUInt32BE(4)), "the count of descriptors");
  const found: { bytes: number; flags: number }[] = [];
  let sum = 0;
  for (let at = fixed; at < payload.length; at += each) {
    const [length, state] = isLong
      ? [Number(payload.readBigUInt64BE(at)), Number(payload.readBigUInt64BE(at + 8))]
      : [payload.readUInt32BE(at), payload.readUInt32BE(at + 4)];
    assert.ok(length > 0, "a descriptor of something");
    assert.ok(sum < Number(bytes), "all descriptors but the last end inside of what was asked");
    sum += length;
    found.push({ bytes: length, flags: state });
  }
  if (((flags ?? 0) & CMD_FLAG.REQ_ONE) !== 0) {
    assert.ok(count === 1 && sum <= Number(bytes), "REQ_ONE: one descriptor, not past what was asked");
  }
  open.status.set(id, found);
}
