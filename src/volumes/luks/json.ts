/**
 * JSON that a stranger wrote: bounded in depth and in the number of values before it is parsed, and read through
 * questions that name what is wrong.
 */
import { narrow } from "../../bytes/struct.ts";
import { DiskError } from "../../error.ts";

/** Deeper than this, cryptsetup does not read either. */
const DEPTH_MAX = 32;
/** 32 slots and as many tokens and digests have some thousands. */
const VALUES_MAX = 50_000;

/** Names are shown in messages. */
const NAME_LENGTH_MAX = 64;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/** @throws DiskError `corrupt` */
export function parseJson(text: string): Json {
  let depth = 0;
  let values = 0;
  for (let i = 0; i < text.length; i++) {
    switch (text.charCodeAt(i)) {
      case QUOTE:
        for (i++; i < text.length && text.charCodeAt(i) !== QUOTE; i++) {
          if (text.charCodeAt(i) === BACKSLASH) i++;
        }
        break;
      case 0x5b: // [
      case 0x7b: // {
        depth++;
        values++;
        break;
      case 0x5d: // ]
      case 0x7d: // }
        depth--;
        break;
      case 0x2c: // ,
        values++;
        break;
    }
    if (depth > DEPTH_MAX) throw damaged(`is nested more than ${DEPTH_MAX} deep`);
    if (values > VALUES_MAX) throw damaged(`has more than ${VALUES_MAX} values`);
  }
  try {
    return new Json(JSON.parse(text) as unknown, "");
  } catch (cause) {
    throw new DiskError("corrupt", "the JSON of the LUKS2 header cannot be parsed", { cause });
  }
}

function damaged(message: string): DiskError {
  return new DiskError("corrupt", `the JSON of the LUKS2 header ${message}`);
}

/** A value and where it stands: `keyslots.0.kdf`. Every question throws DiskError `corrupt` where it has no answer. */
export class Json {
  readonly path: string;
  readonly #value: unknown;

  constructor(value: unknown, path: string) {
    this.#value = value;
    this.path = path;
  }

  has(name: string): boolean {
    return Object.hasOwn(this.#object(), name);
  }

  get(name: string): Json {
    const object = this.#object();
    if (!Object.hasOwn(object, name)) throw damaged(`lacks ${JSON.stringify(this.#below(name))}`);
    return new Json(object[name], this.#below(name));
  }

  entries(): (readonly [string, Json])[] {
    return Object.entries(this.#object()).map(([name, value]) => {
      if (name.length > NAME_LENGTH_MAX) throw damaged(`has a name of ${name.length} characters`);
      return [name, new Json(value, this.#below(name))];
    });
  }

  /** Short texts: names of ciphers, hashes and types. */
  text(): string {
    if (typeof this.#value !== "string" || this.#value.length > 1024) throw this.#isNot("a text");
    return this.#value;
  }

  texts(): string[] {
    const list = this.#value;
    if (!Array.isArray(list)) throw this.#isNot("a list");
    return list.map((value, i) => new Json(value, this.#below(String(i))).text());
  }

  /** A whole number from `min` to `max`. */
  number(min: number, max: number): number {
    const value = this.#value;
    if (typeof value !== "number" || !Number.isInteger(value)) throw this.#isNot("a whole number");
    if (value < min || value > max) throw damaged(`says ${this.path} = ${value}, not ${min} to ${max}`);
    return value;
  }

  /** A 64-bit number, which JSON holds as a text. @throws DiskError `unsupported` past 2^53 - 1 */
  size(): number {
    const text = this.text();
    if (!/^\d{1,20}$/.test(text)) throw this.#isNot("a number in a text");
    return narrow(BigInt(text));
  }

  base64(): Uint8Array {
    const text = this.text();
    if (!/^[A-Za-z0-9+/]*={0,2}$/.test(text)) throw this.#isNot("base64");
    return Buffer.from(text, "base64");
  }

  #object(): Readonly<Record<string, unknown>> {
    const value = this.#value;
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw this.#isNot("an object");
    return value as Readonly<Record<string, unknown>>;
  }

  #below(name: string): string {
    return this.path === "" ? name : `${this.path}.${name}`;
  }

  #isNot(what: string): DiskError {
    return damaged(`has at ${JSON.stringify(this.path)} what is not ${what}`);
  }
}
