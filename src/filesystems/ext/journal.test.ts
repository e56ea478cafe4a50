/**
 * Journals written by hand, for what no tool writes: boundaries, unknown features, logs that bite their own tail.
 */
import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { viewOf } from "../../bytes/struct.ts";
import { checked } from "../../device/checked.ts";
import { readBytes, type BlockDevice } from "../../device/device.ts";
import { draw } from "../../testing/draw.ts";
import { BLOCK_TYPE, Header, TAG_FLAG } from "./journal-blocks.ts";
import { JOURNAL_MAGIC, JournalSuperblock } from "./journal.ts";
import { isJournalEmpty, isRefusal, type Replay, replayJournal } from "./replay.ts";

const BLOCK_BYTES = 1024;
const DEVICE_BLOCKS = 64;
/** The journal: blocks 32 to 48 of the device. */
const LOG_START = 32;
const LOG_BLOCKS = 16;

type Fields = Parameters<typeof JournalSuperblock.encode>[0];

/** A device whose journal's ring begins with `blocks`, at block `start` of the journal. */
class HandMade {
  readonly bytes = new Uint8Array(DEVICE_BLOCKS * BLOCK_BYTES);
  #next: number;

  constructor(fields: Fields = {}) {
    this.#next = fields.start || 1;
    const common = {
      magic: JOURNAL_MAGIC,
      type: 4,
      blockBytes: BLOCK_BYTES,
      blockCount: LOG_BLOCKS,
      first: 1,
    };
    JournalSuperblock.encode({ ...common, sequence: 7, start: 1, ...fields }, this.#block(0));
  }

  #block(index: number): Uint8Array {
    const at = (LOG_START + index) * BLOCK_BYTES;
    return this.bytes.subarray(at, at + BLOCK_BYTES);
  }

  /** The next block of the ring. */
  append(type: number, sequence: number, words: readonly number[] = []): this {
    const block = this.#block(this.#next);
    Header.encode({ magic: JOURNAL_MAGIC, type, sequence }, block);
    words.forEach((word, i) => viewOf(block).setUint32(Header.bytes + i * 4, word));
    return this.#step();
  }

  /** A data block of one repeated byte. */
  data(byte: number): this {
    this.#block(this.#next).fill(byte);
    return this.#step();
  }

  /** A transaction that writes `byte` to one block. */
  write(sequence: number, block: number, byte: number): this {
    return this.append(BLOCK_TYPE.descriptor, sequence, [block, LAST])
      .data(byte)
      .append(BLOCK_TYPE.commit, sequence);
  }

  #step(): this {
    this.#next = this.#next + 1 === LOG_BLOCKS ? 1 : this.#next + 1;
    return this;
  }

  get device(): BlockDevice {
    const { bytes } = this;
    return checked<BlockDevice>({
      bytes: bytes.length,
      read: async (at, into) => into.set(bytes.subarray(at, at + into.length)),
      map: () => assert.fail("nobody asks for the map"),
      [Symbol.asyncDispose]: async () => {},
    });
  }

  get filesystem() {
    const extents = [{ logical: 0, start: LOG_START, blocks: LOG_BLOCKS }];
    const journal = { kind: "inode", extents } as const;
    return { device: this.device, blockBytes: BLOCK_BYTES, uuid: new Uint8Array(16), journal };
  }

  async replay(): Promise<Replay> {
    const replay = await replayJournal(this.filesystem);
    assert(!isRefusal(replay), JSON.stringify(replay));
    return replay;
  }

  async refusal(): Promise<string> {
    const replay = await replayJournal(this.filesystem);
    return isRefusal(replay) ? replay.code : "replayed";
  }
}

const LAST = TAG_FLAG.last | TAG_FLAG.sameUuid;

async function firstByte(replay: Replay, block: number): Promise<number> {
  return (await readBytes(replay.overlay, block * BLOCK_BYTES, 1))[0]!;
}

