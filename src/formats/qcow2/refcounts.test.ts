import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../../testing/seeds.ts";
import { ClusterCounts } from "./counts.ts";
import { readRefcount, refcountMax, writeRefcount } from "./refcounts.ts";

test("counts of every width keep their neighbours", () => {
  for (let order = 0; order <= 6; order++) {
    const entries = (512 * 8) / 2 ** order;
    const view = new DataView(new ArrayBuffer(512));
    const model = Array.from({ length: entries }, () => 0);
    const random = new Random(order);
    for (let i = 0; i < 2000; i++) {
      const index = random.below(entries);
      const value = random.below(Math.min(refcountMax(order), 2 ** 53 - 1) + 1);
      writeRefcount(view, order, index, value);
      model[index] = value;
    }
    assert.deepEqual(
      Array.from(model, (_, index) => readRefcount(view, order, index)),
      model,
      `order ${order}`,
    );
  }
});

test("narrow counts fill a byte from its low end, wide ones are big-endian", () => {
  const view = new DataView(new ArrayBuffer(8));
  view.setUint8(0, 0b1000_0001);
  assert.deepEqual([0, 1, 7].map((i) => readRefcount(view, 0, i)), [1, 0, 1]);
  assert.deepEqual([0, 3].map((i) => readRefcount(view, 1, i)), [1, 2]);
  assert.deepEqual([0, 1].map((i) => readRefcount(view, 2, i)), [1, 8]);
  assert.equal(readRefcount(view, 4, 0), 0x8100);
  assert.equal(readRefcount(view, 6, 0), 0x8100 * 2 ** 48);
  assert.deepEqual([0, 1, 4].map(refcountMax), [1, 3, 65535]);
}); // prettier-ignore

test("counts of clusters widen as they grow, and stop at their limit", () => {
  const counts = new ClusterCounts();
  const far = 2 ** 40;
  assert.equal(counts.get(far), 0);
  assert.equal(counts.mayHave(0, far), false);
  for (const [times, sum] of [[200, 200], [200, 400], [65_535, 65_935], [2 ** 33, 65_935 + 2 ** 33]] as const) {
    assert.equal(counts.add(far, times), 0);
    assert.equal(counts.get(far), sum);
  }
  counts.set(far + 1, 7);
  counts.set(3, 1);
  assert.deepEqual([...counts.clusters()], [3, far, far + 1]);
  assert.equal(counts.add(3, 5, 4), 2, "two find no room");
  assert.equal(counts.get(3), 4);
  assert.equal(counts.mayHave(far, far + 1), true);
}); // prettier-ignore
