/**
 * The log: which of its entries count, what a replay does, and that it may be interrupted anywhere.
 */
import assert from "node:assert/strict";
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { suite, test } from "node:test";
import { type BlockDevice, readBytes, wholeMap } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { corpus, unpack } from "../../testing/corpus.ts";
import { crashStates, recording } from "../../testing/crash.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { sourceOf } from "../../testing/simulated-source.ts";
import { attempt, requires, run, scratch } from "../../testing/tools.ts";
import { type EntryOptions, LOG_GUID, logEntry, dirtyVhdx } from "../../testing/vhdx-log.ts";
import { vhdx } from "../vhdx.ts";
import { encodeHeader, type Header, readHeaders } from "./header.ts";
import { readReplay } from "./log.ts";
import { HEADERS_AT, MIB, NO_GUID, seal } from "./structures.ts";

const SECTOR = 4096;
const LOG_BYTES = MIB;

/** A file of 8 MiB whose log, of 1 MiB at 1 MiB, holds the given bytes at the given offsets; it wraps. */
async function logged(
  entries: readonly (readonly [at: number, entry: Uint8Array])[],
): Promise<{ file: SimulatedFile; header: Header }> {
  const file = new SimulatedFile(8 * MIB);
  for (const [at, entry] of entries) {
    const first = entry.subarray(0, LOG_BYTES - at);
    await file.write(MIB + at, first);
    if (first.length < entry.length) await file.write(MIB, entry.subarray(first.length));
  }
  const header = {
    signature: "head",
    checksum: 0,
    sequenceNumber: 1n,
    fileWriteGuid: LOG_GUID,
    dataWriteGuid: LOG_GUID,
    logGuid: LOG_GUID,
    logVersion: 0,
    version: 1,
    logLength: LOG_BYTES,
    logOffset: MIB,
  };
  return { file, header };
}

/** What the replay writes: `place=byte` for each sector, in MiB and sectors; `last` is the file's length in MiB. */
async function replayedBy(entries: readonly (readonly [number, Uint8Array])[]): Promise<string> {
  const { file, header } = await logged(entries);
  const { updates, fileBytes } = await readReplay(file, header);
  const told = updates.map(({ at, bytes, data }) => {
    if (!data) return `${at / SECTOR}:0*${bytes / SECTOR}`;
    assert.ok(
      data.every((byte) => byte === data[0]),
      "leading and trailing bytes are restored",
    );
    return `${at / SECTOR}=${data[0]}`;
  });
  return `${told.join(" ")} | ${fileBytes / MIB}`;
}

const AT = 4 * MIB;
const put = (sequence: number, tail: number, fill: number, more: Partial<EntryOptions> = {}) =>
  logEntry({ sequence, tail, data: [{ at: AT, fill }], ...more });

