/**
 * The data of one option, read from front to back. Everything in it was chosen by a stranger: what does not fit is
 * `OptionRefused`, which becomes an error reply.
 */
import { viewOf } from "../../bytes/struct.ts";
import { REP, STRING_BYTES_MAX } from "../protocol.ts";

/** The option is answered with an error of this type, and the handshake goes on. */
export class OptionRefused extends Error {
  override readonly name = "OptionRefused";
  readonly type: number;

  constructor(type: number, message: string) {
    super(message);
    this.type = type;
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** A string of the protocol: UTF-8, without NUL, of limited length. @throws OptionRefused */
export function decodeText(bytes: Uint8Array, what: string): string {
  if (bytes.length > STRING_BYTES_MAX) {
    throw new OptionRefused(
      REP.ERR_TOO_BIG,
      `${what} has ${bytes.length} bytes, more than ${STRING_BYTES_MAX}`,
    );
  }
  if (bytes.includes(0)) throw new OptionRefused(REP.ERR_INVALID, `${what} has a NUL in it`);
  try {
    return utf8.decode(bytes);
  } catch {
    throw new OptionRefused(REP.ERR_INVALID, `${what} is not UTF-8`);
  }
}

export class Payload {
  private readonly data: Uint8Array;
  private at = 0;

  constructor(data: Uint8Array) {
    this.data = data;
  }

  u16(what: string): number {
    return viewOf(this.take(2, what)).getUint16(0);
  }

  u32(what: string): number {
    return viewOf(this.take(4, what)).getUint32(0);
  }

  /** A length in four bytes, and so many bytes of text. */
  text(what: string): string {
    return decodeText(this.take(this.u32(`the length of ${what}`), what), what);
  }

  get left(): number {
    return this.data.length - this.at;
  }

  /** Nothing may follow. */
  end(): void {
    if (this.left > 0) throw new OptionRefused(REP.ERR_INVALID, `${this.left} bytes too many in this option`);
  }

  private take(bytes: number, what: string): Uint8Array {
    if (bytes > this.left) {
      throw new OptionRefused(REP.ERR_INVALID, `this option ends at ${this.data.length}, inside ${what}`);
    }
    this.at += bytes;
    return this.data.subarray(this.at - bytes, this.at);
  }
}
