import assert from "node:assert/strict";
import { test } from "node:test";
import { DiskError } from "../error.ts";
import * as field from "./struct.ts";

const Sample = field.struct({
  magic: field.ascii(4),
  tiny: field.u8,
  gap: field.skip(1),
  short: field.u16be,
  little: field.u16le,
  word: field.u32be,
  wordLittle: field.u32le,
  offset: field.u64be,
  offsetLittle: field.u64le,
  flags: field.bits64be,
  flagsLittle: field.bits64le,
  id: field.raw(3),
  list: field.u32leArray(2),
});

const HEX =
  "71620000 aa ff 0102 0201 01020304 04030201 0000000000000102 0201000000000000" +
  "8000000000000001 0100000000000080 abcdef 01000000ffffffff";
const BYTES = Buffer.from(HEX.replaceAll(" ", ""), "hex");

const VALUES = {
  magic: "qb",
  tiny: 0xaa,
  short: 0x0102,
  little: 0x0102,
  word: 0x01020304,
  wordLittle: 0x01020304,
  offset: 0x0102,
  offsetLittle: 0x0102,
  flags: 0x8000000000000001n,
  flagsLittle: 0x8000000000000001n,
  id: Uint8Array.of(0xab, 0xcd, 0xef),
  list: [1, 0xffffffff],
};

test("decodes and encodes by one table", () => {
  assert.equal(Sample.bytes, BYTES.length);
  assert.deepEqual(Sample.decode(BYTES), VALUES);
  const into = new Uint8Array(BYTES.length + 2);
  into[1 + Sample.at.gap] = 0xff;
  Sample.encode(VALUES, into, 1);
  assert.deepEqual(Buffer.from(into.subarray(1, -1)), BYTES, "what is skipped keeps its bytes");
});

test("gives the offset of every field", () => {
  assert.deepEqual([Sample.at.magic, Sample.at.tiny, Sample.at.short, Sample.at.list], [0, 4, 6, 53]);
});

test("encodes some fields and leaves the others", () => {
  const into = Buffer.from(BYTES);
  Sample.encode({ word: 5 }, into);
  const expected = Buffer.from(BYTES);
  expected.writeUInt32BE(5, Sample.at.word);
  assert.deepEqual(into, expected);
});

test("H23: numbers past 2^53 - 1 are unsupported, flags are kept whole", () => {
  const Offset = field.struct({ offset: field.u64be });
  const decode = (hex: string) => Offset.decode(Buffer.from(hex, "hex")).offset;
  assert.equal(decode("001fffffffffffff"), Number.MAX_SAFE_INTEGER);
  for (const hex of ["0020000000000000", "0020000000000001", "8000000000000000", "ffffffffffffffff"]) {
    assert.throws(() => decode(hex), { name: "DiskError", kind: "unsupported" }, hex);
  }
});

test("a structure that is cut short is corrupt, not a crash", () => {
  for (const [bytes, at] of [
    [BYTES.subarray(0, -1), 0],
    [BYTES, 1],
    [BYTES, -1],
    [new Uint8Array(0), 0],
  ] as const) {
    assert.throws(
      () => Sample.decode(bytes, at),
      (error) => error instanceof DiskError && error.kind === "corrupt",
    );
  }
});

test("views of a larger buffer are read at their own offset", () => {
  const larger = Buffer.concat([Buffer.from("zz"), BYTES]);
  assert.deepEqual(Sample.decode(larger.subarray(2)), VALUES);
  const { id } = Sample.decode(larger, 2);
  larger.fill(0);
  assert.deepEqual(id, VALUES.id, "raw bytes are a copy");
});

test("writes a UUID as RFC 9562 does", () => {
  const bytes = Buffer.from("f81d4fae7dec11d0a76500a0c91e6bf6", "hex");
  assert.equal(field.uuidText(bytes), "f81d4fae-7dec-11d0-a765-00a0c91e6bf6");
});
