import assert from "node:assert/strict";
import { test } from "node:test";
import type { BlockDevice } from "../../device/device.ts";
import { draw } from "../../testing/draw.ts";
import { ReplayedDevice } from "./replayed-device.ts";

function memoryDevice(text: string): BlockDevice {
  const bytes = Buffer.from(text);
  return {
    bytes: bytes.length,
    read: async (at, into) => into.set(bytes.subarray(at, at + into.length)),
    map: () => assert.fail("the map of the device below must not shine through"),
    [Symbol.asyncDispose]: async () => {},
  };
}

test("every part of a replayed device reads as the whole does", async () => {
  const blocks = new Map([
    [3, { from: 16, escaped: true }],
    [1, { from: 0, escaped: false }],
  ]);
  const replayed = new ReplayedDevice(
    memoryDevice("aaaaaaaabbbbbbbbccccccccdddddddd"),
    {
      blockBytes: 8,
      journal: memoryDevice("BBBBBBBBxxxxxxxx____DDDD"),
      escapedBytes: Buffer.from("MAGI"),
      blocks,
    },
    { at: 18, bytes: Buffer.from("PATCH") },
  );
  const whole = "aaaaaaaaBBBBBBBBccPATCHcMAGIDDDD";
  for (let at = 0; at < whole.length; at++) {
    for (let end = at; end <= whole.length; end++) {
      const into = Buffer.alloc(end - at);
      await replayed.read(at, into);
      assert.equal(into.toString(), whole.slice(at, end), `${at}-${end}`);
    }
  }
  assert.equal(draw(replayed.writes, 32, 8), ".###");
});