test("the last copy of a block counts, and only those of committed transactions", async () => {
  const journal = new HandMade().write(7, 20, 1).write(8, 20, 2).write(9, 21, 3);
  const replay = await journal.append(BLOCK_TYPE.descriptor, 10, [22, LAST]).data(4).replay();
  assert.deepEqual(await Promise.all([20, 21, 22].map((block) => firstByte(replay, block))), [2, 3, 0]);
  assert.equal(draw(replay.writes, 32 * BLOCK_BYTES, BLOCK_BYTES), ".#..................##..........");
  assert.deepEqual(replay.notes, ["journal: 3 transactions with 2 blocks replayed in memory"]);
});

test("a block that a later or the same transaction revoked is left alone, an earlier one is not", async () => {
  const revoke = (sequence: number, block: number) => [BLOCK_TYPE.revoke, sequence, [20, block]] as const;
  const later = new HandMade()
    .write(7, 20, 1)
    .append(...revoke(8, 20))
    .append(BLOCK_TYPE.commit, 8);
  assert.equal(await firstByte(await later.replay(), 20), 0);
  const same = new HandMade().append(...revoke(7, 20)).write(7, 20, 1);
  assert.equal(await firstByte(await same.replay(), 20), 0);
  const earlier = new HandMade()
    .append(...revoke(7, 20))
    .append(BLOCK_TYPE.commit, 7)
    .write(8, 20, 1);
  assert.equal(await firstByte(await earlier.replay(), 20), 1);
  const uncommitted = new HandMade().write(7, 20, 1).append(...revoke(8, 20));
  assert.equal(await firstByte(await uncommitted.replay(), 20), 1);
});

test("transaction numbers wrap, and the ring does", async () => {
  const numbers = new HandMade({ sequence: 0xffffffff }).write(0xffffffff, 20, 1).write(0, 20, 2);
  assert.equal(await firstByte(await numbers.replay(), 20), 2);
  const revoked = new HandMade({ sequence: 0xffffffff }).write(0xffffffff, 20, 1);
  revoked.append(BLOCK_TYPE.revoke, 0, [20, 20]).append(BLOCK_TYPE.commit, 0);
  assert.equal(await firstByte(await revoked.replay(), 20), 0);
  const ring = new HandMade({ start: 14 }).write(7, 20, 1).write(8, 21, 2);
  const replay = await ring.replay();
  assert.deepEqual([await firstByte(replay, 20), await firstByte(replay, 21)], [1, 2]);
});

test("an empty log replays to nothing; the superblock is written all the same", async () => {
  const journal = new HandMade({ start: 0 }).write(7, 20, 1);
  assert.equal(await isJournalEmpty(journal.filesystem), true);
  const replay = await journal.replay();
  assert.equal(draw(replay.writes, 32 * BLOCK_BYTES, BLOCK_BYTES), ".#..............................");
});

