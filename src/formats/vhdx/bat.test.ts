/**
 * The BAT of a disk as large as the format knows.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { viewOf } from "../../bytes/struct.ts";
import type { BlockDevice } from "../../device/device.ts";
import { BAT_ENTRY_BYTES, PayloadState, readBat, shapeOf } from "./bat.ts";
import { MIB, NO_GUID } from "./structures.ts";

const whole = {
  blockBytes: MIB,
  leaveBlocksAllocated: false,
  virtualDiskId: NO_GUID,
  logicalSectorBytes: 512,
  physicalSectorBytes: 4096,
};

test("H24: an image may say of every block that it is held in part", async () => {
  const blocks = 2 ** 24 + 1000;
  const { entries } = shapeOf({ ...whole, virtualBytes: blocks * MIB, hasParent: true });
  const file: BlockDevice = {
    bytes: 2 ** 40,
    read: async (at, into) => {
      const view = viewOf(into);
      for (let i = 0; i < into.length; i += BAT_ENTRY_BYTES) {
        const isBitmap = ((at + i) / BAT_ENTRY_BYTES) % 4097 === 4096;
        view.setUint32(
          i,
          (5 << 20) | (isBitmap ? PayloadState.fullyPresent : PayloadState.partiallyPresent),
          true,
        );
      }
    },
    map: async function* () {},
    [Symbol.asyncDispose]: async () => {},
  };
  const parent = { linkages: [], names: [] };
  const metadata = { ...whole, virtualBytes: blocks * MIB, parent };
  const { table } = await readBat(file, { start: 0, end: entries * BAT_ENTRY_BYTES }, metadata);
  assert.equal(table.partial.size, blocks);
  table.complete(7);
  assert.deepEqual(
    [table.partial.has(7), table.partial.has(8), table.partial.size],
    [false, true, blocks - 1],
  );
});