suite("which entries are replayed", () => {
  test("a sequence from the tail of its head on, in order", async () => {
    const first = put(5, 0, 1);
    const second = put(6, 0, 2, { zeros: [{ at: AT + SECTOR, bytes: 2 * SECTOR }] });
    assert.equal(
      await replayedBy([
        [0, first],
        [8192, second],
      ]),
      "1024=1 1024=2 1025:0*2 | 8",
    );
    const alone = put(6, 8192, 2);
    assert.equal(
      await replayedBy([
        [0, first],
        [8192, alone],
      ]),
      "1024=2 | 8",
    );
  });

  test("an entry may lie around the end of the ring, and so may a sequence", async () => {
    assert.equal(await replayedBy([[LOG_BYTES - SECTOR, put(7, LOG_BYTES - SECTOR, 9)]]), "1024=9 | 8");
    const [at, second] = [LOG_BYTES - 8192, put(8, LOG_BYTES - 8192, 2)];
    assert.equal(
      await replayedBy([
        [at, put(7, at, 1)],
        [0, second],
      ]),
      "1024=1 1024=2 | 8",
    );
  });

  test("H24: a long row of entries whose tail is none of them is looked at once", async () => {
    const entries = 16383;
    const file = new SimulatedFile(65 * MIB);
    for (let i = 1; i <= entries; i++) {
      await file.write(MIB + i * SECTOR, logEntry({ sequence: i, tail: 0 }));
    }
    const { header } = await logged([]);
    const started = performance.now();
    await assert.rejects(readReplay(file, { ...header, logLength: 64 * MIB }), {
      kind: "corrupt",
      message: /no whole sequence/,
    });
    const seconds = (performance.now() - started) / 1000;
    assert.ok(seconds < 5, `${seconds} s`);
  });

  test("of several sequences the newest", async () => {
    const old = put(3, 0, 3);
    const young = put(9, 32768, 9);
    assert.equal(
      await replayedBy([
        [0, old],
        [32768, young],
      ]),
      "1024=9 | 8",
    );
    assert.equal(
      await replayedBy([
        [32768, young],
        [65536, put(4, 65536, 4)],
      ]),
      "1024=9 | 8",
    );
  });

  test("a torn head is as if it had never been written", async () => {
    const torn = put(6, 0, 2);
    torn.fill(0, SECTOR + 100, SECTOR + 600);
    assert.equal(
      await replayedBy([
        [0, put(5, 0, 1)],
        [8192, torn],
      ]),
      "1024=1 | 8",
    );
  });

  test("what is not of this log or not whole does not count", async () => {
    const good = put(5, 0, 1);
    const view = (bytes: Uint8Array) => new DataView(bytes.buffer);
    const damages: Record<string, Uint8Array> = {
      guid: put(6, 0, 2, { guid: NO_GUID }),
      sequence: put(8, 0, 2),
      "sequence of data": sealed(put(6, 0, 2), (entry) => view(entry).setUint32(entry.length - 4, 7, true)),
      "sequence of descriptor": sealed(put(6, 0, 2), (entry) => view(entry).setUint32(64 + 24, 7, true)),
      "signature of data": sealed(put(6, 0, 2), (entry) => entry.fill(0, SECTOR, SECTOR + 4)),
      "signature of descriptor": sealed(put(6, 0, 2), (entry) => entry.fill(0, 64, 68)),
      "place of descriptor": sealed(put(6, 0, 2), (entry) => view(entry).setUint32(64 + 16, 512, true)),
      "length of zeros": put(6, 0, 2, { zeros: [{ at: AT, bytes: 512 }] }),
      "count of descriptors": sealed(put(6, 0, 2), (entry) => view(entry).setUint32(24, 1000, true)),
      "length of entry": sealed(put(6, 0, 2), (entry) => view(entry).setUint32(8, 100, true)),
      "entry longer than the log": sealed(put(6, 0, 2), (entry) => view(entry).setUint32(8, 2 * MIB, true)),
      "unaligned tail": sealed(put(6, 0, 2), (entry) => view(entry).setUint32(12, 512, true)),
      "tail outside": sealed(put(6, 0, 2), (entry) => view(entry).setUint32(12, 2 * MIB, true)),
      checksum: flipped(put(6, 0, 2)),
    };
    for (const [what, entry] of Object.entries(damages)) {
      assert.equal(
        await replayedBy([
          [0, good],
          [8192, entry],
        ]),
        "1024=1 | 8",
        what,
      );
    }
  });

  test("a ring that is full to the last byte ends the search", async () => {
    const length = 8192;
    const entries = Array.from(
      { length: LOG_BYTES / length },
      (_, i) => [i * length, put(i + 1, 0, 1)] as const,
    );
    assert.match(await replayedBy(entries), /^(1024=1 ){128}\| 8$/);
  });

  test("the file gets as long as its structures", async () => {
    assert.equal(await replayedBy([[0, put(5, 0, 1, { last: 12 * MIB })]]), "1024=1 | 12");
    const beyond = logEntry({ sequence: 5, tail: 0, data: [{ at: 9 * MIB, fill: 1 }] });
    assert.equal(await replayedBy([[0, beyond]]), `${(9 * MIB) / SECTOR}=1 | ${9 + SECTOR / MIB}`);
  });
});

function sealed(entry: Uint8Array, change: (entry: Uint8Array) => unknown): Uint8Array {
  change(entry);
  seal(entry);
  return entry;
}

function flipped(entry: Uint8Array): Uint8Array {
  entry[5000]! ^= 1;
  return entry;
}

suite("logs that are refused", () => {
  const refuses = async (
    entries: readonly (readonly [number, Uint8Array])[],
    message: RegExp,
    kind = "corrupt",
  ) => {
    const { file, header } = await logged(entries);
    await assert.rejects(readReplay(file, header), (error) => {
      assert.ok(error instanceof DiskError, String(error));
      assert.equal(error.kind, kind);
      assert.match(error.message, message);
      return true;
    });
  };

  test("no whole sequence", async () => {
    await refuses([], /no whole sequence/);
    await refuses([[0, put(5, 8192, 1)]], /no whole sequence/);
  });

  test("a file that was cut", () => refuses([[0, put(5, 0, 1, { flushed: 9 * MIB })]], /FlushedFileOffset/));

  test("updates of the headers and of the log itself", async () => {
    await refuses(
      [[0, logEntry({ sequence: 5, tail: 0, data: [{ at: 65536, fill: 1 }] })]],
      /update at 65536/,
    );
    await refuses(
      [[0, logEntry({ sequence: 5, tail: 0, zeros: [{ at: MIB, bytes: SECTOR }] })]],
      /update at 1048576/,
    );
    const across = [{ at: MIB - SECTOR, bytes: 2 * SECTOR }];
    await refuses([[0, logEntry({ sequence: 5, tail: 0, zeros: across })]], /outside of headers and log/);
  });

  test("entries that are as long as the ring, at every place (H24)", async () => {
    const long = new DataView(new ArrayBuffer(SECTOR));
    new Uint8Array(long.buffer).set(put(5, 0, 1).subarray(0, SECTOR));
    long.setUint32(8, LOG_BYTES, true);
    const entry = new Uint8Array(long.buffer);
    const everywhere = Array.from({ length: LOG_BYTES / SECTOR }, (_, i) => [i * SECTOR, entry] as const);
    await refuses(everywhere, /entries that lie over each other/);
  });

  test("files and zeros without measure (H24)", async () => {
    await refuses([[0, put(5, 0, 1, { last: 2 ** 50 })]], /a file of/);
    const zeros = [{ at: AT, bytes: 2 ** 40 }];
    await refuses([[0, logEntry({ sequence: 5, tail: 0, zeros })]], /clears more/, "unsupported");
  });
});

