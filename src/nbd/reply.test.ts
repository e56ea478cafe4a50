/**
 * Replies byte by byte, as the specification lays them out (doc/proto.md: Simple reply message, Structured reply chunk
 * message, Structured reply types; 64-bit headers: its branch extension-ext-header).
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  doneBytes,
  emptyReply,
  errorReply,
  putDone,
  putReadHead,
  readHeadBytes,
  statusChunk,
} from "./reply.ts";
import type { Request } from "./request.ts";

const SIMPLE = { structured: false, extended: false };
const STRUCTURED = { structured: true, extended: false };
const EXTENDED = { structured: true, extended: true };

const COOKIE = "fedcba98 76543210";

/** A READ of 512 bytes past 4 GiB, with a cookie of which no half is a small number. */
function request(command: number): Request {
  return {
    command,
    flags: 0,
    cookieHigh: 0xfedcba98,
    cookieLow: 0x76543210,
    offsetHigh: 0x12,
    offsetLow: 0x34567890,
    offset: 0x12_3456_7890,
    bytes: 0x200,
  };
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
const spelled = (...words: readonly string[]): string => words.join("").replaceAll(" ", "");

/** What `put` writes, with nothing written around it. */
function written(bytes: number, put: (view: DataView, at: number) => void): string {
  const buffer = Buffer.alloc(bytes + 16, 0xee);
  put(new DataView(buffer.buffer, buffer.byteOffset, buffer.length), 8);
  assert.equal(hex(buffer.subarray(0, 8)) + hex(buffer.subarray(8 + bytes)), "ee".repeat(16));
  return hex(buffer.subarray(8, 8 + bytes));
}

test("what stands in front of the data of a READ", () => {
  const head = (wire: typeof SIMPLE): string =>
    written(readHeadBytes(wire), (view, at) => putReadHead(view, at, wire, request(0)));
  assert.equal(head(SIMPLE), spelled("67446698", "00000000", COOKIE));
  // flags: done; type 1: offset and data; 8 + 512 bytes follow.
  const offset = "00000012 34567890";
  assert.equal(head(STRUCTURED), spelled("668e33ef", "0001 0001", COOKIE, "00000208", offset));
  assert.equal(head(EXTENDED), spelled("6e8a278c", "0001 0001", COOKIE, offset, "00000000 00000208", offset));
});

test("done", () => {
  const done = (wire: typeof SIMPLE): string =>
    written(doneBytes(wire), (view, at) => putDone(view, at, wire, request(1)));
  const simple = spelled("67446698", "00000000", COOKIE);
  assert.equal(done(SIMPLE), simple);
  assert.equal(done(STRUCTURED), simple);
  assert.equal(
    done(EXTENDED),
    spelled("6e8a278c", "0001 0000", COOKIE, "00000012 34567890", "00000000 00000000"),
  );
});

test("a READ of nothing", () => {
  assert.equal(hex(emptyReply(SIMPLE, request(0))), spelled("67446698", "00000000", COOKIE));
  assert.equal(hex(emptyReply(STRUCTURED, request(0))), spelled("668e33ef", "0001 0000", COOKIE, "00000000"));
  assert.equal(
    hex(emptyReply(EXTENDED, request(0))),
    spelled("6e8a278c", "0001 0000", COOKIE, "00000012 34567890", "00000000 00000000"),
  );
});

test("errors: a chunk with a message where chunks are expected, a number elsewhere", () => {
  const text = "6e 6f 70 65";
  const error = (wire: typeof SIMPLE, command: number): string =>
    hex(errorReply(wire, request(command), 0x16, "nope"));
  const number = spelled("67446698", "00000016", COOKIE);
  for (const command of [0, 1, 3, 4, 5, 6]) assert.equal(error(SIMPLE, command), number);
  for (const command of [1, 3, 4, 5, 6]) assert.equal(error(STRUCTURED, command), number);
  for (const command of [0, 7]) {
    assert.equal(
      error(STRUCTURED, command),
      spelled("668e33ef", "0001 8001", COOKIE, "0000000a", "00000016 0004", text),
    );
  }
  for (const command of [0, 1, 3, 4, 5, 6, 7]) {
    assert.equal(
      error(EXTENDED, command),
      spelled(
        "6e8a278c",
        "0001 8001",
        COOKIE,
        "00000012 34567890",
        "00000000 0000000a",
        "00000016 0004",
        text,
      ),
    );
  }
});

test("a message is a string of the protocol: at most 4096 bytes of whole characters", () => {
  const bytes = Buffer.from(errorReply(STRUCTURED, request(0), 5, "é".repeat(5000)));
  const length = bytes.readUInt16BE(24);
  assert.equal(bytes.length, 26 + length);
  assert.equal(bytes.readUInt32BE(16), 6 + length);
  assert.ok(length > 0 && length <= 4096);
  assert.ok(!bytes.subarray(26).toString("utf8").includes("\ufffd"));
  const cut = errorReply(STRUCTURED, request(0), 5, `x${"é".repeat(5000)}`);
  assert.ok(!Buffer.from(cut.subarray(26)).toString("utf8").includes("\ufffd"), "no character is cut");
});

test("block status: a context and its descriptors, of 32 bits or of 64", () => {
  const found = [
    { bytes: 0x10000, flags: 3 },
    { bytes: 0x200, flags: 0 },
  ];
  assert.equal(
    hex(statusChunk(STRUCTURED, request(7), 0x11, found, false)),
    spelled(
      "668e33ef",
      "0000 0005",
      COOKIE,
      "00000014",
      "00000011",
      "00010000 00000003",
      "00000200 00000000",
    ),
  );
  assert.equal(
    hex(statusChunk(EXTENDED, request(7), 0x11, [{ bytes: 2 ** 40, flags: 1 }], true)),
    spelled(
      "6e8a278c",
      "0001 0006",
      COOKIE,
      "00000012 34567890",
      "00000000 00000018",
      "00000011 00000001",
      "00000100 00000000",
      "00000000 00000001",
    ),
  );
});
