/**
 * Reclaim: lock, look, plan, ask, act, and look again.
 *
 *   lock → check → survey and plan → confirm → hash? → execute → reopen → check, map, hash? → compare with the promise
 *
 * The lock is held from before the plan until after the last flush, so that nobody else changes what was planned
 * (H16). Whatever is interrupted leaves a whole image; a second run plans anew and completes.
 */
import { DiskError } from "../error.ts";
import type { Image, WritableImage } from "../formats/format.ts";
import { hostFree, settle } from "../host/space.ts";
import { execute } from "../reclaim/execute.ts";
import { refuseParents } from "./children.ts";
import { contentHash, mapHash } from "./digest.ts";
import { type Disk, open, openWritable } from "./open.ts";
import type { HostSpace, ReclaimOptions, Reclaimed, Survey } from "./results.ts";
import { type Prospect, prospectOf, requireTestedHost, sizesOf } from "./survey.ts";

/**
 * Gives back what the guest no longer uses, in place.
 * @throws DiskError `busy` when another process holds the image, `refused` when giving back would not be safe,
 * `corrupt`, `unsupported`, `interrupted` at a safe point, `io`
 */
export async function reclaim(file: string, options: ReclaimOptions = {}): Promise<Reclaimed> {
  requireTestedHost(options);
  const host = await spaceOf(file);
  if (options.dryRun) {
    await using disk = await open(file, options);
    await requireSafe(disk, options);
    const { survey } = await prospectOf(disk, options, "dry-run");
    return report(survey, { applied: false, host, hostAfter: host, notes: survey.notes });
  }
  const done = await act(file, host, options);
  if (!done.applied)
    return report(done.prospect.survey, {
      applied: false,
      host,
      hostAfter: host,
      notes: done.prospect.survey.notes,
    });
  return await compare(file, host, options, done);
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

interface Done {
  readonly applied: boolean;
  readonly prospect: Prospect;
  readonly before: Before;
}

async function act(file: string, host: HostSpace, options: ReclaimOptions): Promise<Done> {
  await using disk = await openWritable(file, options);
  await requireSafe(disk, options);
  const prospect = await prospectOf(disk, options, "strict");
  const nothing = { applied: false, prospect, before: { map: "", content: null } };
  const { plan, survey, usage } = prospect;
  if (plan.unmapBytes + plan.punchBytes + plan.packBytes === 0) return nothing;
  if (options.confirm && !(await options.confirm(survey, host))) return nothing;
  const before: Before = {
    map: await mapHash(disk.image, usage.kept, survey.method === "punch"),
    content: options.verify
      ? await contentHash(disk.image, usage.kept, { ...options, phase: "hashing" })
      : null,
  };
  const totalBytes = plan.unmapBytes + plan.punchBytes + plan.packBytes;
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
  return { applied: true, prospect, before };
}

/** The image's own structures are whole, and no other image leans on it (H17, H33). */
async function requireSafe(disk: Disk | Disk<WritableImage>, options: ReclaimOptions): Promise<void> {
  if (!options.allow?.children) {
    const { identity } = await disk.image.files.get("")!.stat();
    await refuseParents(disk.path, identity);
  }
  const { errors, first } = await findings(disk.image);
  if (errors > 0) {
    throw new DiskError("corrupt", `the image has ${errors} errors; the first: ${first}`, {
      hint: "see ullage check; qemu-img check -r all may repair a copy",
    });
  }
}

async function findings(image: Image): Promise<{ errors: number; leaks: number; first: string | undefined }> {
  let errors = 0;
  let leaks = 0;
  let first: string | undefined;
  for await (const finding of image.check()) {
    if (finding.kind === "leak") leaks += finding.count;
    else if (!finding.isMendable) {
      errors += finding.count;
      first ??= finding.message;
    }
  }
  return { errors, leaks, first };
}

/** Opens the image anew, as the next program will, and holds it against what was. */
async function compare(
  file: string,
  host: HostSpace,
  options: ReclaimOptions,
  done: Done,
): Promise<Reclaimed> {
  const { survey, usage } = done.prospect;
  await settle(file);
  await using disk = await open(file, options);
  const { errors, leaks, first } = await findings(disk.image);
  if (errors > 0) throw new Error(`the image has ${errors} errors after the reclaim; the first: ${first}`);
  if ((await mapHash(disk.image, usage.kept, survey.method === "punch")) !== done.before.map) {
    throw new Error("a used block is mapped differently after the reclaim");
  }
  let verified: boolean | null = null;
  if (done.before.content !== null) {
    const content = await contentHash(disk.image, usage.kept, {
      onProgress: options.onProgress,
      phase: "verifying",
    });
    if (content !== done.before.content) throw new Error("a used byte reads differently after the reclaim");
    verified = true;
  }
  return report(survey, {
    applied: true,
    host,
    hostAfter: await spaceOf(file),
    after: await sizesOf(disk.image),
    verified,
    check: { errors, leaks },
    notes: survey.notes,
  });
}

interface Outcome {
  readonly applied: boolean;
  readonly host: HostSpace;
  readonly hostAfter: HostSpace;
  readonly after?: { readonly fileBytes: number; readonly hostBytes: number | null };
  readonly verified?: boolean | null;
  readonly check?: Reclaimed["check"];
  readonly notes: readonly string[];
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
    hostFreeAfter: outcome.hostAfter,
    verified: outcome.verified ?? null,
    check: outcome.check ?? null,
    notes: outcome.notes,
    survey,
  };
}