test("a waiting log is replayed in memory to read, and in the file before anything is written", async () => {
  const { file } = await dirtyVhdx();
  const untouched = file.peek();
  {
    await using image = await vhdx.open(sourceOf(file), noParent);
    assert.equal(image.details["isLogEmpty"], false);
    assert.match(image.summary, /log not yet replayed/);
    assert.ok((await readBytes(image, 0, image.bytes)).every((byte) => byte === 0));
    assert.equal(image.files.get("")!.bytes, file.bytes + MIB);
  }
  assert.deepEqual(file.peek(), untouched, "reading writes nothing");
  {
    await using image = await vhdx.openWritable!(sourceOf(file), noParent);
    assert.equal(image.details["isLogEmpty"], true);
    assert.ok((await readBytes(image, 0, image.bytes)).every((byte) => byte === 0));
  }
  assert.equal(file.bytes, untouched.length + MIB);
  const was = await readHeaders(SimulatedFile.from(untouched));
  const now = await readHeaders(file);
  assert.equal(now.current.logGuid, NO_GUID);
  assert.notEqual(now.current.fileWriteGuid, was.current.fileWriteGuid);
  assert.equal(now.current.dataWriteGuid, was.current.dataWriteGuid, "the guest sees what it saw");
});

test("a log of another version is not touched", async () => {
  const { file } = await dirtyVhdx();
  const { current, index } = await readHeaders(file);
  await file.write(HEADERS_AT[index], encodeHeader({ ...current, logVersion: 1 }));
  await assert.rejects(vhdx.open(sourceOf(file), noParent), { kind: "unsupported", message: /version 1/ });
});

test("every crash of a replay leaves a log that can be replayed, or none and its result", async () => {
  const { file, random } = await dirtyVhdx();
  const { files, trace } = recording(new Map([[file.name, file]]));
  await (await vhdx.openWritable!(sourceOf(files.get(file.name)!), noParent))[Symbol.asyncDispose]();
  let states = 0;
  for await (const state of crashStates(new Map([[file.name, file]]), trace, {
    random,
    statesPerFlush: 20,
  })) {
    states++;
    const source = sourceOf(state.files.get(file.name)!);
    for (const open of [() => vhdx.open(source, noParent), () => vhdx.openWritable!(source, noParent)]) {
      await using image = await open();
      assert.ok(
        (await readBytes(image, 0, image.bytes)).every((byte) => byte === 0),
        state.label,
      );
    }
  }
  assert.ok(states > 20);
});

const DIRTY = [
  "LTRData+DiscUtils/Tests/LibraryTests/Vhdx/Data/vhdx-log-replay.vhdx.gz",
  "Xilinx+qemu/tests/qemu-iotests/sample_images/iotest-dirtylog-10G-4M.vhdx.bz2",
];

suite("logs of Hyper-V", () => {
  for (const name of DIRTY) {
    test(`${name}: QEMU's replay gives the same disk`, async (t) => {
      if (corpus(t) === undefined || !requires(t, "qemu-img")) return;
      const folder = scratch(t);
      const [theirs, ours] = [join(folder, "theirs.vhdx"), join(folder, "ours.vhdx")];
      const original = unpack(t, name);
      copyFileSync(original, theirs);
      run("qemu-img", ["check", "-q", "-f", "vhdx", "-r", "all", theirs]);
      const file = await SimulatedFile.load(original);
      await using inMemory = await vhdx.open(sourceOf(file.fork()), noParent);
      await using replayed = await vhdx.openWritable!(sourceOf(file), noParent);
      await file.save(ours);
      assert.equal(attempt("qemu-img", ["check", "-f", "vhdx", ours]).status, 0);
      run("qemu-img", ["compare", "-f", "vhdx", "-F", "vhdx", "-s", theirs, ours]);
      await mustEqualRuns(inMemory, replayed);
    });
  }
});

async function mustEqualRuns(found: BlockDevice, expected: BlockDevice): Promise<void> {
  const runs = await wholeMap(found);
  const shape = (run: { start: number; end: number; kind: string }) => [run.start, run.end, run.kind];
  assert.deepEqual(runs.map(shape), (await wholeMap(expected)).map(shape));
  for (const { start, end, kind } of runs) {
    if (kind !== "data") continue;
    for (let at = start; at < end; at += MIB) {
      const bytes = Math.min(MIB, end - at);
      assert.deepEqual(await readBytes(found, at, bytes), await readBytes(expected, at, bytes));
    }
  }
}

function noParent(): never {
  throw new Error("there is no parent");
}
