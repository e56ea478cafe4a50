/**
 * The guard over images of several formats, crashed at every flush, in the image and in its own log together; and many
 * clients at once.
 */
import assert from "node:assert/strict";
import { setImmediate } from "node:timers/promises";
import { test } from "node:test";
import { readBytes, type WritableDevice, type Zeroing } from "../src/device/device.ts";
import { Filter } from "../src/device/filter.ts";
import type { Extent } from "../src/bytes/extents.ts";
import { formatNamed } from "../src/disk/open.ts";
import { Guard } from "../src/live/guard.ts";
import { crashStates, type Files, recording } from "../src/testing/crash.ts";
import { GuardedDisk } from "../src/testing/guarded-disk.ts";
import { Random, seeds } from "../src/testing/seeds.ts";
import { SimulatedFile } from "../src/testing/simulated-file.ts";
import { simulatedSource } from "../src/testing/simulated-source.ts";

const DISK_BYTES = 128 * 1024;
const SECTOR_BYTES = 512;
const FORMATS = ["raw", "qcow2", "vdi"];
const OPTIONS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  raw: {},
  qcow2: { cluster_size: "8192" },
  vdi: { block_size: "16384" },
};
const EVERYTHING = { since: 0, overWrites: true };
const FOREVER = { forMs: 1e9, maxBytes: 1e9 };
const noParent = (): Promise<never> => Promise.reject(new Error("no parent"));

async function newFiles(format: string, random: Random): Promise<Map<string, SimulatedFile>> {
  const files = new Map<string, SimulatedFile>();
  const source = simulatedSource(files, "image");
  const asked = { virtualBytes: DISK_BYTES, options: OPTIONS[format]! };
  const image = await formatNamed(format).create!(source, asked, noParent);
  await image.write(0, random.bytes(DISK_BYTES / 2));
  await image.flush();
  await image[Symbol.asyncDispose]();
  files.set("log", new SimulatedFile(0, { name: "log" }));
  return forked(files);
}

const forked = (all: Files): Map<string, SimulatedFile> =>
  new Map(Array.from(all, ([name, file]) => [name, file.fork()]));

function imageIn(all: Map<string, SimulatedFile>, format: string): Promise<WritableDevice> {
  for (const file of all.values()) file.locked = false;
  return formatNamed(format).openWritable!(simulatedSource(all, "image"), noParent);
}

const logIn = (all: Map<string, SimulatedFile>): SimulatedFile => {
  const log = all.get("log") ?? new SimulatedFile(0, { name: "log" });
  all.set("log", log);
  return log;
};

async function restoredTo(all: Files, format: string, choice: typeof EVERYTHING): Promise<Uint8Array> {
  const copies = forked(all);
  const guard = await Guard.open(await imageIn(copies, format), logIn(copies), FOREVER);
  await guard.restore(choice);
  return await readBytes(guard, 0, DISK_BYTES);
}

const sectorOf = (content: Uint8Array, sector: number): Uint8Array =>
  content.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);

for (const format of FORMATS) {
  test(`${format}: a crash anywhere, also while guarded bytes are let go or settled`, async () => {
    let states = 0;
    for (const seed of seeds(8)) {
      const random = new Random(seed);
      let before = await newFiles(format, random);
      let previous: GuardedDisk | undefined;
      const options = { writes: random.oneIn(4), forMs: 4000, slackBytes: random.pick([0, 4096, 1e9]) };
      for (let segment = 0; segment < 3; segment++) {
        const { files: all, trace } = recording(before);
        const image = await imageIn(all, format);
        const disk: GuardedDisk = await GuardedDisk.open(image, logIn(all), random, options, previous);
        const flushed = disk.olds.map((olds) => olds.slice());
        for (let i = 0; i < 5; i++) {
          await disk.change(options);
          if (random.oneIn(3)) await disk.expire(disk.now - 4);
        }
        if (random.oneIn(3)) {
          await disk.guard[Symbol.asyncDispose]();
          await disk.guard.seal();
        } else await disk.guard.flush();
        for await (const state of crashStates(before, trace, { random, statesPerFlush: 6 })) {
          states++;
          await assertSound(
            state.files,
            format,
            { disk, flushed },
            `SEED=${seed}: ${segment}, ${state.label}`,
          );
        }
        disk.versions = [disk.content];
        before = forked(all);
        previous = disk;
      }
    }
    assert.ok(states > 100, `${states} states`);
  });

  test(`${format}: an undo that is interrupted can be repeated`, async () => {
    for (const seed of seeds(3)) {
      const random = new Random(seed);
      const start = await newFiles(format, random);
      const writes = random.oneIn(2);
      const disk = await GuardedDisk.open(await imageIn(start, format), logIn(start), random, { writes });
      for (let i = 0; i < 14; i++) await disk.change({ writes });
      await disk.flush();
      const choice = { since: random.pick([...disk.snapshots.keys()]), overWrites: random.oneIn(2) };
      const expected = await restoredTo(start, format, choice);
      const everything = await restoredTo(start, format, EVERYTHING);
      const before = forked(start);
      const { files: all, trace } = recording(before);
      const guard = await Guard.open(await imageIn(all, format), logIn(all), FOREVER);
      await guard.restore(choice);
      for await (const state of crashStates(before, trace, { random, statesPerFlush: 8 })) {
        const label = `SEED=${seed}: ${state.label}`;
        assert.ok(isSame(await restoredTo(state.files, format, choice), expected), label);
        const all = await restoredTo(state.files, format, EVERYTHING);
        assert.ok(isSame(all, everything), `${label}: the rest is guarded as before`);
      }
    }
  });
}

