/**
 * The thread in which a served disk lives its random life: without the test runner's watch over every promise.
 */
import assert from "node:assert/strict";
import { parentPort, workerData } from "node:worker_threads";
import { readBytes } from "../src/device/device.ts";
import { allocation } from "../src/nbd/contexts.ts";
import { Budget } from "../src/nbd/transmission.ts";
import { IMAGE_KINDS, type ImageKind, makeKind, openKind, readKind } from "../src/testing/nbd-images.ts";
import { Life } from "../src/testing/nbd-life.ts";
import { MemoryClient, sessionOf } from "../src/testing/nbd-memory.ts";
import type { Dialect } from "../src/testing/nbd-wire.ts";
import { Random } from "../src/testing/seeds.ts";
import { ShadowDisk } from "../src/testing/shadow-disk.ts";

/** What a worker is told. */
export interface Lives {
  readonly kind: string;
  readonly seeds: readonly number[];
  readonly operations: number;
}

const DIALECTS: readonly Dialect[] = ["structured", "simple", "extended"];
const BUDGET_BYTES = 1024 * 1024;

const { kind: wanted, seeds, operations: OPERATIONS } = workerData as Lives;
const answered: Record<string, number> = {};
for (const seed of seeds) {
  for (const isStraight of [true, false]) {
    await live(
      IMAGE_KINDS.find(({ name }) => name === wanted)!,
      seed,
      isStraight,
    );
  }
}
parentPort!.postMessage(answered);

async function live(kind: ImageKind, seed: number, isStraight: boolean): Promise<void> {
  const random = new Random(seed);
  const label = `SEED=${seed}, ${isStraight ? "straight" : "long"} way:`;
  const { files, content } = await makeKind(kind, random);
  const shadow = new ShadowDisk(content);
  for (let sitting = 0; sitting < 2; sitting++) {
    // Sometimes a part of the bytes is in memory, or nothing.
    const atOnce = (bytes: number): number => (random.oneIn(8) ? random.below(bytes) : bytes);
    for (const file of files.values()) file.atOnce = isStraight ? atOnce : undefined;
    const image = await openKind(kind, files);
    if (sitting === 1) {
      const lag = async (): Promise<void> => {
        for (let i = random.below(5); i > 0; i--) await Promise.resolve();
      };
      for (const file of files.values()) file.lag = lag;
    }
    const dialect = random.pick(DIALECTS);
    const contexts = dialect === "simple" ? [] : [allocation(image)];
    const session = sessionOf(image, { dialect, contexts });
    const budget = new Budget(BUDGET_BYTES);
    const clients = Array.from({ length: 1 + random.below(3) }, () => new MemoryClient(session, { budget }));
    const life = new Life(clients, shadow, random, {
      operations: OPERATIONS,
      inFlightMax: random.pick([1, 2, 6, 24]),
      grains: [1, 512, 4096, kind.grain],
      bytesMax: 256 * 1024,
      label,
    });
    await life.live();
    for (const [what, count] of Object.entries(life.answered)) answered[what] = (answered[what] ?? 0) + count;
    assert.deepEqual(
      clients.map(({ broken }) => broken),
      clients.map(() => undefined),
      label,
    );
    assert.equal(budget.left, BUDGET_BYTES, `${label} nothing is held`);
    await image.flush();
    await image[Symbol.asyncDispose]();
    for (const file of files.values()) file.lag = undefined;
    await judge(kind, files, shadow, label);
  }
}

/** What is left is a whole image, without a leak, that reads as the model says. */
async function judge(
  kind: ImageKind,
  files: Parameters<typeof readKind>[1],
  shadow: ShadowDisk,
  label: string,
): Promise<void> {
  await using image = await readKind(kind, files);
  for await (const { kind: found, message } of image.check()) assert.fail(`${label} ${found}: ${message}`);
  const look = shadow.look(0, shadow.bytes);
  shadow.saw(look, await readBytes(image, 0, shadow.bytes), `${label} opened anew`);
  assert.equal(shadow.openSectors, 0);
}
