/**
 * Text for a terminal: words from the outside made harmless, columns, wrapping.
 *
 * Labels, paths and messages come from a guest's disk or from a stranger's directory: a control byte or a bidi
 * override in them could repaint the screen or turn a sentence around (H25). Every such text goes through
 * `printable` before it is shown, and JSON through `printableJson`.
 */

import { printable as harmless, UNSHOWABLE } from "../bytes/text.ts";

/** What the output can show. */
export interface Screen {
  readonly columns: number;
  readonly colour: boolean;
  /** Whether anything but ASCII may be written. */
  readonly unicode: boolean;
}

const ASCII = /^[\x20-\x7e]*$/;
const NOT_ASCII = /[^\x20-\x7e]/gu;
const WIDE =
  /[\p{Emoji_Presentation}\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\uff01-\uff60]/u;

/** The text with everything that could act on a terminal written as an escape: `\u{1b}`, `\u{202e}`. */
export function printable(text: string, screen: Pick<Screen, "unicode">): string {
  const shown = harmless(text);
  return screen.unicode
    ? shown
    : shown.replace(NOT_ASCII, (letter) => `\\u{${letter.codePointAt(0)!.toString(16)}}`);
}

/** A JSON document with the same characters escaped; it stays the same document. */
export function printableJson(value: unknown): string {
  return JSON.stringify(value, undefined, 2).replace(UNSHOWABLE, (character) =>
    character === "\n" ? character : jsonEscaped(character),
  );
}

function jsonEscaped(character: string): string {
  const units = Array.from({ length: character.length }, (_, i) => character.charCodeAt(i));
  return units.map((unit) => `\\u${unit.toString(16).padStart(4, "0")}`).join("");
}

/** Terminal columns that `text` takes. */
export function columnsOf(text: string): number {
  if (ASCII.test(text)) return text.length;
  let columns = 0;
  for (const character of text) columns += /\p{M}/u.test(character) ? 0 : WIDE.test(character) ? 2 : 1;
  return columns;
}

export function padEnd(text: string, columns: number): string {
  return text + " ".repeat(Math.max(0, columns - columnsOf(text)));
}

export function padStart(text: string, columns: number): string {
  return " ".repeat(Math.max(0, columns - columnsOf(text))) + text;
}

/** The text cut to `columns`, with `...` where something is missing. */
export function cut(text: string, columns: number): string {
  if (columnsOf(text) <= columns) return text;
  let kept = "";
  let used = 0;
  for (const character of text) {
    used += columnsOf(character);
    if (used > columns - 3) break;
    kept += character;
  }
  return `${kept}...`;
}

/** Breaks between words at `columns`; the first line starts with `first`, the others are indented as far. */
export function wrap(first: string, text: string, columns: number): string[] {
  const indent = " ".repeat(columnsOf(first));
  const lines: string[] = [];
  let line = first;
  let empty = true;
  for (const word of text.split(" ")) {
    if (!empty && columnsOf(line) + 1 + columnsOf(word) > columns) {
      lines.push(line.trimEnd());
      line = indent;
      empty = true;
    }
    line += empty ? word : ` ${word}`;
    empty = false;
  }
  return [...lines, line.trimEnd()];
}

export interface Column {
  readonly title: string;
  readonly align?: "right";
}

/** A table with a heading; the last column is not padded. Columns without any content are left out. */
export function table(columns: readonly Column[], rows: readonly (readonly string[])[]): string[] {
  const shown = columns.map((_, i) => i).filter((i) => rows.some((row) => row[i] !== ""));
  const widths = columns.map((column, i) =>
    Math.max(columnsOf(column.title), ...rows.map((row) => columnsOf(row[i]!))),
  );
  const line = (cells: readonly string[]): string =>
    shown
      .map((i) =>
        columns[i]!.align === "right" ? padStart(cells[i]!, widths[i]!) : padEnd(cells[i]!, widths[i]!),
      )
      .join("   ")
      .trimEnd();
  return [line(columns.map((column) => column.title)), ...rows.map(line)].map((text) => ` ${text}`);
}
