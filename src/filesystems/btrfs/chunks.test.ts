import assert from "node:assert/strict";
import { test } from "node:test";
import { ChunkMap, decodeChunk, eachPlace, placeOf, type Chunk } from "./chunks.ts";
import { Refused } from "../refused.ts";

const KiB = 1024;
const MiB = KiB * KiB;
const UUID = new Uint8Array(16).fill(7);
const RAID1_DATA = 17n;
const HOLDERS = [
  { id: 1, uuid: UUID, bytes: 64 * MiB },
  { id: 2, uuid: UUID, bytes: 32 * MiB },
];

/** An item for a chunk of 8 MiB with stripes on the given devices. */
function itemOf(stripes: readonly { readonly device: number; readonly at: number }[]): Uint8Array {
  const item = Buffer.alloc(48 + 32 * stripes.length);
  item.writeBigUInt64LE(BigInt(8 * MiB), 0);
  item.writeBigUInt64LE(BigInt(64 * KiB), 16);
  item.writeBigUInt64LE(RAID1_DATA, 24);
  item.writeUInt16LE(stripes.length, 44);
  stripes.forEach(({ device, at }, index) => {
    item.writeBigUInt64LE(BigInt(device), 48 + index * 32);
    item.writeBigUInt64LE(BigInt(at), 56 + index * 32);
    item.set(UUID, 64 + index * 32);
  });
  return item;
}

function placesOf(chunk: Chunk): string[] {
  const places: string[] = [];
  eachPlace(chunk, chunk.start, chunk.start + 4096, (member, start) => places.push(`${member} at ${start}`));
  return places;
}

for (const [name, absent] of [
  ["was removed", { device: 3, at: 4 * MiB }],
  ["was longer", { device: 2, at: 28 * MiB }],
] as const) {
  test(`H4: of an older chunk on a device that ${name}, the other copy counts`, () => {
    const item = itemOf([absent, { device: 1, at: 16 * MiB }]);
    assert.throws(() => decodeChunk(item, MiB, HOLDERS, 4096, "refuse"), Refused);
    const chunk = decodeChunk(item, MiB, HOLDERS, 4096, "pass by");
    assert.deepEqual(placesOf(chunk), [`0 at ${16 * MiB}`]);
    assert.equal(placeOf(chunk, MiB, 4096, 0), undefined);
    assert.deepEqual(placeOf(chunk, MiB, 4096, 1), { member: 0, at: 16 * MiB });
    assert.equal(placeOf(chunk, MiB, 4096, 2), undefined);
  });
}

test("H4: where an older map tells nothing, the current one holds", () => {
  const chunkAt = (start: number, at: number) =>
    decodeChunk(
      itemOf([
        { device: 1, at },
        { device: 2, at },
      ]),
      start,
      HOLDERS,
      4096,
      "refuse",
    );
  const older = new ChunkMap([chunkAt(16 * MiB, 1 * MiB)]);
  const current = new ChunkMap([
    chunkAt(8 * MiB, 9 * MiB),
    chunkAt(20 * MiB, 17 * MiB),
    chunkAt(32 * MiB, 0),
  ]);
  const starts = older.completedBy(current).chunks.map(({ start }) => start / MiB);
  assert.deepEqual(starts, [8, 16, 32]);
});
