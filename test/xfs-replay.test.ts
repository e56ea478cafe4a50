/**
 * Logs of an XFS written by hand, one for each rule of a replay and for each refusal. The kernel is the judge of
 * some, and of its own logs in src/filesystems/xfs/replay.test.ts.
 */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { viewOf } from "../src/bytes/struct.ts";
import { readBytes } from "../src/device/device.ts";
import { xfs } from "../src/filesystems/xfs.ts";
import { AgflLayout } from "../src/filesystems/xfs/headers.ts";
import { openVolume } from "../src/filesystems/xfs/recovery.ts";
import { checksumOf } from "../src/filesystems/xfs/refused.ts";
import { readSuperblock } from "../src/filesystems/xfs/superblock.ts";
import { fuzzDevice } from "../src/testing/fuzz.ts";
import { withMount } from "../src/testing/kernel-guest.ts";
import { requires, requiresRoot, scratch } from "../src/testing/tools.ts";
import {
  bufferItem,
  commit,
  freeIntent,
  OPERATION,
  type Operation,
  seal,
  transaction,
  words,
  writeLog,
} from "../src/testing/xfs-log.ts";
import { makeXfs } from "../src/testing/xfs.ts";

const BLOCK = 4096;
/** A free block of the volume. */
const FREE = 3000;
const AT = FREE * BLOCK;
const [A, B] = [new Uint8Array(128).fill(0xaa), new Uint8Array(128).fill(0xbb)];
const KIND_AGFL = 6;

let pristine: Uint8Array | undefined;

/** A fresh XFS in memory; undefined when the test is skipped. */
function fresh(t: TestContext): Uint8Array | undefined {
  if (!requires(t, "mkfs.xfs")) return undefined;
  if (pristine === undefined) {
    const image = join(scratch(t), "image");
    makeXfs(image, "-d agcount=1", "16M");
    pristine = new Uint8Array(readFileSync(image));
  }
  return pristine.slice();
}

interface Verdict {
  readonly code: string | undefined;
  /** Whether the block is free, and what it begins with after the replay. */
  readonly isFree: boolean;
  readonly first: number | undefined;
}

async function verdict(image: Uint8Array, replay = true): Promise<Verdict> {
  const device = fuzzDevice(image);
  const filesystem = await xfs.open([device], { replay });
  const [free] = await filesystem.free();
  await filesystem.walk(() => {});
  const code = filesystem.refusal?.code;
  if (code !== undefined) return { code, isFree: free!.count > 0, first: undefined };
  const { volume } = await openVolume(device, await readSuperblock(device), true);
  return { code, isFree: free!.has(AT), first: (await readBytes(volume.device, AT, 1))[0] };
}

async function logged(
  t: TestContext,
  ...records: readonly (readonly Operation[])[]
): Promise<Verdict | undefined> {
  const image = fresh(t);
  if (image === undefined) return undefined;
  writeLog(image, records);
  return verdict(image);
}

const set = (id: number, content: Uint8Array) => [
  ...transaction(id, [bufferItem(AT, BLOCK, content)]),
  commit(id),
];
const cancel = (id: number) => [...transaction(id, [bufferItem(AT, BLOCK)]), commit(id)];
const idle = (id: number) => [...transaction(id, [freeIntent(true, 1, 0, 0)]), commit(id)];
const refused = (code: string) => ({ code, isFree: false, first: undefined });
const replayed = (isFree: boolean, first: number) => ({ code: undefined, isFree, first });

test("a clean log, and a dirty one without leave to replay it", async (t) => {
  const image = fresh(t);
  if (image === undefined) return;
  assert.deepEqual(await verdict(image), replayed(true, 0));
  writeLog(image, [idle(7)]);
  assert.deepEqual(await verdict(image, false), refused("journal-dirty"));
  assert.deepEqual(await verdict(image), replayed(true, 0));
});

test("what was committed is replayed, and its blocks are kept", async (t) => {
  const found = await logged(t, set(7, A));
  if (found === undefined) return;
  assert.deepEqual(found, replayed(false, 0xaa));
  assert.deepEqual(await logged(t, set(7, A), set(8, B)), replayed(false, 0xbb));
  assert.deepEqual(await logged(t, set(7, A).slice(0, -1)), replayed(true, 0));
  const [start, header, format, content, end] = set(7, A) as [
    Operation,
    Operation,
    Operation,
    Operation,
    Operation,
  ];
  const first = { ...content, flags: OPERATION.continue, bytes: A.subarray(0, 60) };
  const second = { ...content, flags: OPERATION.wasContinued, bytes: A.subarray(60) };
  assert.deepEqual(await logged(t, [start, header, format, first], [second, end]), replayed(false, 0xaa));
});

test("a buffer that is freed later is left alone, until then", async (t) => {
  const found = await logged(t, set(7, A), cancel(8));
  if (found === undefined) return;
  assert.deepEqual(found, replayed(false, 0));
  assert.deepEqual(await logged(t, set(7, A), cancel(8), set(9, B)), replayed(false, 0xbb));
  assert.deepEqual(await logged(t, set(7, A), cancel(8), set(9, B), cancel(10)), replayed(false, 0));
});

test("the kernel replays what was written by hand, too", async (t) => {
  const image = fresh(t);
  if (image === undefined || !requiresRoot(t)) return;
  const path = join(scratch(t), "image");
  for (const [records, first] of [
    [[set(7, A), set(8, B)], 0xbb],
    [[set(7, A).slice(0, -1)], 0],
    [[set(7, A), cancel(8)], 0],
    [[set(7, A), cancel(8), set(9, B)], 0xbb],
  ] as const) {
    const copy = image.slice();
    writeLog(copy, records);
    writeFileSync(path, copy);
    withMount(path, { start: 0, end: copy.length }, "rw", () => {});
    assert.equal(readFileSync(path)[AT], first);
    assert.equal((await verdict(copy)).first, first);
  }
});

