import assert from "node:assert/strict";
import { test } from "node:test";
import { screenOf } from "./terminal.ts";
import { columnsOf, cut, printable, printableJson, table, wrap } from "./text.ts";

test("what a terminal could obey is shown as an escape (H25)", () => {
  const evil = "a\x1b[31m\u202eb\x9b\u2066\n\u200b\u{e0041}";
  const shown = printable(evil, { unicode: true });
  assert.doesNotMatch(shown, /[\p{Cc}\p{Cf}]/u);
  assert.match(shown, /^a\\\S+\[31m\\u\{202e\}b/);
  assert.equal(printable("Müller 日本", { unicode: true }), "Müller 日本");
  assert.equal(printable("Müller", { unicode: false }), "M\\u{fc}ller");
});

test("JSON keeps its meaning and loses its teeth", () => {
  const value = { path: "a\x1b\u202e\x9b\u{e0041}\ud800", list: [1, "x\ny"] };
  const text = printableJson(value);
  assert.doesNotMatch(text.replaceAll("\n", ""), /[\p{Cc}\p{Cf}]/u);
  assert.deepEqual(JSON.parse(text), value);
});

test("columns count what a terminal shows", () => {
  assert.equal(columnsOf("日本"), 4);
  assert.equal(columnsOf("e\u0301"), 1);
  assert.equal(cut("abcdefgh", 6), "abc...");
  assert.equal(cut("日本語日本", 8), "日本...");
});

test("wrapping indents under the text", () => {
  assert.deepEqual(wrap(" note  ", "one two three four", 16), [
    " note  one two",
    "       three",
    "       four",
  ]);
});

test("a table leaves empty columns out", () => {
  const columns = [{ title: "A" }, { title: "B" }, { title: "C", align: "right" as const }];
  assert.deepEqual(table(columns, [["x", "", "1"], ["yy", "", "22"]]), [" A     C", " x     1", " yy   22"]); // prettier-ignore
});

test("colour needs a terminal that wants it; anything but ASCII a UTF-8 locale", () => {
  const terminal = { isTTY: true, columns: 100 };
  assert.deepEqual(screenOf(terminal, { LANG: "de_DE.UTF-8" }), {
    columns: 100,
    colour: true,
    unicode: true,
  });
  assert.equal(screenOf(terminal, { NO_COLOR: "1" }).colour, false);
  assert.equal(screenOf(terminal, { TERM: "dumb" }).colour, false);
  assert.equal(screenOf({}, {}).colour, false);
  assert.equal(screenOf({}, {}).columns, 80);
  assert.equal(screenOf(terminal, { LC_ALL: "C", LANG: "en_US.UTF-8" }).unicode, false);
  assert.equal(screenOf(terminal, { COLUMNS: "60" }).columns, 60);
  assert.equal(screenOf(terminal, { COLUMNS: "banana" }).columns, 80);
});
