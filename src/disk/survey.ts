/**
 * The survey: what is used, free and returnable, by which witness. It changes nothing and takes no lock.
 *
 * The figure `reclaimableBytes` is not guessed: the very plan that `reclaim` would execute is made and measured
 * against the host's own allocation.
 */
import type { Image } from "../formats/format.ts";
import { hostTested } from "../host/platform.ts";
import { assumeHoles, probeImage } from "../host/probe.ts";
import { EMPTY_PLAN, type Plan } from "../reclaim/plan.ts";
import { DiskError } from "../error.ts";
import { ExtentSet } from "../bytes/extents.ts";
import { type Allocation, allocationOf } from "./allocation.ts";
import { guardReport } from "./guarded.ts";
import { Disk, reading } from "./open.ts";
import { predict } from "./predict.ts";
import type { Survey, SurveyOptions } from "./results.ts";
import { type Usage, usageOf } from "./usage.ts";

/** A survey with the plan it was made from. */
export interface Prospect {
  readonly survey: Survey;
  readonly usage: Usage;
  readonly plan: Plan;
  readonly allocation: Allocation;
}

/** @throws DiskError `corrupt`, `unsupported`, `refused`, `io` */
export async function survey(image: string | Disk, options: SurveyOptions = {}): Promise<Survey> {
  return (await plan(image, options)).survey;
}

/**
 * The plan that `reclaim` would execute, with the survey behind it. Reads only.
 * @throws DiskError `corrupt`, `unsupported`, `refused`, `io`
 */
export async function plan(image: string | Disk, options: SurveyOptions = {}): Promise<Prospect> {
  if (image instanceof Disk) return prospectOf(image, options, "survey");
  return await reading(image, options, (disk) => prospectOf(disk, options, "survey"));
}

/**
 * How much a prospect may ask of the host: a survey writes nothing and turns a refusal of the image into a note; a dry
 * run writes nothing and refuses as the real run would; a strict one also probes the host with a scratch file (H18).
 */
export type Earnest = "survey" | "dry-run" | "strict";

export async function prospectOf(disk: Disk, options: SurveyOptions, earnest: Earnest): Promise<Prospect> {
  const { image } = disk;
  const allocation = await allocationOf(image);
  const usage = await usageOf(disk, allocation, options);
  const notes = [...usage.notes];
  const { fileBytes, hostBytes, blockBytes } = await sizesOf(image);
  const method = await methodFor(disk, options, earnest, notes);
  const wish = {
    free: usage.free,
    blank: ExtentSet.EMPTY,
    punch: method === "punch",
    minHoleBytes: options.minHoleBytes ?? 0,
    hostBlockBytes: blockBytes,
  };
  let chosen: Plan = EMPTY_PLAN;
  let packableBytes = 0;
  try {
    chosen = await image.plan({ ...wish, pack: method === "pack" });
    packableBytes = await chosen.packableBytes();
  } catch (error) {
    if (earnest !== "survey" || !(error instanceof DiskError) || error.kind === "io") throw error;
    notes.push(`reclaim would refuse: ${error.message}${error.hint === undefined ? "" : ` (${error.hint})`}`);
  }
  const result: Survey = {
    path: disk.path,
    format: image.format,
    summary: image.summary,
    inUse: disk.inUse,
    exact: !disk.inUse,
    virtualBytes: image.bytes,
    fileBytes,
    hostBytes,
    usedBytes: usage.usedBytes,
    freeBytes: usage.freeBytes,
    unknownBytes: usage.unknownBytes,
    reclaimableBytes: await predict(chosen, image, allocation.files),
    packableBytes,
    tableBytes: await image.tableBytes(),
    unmapBytes: chosen.unmapBytes,
    punchBytes: chosen.punchBytes,
    method,
    proof: options.proof ?? "full",
    witnesses: [...usage.witnesses].map(([witness, set]) => ({ witness, bytes: set.bytes })),
    guard: guardReport(disk.guard),
    volumes: usage.volumes,
    worthless: usage.worthless,
    notes,
    regions: usage.regions,
  };
  return { survey: result, usage, plan: chosen, allocation };
}

/** Sums over all files of the image; the granule is the largest. */
export async function sizesOf(image: Image) {
  let fileBytes = 0;
  let hostBytes: number | null = 0;
  let blockBytes = 512;
  for (const file of image.files.values()) {
    const status = await file.stat();
    fileBytes += status.fileBytes;
    hostBytes = hostBytes === null || status.hostBytes === null ? null : hostBytes + status.hostBytes;
    blockBytes = Math.max(blockBytes, status.blockBytes);
  }
  return { fileBytes, hostBytes, blockBytes };
}

async function methodFor(
  disk: Disk,
  options: SurveyOptions,
  earnest: Earnest,
  notes: string[],
): Promise<"punch" | "pack"> {
  if (options.method === "pack") return "pack";
  const { holes, reason } = await (earnest === "strict" ? probeImage(disk.path) : assumeHoles(disk.path));
  if (holes) return "punch";
  if (options.method === "punch") {
    throw new DiskError("unsupported", `the host cannot punch holes here: ${reason}`, { hint: "use --pack" });
  }
  notes.push(`the host cannot punch holes here (${reason}); --pack makes the file shorter instead`);
  return "pack";
}

/** @throws DiskError `refused` where writing was never tested, unless allowed */
export function requireTestedHost(options: SurveyOptions): void {
  if (hostTested() || options.allow?.untestedHost) return;
  throw new DiskError("refused", `writing was never tested on ${process.platform}`, {
    code: "untested-host",
    hint: "--allow untested-host, on a copy first",
  });
}
