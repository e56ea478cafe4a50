/**
 * Crashes and failing media under a server (H12, H13, H20, H26, H27): requests go through the server's own stack to simulated
 * files, and whatever a crash leaves of these
 *
 *   opens, and its check finds nothing but leaks and what a repair mends;
 *   holds every sector that a FLUSH or FUA was answered for, or a newer content of it;
 *   has old bytes or zeros where something was trimmed.
 *
 * `SEED=n` replays one seed; `STATES=n` draws so many states at each flush.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { readBytes } from "../src/device/device.ts";
import { CMD, CMD_FLAG, ERRNO } from "../src/nbd/protocol.ts";
import { crashStates, type Files, recording } from "../src/testing/crash.ts";
import { durable } from "../src/testing/conformance/writer-crash.ts";
import { DurableDisk, SECTOR_BYTES } from "../src/testing/durable-disk.ts";
import { IMAGE_KINDS, type ImageKind, makeKind, openKind, readKind } from "../src/testing/nbd-images.ts";
import { MemoryClient, sessionOf } from "../src/testing/nbd-memory.ts";
import { Random, seeds } from "../src/testing/seeds.ts";
import type { Fault, Operation, SimulatedFile } from "../src/testing/simulated-file.ts";

const STATES_PER_FLUSH = Number(process.env["STATES"] ?? 12);
const ROUNDS = 5;
const IN_FLIGHT_MAX = 5;

interface Lived {
  readonly disk: DurableDisk;
  readonly errors: number[];
}

/** Rounds of requests in flight together, no two about one sector; after most rounds a FLUSH. */
async function live(
  kind: ImageKind,
  files: Map<string, SimulatedFile>,
  content: Uint8Array,
  random: Random,
  trace: readonly Operation[],
): Promise<Lived> {
  const disk = new DurableDisk(content);
  const errors: number[] = [];
  const image = await openKind(kind, files);
  const client = new MemoryClient(sessionOf(image));
  const ask = async (question: Parameters<MemoryClient["ask"]>[0]): Promise<boolean> => {
    const { error } = await client.ask(question);
    if (error !== 0) errors.push(error);
    return error === 0;
  };
  for (let round = 0; round < ROUNDS; round++) {
    const busy = new Set<number>();
    const asked: Promise<void>[] = [];
    for (let i = 1 + random.below(IN_FLIGHT_MAX); i > 0; i--) {
      asked.push(change(disk, ask, rangeIn(kind, busy, random), random, trace));
    }
    if (random.oneIn(3)) asked.push(flush(disk, ask, trace));
    await Promise.all(asked);
    if (!random.oneIn(4)) await flush(disk, ask, trace);
  }
  try {
    await image[Symbol.asyncDispose]();
  } catch {
    errors.push(ERRNO.EIO);
  }
  return { disk, errors };
}

type Ask = (question: Parameters<MemoryClient["ask"]>[0]) => Promise<boolean>;

function rangeIn(kind: ImageKind, busy: Set<number>, random: Random): { start: number; end: number } {
  const sectors = Math.floor(kind.virtualBytes / SECTOR_BYTES);
  const grain = random.pick([1, 8, Math.max(1, kind.grain / SECTOR_BYTES)]);
  const first = Math.floor(random.below(sectors) / grain) * grain;
  const most = Math.min(sectors, first + grain * random.between(1, random.pick([2, 6])));
  let end = first;
  while (end < most && !busy.has(end)) busy.add(end++);
  return { start: first * SECTOR_BYTES, end: end * SECTOR_BYTES };
}

async function flush(disk: DurableDisk, ask: Ask, trace: readonly Operation[]): Promise<void> {
  const covered = disk.flushing();
  if (await ask({ command: CMD.FLUSH })) disk.flushed(covered, trace.length);
}

async function change(
  disk: DurableDisk,
  ask: Ask,
  range: { start: number; end: number },
  random: Random,
  trace: readonly Operation[],
): Promise<void> {
  const bytes = range.end - range.start;
  if (bytes === 0) return;
  const isForced = random.oneIn(4);
  const flags = isForced ? CMD_FLAG.FUA : 0;
  const kind = random.below(5);
  const data = kind > 1 ? random.bytes(bytes) : new Uint8Array(bytes);
  const numbers = disk.begin(range, data);
  const question = { offset: range.start, bytes };
  if (kind === 0) {
    await ask({ ...question, command: CMD.TRIM, flags });
    return;
  }
  const isDone =
    kind === 1
      ? await ask({
          ...question,
          command: CMD.WRITE_ZEROES,
          flags: flags | random.pick([0, CMD_FLAG.NO_HOLE]),
        })
      : await ask({ ...question, command: CMD.WRITE, flags, data });
  if (!isDone) return;
  disk.answered(range, numbers);
  if (isForced) disk.forced(range, numbers, trace.length);
}

