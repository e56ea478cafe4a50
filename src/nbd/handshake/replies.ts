/**
 * The replies to one option, collected and sent at once.
 */
import { OPTION_REPLY_MAGIC, OptionReply, STRING_BYTES_MAX } from "../protocol.ts";

export class Replies {
  private readonly option: number;
  private readonly parts: Uint8Array[] = [];

  constructor(option: number) {
    this.option = option;
  }

  add(type: number, ...data: readonly Uint8Array[]): void {
    const header = new Uint8Array(OptionReply.bytes);
    const bytes = data.reduce((sum, part) => sum + part.length, 0);
    OptionReply.encode({ magic: OPTION_REPLY_MAGIC, option: this.option, type, bytes }, header);
    this.parts.push(header, ...data);
  }

  whole(): Uint8Array {
    return Buffer.concat(this.parts);
  }
}

export function number16(value: number): Uint8Array {
  return Uint8Array.of(value >>> 8, value & 0xff);
}

export function number32(value: number): Uint8Array {
  return Uint8Array.of(value >>> 24, (value >>> 16) & 0xff, (value >>> 8) & 0xff, value & 0xff);
}

export function number64(value: number): Uint8Array {
  return Buffer.concat([number32(Math.floor(value / 2 ** 32)), number32(value >>> 0)]);
}

/** UTF-8, cut between characters where it is longer than a string of the protocol may be. */
export function encodeText(text: string): Uint8Array {
  const into = new Uint8Array(STRING_BYTES_MAX);
  return into.subarray(0, new TextEncoder().encodeInto(text, into).written);
}
