/**
 * A reclaim on simulated disks, crashed at every point: the whole way from the guest's filesystem to the punch.
 *
 * For each state that a crash may leave: the image opens, its check finds no error, and every byte that the guest uses
 * reads as before. From a sample of them the walk goes on: a second run completes and leaves nothing; a second run
 * crashes too; another allocator writes to the image as it was left, and no old punch or release hurts it (H12).
 */
import assert from "node:assert/strict";
import { ExtentSet } from "../src/bytes/extents.ts";
import { DiskError } from "../src/error.ts";
import { allocationOf } from "../src/disk/allocation.ts";
import { contentHash } from "../src/disk/digest.ts";
import { overwriteAll, zeroLeft } from "../src/disk/erase/overwriting.ts";
import { remainsOf } from "../src/disk/erase/remains.ts";
import { Disk } from "../src/disk/open.ts";
import { usageOf } from "../src/disk/usage.ts";
import { FORMATS } from "../src/formats/all.ts";
import type { Image, OpenParent, WritableImage } from "../src/formats/format.ts";
import { execute } from "../src/reclaim/execute.ts";
import { patternOf } from "../src/live/pattern.ts";
import type { Plan } from "../src/reclaim/plan.ts";
import { crashStates, type Files, recording } from "../src/testing/crash.ts";
import type { Random } from "../src/testing/seeds.ts";
import type { Fault, SimulatedFile } from "../src/testing/simulated-file.ts";
import { simulatedSource } from "../src/testing/simulated-source.ts";

/** What is done to the image, and crashed. */
export type Deed = "punch" | "pack" | "repair" | "erase";

export interface Scenario {
  readonly name: string;
  readonly format: string;
  /** The image is the file `disk`; a backing file lies beside it. */
  readonly files: Map<string, SimulatedFile>;
  readonly deed: Deed;
}

export interface WalkOptions {
  readonly random: Random;
  readonly statesPerFlush: number;
  /** One in so many states is taken further. */
  readonly onwardOneIn: number;
}

const IMAGE = "disk";

function formatOf(name: string) {
  return FORMATS.find((format) => format.name === name)!;
}

function openParentIn(files: Files): OpenParent {
  return (name, format) => formatOf(format!).open(simulatedSource(new Map(files), name), openParentIn(files));
}

const openReader = (scenario: Scenario, files: Files): Promise<Image> =>
  formatOf(scenario.format).open(simulatedSource(new Map(files), IMAGE), openParentIn(files));

export const openWriter = (scenario: Scenario, files: Files): Promise<WritableImage> =>
  formatOf(scenario.format).openWritable!(simulatedSource(new Map(files), IMAGE), openParentIn(files));

interface Planned {
  readonly plan: Plan;
  readonly kept: ExtentSet;
  readonly free: ExtentSet;
}

export async function planned(image: WritableImage, deed: Deed): Promise<Planned> {
  const disk = new Disk(IMAGE, image, simulatedSource(new Map(), IMAGE), false, {});
  const { free, kept } = await usageOf(disk, await allocationOf(image), { proof: "full" });
  if (deed === "repair") return { plan: await image.repairLeaks!(), kept, free };
  const wish = { free, blank: ExtentSet.EMPTY, minHoleBytes: 0, hostBlockBytes: 4096 };
  const plan = await image.plan({ ...wish, pack: deed === "pack", punch: deed !== "pack" });
  return { plan, kept, free };
}

async function keptHash(scenario: Scenario, files: Files, kept: ExtentSet): Promise<string> {
  await using image = await openReader(scenario, files);
  return await contentHash(image, kept, { phase: "hashing" });
}

interface Counts {
  errors: number;
  leaks: number;
  /** Errors in the safe direction, which a repair in the middle of its work leaves. */
  mendable: number;
  first: string;
}

async function counts(scenario: Scenario, files: Files): Promise<Counts> {
  await using image = await openReader(scenario, files);
  const sum = { errors: 0, leaks: 0, mendable: 0, first: "" };
  for await (const { kind, isMendable, count, message } of image.check()) {
    if (kind === "leak") sum.leaks += count;
    else if (isMendable) sum.mendable += count;
    else {
      sum.errors += count;
      sum.first ||= message;
    }
  }
  return sum;
}

/** What is erased is overwritten before the plan begins, and the pieces that it leaves get zeros. */
async function carryOut(image: WritableImage, deed: Deed, { plan, free }: Planned): Promise<void> {
  const { files } = image;
  if (deed !== "erase") return void (await execute(plan, files));
  const remains = await remainsOf(image, free, plan, await allocationOf(image));
  await overwriteAll(files, remains.files, patternOf("random"), () => {});
  await execute(plan, files);
  await zeroLeft(files, remains.files, plan);
}