/** @throws AssertionError where these files are nothing that a crash after so many operations may leave */
async function holds(kind: ImageKind, files: Files, disk: DurableDisk, operations: number, where: string) {
  await using image = await readKind(kind, new Map(files));
  for await (const { kind: found, isMendable, message } of image.check()) {
    assert.ok(found === "leak" || isMendable, `${where}: ${message}`);
  }
  const at = disk.wrongSector(Buffer.from(await readBytes(image, 0, image.bytes)), operations);
  assert.equal(at, -1, `${where}: the sector at ${at} is neither what was flushed nor newer`);
}

for (const kind of IMAGE_KINDS) {
  test(`${kind.name}: no crash loses what was flushed`, async (t) => {
    let states = 0;
    for (const seed of seeds(3)) {
      const random = new Random(seed);
      const made = await makeKind(kind, random);
      const { files, trace } = recording(made.files);
      for (const file of files.values()) file.atOnce = random.oneIn(2) ? (bytes) => bytes : undefined;
      const { disk, errors } = await live(kind, files, made.content, random, trace);
      assert.deepEqual(errors, []);
      const options = { random, statesPerFlush: STATES_PER_FLUSH };
      for await (const { files: left, operations, label } of crashStates(made.files, trace, options)) {
        await holds(kind, left, disk, operations, `SEED=${seed}: ${label}`);
        states++;
      }
    }
    t.diagnostic(`${states} states`);
  });

  test(`${kind.name}: no failure of the medium is answered as success, or loses what was flushed`, async () => {
    const [seed] = seeds(1);
    const made = await makeKind(kind, new Random(seed!));
    const calm = await withFault(kind, made, seed!, {}, Infinity);
    const step = Math.max(1, Math.floor(calm / 25));
    for (let operation = 0; operation < calm; operation += step) {
      await withFault(kind, made, seed!, { operation }, Infinity);
      await withFault(kind, made, seed!, { operation, forever: true }, Infinity);
    }
    const hostBytes = victimOf(made.files)?.hostBytes ?? 0;
    for (const more of [0, 64 * 1024]) await withFault(kind, made, seed!, {}, hostBytes + more);
  });
}

/** The file that holds the guest's bytes; of a bundle any. */
function victimOf(files: Files): SimulatedFile | undefined {
  const own = [...files.values()].filter(({ name }) => name !== "parent");
  return files.get("data") ?? own.sort((a, b) => b.bytes - a.bytes)[0];
}

/** One life on files of which one fails. @returns the number of its operations */
async function withFault(
  kind: ImageKind,
  { files: before, content }: Awaited<ReturnType<typeof makeKind>>,
  seed: number,
  fault: Fault,
  capacityBytes: number,
): Promise<number> {
  const { files, trace } = recording(before);
  const written = victimOf(files);
  if (written !== undefined) Object.assign(written, { fault, capacityBytes });
  const where = `SEED=${seed}, ${JSON.stringify(fault)}, room for ${capacityBytes}`;
  const { disk, errors } = await live(kind, files, content, new Random(seed), trace);
  const isFaulty = fault.operation !== undefined || capacityBytes !== Infinity;
  if (!isFaulty) assert.deepEqual(errors, [], where);
  const expected: readonly number[] = capacityBytes === Infinity ? [ERRNO.EIO] : [ERRNO.EIO, ERRNO.ENOSPC];
  for (const error of errors) assert.ok(expected.includes(error), `${where}: error ${error}`);
  await holds(
    kind,
    await durable(before, trace),
    disk,
    trace.length,
    `${where}: what no flush covered is lost`,
  );
  for (const file of files.values())
    Object.assign(file, { fault: {}, capacityBytes: Infinity, locked: false });
  await holds(kind, files, disk, trace.length, where);
  return written?.operations ?? 0;
}
