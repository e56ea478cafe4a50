import assert from "node:assert/strict";
import { test } from "node:test";
import { ExtentSet } from "../bytes/extents.ts";
import { draw } from "../testing/draw.ts";
import { type Ledger, prove } from "./prove.ts";

/** A filesystem of blocks of 10 bytes; `map` and `tree` are pictures, `#` free and reachable respectively. */
function ledger(map: string, tree: string, more: Partial<Ledger> = {}): Ledger {
  const blocks = (picture: string) =>
    ExtentSet.from(Array.from(picture, (c, i) => ({ start: i * 10, end: c === "#" ? i * 10 + 10 : i * 10 })));
  return {
    blockBytes: 10,
    bytes: map.length * 10,
    refusal: undefined,
    free: () => Promise.resolve([blocks(map)]),
    async walk(visit) {
      for (const { start, end } of blocks(tree)) visit(0, start, end, start / 10);
    },
    describe: (owner) => Promise.resolve({ name: `inode ${owner}`, path: `/file${owner}` }),
    ...more,
  };
}

test("free where map and walk agree; leaks are kept and counted", async () => {
  const proven = await prove(ledger("..##..#.", "##..#..."), "full");
  assert.equal(draw(proven.free[0]!, 80, 10), "..##..#.");
  assert.equal(proven.leakedBytes, 20);
  assert.equal(proven.refusal, undefined);
});

test("H1: one block that is reachable and marked free refuses the volume, by name", async () => {
  const proven = await prove(ledger("..####..", "##...#.."), "full");
  assert.equal(proven.free[0]!.count, 0);
  assert.equal(proven.refusal?.code, "contradiction");
  assert.match(proven.refusal.message, /block 5 of \/file5$/);
});

test("the map alone is believed only when asked for", async () => {
  const proven = await prove(ledger("..####..", "##...#.."), "bitmap");
  assert.equal(draw(proven.free[0]!, 80, 10), "..####..");
});

test("what lies behind the filesystem, and parts of blocks, are never free", async () => {
  const odd = ExtentSet.of({ start: 15, end: 39 }, { start: 60, end: 100 });
  for (const proof of ["full", "bitmap"] as const) {
    const proven = await prove(ledger("........", "", { free: () => Promise.resolve([odd]) }), proof);
    assert.equal(draw(proven.free[0]!, 100, 10), "..#...##..", proof);
  }
});

test("a walk that visits part of a block owns all of it", async () => {
  const proven = await prove(ledger("..##....", "", { walk: async (visit) => visit(0, 39, 40, 7) }), "full");
  assert.match(proven.refusal!.message, /block 3 of \/file7/);
});

test("a refusal found on the way refuses", async () => {
  const refusal = { code: "bad-checksum", message: "group 3", hint: "fsck" };
  for (const when of ["free", "walk"] as const) {
    const base = ledger("..##....", "##......");
    const late = {
      ...base,
      refusal: undefined as Ledger["refusal"],
      async free() {
        if (when === "free") late.refusal = refusal;
        return base.free();
      },
      async walk() {
        late.refusal = refusal;
      },
    };
    const proven = await prove(late, "full");
    assert.deepEqual([proven.refusal, proven.free[0]!.count], [refusal, 0], when);
  }
});