/** Runs the deed on recording copies. */
async function perform(scenario: Scenario, files: Files) {
  const recorded = recording(files);
  await using image = await openWriter(scenario, recorded.files);
  const found = await planned(image, scenario.deed);
  await carryOut(image, scenario.deed, found);
  return { ...recorded, kept: found.kept, free: found.free };
}

/** @returns how many states were visited. @throws AssertionError with the state's label */
export async function crashWalk(scenario: Scenario, options: WalkOptions): Promise<number> {
  const { trace, kept, free } = await perform(scenario, scenario.files);
  assert.ok(trace.length > 0, `${scenario.name}: the deed did nothing`);
  const expected = await keptHash(scenario, scenario.files, kept);
  const context = { scenario, kept, free, expected, options };
  let visited = 0;
  for await (const { files, label } of crashStates(scenario.files, trace, options)) {
    const where = `${scenario.name}: ${label}`;
    await holds(context, files, where);
    visited++;
    if (!options.random.oneIn(options.onwardOneIn)) continue;
    visited += await secondRun(context, files, where);
    await anotherAllocator(context, files, where);
    visited++;
  }
  return visited;
}

/** What must hold of every state. */
interface Judged {
  readonly scenario: Scenario;
  readonly kept: ExtentSet;
  /** Hash of what is kept. */
  readonly expected: string;
}

interface Context extends Judged {
  readonly free: ExtentSet;
  readonly options: WalkOptions;
}

async function holds({ scenario, kept, expected }: Judged, files: Files, where: string): Promise<void> {
  const { errors, first } = await counts(scenario, files);
  assert.equal(errors, 0, `${where}: ${first}`);
  assert.equal(await keptHash(scenario, files, kept), expected, `${where}: a used byte changed`);
}

/** The second run completes what the first left, and may crash itself. */
async function secondRun(context: Context, files: Files, where: string): Promise<number> {
  const again = await perform(context.scenario, files);
  await holds(context, again.files, `${where}; second run`);
  if (context.scenario.deed === "repair") {
    assert.equal(
      (await counts(context.scenario, again.files)).leaks,
      0,
      `${where}; leaks after the second run`,
    );
  }
  let visited = 0;
  for await (const crashed of crashStates(files, again.trace, { ...context.options, statesPerFlush: 2 })) {
    await holds(context, crashed.files, `${where}; second run, ${crashed.label}`);
    visited++;
  }
  return visited;
}

/** Somebody else opens the image as the crash left it and writes where the guest has room. */
async function anotherAllocator(context: Context, files: Files, where: string): Promise<void> {
  const { scenario, free, options } = context;
  if (free.count === 0) return;
  const copies = recording(files).files;
  {
    await using image = await openWriter(scenario, copies);
    for (let i = 0; i < 4; i++) {
      const index = options.random.below(free.count);
      const bytes = Math.min(free.end(index) - free.start(index), 64 * 1024);
      await image.write(free.start(index), Buffer.alloc(bytes, 0xa5));
    }
    await image.flush();
  }
  await holds(context, copies, `${where}; another allocator`);
}

/**
 * The same deed with its medium failing: every change fails once and forever, every read fails once, and the host is
 * full. What is left holds like a crash; a run that ended well has done everything.
 * @returns how many runs were made
 */
export async function faultWalk(scenario: Scenario): Promise<number> {
  const { trace, files, kept } = await perform(scenario, scenario.files);
  const expected = await keptHash(scenario, scenario.files, kept);
  const context: Judged = { scenario, kept, expected };
  const reads = files.get(IMAGE)!.reads;
  const faults: Fault[] = [];
  for (let operation = 0; operation < trace.length; operation++) {
    faults.push({ operation }, { operation, forever: true });
  }
  for (let read = 0; read < reads; read += Math.ceil(reads / READS_FAILED)) faults.push({ read });
  for (const fault of faults) await failing(context, fault, Infinity);
  await failing(context, {}, scenario.files.get(IMAGE)!.hostBytes);
  return faults.length + 1;
}

/** How many of the reads are failed, spread evenly. */
const READS_FAILED = 50;

async function failing(context: Judged, fault: Fault, capacityBytes: number): Promise<void> {
  const { scenario } = context;
  const files = recording(scenario.files).files;
  const disk = files.get(IMAGE)!;
  disk.fault = fault;
  disk.capacityBytes = capacityBytes;
  const where = `${scenario.name}: ${JSON.stringify(fault)}, room for ${capacityBytes} bytes`;
  try {
    await using image = await openWriter(scenario, files);
    await carryOut(image, scenario.deed, await planned(image, scenario.deed));
  } catch (error) {
    assert.ok(error instanceof DiskError && error.kind === "io", `${where}: ${String(error)}`);
  }
  disk.fault = {};
  disk.capacityBytes = Infinity;
  await holds(context, files, where);
}
