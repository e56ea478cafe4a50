import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../testing/seeds.ts";
import { crc16, crc32, crc32c, crc32OfZeros } from "./checksum.ts";

const CHECK = Buffer.from("123456789");

const inverted = (bytes: Uint8Array) => (~crc32c(0xffffffff, bytes) >>> 0).toString(16);

test("CRC-32C: the vectors of RFC 3720, appendix B.4", () => {
  assert.equal(inverted(CHECK), "e3069283");
  assert.equal(inverted(new Uint8Array(32)), "8a9136aa");
  assert.equal(inverted(new Uint8Array(32).fill(0xff)), "62a8ab43");
  assert.equal(inverted(Uint8Array.from({ length: 32 }, (_, i) => i)), "46dd794e");
  assert.equal(inverted(Uint8Array.from({ length: 32 }, (_, i) => 31 - i)), "113fdb5c");
});

test("CRC-16 and CRC-32: the check values of their catalogue entries (ARC, MODBUS, ISO-HDLC)", () => {
  assert.equal(crc16(0, CHECK), 0xbb3d);
  assert.equal(crc16(0xffff, CHECK), 0x4b37);
  assert.equal(crc32(CHECK), 0xcbf43926);
});

test("a checksum continues over any cut, at any alignment", () => {
  const bytes = new Random(1).bytes(300);
  for (let start = 0; start < 9; start++) {
    const whole = crc32c(7, bytes.slice(start));
    for (let cut = start; cut <= 300; cut += 7) {
      assert.equal(crc32c(crc32c(7, bytes, start, cut), bytes, cut), whole);
      assert.equal(crc32c(crc32c(7, bytes.subarray(start, cut)), bytes.subarray(cut)), whole);
    }
  }
  assert.equal(crc16(crc16(7, bytes, 0, 100), bytes, 100), crc16(7, bytes));
  assert.equal(crc32(bytes.subarray(100), crc32(bytes.subarray(0, 100))), crc32(bytes));
});

test("crc32 of zeros, without reading them", () => {
  for (const bytes of [0, 1, 2, 3, 511, 4096, 1_000_003]) {
    for (const seed of [0, 1, 0xcbf43926, 0xffffffff]) {
      assert.equal(crc32OfZeros(bytes, seed), crc32(new Uint8Array(bytes), seed), `${bytes} ${seed}`);
    }
  }
  const half = 2 ** 51;
  assert.equal(crc32OfZeros(half, crc32OfZeros(half)), crc32OfZeros(2 * half));
});
