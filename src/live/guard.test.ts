import assert from "node:assert/strict";
import { test } from "node:test";
import { readBytes, type WritableDevice } from "../device/device.ts";
import { crashStates, type Files, recording } from "../testing/crash.ts";
import { differs, GuardedDisk, restored } from "../testing/guarded-disk.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { HIDDEN, PROMISED } from "./guard/pieces.ts";
import { Guard } from "./guard.ts";

const DISK_BYTES = 128 * 1024;
const EVERYTHING = { since: 0, overWrites: true };

/** An image of which a part was never written. */
async function files(random: Random): Promise<Map<string, SimulatedFile>> {
  const image = SimulatedFile.from(random.bytes(DISK_BYTES * 0.75), { name: "image" });
  await image.truncate(DISK_BYTES);
  return new Map([
    ["image", image],
    ["log", new SimulatedFile(0, { name: "log" })],
  ]);
}

const imageOf = (all: Files): WritableDevice => all.get("image")!;
const logOf = (all: Files): SimulatedFile => all.get("log")!;
const forked = (all: Files): Map<string, SimulatedFile> =>
  new Map(Array.from(all, ([name, file]) => [name, file.fork()]));

/** The disk after a restore on a copy of the files. */
async function afterRestore(all: Files, choice: { since: number; overWrites: boolean }): Promise<Uint8Array> {
  const copies = forked(all);
  const guard = await Guard.open(imageOf(copies), logOf(copies), { forMs: 1e9, maxBytes: 1e9 });
  await guard.restore(choice);
  const content = await readBytes(guard, 0, DISK_BYTES);
  await guard[Symbol.asyncDispose]();
  await guard.seal();
  const again = await Guard.open(imageOf(copies), logOf(copies), { forMs: 1e9, maxBytes: 1e9 });
  assert.deepEqual(again.offered(choice), [], "it comes back once");
  const image = await contentOf(copies);
  for (const { start, end } of again.guarded()) image.fill(0, start, end);
  assert.equal(firstDifference(image, content), -1, "the image holds it, without the guard");
  const hidden = again.offered(EVERYTHING).filter(({ flags }) => flags & HIDDEN);
  assert.ok(!hidden.some(({ flags }) => flags & PROMISED), "promised zeros are zeros in the image");
  return content;
}

/** What a guard holds, as values. */
function told(guard: Guard): unknown {
  const pieces = [true, false].map((overWrites) => guard.offered({ since: 0, overWrites }));
  return [
    guard.counters,
    ...pieces.map((each) => each.map(({ block, ...piece }) => ({ ...piece, at: block?.at }))),
  ];
}

async function replayed(all: Files): Promise<unknown> {
  const copies = forked(all);
  return told(await Guard.open(imageOf(copies), logOf(copies), { forMs: 1e9, maxBytes: 1e9 }));
}

/** Offset, or -1; a failed comparison of buffers would print them. */
const firstDifference = (first: Uint8Array, second: Uint8Array): number =>
  Buffer.compare(first, second) === 0 ? -1 : first.findIndex((byte, at) => byte !== second[at]);

const contentOf = (all: Files): Promise<Uint8Array> => readBytes(imageOf(all), 0, DISK_BYTES);

test("random changes read as on a plain disk, and any second of them can be brought back", async () => {
  for (const seed of seeds(30)) {
    const random = new Random(seed);
    const all = await files(random);
    const writes = random.oneIn(2);
    const disk = await GuardedDisk.open(imageOf(all), logOf(all), random, { writes });
    for (let i = 0; i < 40; i++) {
      await disk.change({ writes });
      const content = await readBytes(disk.guard, 0, DISK_BYTES);
      assert.equal(firstDifference(content, disk.content), -1, `SEED=${seed}: change ${i}`);
      if (random.oneIn(6)) await disk.flush();
    }
    if (writes) {
      // A server that is killed leaves behind what it wrote, flushed or not.
      const first = disk.snapshots.get(Math.min(...disk.snapshots.keys()))!;
      const at = firstDifference(await afterRestore(all, EVERYTHING), first);
      assert.equal(at, -1, `SEED=${seed}: killed, and all taken back`);
    }
    await disk.flush();
    assert.deepEqual(await replayed(all), told(disk.guard), `SEED=${seed}: the log tells the state`);
    const since = random.pick([...disk.snapshots.keys()]);
    if (writes) {
      const content = await afterRestore(all, { since, overWrites: true });
      const at = firstDifference(content, disk.snapshots.get(since)!);
      assert.equal(at, -1, `SEED=${seed}: the disk of second ${since}`);
    }
    for (const overWrites of [false, true]) {
      const content = await afterRestore(all, { since, overWrites });
      const at = differs(content, restored(disk, { since, overWrites }));
      assert.equal(at, -1, `SEED=${seed}: since ${since}${overWrites ? " over writes" : ""}`);
    }
  }
});

test("a crash anywhere loses nothing that was flushed, and what was guarded comes back", async () => {
  let states = 0;
  for (const seed of seeds(12)) {
    const random = new Random(seed);
    let before = forked(await files(random));
    let previous: GuardedDisk | undefined;
    const writes = random.oneIn(3);
    for (let segment = 0; segment < 3; segment++) {
      const { files: all, trace } = recording(before);
      const disk: GuardedDisk = await GuardedDisk.open(
        imageOf(all),
        logOf(all),
        random,
        { writes },
        previous,
      );
      const flushed = disk.olds.map((olds) => olds.slice());
      for (let i = 0; i < 6; i++) await disk.change({ writes });
      if (random.oneIn(2)) {
        await disk.guard[Symbol.asyncDispose]();
        await disk.guard.seal();
      } else await disk.guard.flush();
      for await (const state of crashStates(before, trace, { random, statesPerFlush: 12 })) {
        states++;
        await assertSound(state.files, disk, flushed, `SEED=${seed}: segment ${segment}, ${state.label}`);
      }
      disk.versions = [disk.content];
      before = forked(all);
      previous = disk;
    }
  }
  assert.ok(states > 1000, `${states} states`);
});

async function assertSound(
  survivors: Files,
  disk: GuardedDisk,
  flushed: GuardedDisk["olds"],
  label: string,
): Promise<void> {
  const log = survivors.get("log") ?? new SimulatedFile(0, { name: "log" });
  const all = new Map([...survivors, ["log", log] as const]);
  const guard = await Guard.open(imageOf(all), log.fork(), { forMs: 1e9, maxBytes: 1e9 });
  const content = await readBytes(guard, 0, DISK_BYTES);
  assert.equal(disk.foreignSector(content), -1, `${label}: a sector is neither old nor new`);
  const back = await afterRestore(all, EVERYTHING);
  const expected = flushed.map((olds) => {
    const first = olds[0]?.bytes;
    return first?.some((byte) => byte !== 0) ? first : undefined;
  });
  assert.equal(differs(back, expected), -1, `${label}: what was guarded comes back`);
}
