import assert from "node:assert/strict";
import { test } from "node:test";
import { parseXml } from "./xml.ts";

const parse = (text: string) => parseXml(Buffer.from(text), "x");

test("elements, attributes, text and characters by name and number", () => {
  const { name, children } = parse(
    `<?xml version="1.0"?><!DOCTYPE a PUBLIC "-//x" "http://x">\n<!-- - -- --><a><b c='1 &lt;' d="&#65;&#x42;"/>` +
      `<e> x &amp; <!-- hidden -->y </e ></a>\n`,
  );
  assert.equal(name, "a");
  assert.deepEqual([...children[0]!.attributes], [["c", "1 <"], ["d", "AB"]]); // prettier-ignore
  assert.equal(children[1]!.text, " x & y ");
});

test("what is not well formed, or could expand, is corrupt", () => {
  for (const text of [
    "",
    "text",
    "<a>",
    "</a>",
    "<a></b>",
    "<a/><b/>",
    "<a/>text",
    "<a b=1/>",
    '<a b="1" b="2"/>',
    "<a>&b;</a>",
    "<a>&amp</a>",
    "<a>&</a>",
    "<a>&#0;</a>",
    "<a>&#xd800;</a>",
    "<a>&#1114112;</a>",
    "<a",
    "<a><![CDATA[x]]></a>",
    '<!DOCTYPE a [<!ENTITY b "c">]><a/>',
    "<!-- <a/>",
    "<a>".repeat(70) + "</a>".repeat(70),
  ]) {
    assert.throws(() => parse(text), { kind: "corrupt" }, text);
  }
  assert.throws(() => parseXml(Uint8Array.of(0x3c, 0xff), "x"), { kind: "corrupt" });
});

test("long texts that match nothing take no longer than their length (H24)", () => {
  const started = performance.now();
  for (const text of [
    "<!--" + "-".repeat(1e5),
    "<a" + " b=''".repeat(3e4),
    "<?" + "?".repeat(1e5),
    "&".repeat(1e5),
  ]) {
    assert.throws(() => parse(text), { kind: "corrupt" });
  }
  assert.ok(performance.now() - started < 2000);
});
