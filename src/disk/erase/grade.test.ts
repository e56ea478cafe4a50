import assert from "node:assert/strict";
import { test } from "node:test";
import type { Stack } from "../../host/stack.ts";
import { bestGrade, gradeOf, lowest, servedGrade } from "./grade.ts";

const TURNING: Stack = {
  filesystem: "ext4",
  journalsData: false,
  passesDiscards: false,
  devices: [{ name: "sda", medium: "magnetic", discards: false }],
  opaque: undefined,
};
const SEEN = { stayedInPlace: true, unwrittenBytes: 0 };

test("overwritten is what is overwritten in place on disks that turn, and nothing else", () => {
  assert.equal(gradeOf(TURNING, SEEN).grade, "overwritten");
  assert.equal(gradeOf({ ...TURNING, filesystem: "xfs" }, SEEN).grade, "overwritten");
  assert.equal(gradeOf({ ...TURNING, filesystem: undefined }, SEEN).grade, "overwritten", "a disk itself");
  const device = (medium: Stack["devices"][number]["medium"]) => ({ name: "sdb", medium, discards: true });
  const doubts: readonly (readonly [Partial<Stack>, RegExp])[] = [
    [{ filesystem: "btrfs" }, /btrfs is not known to overwrite/],
    [{ filesystem: "zfs" }, /zfs is not known/],
    [{ filesystem: "overlay" }, /overlay is not known/],
    [{ filesystem: "unknown" }, /unknown is not known/],
    [{ journalsData: true }, /journal/],
    [{ journalsData: undefined }, /journal.* not known/],
    [{ devices: [], opaque: "vda" }, /below vda/],
    [{ devices: [...TURNING.devices, device("flash")] }, /sdb is flash/],
    [{ devices: [device("shingled")] }, /sdb is shingled/],
    [{ devices: [device("unknown")] }, /sdb does not say/],
  ];
  for (const [change, reason] of doubts) {
    const { grade, reasons } = gradeOf({ ...TURNING, ...change }, SEEN);
    assert.equal(grade, "logical", String(reason));
    assert.match(reasons.join("; "), reason);
  }
});

test("what was seen while it was done can only lower the grade", () => {
  for (const [seen, reason] of [
    [{ ...SEEN, stayedInPlace: false }, /moved blocks/],
    [{ ...SEEN, stayedInPlace: undefined }, /not known/],
    [{ ...SEEN, unwrittenBytes: 8192 }, /8 KiB/],
  ] as const) {
    const { grade, reasons } = gradeOf(TURNING, seen);
    assert.equal(grade, "logical", String(reason));
    assert.match(reasons.join("; "), reason);
  }
  assert.equal(bestGrade(TURNING).grade, "overwritten");
  assert.equal(servedGrade(TURNING).grade, "logical");
});

test("an image whose files lie in several places has the grade of the worst of them", () => {
  const flash = { ...TURNING, devices: [{ name: "sdb", medium: "flash", discards: true } as const] };
  const both = lowest([TURNING, flash, flash].map((stack) => gradeOf(stack, SEEN)));
  assert.deepEqual(both, gradeOf(flash, SEEN));
  assert.equal(lowest([TURNING, TURNING].map(bestGrade)).grade, "overwritten");
});

test("every report says what the host does with what is freed, and what the real answer is", () => {
  const flash = { ...TURNING, devices: [{ name: "sda", medium: "flash", discards: true } as const] };
  assert.match(gradeOf(flash, SEEN).reasons.join("; "), /fstrim/);
  assert.match(
    gradeOf({ ...flash, passesDiscards: true }, SEEN).reasons.join("; "),
    /passes on what is freed/,
  );
  for (const stack of [TURNING, flash]) assert.match(gradeOf(stack, SEEN).reasons.at(-1)!, /encryption/);
});
