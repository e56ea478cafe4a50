import assert from "node:assert/strict";
import { test } from "node:test";
import { duration, figure, figures, parseBytes, size, sizeIn, unitOf } from "./sizes.ts";

test("sizes are read in powers of 1024", () => {
  assert.equal(parseBytes("4096"), 4096);
  assert.equal(parseBytes("0x1000"), 4096);
  for (const text of ["4K", "4k", "4KiB", "4kb", "4kib"]) assert.equal(parseBytes(text), 4096, text);
  assert.equal(parseBytes("1.5G"), 1.5 * 2 ** 30);
  assert.equal(parseBytes("8T"), 2 ** 43);
  for (const text of ["", "K", "-1", "1.3", "1e3", "4 K", "0x", "9007199254740992", "4Q", "1KK"]) {
    assert.equal(parseBytes(text), undefined, text);
  }
});

test("sizes are shown in KiB, MiB and GiB, and never round to nothing", () => {
  assert.equal(size(0), "0 bytes");
  assert.equal(size(512), "512 bytes");
  assert.equal(size(65536), "64 KiB");
  assert.equal(size(1.25 * 2 ** 20), "1.3 MiB");
  assert.equal(size(16 * 2 ** 40), "16,384 GiB");
  const gibibytes = unitOf(40 * 2 ** 30);
  assert.equal(figure(12.3 * 2 ** 30, gibibytes), "12.3");
  assert.deepEqual(figures([2 ** 30, 2 ** 29], gibibytes), ["1.0", "0.5"]);
  assert.deepEqual(figures([2 ** 30, 12 * 2 ** 20], gibibytes), ["1 GiB", "12 MiB"]);
  assert.equal(sizeIn(2 ** 29, gibibytes), "0.5 GiB");
  assert.equal(sizeIn(0, gibibytes), "0.0 GiB");
});

test("durations", () => {
  assert.deepEqual([0, 9.4, 200, 7200].map(duration), ["1 s", "9 s", "3 min", "2 h"]);
});