test("a block that is newer than the transaction is left alone", async (t) => {
  const image = fresh(t);
  if (image === undefined) return;
  const { sectorBytes } = await readSuperblock(fuzzDevice(image));
  const at = 3 * sectorBytes;
  const content = image.slice(at, at + 128);
  viewOf(content).setUint32(AgflLayout.at.number, 5);
  writeLog(image, [[...transaction(7, [bufferItem(at, sectorBytes, content, KIND_AGFL)]), commit(7)]]);
  assert.deepEqual(await verdict(image), refused("damaged"));
  viewOf(image).setBigUint64(at + AgflLayout.at.lsn, (1n << 32n) + 2n);
  const checksum = at + AgflLayout.at.checksum;
  viewOf(image).setUint32(checksum, checksumOf(image, checksum, at, at + sectorBytes), true);
  assert.deepEqual(await verdict(image), replayed(true, 0));
});

test("what is still to be freed is kept", async (t) => {
  const found = await logged(t, [...transaction(7, [freeIntent(false, 3, FREE, 2)]), commit(7)]);
  if (found === undefined) return;
  assert.deepEqual(found, replayed(false, 0));
  const both = [freeIntent(false, 3, FREE, 2), freeIntent(true, 3, FREE, 2)];
  assert.deepEqual(await logged(t, [...transaction(7, both), commit(7)]), replayed(true, 0));
  const outside = freeIntent(false, 3, 4095, 2);
  assert.deepEqual(await logged(t, [...transaction(7, [outside]), commit(7)]), refused("journal-corrupt"));
});

test("what is not understood is refused", async (t) => {
  const found = await logged(t, [...transaction(7, [[words((1 << 16) + 0x1250, 0, 0, 0)]]), commit(7)]);
  if (found === undefined) return;
  assert.deepEqual(found, refused("journal-unknown"));
  const inode = words((2 << 16) + 0x123b, 0x201, 0, 0, 128, 0, 0, 0, 0, 0, 128, 0, 32, 0);
  assert.deepEqual(
    await logged(t, [...transaction(7, [[inode, words(0)]]), commit(7)]),
    refused("journal-unknown"),
  );
  const beyond = bufferItem(16 * 2 ** 20, BLOCK, A);
  assert.deepEqual(await logged(t, [...transaction(7, [beyond]), commit(7)]), refused("journal-corrupt"));
  const short = bufferItem(AT, BLOCK, A.subarray(1));
  assert.deepEqual(await logged(t, [...transaction(7, [short]), commit(7)]), refused("journal-corrupt"));
  const missing = bufferItem(AT, BLOCK, A)[0]!;
  viewOf(missing).setUint16(2, 1, true);
  assert.deepEqual(await logged(t, [...transaction(7, [[missing]]), commit(7)]), refused("journal-corrupt"));
  const headless = set(7, A).filter((_, index) => index !== 1);
  assert.deepEqual(await logged(t, headless), refused("journal-corrupt"));
  assert.deepEqual(await logged(t, [{ ...set(7, A)[0]! }, { id: 7, flags: 64 }]), refused("journal-corrupt"));
});

test("a torn end is cut off, damage farther back is refused", async (t) => {
  const image = fresh(t);
  if (image === undefined) return;
  const records = [set(7, A), ...Array.from({ length: 8 }, (_, i) => idle(20 + i)), set(8, B)];
  const places = writeLog(image, records);
  const wounded = async (place: number, offset: number, byte: number, isSealed = false) => {
    const copy = image.slice();
    copy[place + offset]! ^= byte;
    if (isSealed) seal(copy, place);
    return verdict(copy);
  };
  const [first, last] = [places[0]!, places[9]!];
  const alone = fresh(t)!;
  alone[writeLog(alone, [set(7, A)])[0]! + 700]! ^= 1;
  assert.deepEqual(await verdict(alone), refused("journal-corrupt"));
  assert.deepEqual(await verdict(image), replayed(false, 0xbb));
  assert.deepEqual(await wounded(last, 700, 1), replayed(false, 0xaa));
  // A sector of it did not arrive: there is the cycle before. A cycle that cannot be is damage.
  assert.deepEqual(await wounded(last, 512 + 3, 1), replayed(false, 0xaa));
  assert.deepEqual(await wounded(last, 512 + 3, 8), refused("journal-corrupt"));
  assert.deepEqual(await wounded(first, 700, 1), refused("journal-corrupt"));
  assert.deepEqual(await wounded(places[1]!, 700, 1), refused("journal-corrupt"));
  assert.deepEqual(await wounded(places[2]!, 700, 1), replayed(false, 0xaa));
  // Whole, but of another filesystem, another machine, another place; the tail behind the end.
  assert.deepEqual(await wounded(places[4]!, 304, 1, true), refused("journal-corrupt"));
  assert.deepEqual(await wounded(places[4]!, 303, 3, true), refused("journal-unknown"));
  assert.deepEqual(await wounded(places[4]!, 23, 1, true), refused("journal-corrupt"));
  assert.deepEqual(await wounded(last, 30, 1, true), refused("journal-corrupt"));
  const unsealed = image.slice();
  unsealed.fill(0, places[4]! + 32, places[4]! + 36);
  assert.deepEqual(await verdict(unsealed), refused("journal-corrupt"));
});
