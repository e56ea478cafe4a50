import assert from "node:assert/strict";
import { test } from "node:test";
import { type CrashState, crashStates, recording } from "./crash.ts";
import { Random, seeds } from "./seeds.ts";
import { SimulatedFile } from "./simulated-file.ts";

/** The first byte of each 512-byte sector, as a string of digits. */
const sectors = (file: SimulatedFile) =>
  Array.from({ length: Math.ceil(file.bytes / 512) }, (_, i) => file.peek(i * 512, 1)[0]).join("");

async function outcomes(
  act: (file: SimulatedFile) => Promise<void>,
  statesPerFlush = 64,
  picture: (state: CrashState) => string = ({ files }) => sectors(files.get("")!),
): Promise<string[]> {
  const before = SimulatedFile.from(new Uint8Array(2048).fill(1), { blockBytes: 1024 });
  const { files, trace } = recording(new Map([["", before]]));
  await act(files.get("")!);
  const seen = new Set<string>();
  for await (const state of crashStates(new Map([["", before]]), trace, {
    random: new Random(1),
    statesPerFlush,
  })) {
    seen.add(picture(state));
  }
  assert.equal(sectors(before), "1111", "the initial file is left alone");
  return [...seen].sort();
}

test("unflushed sectors survive in any subset, flushed ones all", async () => {
  const seen = await outcomes(async (file) => {
    await file.write(0, new Uint8Array(512).fill(2));
    await file.flush();
    await file.write(1024, new Uint8Array(1024).fill(3));
  });
  assert.deepEqual(seen, ["1111", "2111", "2113", "2131", "2133"]);
});

test("a punch may happen block by block, a truncation happens or not", async () => {
  const seen = await outcomes(async (file) => {
    await file.punch({ start: 0, end: 2048 });
    await file.flush();
    await file.truncate(512);
  });
  assert.deepEqual(seen, ["0", "0000", "0011", "1100", "1111"]);
});

test("later writes of the same sector win over earlier ones", async () => {
  const seen = await outcomes(async (file) => {
    await file.write(0, new Uint8Array(512).fill(2));
    await file.write(0, new Uint8Array(512).fill(3));
  });
  assert.deepEqual(seen, ["1111", "2111", "3111"]);
});

test("many parts are sampled: all, none, torn and reordered ones among them", async () => {
  const seen = await outcomes(async (file) => {
    for (let i = 0; i < 4; i++) await file.write(i * 512, new Uint8Array(512).fill(2 + i));
    for (let i = 0; i < 4; i++) await file.write(i * 512, new Uint8Array(512).fill(6 + i));
  }, 200);
  for (const expected of ["1111", "6789", "2111", "6789", "2789"])
    assert.ok(seen.includes(expected), expected);
  assert.ok(seen.length > 30, `${seen.length} different states`);
});

test("the files of one image lose their flushes separately", async () => {
  const before = new Map(["a", "b"].map((name) => [name, SimulatedFile.from(new Uint8Array(512).fill(1))]));
  const { files, trace } = recording(before);
  await files.get("a")!.write(0, new Uint8Array(512).fill(2));
  await files.get("b")!.write(0, new Uint8Array(512).fill(2));
  await files.get("a")!.flush();
  await files.get("b")!.flush();
  const seen = new Set<string>();
  for await (const state of crashStates(before, trace, { random: new Random(1) })) {
    seen.add([...state.files.values()].map(sectors).join());
  }
  assert.deepEqual([...seen].sort(), ["1,1", "1,2", "2,1", "2,2"]);
});

test("the same seed draws the same states", async () => {
  for (const seed of seeds(2)) {
    const before = new Map([["", new SimulatedFile(100_000)]]);
    const { files, trace } = recording(before);
    await files.get("")!.write(0, new Random(seed).bytes(100_000));
    const labels = async () => {
      const all: string[] = [];
      for await (const { label } of crashStates(before, trace, { random: new Random(seed) })) all.push(label);
      return all;
    };
    const first = await labels();
    assert.ok(first.length > 20);
    assert.deepEqual(await labels(), first);
  }
});
