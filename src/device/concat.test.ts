import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { concat } from "./concat.ts";
import { readBytes, wholeMap } from "./device.ts";
import { slice } from "./slice.ts";

test("slices of a device, one behind the other, read and map as the device", async () => {
  const random = new Random(1);
  const content = random.bytes(64 * 1024);
  const file = SimulatedFile.from(content);
  await file.punch({ start: 16 * 1024, end: 24 * 1024 });
  content.fill(0, 16 * 1024, 24 * 1024);
  const cuts = [0, 4096, 5000, 20_000, 64 * 1024];
  const whole = concat(cuts.slice(1).map((end, i) => slice(file, { start: cuts[i]!, end })));
  assert.equal(whole.bytes, file.bytes);
  for (let i = 0; i < 200; i++) {
    const at = random.below(file.bytes);
    const bytes = random.below(file.bytes - at + 1);
    assert.deepEqual(await readBytes(whole, at, bytes), content.slice(at, at + bytes));
  }
  let at = 0;
  for (const { start, end, kind } of await wholeMap(whole)) {
    assert.equal(start, at, "gapless");
    assert.equal(kind, start >= 16 * 1024 && end <= 24 * 1024 ? "hole" : "data");
    at = end;
  }
  assert.equal(at, whole.bytes);
  assert.deepEqual(await wholeMap(concat([])), []);
});

test("a place ends with its part", () => {
  const file = new SimulatedFile(8192);
  const part = { ...slice(file, { start: 4096, end: 8192 }), bytes: 4096 };
  part.locate = (offset, bytes) => ({ file, at: 4096 + offset, bytes });
  const whole = concat([part, part]);
  assert.deepEqual(whole.locate!(4096 + 512, 1024, "read"), { file, at: 4096 + 512, bytes: 1024 });
  assert.deepEqual(whole.locate!(4000, 200, "read"), { file, at: 8096, bytes: 96 });
});