const isSame = (first: Uint8Array, second: Uint8Array): boolean => Buffer.compare(first, second) === 0;

interface Told {
  readonly disk: GuardedDisk;
  /** What was guarded, durably, when the segment began. */
  readonly flushed: GuardedDisk["olds"];
}

async function assertSound(
  survivors: Files,
  format: string,
  { disk, flushed }: Told,
  label: string,
): Promise<void> {
  const copies = forked(survivors);
  const guard = await Guard.open(await imageIn(copies, format), logIn(copies), FOREVER);
  const content = await readBytes(guard, 0, DISK_BYTES);
  assert.equal(disk.foreignSector(content), -1, `${label}: a sector is neither old nor new`);
  const back = await restoredTo(survivors, format, EVERYTHING);
  for (const [sector, olds] of flushed.entries()) {
    // Let go or not: what is too old comes back as it was, or not at all.
    const first = olds.findIndex(({ time }) => time > disk.expired);
    if (first < 0 || olds.some(({ bytes }) => bytes.every((byte) => byte === 0))) continue;
    const found = sectorOf(back, sector);
    const isOld = olds.slice(0, first + 1).some(({ bytes }) => isSame(found, bytes));
    assert.ok(isOld, `${label}: what was guarded at sector ${sector} comes back`);
  }
}

/** A disk that takes its time, in any order. */
class Slow extends Filter {
  readonly #random: Random;

  constructor(below: WritableDevice, random: Random) {
    super(below);
    this.#random = random;
  }

  async #wait(): Promise<void> {
    for (let i = this.#random.below(4); i > 0; i--) await setImmediate();
  }

  override async read(at: number, into: Uint8Array): Promise<void> {
    await this.#wait();
    await super.read(at, into);
  }

  override async write(at: number, from: Uint8Array): Promise<void> {
    await this.#wait();
    await super.write(at, from);
    await this.#wait();
  }

  override async zero(range: Extent, how?: Zeroing): Promise<void> {
    await this.#wait();
    await super.zero(range, how);
    await this.#wait();
  }

  override async flush(): Promise<void> {
    await this.#wait();
    await super.flush();
  }
}

test(
  "many clients at once: each finds what it left, and the log tells the state",
  { timeout: 60_000 },
  async () => {
    const CLIENTS = 8;
    for (const seed of seeds(6)) {
      const random = new Random(seed);
      const files = await newFiles("raw", random);
      const image = new Slow(await imageIn(files, "raw"), random);
      let now = 1_000_000;
      const writes = random.oneIn(3);
      const settings = { forMs: 20_000, maxBytes: 1e9, slackBytes: 4096, writes, now: () => now };
      const guard = await Guard.open(image, logIn(files), settings);
      const shadow = await readBytes(guard, 0, DISK_BYTES);
      const stripe = DISK_BYTES / CLIENTS;
      const client = async (number: number): Promise<void> => {
        for (let i = 0; i < 40; i++) {
          now += random.below(900);
          const start = number * stripe + random.below(stripe / 512 - 1) * 512;
          const end = Math.min((number + 1) * stripe, start + (1 + random.below(12)) * 512);
          const choice = random.below(8);
          if (choice < 4) {
            const data = random.bytes(end - start);
            await guard.write(start, data);
            shadow.set(data, start);
          } else if (choice === 4) {
            await guard.zero({ start, end });
            shadow.fill(0, start, end);
          } else if (choice === 5) {
            await guard.discard({ start, end });
            const found = await readBytes(guard, start, end - start);
            const isEither = found.every((byte, at) => byte === 0 || byte === shadow[start + at]);
            assert.ok(isEither, `SEED=${seed}: trimmed`);
            shadow.set(found, start);
          } else if (choice === 6) await guard.flush();
          else if (number === 0) await guard.expire();
          const found = await readBytes(guard, number * stripe, stripe);
          const expected = shadow.subarray(number * stripe, (number + 1) * stripe);
          assert.ok(isSame(found, expected), `SEED=${seed}: client ${number}, step ${i}`);
        }
      };
      await Promise.all(Array.from({ length: CLIENTS }, (_, number) => client(number)));
      await guard.flush();
      assert.ok(isSame(await readBytes(guard, 0, DISK_BYTES), shadow), `SEED=${seed}`);
      const copies = forked(files);
      const again = await Guard.open(await imageIn(copies, "raw"), logIn(copies), settings);
      assert.deepEqual(again.counters, { ...guard.counters, refused: 0 }, `SEED=${seed}`);
      assert.ok(isSame(await readBytes(again, 0, DISK_BYTES), shadow), `SEED=${seed}: reopened`);
    }
  },
);
