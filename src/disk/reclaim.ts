/**
 * Reclaim: lock, look, plan, ask, act, and look again.
 *
 *   lock → check → survey and plan → confirm → hash? → execute → reopen → check, map, hash? → unlock → the promise
 *
 * The lock is held from before the plan until after the last look, so that nobody else changes what was planned or
 * what is compared (H16). Whatever is interrupted leaves a whole image; a second run plans anew and completes.
 */
import { DiskError } from "../error.ts";
import type { Image, WritableImage } from "../formats/format.ts";
import { hostFree, settle } from "../host/space.ts";
import { execute } from "../reclaim/execute.ts";
import { contentHash, mapHash } from "./digest.ts";
import { type Disk, openImage, openWritable, reading } from "./open.ts";
import type { HostSpace, ReclaimOptions, Reclaimed, Survey } from "./results.ts";
import { findings, requireSafe, requireWhole } from "./safe.ts";
import { type Prospect, prospectOf, requireTestedHost, sizesOf } from "./survey.ts";

/**
 * Gives back what the guest no longer uses, in place.
 * @throws DiskError `busy` when another process holds the image, `refused` when giving back would not be safe,
 * `corrupt`, `unsupported`, `interrupted` at a safe point, `io`
 */
export async function reclaim(file: string, options: ReclaimOptions = {}): Promise<Reclaimed> {
  return await reclaimWith(file, options, IDLE);
}

/** Who does more at a reclaim than give back: each step in its turn, under the same lock. */
export interface Attendant {
  /** Reads only. @returns the bytes that it has work with */
  prepare(disk: Disk, prospect: Prospect): Promise<number>;
  /** All is agreed on, and nothing is given back yet. */
  begin(disk: Disk<WritableImage>): Promise<void>;
  /** The plan is carried out. */
  finish(disk: Disk<WritableImage>): Promise<void>;
  /** The image is opened anew. */
  look(image: Image): Promise<void>;
}

const IDLE: Attendant = {
  prepare: () => Promise.resolve(0),
  begin: () => Promise.resolve(),
  finish: () => Promise.resolve(),
  look: () => Promise.resolve(),
};

/** @throws as `reclaim` */
export async function reclaimWith(
  file: string,
  options: ReclaimOptions,
  attendant: Attendant,
): Promise<Reclaimed> {
  requireTestedHost(options);
  const host = await spaceOf(file);
  if (!options.dryRun) return await act(file, host, options, attendant);
  return await reading(file, options, async (disk) => {
    await requireSafe(disk, options);
    const prospect = await prospectOf(disk, options, "dry-run");
    for (const { image, path } of disk.companions) await requireWhole(image, path);
    await attendant.prepare(disk, prospect);
    return report(prospect.survey, { applied: false, host });
  });
}

async function spaceOf(file: string): Promise<HostSpace> {
  const { mount, freeBytes } = await hostFree(file);
  return { mountPoint: mount, freeBytes };
}

/** What must be the same afterwards. */
interface Before {
  readonly map: string;
  readonly content: string | null;
}

async function act(
  file: string,
  host: HostSpace,
  options: ReclaimOptions,
  attendant: Attendant,
): Promise<Reclaimed> {
  await using disk = await openWritable(file, options);
  await requireSafe(disk, options);
  const prospect = await prospectOf(disk, options, "strict");
  for (const { image, path } of disk.companions) await requireWhole(image, path);
  const { plan, survey, usage } = prospect;
  const totalBytes = plan.unmapBytes + plan.punchBytes + plan.packBytes;
  const workBytes = await attendant.prepare(disk, prospect);
  if (totalBytes + (plan.leakedBytes ?? 0) + workBytes === 0) return report(survey, { applied: false, host });
  if (options.confirm && !(await options.confirm(survey, host)))
    return report(survey, { applied: false, host });
  const before: Before = {
    map: await mapHash(disk.image, usage.kept, survey.method === "punch"),
    content: options.verify
      ? await contentHash(disk.image, usage.kept, { ...options, phase: "hashing" })
      : null,
  };
  await attendant.begin(disk);
  const { interrupted, punchedBytes, cutBytes } = await execute(plan, disk.image.files, {
    ...(options.signal && { signal: options.signal }),
    onProgress: (doneBytes) => options.onProgress?.({ phase: "returning", doneBytes, totalBytes }),
  });
  if (interrupted) {
    throw new DiskError(
      "interrupted",
      `interrupted at a safe point; ${punchedBytes + cutBytes} bytes are returned`,
      {
        hint: "the image is whole; run the same command again to return the rest",
      },
    );
  }
  await attendant.finish(disk);
  await settle(file);
  await using image = await openImage(disk.source, options);
  const found = await compare(image, options, prospect, before);
  await attendant.look(image);
  return report(survey, { applied: true, host, hostAfter: await spaceOf(file), ...found });
}

/** Holds the image, opened anew as the next program will, against what was. */
async function compare(image: Image, options: ReclaimOptions, { survey, usage }: Prospect, before: Before) {
  const { errors, leaks, first } = await findings(image);
  if (errors > 0) throw new Error(`the image has ${errors} errors after the reclaim; the first: ${first}`);
  if ((await mapHash(image, usage.kept, survey.method === "punch")) !== before.map) {
    throw new Error("a used block is mapped differently after the reclaim");
  }
  let verified: boolean | null = null;
  if (before.content !== null) {
    const { onProgress } = options;
    const content = await contentHash(image, usage.kept, { onProgress, phase: "verifying" });
    if (content !== before.content) throw new Error("a used byte reads differently after the reclaim");
    verified = true;
  }
  return { after: await sizesOf(image), verified, check: { errors, leaks } };
}

interface Outcome {
  readonly applied: boolean;
  readonly host: HostSpace;
  readonly hostAfter?: HostSpace;
  readonly after?: { readonly fileBytes: number; readonly hostBytes: number | null };
  readonly verified?: boolean | null;
  readonly check?: Reclaimed["check"];
}

function report(survey: Survey, outcome: Outcome): Reclaimed {
  const after = outcome.after ?? survey;
  const returned =
    survey.hostBytes === null || after.hostBytes === null
      ? outcome.applied
        ? survey.reclaimableBytes
        : 0
      : survey.hostBytes - after.hostBytes;
  return {
    path: survey.path,
    applied: outcome.applied,
    method: survey.method,
    beforeHostBytes: survey.hostBytes,
    afterHostBytes: after.hostBytes,
    beforeFileBytes: survey.fileBytes,
    afterFileBytes: after.fileBytes,
    predictedBytes: survey.reclaimableBytes,
    reclaimedBytes: returned,
    unmappedBytes: outcome.applied ? survey.unmapBytes : 0,
    punchedBytes: outcome.applied ? survey.punchBytes : 0,
    packedBytes: survey.fileBytes - after.fileBytes,
    hostFreeBefore: outcome.host,
    hostFreeAfter: outcome.hostAfter ?? outcome.host,
    verified: outcome.verified ?? null,
    check: outcome.check ?? null,
    notes: survey.notes,
    survey,
  };
}
