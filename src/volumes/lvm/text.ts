/**
 * The text that LVM2 keeps its metadata in: sections, assignments, arrays.
 *
 *   vg0 {                              # a section
 *       seqno = 4                      # a number
 *       status = ["READ", "WRITE"]     # an array of strings and numbers
 *       physical_volumes { pv0 { id = "IHSho7-LaWX-e0Vq-rVnx-drX7-MUnd-iyV03b" } }
 *   }
 *
 * The parser is stricter than LVM's: what it does not know, such as the same name twice, is an error.
 */
import { DiskError } from "../../error.ts";

/** LVM's own metadata nests four deep. */
const DEPTH_MAX = 16;

export type Scalar = string | number;
export type Value = Scalar | readonly Scalar[] | Section;

/** The named values of one section, with accessors that say what is wrong where. */
export class Section {
  readonly path: string;
  readonly #values: ReadonlyMap<string, Value>;

  constructor(path: string, values: ReadonlyMap<string, Value>) {
    this.path = path;
    this.#values = values;
  }

  has(name: string): boolean {
    return this.#values.has(name);
  }

  /** @throws DiskError `corrupt` when it is missing or no number of at least 0 */
  number(name: string): number {
    const value = this.#values.get(name);
    if (typeof value !== "number" || value < 0) throw this.#unexpected(name, "a number");
    return value;
  }

  string(name: string): string {
    const value = this.#values.get(name);
    if (typeof value !== "string") throw this.#unexpected(name, "a string");
    return value;
  }

  /** An array; the empty one where the name is missing. */
  array(name: string): readonly Scalar[] {
    const value = this.#values.get(name) ?? [];
    if (!Array.isArray(value)) throw this.#unexpected(name, "an array");
    return value as readonly Scalar[];
  }

  section(name: string): Section {
    const value = this.#values.get(name);
    if (!(value instanceof Section)) throw this.#unexpected(name, "a section");
    return value;
  }

  /** The sections inside, with their names; none where `name` is missing. */
  sections(name?: string): (readonly [string, Section])[] {
    if (name !== undefined) return this.has(name) ? this.section(name).sections() : [];
    return [...this.#values].filter((entry): entry is [string, Section] => entry[1] instanceof Section);
  }

  names(): readonly string[] {
    return [...this.#values.keys()];
  }

  /** All strings inside, at any depth, with the name that each stands under. */
  *strings(): Generator<readonly [string, string]> {
    for (const [name, value] of this.#values) {
      if (value instanceof Section) yield* value.strings();
      else for (const scalar of [value].flat()) if (typeof scalar === "string") yield [name, scalar];
    }
  }

  #unexpected(name: string, expected: string): DiskError {
    const found = this.#values.get(name);
    const kind =
      found === undefined ? "nothing" : found instanceof Section ? "a section" : JSON.stringify(found);
    return new DiskError("corrupt", `LVM metadata: ${this.path}/${name} is ${kind}, expected ${expected}`);
  }
}

/** @throws DiskError `corrupt` */
export function parseText(text: string): Section {
  const parser = new Parser(text);
  return parser.section("", 0);
}

/** One word: a name or a number. Longer ones are cut, and fail. */
const WORD = /[A-Za-z0-9_.+/-]{1,1024}/y;
const MARKS = "{}[]=,";
const BLANKS = " \t\r\n\0";
const NUMBER = /^[+-]?\d+(\.\d+)?$/;

type Token = { readonly kind: "mark" | "word" | "quoted"; readonly text: string };

class Parser {
  readonly #text: string;
  #at = 0;
  #ahead: Token | undefined;

  constructor(text: string) {
    this.#text = text;
  }

  /** What stands between braces, or in the whole text at depth 0. */
  section(path: string, depth: number): Section {
    if (depth > DEPTH_MAX) throw this.#error(`sections are nested deeper than ${DEPTH_MAX}`);
    const values = new Map<string, Value>();
    for (;;) {
      const token = this.#next();
      if (token === undefined ? depth === 0 : token.kind === "mark" && token.text === "}" && depth > 0) break;
      if (token === undefined || token.kind === "mark") throw this.#error("a name is missing");
      if (values.has(token.text)) throw this.#error(`"${token.text}" is there twice`);
      values.set(token.text, this.#valueOf(token.text, path, depth));
    }
    return new Section(path, values);
  }

  #valueOf(name: string, path: string, depth: number): Value {
    const mark = this.#next();
    if (mark?.kind === "mark" && mark.text === "{") return this.section(`${path}/${name}`, depth + 1);
    if (mark?.kind !== "mark" || mark.text !== "=")
      throw this.#error(`"${name}" is followed by neither { nor =`);
    if (!this.#skip("[")) return this.#scalar();
    const values: Scalar[] = [];
    while (!this.#skip("]")) {
      if (values.length > 0 && !this.#skip(",")) throw this.#error("a comma is missing in an array");
      values.push(this.#scalar());
    }
    return values;
  }

  #scalar(): Scalar {
    const token = this.#next();
    if (token?.kind === "quoted") return token.text;
    if (token?.kind !== "word" || !NUMBER.test(token.text)) throw this.#error("a value is missing");
    const value = Number(token.text);
    if (Number.isInteger(value) && !Number.isSafeInteger(value))
      throw this.#error(`${token.text} is too large`);
    return value;
  }

  #skip(mark: string): boolean {
    this.#ahead ??= this.#next();
    if (this.#ahead?.kind !== "mark" || this.#ahead.text !== mark) return false;
    this.#ahead = undefined;
    return true;
  }

  /** The next token; undefined at the end of the text. */
  #next(): Token | undefined {
    if (this.#ahead !== undefined) {
      const token = this.#ahead;
      this.#ahead = undefined;
      return token;
    }
    this.#skipBlanks();
    const first = this.#text[this.#at];
    if (first === undefined) return undefined;
    if (MARKS.includes(first)) {
      this.#at++;
      return { kind: "mark", text: first };
    }
    if (first === '"') return { kind: "quoted", text: this.#quoted() };
    WORD.lastIndex = this.#at;
    const word = WORD.exec(this.#text)?.[0];
    if (word === undefined) throw this.#error("neither a name, a value nor a mark");
    this.#at += word.length;
    return { kind: "word", text: word };
  }

  /** Passes white space and comments, which end with their line. */
  #skipBlanks(): void {
    for (;;) {
      const next = this.#text[this.#at];
      if (next === "#") {
        const end = this.#text.indexOf("\n", this.#at);
        this.#at = end < 0 ? this.#text.length : end + 1;
      } else if (next !== undefined && BLANKS.includes(next)) this.#at++;
      else return;
    }
  }

  #quoted(): string {
    const start = this.#at + 1;
    for (let end = start; end < this.#text.length; end++) {
      if (this.#text[end] === "\\") end++;
      else if (this.#text[end] === '"') {
        this.#at = end + 1;
        return this.#text.slice(start, end).replaceAll(/\\(.)/gs, "$1");
      }
    }
    throw this.#error("a quote is not closed");
  }

  #error(what: string): DiskError {
    return new DiskError("corrupt", `LVM metadata: ${what}, before character ${this.#at}`);
  }
}