suite("refused", () => {
  const bits = Array.from({ length: 32 }, (_, i) => (1 << i) >>> 0);
  test("every feature bit that is not known (H1)", async () => {
    for (const bit of bits) {
      const expected = { compat: bit === 1, incompat: bit <= 32, roCompat: false };
      for (const [word, known] of Object.entries(expected)) {
        const code = await new HandMade({ start: 0, checksumType: 4, [word]: bit }).refusal();
        if (known) assert.notEqual(code, "journal-unsupported", `${word} ${bit}`);
        else assert.equal(code, "journal-unsupported", `${word} ${bit}`);
      }
    }
  });

  for (const [name, fields, code] of [
    ["the guest's kernel had given it up", { errno: 0xfffffffb }, "journal-error"],
    ["asynchronous commits", { incompat: 4 }, "journal-unsupported"],
    ["two versions of checksums", { compat: 1, incompat: 8 }, "journal-corrupt"],
    ["checksums without a right one", { incompat: 16, checksumType: 4 }, "journal-checksum"],
    ["no magic", { magic: 0 }, "journal-corrupt"],
    ["a type that is no superblock's", { type: 1 }, "journal-corrupt"],
    ["blocks of another length", { blockBytes: 4096 }, "journal-corrupt"],
    ["more blocks than it has", { blockCount: 17 }, "journal-corrupt"],
    ["a ring that begins with the superblock", { first: 0 }, "journal-corrupt"],
    ["a ring that begins at its end", { first: 16 }, "journal-corrupt"],
    ["a start before the ring", { first: 3, start: 2 }, "journal-corrupt"],
    ["a start behind the ring", { start: 16 }, "journal-corrupt"],
    ["a fast-commit area as long as the journal", { incompat: 32, fastCommitBlocks: 16 }, "journal-corrupt"],
    [
      "a fast-commit area longer than the journal",
      { incompat: 32, fastCommitBlocks: 0xffffffff },
      "journal-corrupt",
    ],
  ] as const) {
    test(name, async () => assert.equal(await new HandMade(fields).refusal(), code));
  }

  for (const [name, target] of [
    ["the first block behind the device", DEVICE_BLOCKS],
    ["the last block of the journal itself", LOG_START + LOG_BLOCKS - 1],
    ["the largest block number", 0xffffffff],
  ] as const) {
    test(`a transaction that writes to ${name}`, async () => {
      assert.equal(await new HandMade().write(7, target, 1).refusal(), "journal-corrupt");
    });
  }

  test("block numbers past 2^53, which no double tells apart (H23)", async () => {
    const journal = new HandMade({ incompat: 2 });
    journal.append(BLOCK_TYPE.descriptor, 7, [0, LAST, 0xfe000000]).data(1).append(BLOCK_TYPE.commit, 7);
    assert.equal(await journal.refusal(), "journal-corrupt");
  });

  test("a log without end", async () => {
    const journal = new HandMade();
    for (let i = 1; i < LOG_BLOCKS; i++) journal.append(BLOCK_TYPE.revoke, 7, [16]);
    assert.equal(await journal.refusal(), "journal-corrupt");
    const tags = Array.from({ length: 60 }, () => [20, TAG_FLAG.sameUuid]).flat();
    assert.equal(await new HandMade().append(BLOCK_TYPE.descriptor, 7, tags).refusal(), "journal-corrupt");
    const second = new HandMade().write(7, 20, 1).append(BLOCK_TYPE.descriptor, 8, tags);
    assert.equal(await second.refusal(), "journal-corrupt");
  });

  test("blocks of an unknown type, tags with unknown flags, revokes without room", async () => {
    assert.equal(await new HandMade().append(6, 7).refusal(), "journal-corrupt");
    const deleted = new HandMade().append(BLOCK_TYPE.descriptor, 7, [20, LAST | TAG_FLAG.deleted]);
    assert.equal(await deleted.data(1).append(BLOCK_TYPE.commit, 7).refusal(), "journal-unsupported");
    for (const bytes of [0, 15, BLOCK_BYTES + 1]) {
      const revoke = new HandMade().append(BLOCK_TYPE.revoke, 7, [bytes]).append(BLOCK_TYPE.commit, 7);
      assert.equal(await revoke.refusal(), "journal-corrupt");
    }
  });

  test("an inode with a hole, or behind the device", async () => {
    const { filesystem } = new HandMade();
    for (const [extents, message] of [
      [[{ logical: 1, start: LOG_START, blocks: LOG_BLOCKS }], /no block 0/],
      [[{ logical: 0, start: DEVICE_BLOCKS - 1, blocks: LOG_BLOCKS }], /behind the device/],
      [[], /only 0 blocks/],
    ] as const) {
      const replay = await replayJournal({ ...filesystem, journal: { kind: "inode", extents } });
      assert(isRefusal(replay));
      assert.match(replay.message, message);
    }
  });
});
