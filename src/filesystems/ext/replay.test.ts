import assert from "node:assert/strict";
import { copyFileSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { BlockDevice } from "../../device/device.ts";
import { readBytes } from "../../device/device.ts";
import { corpusFiles, unpack } from "../../testing/corpus.ts";
import { attempt, requires, run, scratch } from "../../testing/tools.ts";
import { INCOMPAT } from "./features.ts";
import { isRefusal, type JournalExtent, type Replay, replayJournal } from "./replay.ts";
import { SuperblockLayout } from "./superblock.ts";

function memoryDevice(bytes: Uint8Array): BlockDevice {
  return {
    bytes: bytes.length,
    read: async (at, into) => into.set(bytes.subarray(at, at + into.length)),
    async *map(range) {
      yield [{ ...range, kind: "data", shared: false, depth: 0 }];
    },
    [Symbol.asyncDispose]: async () => {},
  };
}

/** The journal's blocks as debugfs sees them. */
function journalExtents(image: string): JournalExtent[] {
  const stat = attempt("debugfs", ["-c", "-R", "stat <8>", image]).stdout;
  return [...stat.matchAll(/\((\d+)(?:-(\d+))?\):(\d+)/g)].map(([, first, last, start]) => ({
    logical: Number(first),
    start: Number(start),
    blocks: Number(last ?? first) - Number(first) + 1,
  }));
}

function superblockOf(bytes: Uint8Array): { blockBytes: number; uuid: Uint8Array; incompat: number; state: number } {
  const { logBlockSize, uuid, incompat, state } = SuperblockLayout.decode(bytes, 1024);
  return { blockBytes: 1024 << logBlockSize, uuid, incompat, state };
}

async function replayImage(image: string) {
  const bytes = readFileSync(image);
  const { blockBytes, uuid } = superblockOf(bytes);
  const extents = journalExtents(image);
  const replay = await replayJournal({
    device: memoryDevice(bytes),
    blockBytes,
    uuid,
    journal: { kind: "inode", extents },
  });
  return { bytes, blockBytes, extents, replay };
}

/** Every block of the overlay must be what e2fsck's own replay leaves; but superblock and journal. */
async function compareWithE2fsck(t: TestContext, image: string): Promise<Replay> {
  const { blockBytes, extents, replay } = await replayImage(image);
  assert(!isRefusal(replay), JSON.stringify(replay));
  const judge = join(scratch(t), "judge");
  copyFileSync(image, judge);
  const { stdout, status } = attempt("e2fsck", ["-y", "-E", "journal_only", judge]);
  assert(status <= 1, stdout);
  const expected = readFileSync(judge);
  const found = await readBytes(replay.overlay, 0, replay.overlay.bytes);
  const differing: number[] = [];
  for (let at = 0; at < expected.length; at += blockBytes) {
    const block = at / blockBytes;
    const isOwn = extents.some(({ start, blocks }) => block >= start && block < start + blocks);
    if (isOwn || (at <= 1024 && 1024 < at + blockBytes)) continue;
    if (Buffer.compare(found.subarray(at, at + blockBytes), expected.subarray(at, at + blockBytes)) !== 0) {
      differing.push(block);
    }
  }
  assert.deepEqual(differing, [], `blocks differ from e2fsck's replay: ${stdout}`);
  assert.equal(superblockOf(found).incompat & INCOMPAT.needs_recovery, 0);
  return replay;
}

for (const name of corpusFiles(/e2fsprogs\/tests\/j_.*image\.(gz|bz2)$/)) {
  test(`corpus ${name}`, async (t) => {
    if (!requires(t, "e2fsck", "debugfs")) return;
    const image = unpack(t, name);
    const { replay } = await replayImage(image);
    if (isRefusal(replay)) return console.log(name, JSON.stringify(replay));
    const { notes } = await compareWithE2fsck(t, image);
    console.log(name, notes);
  });
}
void run;
