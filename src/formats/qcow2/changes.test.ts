import assert from "node:assert/strict";
import { test } from "node:test";
import { crashStates, type Files, recording } from "../../testing/crash.ts";
import {
  type Kind,
  KINDS,
  loadFolder,
  makeImage,
  openIn,
  parentsIn,
  sourceIn,
  VIRTUAL_BYTES,
} from "../../testing/qcow2-kinds.ts";
import { Random, seeds } from "../../testing/seeds.ts";
import type { Operation, SimulatedFile } from "../../testing/simulated-file.ts";
import { requires, scratch } from "../../testing/tools.ts";
import type { BlockDevice } from "../../device/device.ts";
import type { WritableImage } from "../format.ts";
import { qcow2 } from "../qcow2.ts";

const IMAGE = "image.qcow2";
const SECTOR_BYTES = 512;
const SECTORS = VIRTUAL_BYTES / SECTOR_BYTES;

async function contentOf(device: BlockDevice): Promise<Buffer> {
  const bytes = Buffer.alloc(device.bytes);
  await device.read(0, bytes);
  return bytes;
}

/** What each sector may hold after a crash: what was flushed last, and everything that it held since. */
class History {
  #versions: Buffer[];

  constructor(content: Buffer) {
    this.#versions = [content];
  }

  add(content: Buffer): void {
    this.#versions.push(content);
  }

  flushed(): void {
    this.#versions = this.#versions.slice(-1);
  }

  /** The first sector of `content` that holds none of what it may hold; -1: none does. */
  foreignSector(content: Buffer): number {
    for (let sector = 0; sector < SECTORS; sector++) {
      const at = sector * SECTOR_BYTES;
      const found = content.subarray(at, at + SECTOR_BYTES);
      if (!this.#versions.some((version) => found.equals(version.subarray(at, at + SECTOR_BYTES))))
        return sector;
    }
    return -1;
  }
}

/** Some changes, and what the disk held after each of them. */
async function changeSome(image: WritableImage, random: Random, history: History): Promise<void> {
  for (let i = 0; i < 6; i++) {
    const start = random.below(SECTORS) * SECTOR_BYTES;
    const bytes = (1 + random.below(random.pick([4, 400]))) * SECTOR_BYTES;
    const range = { start, end: Math.min(VIRTUAL_BYTES, start + bytes) };
    const choice = random.below(6);
    if (choice === 0) await image.zero(range);
    else if (choice === 1) await image.discard(range);
    else await image.write(start, random.bytes(range.end - start));
    history.add(await contentOf(image));
  }
}

const CRASHED: readonly Kind[] = KINDS.filter(({ name }) => !name.startsWith("2 MiB"));

for (const kind of CRASHED) {
  test(`a crash leaves old or new sectors, and leaks at worst: ${kind.name}`, async (t) => {
    if (!requires(t, "qemu-img", "qemu-io")) return;
    for (const seed of seeds(1)) {
      const folder = scratch(t);
      const random = new Random(seed);
      makeImage(folder, kind, random);
      const before = await loadFolder(folder);
      const { files, trace } = recording(before);
      const image = await qcow2.openWritable!(sourceIn(files, IMAGE), parentsIn(files));
      const history = new History(await contentOf(image));
      await changeSome(image, random, history);
      await image.flush();
      await assertCrashes(before, trace, history, random, `SEED=${seed}`);

      history.flushed();
      const flushed = await durable(before, trace);
      const survivor = await openIn(flushed);
      assert.equal(
        history.foreignSector(await contentOf(survivor)),
        -1,
        `SEED=${seed}: what was flushed is durable`,
      );
      const length = trace.length;
      await changeSome(image, random, history);
      await image[Symbol.asyncDispose]();
      await assertCrashes(flushed, trace.slice(length), history, random, `SEED=${seed}, later`);
    }
  });
}

/** The files as a crash leaves them that loses whatever no flush of theirs covered. */
async function durable(before: Files, trace: readonly Operation[]): Promise<Map<string, SimulatedFile>> {
  const files = new Map(Array.from(before, ([name, file]) => [name, file.fork()]));
  for (const [name, file] of files) {
    const end = trace.findLastIndex((operation) => operation.file === name && operation.op === "flush");
    for (const operation of trace.slice(0, Math.max(0, end))) {
      if (operation.file !== name) continue;
      if (operation.op === "write") await file.write(operation.at, operation.data);
      else if (operation.op === "truncate") await file.truncate(operation.bytes);
      else if (operation.op !== "flush") await file[operation.op](operation.range);
    }
  }
  return files;
}

/** Every crash leaves an image whose check finds leaks at worst, and a content that the history admits. */
async function assertCrashes(
  before: Files,
  trace: readonly Operation[],
  history: History,
  random: Random,
  seed: string,
): Promise<void> {
  for await (const { files, label } of crashStates(before, trace, { random, statesPerFlush: 6 })) {
    const survivor = await openIn(files);
    for await (const { kind, message } of survivor.check()) {
      assert.equal(kind, "leak", `${seed}, ${label}: ${message}`);
    }
    const sector = history.foreignSector(await contentOf(survivor));
    assert.equal(sector, -1, `${seed}, ${label}: sector ${sector} is neither old nor new`);
  }
}
