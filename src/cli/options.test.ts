import assert from "node:assert/strict";
import { test } from "node:test";
import { parseAllow, parseAlso, parseKeyValues, parseOffset, parseSector, surveyOptions } from "./options.ts";

test("words come in lists, repeated, and only known ones", () => {
  assert.deepEqual(parseAlso("zeros,gaps"), ["zeros", "gaps"]);
  assert.deepEqual(parseAlso("zeros", ["zeros"]), ["zeros"]);
  for (const bad of ["swop", "", "zeros,", "toString"]) assert.throws(() => parseAlso(bad), /is not one of/);
  assert.deepEqual(parseAllow("replay,outside=/a,shadow-loss,outside=/b"), {
    replay: true,
    outside: ["/a", "/b"],
    shadowLoss: true,
  });
  assert.deepEqual(parseAllow("children", { replay: true }), { replay: true, children: true });
  for (const bad of ["outside=", "outside", "toString", "replay,x"]) {
    assert.throws(() => parseAllow(bad), /is not one of/);
  }
});

test("offsets and sectors collect", () => {
  assert.deepEqual(parseOffset("1M", parseOffset("0x200")), [512, 2 ** 20]);
  assert.deepEqual(parseSector("2954648"), [1512779776]);
  assert.throws(() => parseSector("1K"), /512-byte sector/);
  assert.throws(() => parseOffset("x"), /Write bytes/);
});

test("options of a format are pairs", () => {
  assert.deepEqual(parseKeyValues("compat=1.1,cluster_size=64K", { a: "b=c" }), {
    a: "b=c",
    compat: "1.1",
    cluster_size: "64K",
  });
  assert.throws(() => parseKeyValues("compat"), /KEY=VALUE/);
});

test("flags become options; --pack is a method; what is not given is not set", () => {
  assert.deepEqual(surveyOptions({}), {});
  assert.deepEqual(surveyOptions({ pack: true, minHole: 65536, format: "raw" }), {
    format: "raw",
    method: "pack",
    minHoleBytes: 65536,
  });
});
