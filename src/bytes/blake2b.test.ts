import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { requires, run } from "../testing/tools.ts";
import { blake2b } from "./blake2b.ts";

const LENGTHS = [0, 1, 63, 127, 128, 129, 255, 256, 257, 4064, 16_352];
const bytesOf = (length: number) => Buffer.from(Array.from({ length }, (_, i) => (i * 37 + length) & 0xff));

test("BLAKE2b of 64 bytes is that of OpenSSL, at every edge of a block", () => {
  for (const length of LENGTHS) {
    const bytes = bytesOf(length);
    const expected = createHash("blake2b512").update(bytes).digest();
    assert.deepEqual(Buffer.from(blake2b(bytes, 64)), expected, `${length} bytes`);
  }
});

test("BLAKE2b of 32 bytes is that of b2sum", (t) => {
  if (!requires(t, "b2sum")) return;
  for (const length of LENGTHS) {
    const bytes = bytesOf(length);
    const [expected] = run("b2sum", ["--length=256"], bytes).split(" ");
    assert.equal(Buffer.from(blake2b(bytes, 32)).toString("hex"), expected, `${length} bytes`);
  }
});
