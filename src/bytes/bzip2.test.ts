import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { DiskError } from "../error.ts";
import { Random } from "../testing/seeds.ts";
import { requires } from "../testing/tools.ts";
import { bunzip2 } from "./bzip2.ts";

const packed = (content: Uint8Array, level: number): Buffer =>
  spawnSync("bzip2", [`-${level}`, "-c"], { input: content, maxBuffer: 2 ** 28 }).stdout;

/** Text-like, runs, zeros, noise. */
function contents(random: Random): Buffer[] {
  const words = Array.from({ length: 40_000 }, () => `word${random.below(500)} `).join("");
  const runs = Array.from({ length: 300 }, () => Buffer.alloc(random.below(900), random.below(3)));
  return [
    Buffer.alloc(0),
    Buffer.from("a"),
    Buffer.alloc(4, 7),
    Buffer.alloc(5, 7),
    Buffer.alloc(259, 7),
    Buffer.alloc(1_000_000),
    Buffer.from(words),
    Buffer.concat(runs),
    Buffer.from(random.bytes(250_000)),
  ];
}

test("what bzip2 packed is unpacked", (t) => {
  if (!requires(t, "bzip2")) return;
  for (const content of contents(new Random(1))) {
    for (const level of [1, 9]) {
      const out = bunzip2(packed(content, level), content.length);
      assert.ok(content.equals(out), `${content.length} bytes, level ${level}`);
    }
  }
});

test("more than was asked for is refused, and not made (H24)", (t) => {
  if (!requires(t, "bzip2")) return;
  assert.throws(() => bunzip2(packed(Buffer.alloc(64 * 2 ** 20), 9), 1000), {
    kind: "corrupt",
    message: /more than 1000 bytes/,
  });
});

test("damage is found, or at least harmless", (t) => {
  if (!requires(t, "bzip2")) return;
  const random = new Random(2);
  const content = Buffer.from(Array.from({ length: 2000 }, () => `word${random.below(50)} `).join(""));
  const whole = packed(content, 9);
  for (let i = 0; i < 1500; i++) {
    const bytes = Buffer.from(whole);
    const bit = random.below(bytes.length * 8);
    bytes[bit >>> 3]! ^= 1 << (bit & 7);
    const cut = random.oneIn(10) ? random.below(bytes.length) : bytes.length;
    try {
      const out = bunzip2(bytes.subarray(0, cut), content.length);
      assert.ok(content.equals(out), `bit ${bit}`);
    } catch (error) {
      if (!(error instanceof DiskError)) throw error;
    }
  }
});
