/**
 * Fuzzing of the guard's log: bytes beside an image that anybody may have damaged. A mutant that is believed must make a
 * state that holds together, and a guard that goes on with it.
 */
import { crc32c } from "../../src/bytes/checksum.ts";
import { viewOf } from "../../src/bytes/struct.ts";
import { readBytes } from "../../src/device/device.ts";
import { assert } from "../../src/error.ts";
import { Guard } from "../../src/live/guard.ts";
import { ENTRY_BYTES, HEAD_BYTES, LogHeader, RecordHead, SECTOR_BYTES } from "../../src/live/guard/log.ts";
import { PIECES_MAX, replay } from "../../src/live/guard/replay.ts";
import {
  type FuzzTarget,
  fuzzDevice,
  outcome,
  type Sample,
  type Spot,
  spotOf,
} from "../../src/testing/fuzz.ts";
import { GuardedDisk } from "../../src/testing/guarded-disk.ts";
import { Random } from "../../src/testing/seeds.ts";
import { SimulatedFile } from "../../src/testing/simulated-file.ts";

const DISK_BYTES = 128 * 1024;
const SETTINGS = { forMs: 1e9, maxBytes: 1e9 };

export const guard: FuzzTarget = {
  name: "guard",
  needs: [],

  async samples() {
    const samples: Sample[] = [];
    for (const [name, writes, stops] of [
      ["trims and zeroes", false, false],
      ["writes too", true, false],
      ["stopped", true, true],
    ] as const) {
      const random = new Random(samples.length + 1);
      const image = SimulatedFile.from(random.bytes(DISK_BYTES));
      const log = new SimulatedFile(0);
      const disk = await GuardedDisk.open(image, log, random, {
        writes,
        stamp: () => Promise.resolve([{ name: "", bytes: DISK_BYTES, modified: "1", identity: "file" }]),
      });
      for (let i = 0; i < 12; i++) {
        await disk.change({ writes });
        if (i % 3 === 0) await disk.flush();
      }
      if (stops) {
        await disk.guard[Symbol.asyncDispose]();
        await disk.guard.seal();
      } else await disk.flush();
      const bytes = log.peek();
      samples.push({ name, bytes, spots: [spotOf(LogHeader, 0), ...headsIn(bytes)], fix });
    }
    return samples;
  },

  run(bytes) {
    return outcome(async () => {
      const found = await replay(fuzzDevice(bytes, bytes.length));
      if (found === undefined) return "nothing";
      const { state, header } = found;
      let at = 0;
      for (const { start, end } of state.tops) {
        assert(start >= at && end > start && end <= header.diskBytes, "tops are disjoint and in order");
        at = end;
      }
      assert(state.count <= PIECES_MAX && state.hiddenBytes <= state.bytes, "bounded");
      if (header.diskBytes !== DISK_BYTES) return "another disk";
      await goOn(bytes);
      return "believed";
    });
  },
};

/** The guard opens it, restores what it can, and goes on. */
async function goOn(bytes: Uint8Array): Promise<void> {
  const image = SimulatedFile.from(new Uint8Array(DISK_BYTES).fill(7));
  const opened = await Guard.open(image, SimulatedFile.from(bytes), SETTINGS);
  await opened.restore({ since: 0, overWrites: true });
  await opened.write(5000, new Uint8Array(9000).fill(9));
  await opened.discard({ start: 0, end: DISK_BYTES });
  await opened.flush();
  const content = await readBytes(opened, 0, DISK_BYTES);
  assert(
    content.every((byte) => byte === 0),
    "what was trimmed reads as zeros",
  );
  await opened.forget();
  await opened[Symbol.asyncDispose]();
  await opened.seal();
}

function* recordsIn(
  bytes: Uint8Array,
): Generator<{ at: number; entriesEnd: number; dataAt: number; dataEnd: number; end: number }> {
  const padded = (length: number): number => Math.ceil(length / SECTOR_BYTES) * SECTOR_BYTES;
  const view = viewOf(bytes);
  for (let at = SECTOR_BYTES; at + SECTOR_BYTES <= bytes.length;) {
    const entriesEnd = at + HEAD_BYTES + view.getUint32(at + RecordHead.at.entries, true) * ENTRY_BYTES;
    const dataAt = padded(entriesEnd);
    const dataEnd = dataAt + view.getUint32(at + RecordHead.at.dataBytes, true);
    const end = padded(dataEnd);
    if (end > bytes.length) return;
    yield { at, entriesEnd, dataAt, dataEnd, end };
    at = end;
  }
}

function headsIn(bytes: Uint8Array): Spot[] {
  return [...recordsIn(bytes)].flatMap(({ at, entriesEnd, dataAt, dataEnd }) => [
    spotOf(RecordHead, at),
    ...(entriesEnd > at + HEAD_BYTES ? [{ at: at + HEAD_BYTES, bytes: entriesEnd - at - HEAD_BYTES }] : []),
    // Of what is JSON or old bytes the beginning is enough.
    ...(dataEnd > dataAt ? [{ at: dataAt, bytes: Math.min(128, dataEnd - dataAt) }] : []),
  ]);
}

function fix(bytes: Uint8Array): void {
  if (bytes.length < SECTOR_BYTES) return;
  const sector = bytes.subarray(0, SECTOR_BYTES);
  LogHeader.encode({ crc: 0 }, sector);
  LogHeader.encode({ crc: crc32c(0xffffffff, sector) }, sector);
  const identity = bytes.subarray(LogHeader.at.identity, LogHeader.at.identity + 8);
  let chain = viewOf(bytes).getUint32(LogHeader.at.chain, true);
  for (const { at, entriesEnd, dataAt, dataEnd } of recordsIn(bytes)) {
    const entriesCrc = crc32c(0, bytes, at + HEAD_BYTES, entriesEnd);
    const dataCrc = dataEnd > dataAt ? crc32c(0, bytes.slice(dataAt, dataEnd)) : 0;
    RecordHead.encode({ entriesCrc, dataCrc, chain, crc: 0 }, bytes, at);
    const crc = crc32c(crc32c(chain, identity), bytes.slice(at, at + HEAD_BYTES));
    RecordHead.encode({ crc }, bytes, at);
    chain = crc;
  }
}
