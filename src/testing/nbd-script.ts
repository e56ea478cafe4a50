/**
 * A client whose words are known beforehand, for tests of the handshake without any socket: all bytes that it will say,
 * in the clear and after each STARTTLS, and what it heard.
 */
import { ChannelClosed } from "../nbd/channel.ts";
import type { Channel } from "../nbd/channel.ts";
import {
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  OptionHeader,
  OptionReply,
  ProtocolBreach,
} from "../nbd/protocol.ts";

export class ScriptedChannel implements Channel {
  private readonly segments: readonly Uint8Array[];
  private segment = 0;
  private at = 0;
  private readonly parts: Uint8Array[] = [];
  heardBytes = 0;
  /** The most bytes that were asked for at once. */
  longestRead = 0;

  /** What is said in the clear; what is said after the first STARTTLS; and so on. */
  constructor(...segments: readonly Uint8Array[]) {
    this.segments = segments;
  }

  read(bytes: number): Promise<Uint8Array> {
    this.longestRead = Math.max(this.longestRead, bytes);
    const words = this.segments[this.segment] ?? new Uint8Array();
    if (this.at + bytes > words.length) return Promise.reject(new ChannelClosed());
    this.at += bytes;
    return Promise.resolve(words.slice(this.at - bytes, this.at));
  }

  write(bytes: Uint8Array): Promise<void> {
    this.parts.push(bytes.slice());
    this.heardBytes += bytes.length;
    return Promise.resolve();
  }

  startTls(): Promise<void> {
    if (this.at < (this.segments[this.segment]?.length ?? 0)) {
      return Promise.reject(new ProtocolBreach("words in the clear after STARTTLS"));
    }
    this.segment++;
    this.at = 0;
    return Promise.resolve();
  }

  get heard(): Buffer {
    return Buffer.concat(this.parts);
  }

  /** Where the first word lies that was not read, in the segment that is being read. */
  get readTo(): number {
    return this.at;
  }
}

export function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

/** A length in four bytes, and the text. */
export function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([u32(bytes.length), bytes]);
}

export function option(code: number, ...data: readonly Uint8Array[]): Buffer {
  const header = Buffer.alloc(OptionHeader.bytes);
  const bytes = data.reduce((sum, part) => sum + part.length, 0);
  OptionHeader.encode({ magic: OPTION_MAGIC, option: code, bytes }, header);
  return Buffer.concat([header, ...data]);
}

/** The data of INFO and GO. */
export function infoData(name: string, kinds: readonly number[] = []): Buffer {
  return Buffer.concat([text(name), u16(kinds.length), ...kinds.map(u16)]);
}

/** The data of LIST_META_CONTEXT and SET_META_CONTEXT. */
export function contextData(name: string, queries: readonly string[] = []): Buffer {
  return Buffer.concat([text(name), u32(queries.length), ...queries.map(text)]);
}

export interface HeardReply {
  readonly option: number;
  readonly type: number;
  readonly data: Buffer;
}

/** The replies to options in `bytes`, which hold nothing else. @throws where they do */
export function repliesIn(bytes: Buffer): HeardReply[] {
  const replies: HeardReply[] = [];
  for (let at = 0; at < bytes.length;) {
    const header = OptionReply.decode(bytes, at);
    if (header.magic !== OPTION_REPLY_MAGIC) throw new Error(`no reply at ${at}`);
    const start = at + OptionReply.bytes;
    at = start + header.bytes;
    if (at > bytes.length) throw new Error(`the reply ends at ${at}, past ${bytes.length}`);
    replies.push({ option: header.option, type: header.type, data: bytes.subarray(start, at) });
  }
  return replies;
}
