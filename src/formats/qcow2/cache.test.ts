import assert from "node:assert/strict";
import { test } from "node:test";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { TableCache } from "./cache.ts";

const TABLE = 512;
const fileOf = (tables: number) =>
  SimulatedFile.from(new Uint8Array(tables * TABLE).map((_, i) => i / TABLE));

test("a budget holds whatever is asked for, and the least recently used table goes first (H24)", async () => {
  const file = fileOf(100);
  const cache = new TableCache(file, TABLE, 8 * TABLE);
  for (let i = 0; i < 8; i++) assert.equal((await cache.get(i * TABLE)).view.getUint8(0), i);
  assert.equal(cache.peek(0)?.at, 0, "used again");
  await cache.get(8 * TABLE);
  assert.equal(cache.peek(TABLE), undefined, "the oldest is gone");
  assert.ok(cache.peek(0), "the one that was used again is not");
  for (let i = 0; i < 100; i++) await cache.get(i * TABLE);
  assert.equal(Array.from({ length: 100 }, (_, i) => cache.peek(i * TABLE)).filter(Boolean).length, 8);
});

test("two loads of one table share it, and a failed one may be tried again", async () => {
  const file = fileOf(2);
  const cache = new TableCache(file, TABLE, 8 * TABLE);
  const [first, second] = await Promise.all([cache.get(TABLE), cache.get(TABLE)]);
  assert.equal(first, second);
  assert.equal(file.reads, 1);
  file.fault = { read: 1 };
  await assert.rejects(cache.get(0), { kind: "io" });
  assert.equal((await cache.get(0)).view.getUint8(5), 0);
});

test("a table that is forgotten is read anew", async () => {
  const file = fileOf(1);
  const cache = new TableCache(file, TABLE, 8 * TABLE);
  await cache.get(0);
  await file.write(0, new Uint8Array([9]));
  assert.equal((await cache.get(0)).view.getUint8(0), 0);
  cache.forget(0);
  assert.equal((await cache.get(0)).view.getUint8(0), 9);
});
