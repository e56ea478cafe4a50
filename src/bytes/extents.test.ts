import assert from "node:assert/strict";
import { test } from "node:test";
import { draw } from "../testing/draw.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { type Extent, ExtentBuilder, ExtentSet } from "./extents.ts";

const BYTES = 90;

/** The same set in two forms: extents, and one flag a byte. */
interface Pair {
  readonly set: ExtentSet;
  readonly model: readonly boolean[];
}

function randomPair(random: Random): Pair {
  const model = Array<boolean>(BYTES).fill(false);
  const extents: Extent[] = [];
  for (let n = random.below(8); n > 0; n--) {
    const start = random.below(BYTES);
    const end = random.between(start, Math.min(BYTES, start + 20) + 1);
    extents.push({ start, end });
    model.fill(true, start, end);
  }
  return { set: ExtentSet.from(extents), model };
}

const picture = (model: readonly boolean[]) => model.map((is) => (is ? "#" : ".")).join("");

function mustBe(set: ExtentSet, model: readonly boolean[], label: string): void {
  assert.equal(draw(set, model.length), picture(model), label);
  assert.equal(set.bytes, model.filter(Boolean).length, label);
  let last = -1;
  for (const { start, end } of set) {
    assert.ok(start > last && end > start, `${label}: sorted, disjoint, merged`);
    last = end;
  }
  assert.equal([...set].length, set.count, label);
}

test("set operations agree with one flag a byte", () => {
  for (const seed of seeds(400)) {
    const random = new Random(seed);
    const [a, b] = [randomPair(random), randomPair(random)];
    const label = `SEED=${seed}`;
    const combined = (what: (x: boolean, y: boolean) => boolean) =>
      a.model.map((x, i) => what(x, b.model[i]!));
    mustBe(a.set, a.model, label);
    mustBe(
      a.set.union(b.set),
      combined((x, y) => x || y),
      `${label} union`,
    );
    mustBe(
      a.set.intersect(b.set),
      combined((x, y) => x && y),
      `${label} intersect`,
    );
    mustBe(
      a.set.subtract(b.set),
      combined((x, y) => x && !y),
      `${label} subtract`,
    );
    assert.equal(a.set.equals(b.set), picture(a.model) === picture(b.model), label);
    assert.ok(a.set.union(b.set).equals(b.set.union(a.set)), label);

    const start = random.below(BYTES);
    const range = { start, end: random.between(start, BYTES + 1) };
    const inside = a.model.slice(range.start, range.end);
    mustBe(
      a.set.within(range),
      a.model.map((is, i) => is && i >= range.start && i < range.end),
      `${label} within`,
    );
    assert.equal(a.set.covers(range), inside.every(Boolean), `${label} covers`);
    assert.equal(a.set.touches(range), inside.some(Boolean), `${label} touches`);
    assert.equal(a.set.has(start), a.model[start], `${label} has`);
  }
});

test("H10: free is aligned inward, used outward", () => {
  for (const seed of seeds(200)) {
    const random = new Random(seed);
    const { set, model } = randomPair(random);
    const grain = random.pick([1, 2, 3, 10, 45]);
    const inward = Array<boolean>(BYTES).fill(false);
    for (const { start, end } of set) {
      for (let cell = 0; cell < BYTES; cell += grain)
        if (cell >= start && cell + grain <= end) inward.fill(true, cell, cell + grain);
    }
    mustBe(set.alignInward(grain), inward, `SEED=${seed} inward ${grain}`);
    const outward = model.map((_, i) => {
      const cell = Math.floor(i / grain) * grain;
      return model.slice(cell, cell + grain).some(Boolean);
    });
    mustBe(
      set.alignOutward(grain).within({ start: 0, end: BYTES }),
      outward,
      `SEED=${seed} outward ${grain}`,
    );
  }
  const set = ExtentSet.of({ start: 1, end: 3 }, { start: 5, end: 12 });
  assert.equal(draw(set, 16), ".##..#######....");
  assert.equal(draw(set.alignInward(4), 16), "........####....");
  assert.equal(draw(set.alignOutward(4), 16), "############....");
});

test("shifts, and picks by length", () => {
  const set = ExtentSet.of({ start: 4, end: 6 }, { start: 8, end: 12 });
  assert.equal(draw(set.shift(2), 16), "......##..####..");
  assert.equal(draw(set.shift(-4), 16), "##..####........");
  assert.equal(draw(set.atLeast(3), 16), "........####....");
  assert.equal(set.atLeast(5).count, 0);
});

test("neighbours merge, empty ranges vanish, order does not matter", () => {
  const set = ExtentSet.of(
    { start: 8, end: 10 },
    { start: 3, end: 3 },
    { start: 2, end: 5 },
    { start: 5, end: 8 },
  );
  assert.deepEqual([...set], [{ start: 2, end: 10 }]);
  assert.equal(ExtentSet.of({ start: 3, end: 3 }), ExtentSet.EMPTY);
});

test("offsets up to 2^53 - 1, and nothing else", () => {
  const end = Number.MAX_SAFE_INTEGER;
  const set = ExtentSet.of({ start: end - 10, end });
  assert.equal(set.bytes, 10);
  assert.ok(set.has(end - 1));
  const builder = new ExtentBuilder();
  for (const [from, to] of [
    [-1, 5],
    [5, 4],
    [0, end + 1],
    [NaN, 5],
    [0, NaN],
  ] as const) {
    assert.throws(() => builder.add(from, to), /internal error/);
  }
});

test("a set is not changed by what is made of it", () => {
  const builder = new ExtentBuilder();
  builder.add(0, 5);
  const set = builder.build();
  builder.add(5, 9);
  builder.add(20, 30);
  set.within({ start: 1, end: 3 });
  set.shift(3);
  assert.deepEqual([...set], [{ start: 0, end: 5 }]);
  assert.deepEqual(
    [...builder.build()],
    [
      { start: 0, end: 9 },
      { start: 20, end: 30 },
    ],
  );
});

test("ten million extents are no matter", () => {
  const count = 10_000_000;
  const packed = new Float64Array(count * 2);
  for (let i = 0; i < packed.length; i++) packed[i] = i * 4096;
  const set = ExtentSet.fromSorted(packed);
  assert.equal(set.bytes, count * 4096);
  assert.equal(set.subtract(set.shift(2048)).bytes, count * 2048);
  assert.equal(set.intersect(set.shift(4096)).bytes, 0);
  assert.equal(set.union(set.shift(4096)).count, 1);
  assert.equal(set.seek(4096 * 2 * 7_000_000), 7_000_000);
});
