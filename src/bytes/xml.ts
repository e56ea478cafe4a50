/**
 * The XML that describes disks (property lists, Parallels' descriptors), strictly and within limits (H24).
 *
 *   <?xml … ?>  <!DOCTYPE name …>  <!-- … -->     passed over; a DOCTYPE that declares something is refused
 *   <name key="value">text &amp; more</name>      an element: its name, attributes, children, and all of its own text
 *
 * No namespaces, no CDATA, no entities but the five of XML and characters by number: nothing can expand.
 */
import { DiskError } from "../error.ts";

export interface Element {
  readonly name: string;
  readonly attributes: ReadonlyMap<string, string>;
  readonly children: readonly Element[];
  /** Its own text, with the white space that it has. */
  readonly text: string;
}

/** Deeper than any property list or descriptor. */
const DEPTH_MAX = 64;
/** A disk of a million storages or blocks is none. */
const ELEMENTS_MAX = 1_000_000;
const ENTITIES: Readonly<Record<string, string>> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };

const NAME = "[A-Za-z_][\\w.:-]*";
const PASSED_OVER = /<\?[^?]*(?:\?(?!>)[^?]*)*\?>|<!--[^-]*(?:-(?!->)[^-]*)*-->|<!DOCTYPE[^[\]<>]*>/y;
const OPENING = RegExp(`<(${NAME})((?:\\s+${NAME}\\s*=\\s*(?:"[^"<]*"|'[^'<]*'))*)\\s*(/?)>`, "y");
const CLOSING = RegExp(`</(${NAME})\\s*>`, "y");
const ATTRIBUTE = RegExp(`(${NAME})\\s*=\\s*(?:"([^"]*)"|'([^']*)')`, "g");

interface Open {
  readonly name: string;
  readonly attributes: ReadonlyMap<string, string>;
  readonly children: Element[];
  readonly text: string[];
}

/** The outermost element. @throws DiskError `corrupt` with the place, as `what` at a character */
export function parseXml(source: Uint8Array, what: string): Element {
  return new Parser(decoded(source, what), what).document();
}

function decoded(source: Uint8Array, what: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(source);
  } catch (cause) {
    throw new DiskError("corrupt", `${what}: it is no UTF-8`, { cause });
  }
}

class Parser {
  readonly #text: string;
  readonly #what: string;
  readonly #open: Open[] = [{ name: "", attributes: new Map(), children: [], text: [] }];
  #at = 0;
  #elements = 0;

  constructor(text: string, what: string) {
    this.#text = text;
    this.#what = what;
  }

  document(): Element {
    while (this.#at < this.#text.length) this.#next();
    const [outside] = this.#open;
    if (this.#open.length > 1) throw this.#wrong(`<${this.#open.at(-1)!.name}> is not closed`);
    const [root, second] = outside!.children;
    if (root === undefined || second !== undefined || outside!.text.join("").trim() !== "") {
      throw this.#wrong("expected one outermost element");
    }
    return root;
  }

  #next(): void {
    const tag = this.#text.indexOf("<", this.#at);
    const end = tag < 0 ? this.#text.length : tag;
    if (end > this.#at) {
      this.#open.at(-1)!.text.push(this.#plain(this.#text.slice(this.#at, end)));
      this.#at = end;
      return;
    }
    if (this.#match(PASSED_OVER)) return;
    const opening = this.#match(OPENING);
    if (opening) return this.#begin(opening);
    const closing = this.#match(CLOSING);
    if (!closing) throw this.#wrong("expected a tag");
    if (closing[1] !== this.#open.at(-1)!.name) throw this.#wrong(`</${closing[1]}> closes nothing`);
    this.#end();
  }

  #match(pattern: RegExp): RegExpExecArray | undefined {
    pattern.lastIndex = this.#at;
    const match = pattern.exec(this.#text);
    if (match === null) return undefined;
    this.#at = pattern.lastIndex;
    return match;
  }

  #begin([, name, words, isEmpty]: RegExpExecArray): void {
    if (++this.#elements > ELEMENTS_MAX) throw this.#wrong(`more than ${ELEMENTS_MAX} elements`);
    if (this.#open.length > DEPTH_MAX) throw this.#wrong(`deeper than ${DEPTH_MAX} elements`);
    const attributes = new Map<string, string>();
    for (const [, key, quoted, single] of words!.matchAll(ATTRIBUTE)) {
      if (attributes.has(key!)) throw this.#wrong(`attribute ${key} stands twice`);
      attributes.set(key!, this.#plain(quoted ?? single!));
    }
    this.#open.push({ name: name!, attributes, children: [], text: [] });
    if (isEmpty === "/") this.#end();
  }

  #end(): void {
    const { text, ...element } = this.#open.pop()!;
    this.#open.at(-1)!.children.push({ ...element, text: text.join("") });
  }

  #plain(text: string): string {
    if (!text.includes("&")) return text;
    return text.replace(
      /&(?:#(\d{1,7})|#x([0-9a-fA-F]{1,6})|(\w+))?;?/g,
      (all, decimal, hex, name: string) => {
        const number = decimal ? Number(decimal) : hex ? Number.parseInt(hex as string, 16) : undefined;
        const character = number === undefined ? ENTITIES[name] : characterOf(number);
        if (character === undefined || !all.endsWith(";")) throw this.#wrong(`unknown entity ${all}`);
        return character;
      },
    );
  }

  #wrong(why: string): DiskError {
    return new DiskError("corrupt", `${this.#what}: ${why}, at character ${this.#at}`);
  }
}

function characterOf(number: number): string | undefined {
  const isSurrogate = number >= 0xd800 && number < 0xe000;
  return number === 0 || number > 0x10ffff || isSurrogate ? undefined : String.fromCodePoint(number);
}
