import assert from "node:assert/strict";
import { test } from "node:test";
import { ExtentBuilder } from "../bytes/extents.ts";
import { readBytes, wholeMap } from "../device/device.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { linear, mappedVolume, type Segment } from "./mapped.ts";

const IDENTITY = { name: "v", label: "", type: "" };

test("chunks lie row by row, each copy in the next column", () => {
  const columns = [0, 1, 2].map((disk) => ({ disk, start: 100, end: 120 }));
  const disks = columns.map(() => SimulatedFile.from(new Uint8Array(200)));
  const drawn = (chunkBytes: number, copies: number): string => {
    const volume = mappedVolume(IDENTITY, disks, [{ columns, chunkBytes, copies }]);
    const rows = columns.map(() => Array<string>(20 / chunkBytes).fill("-"));
    for (let at = 0; at < volume.device.bytes; at += chunkBytes) {
      for (const place of volume.places({ start: at, end: at + chunkBytes }))
        rows[place.disk]![(place.at - 100) / chunkBytes] = `${at / chunkBytes}`;
    }
    return rows.map((row) => row.join(" ")).join(" | ");
  };
  assert.equal(drawn(4, 1), "0 3 6 9 12 | 1 4 7 10 13 | 2 5 8 11 14");
  assert.equal(drawn(20, 3), "0 | 0 | 0");
  // As md(4) draws three devices with two near copies.
  assert.equal(drawn(4, 2), "0 1 3 4 6 | 0 2 3 5 6 | 1 2 4 5 -");
});

test("reading, mapping, places and find agree with one another", async () => {
  for (const seed of seeds(60)) {
    const random = new Random(seed);
    const disks = [0, 1, 2].map(() => SimulatedFile.from(random.bytes(4096)));
    const segments: Segment[] = [];
    for (let i = 0; i < 3; i++) {
      const start = i * 1024;
      if (random.oneIn(3)) segments.push(linear({ disk: random.below(3), start, end: start + 100 }));
      else {
        const columns = [0, 1, 2].map((disk) => ({ disk, start, end: start + 768 }));
        segments.push({ columns, chunkBytes: random.pick([8, 64, 256]), copies: 1 + random.below(3) });
      }
    }
    const volume = mappedVolume(IDENTITY, disks, segments);
    const { device } = volume;
    const content = await readBytes(device, 0, device.bytes);
    const start = random.below(device.bytes);
    const range = { start, end: start + random.below(device.bytes - start) };
    assert.deepEqual(
      await readBytes(device, range.start, range.end - range.start),
      content.slice(range.start, range.end),
    );
    let at = range.start;
    for (const run of await wholeMap(device, range)) {
      assert.equal(run.start, at);
      at = run.end;
    }
    assert.equal(at, range.end);
    at = range.start;
    for (const place of volume.places(range)) {
      const found = volume.find(place.disk, place.at)!;
      assert.ok(found === at || found + place.bytes === at, `SEED=${seed}: ${found} at ${at}`);
      at = found + place.bytes;
    }
    assert.equal(at, range.end, `SEED=${seed}`);
  }
});

test("a footprint is what the places cover, in few pieces", () => {
  const disks = [0, 1, 2].map(() => SimulatedFile.from(new Uint8Array(0)));
  const covered = (pieces: Iterable<{ disk: number; at: number; bytes: number }>) => {
    const sets = disks.map(() => new ExtentBuilder());
    let total = 0;
    for (const { disk, at, bytes } of pieces) {
      sets[disk]!.add(at, at + bytes);
      total += bytes;
    }
    return { total, sets: sets.map((set) => [...set.build()]) };
  };
  for (const seed of seeds(200)) {
    const random = new Random(seed);
    const segments = [0, 1].map((i): Segment => {
      const columns = [0, 1, 2].map((disk) => ({ disk, start: i * 1000, end: i * 1000 + 96 }));
      return { columns, chunkBytes: random.pick([4, 8, 32, 96]), copies: 1 + random.below(3) };
    });
    const volume = mappedVolume(IDENTITY, disks, segments);
    const start = random.below(volume.device.bytes);
    const range = { start, end: start + random.below(volume.device.bytes - start + 1) };
    assert.deepEqual(covered(volume.footprint(range)), covered(volume.places(range)), `SEED=${seed}`);
  }
  const columns = [0, 1, 2].map((disk) => ({ disk, start: 0, end: 2 ** 50 }));
  const vast = mappedVolume(IDENTITY, disks, [{ columns, chunkBytes: 4096, copies: 2 }]);
  assert.ok([...vast.footprint({ start: 1, end: vast.device.bytes - 1 })].length < 20);
});

test("a read past the end is a bug of the reader, and never other bytes", async () => {
  const disk = SimulatedFile.from(new Uint8Array(100));
  const { device } = mappedVolume(IDENTITY, [disk], [linear({ disk: 0, start: 0, end: 10 })]);
  await assert.rejects(device.read(5, new Uint8Array(6)), /lies in 10 bytes/);
});

test("what lies in two places is not written through one of them", () => {
  const file = SimulatedFile.from(new Uint8Array(100));
  const disk = Object.assign(file, { locate: (at: number, bytes: number) => ({ file, at, bytes }) });
  const mirrored = linear({ disk: 0, start: 0, end: 10 }, { disk: 0, start: 20, end: 30 });
  const { device } = mappedVolume(IDENTITY, [disk], [mirrored, linear({ disk: 0, start: 50, end: 60 })]);
  assert.equal(device.locate!(0, 5, "write"), undefined);
  assert.deepEqual(device.locate!(8, 5, "read"), { file, at: 8, bytes: 2 });
  assert.equal(device.locate!(0, 5, "read")?.at, 0);
  assert.equal(device.locate!(12, 5, "write")?.at, 52);
});
