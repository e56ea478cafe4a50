/**
 * What concerns the image alone, without the guest: check, create, info.
 */
import { DiskError } from "../error.ts";
import type { Finding } from "../formats/format.ts";
import { execute } from "../reclaim/execute.ts";
import { type Content, regionsOf, startOf } from "./layout.ts";
import { type Disk, formatNamed, openWritable, parentsOf, reading, sourceOf } from "./open.ts";
import type { Checked, CheckOptions, CreateRequest, Info, OpenOptions } from "./results.ts";
import { requireTestedHost, sizesOf } from "./survey.ts";

const FINDINGS_MAX = 100;

/**
 * The image's own structures: errors and leaks, as `qemu-img check` counts them.
 * @throws DiskError `corrupt` when the image cannot even be opened, `busy` with `repair`
 */
export async function check(file: string, options: CheckOptions = {}): Promise<Checked> {
  if (options.repair) return await repair(file, options);
  return await reading(file, options, async (disk) => reportOf(file, await findingsOf(disk), 0));
}

async function repair(file: string, options: CheckOptions): Promise<Checked> {
  requireTestedHost(options);
  const before = await repairLocked(file, options);
  if (!before.done) return reportOf(file, before.found, 0);
  return await reading(file, options, async (disk) => {
    return reportOf(file, await findingsOf(disk), before.found.leaks);
  });
}

function reportOf(
  file: string,
  found: Awaited<ReturnType<typeof findingsOf>>,
  repairedLeaks: number,
): Checked {
  const { errors, leaks, findings, inUse } = found;
  return { path: file, errors, leaks, findings, repairedLeaks, inUse, exact: !inUse };
}

async function repairLocked(file: string, options: CheckOptions) {
  await using disk = await openWritable(file, options);
  const found = await findingsOf(disk);
  if (found.errors > found.mendable) {
    throw new DiskError("corrupt", `the image has ${found.errors} errors; only leaks are repaired here`, {
      hint: "qemu-img check -r all may repair a copy",
    });
  }
  if (found.leaks + found.mendable === 0 || !disk.image.repairLeaks) return { found, done: false };
  if (options.confirm && !(await options.confirm(found.findings))) return { found, done: false };
  await execute(await disk.image.repairLeaks(), disk.image.files, {});
  return { found, done: true };
}

async function findingsOf(disk: Disk) {
  let errors = 0;
  let leaks = 0;
  let mendable = 0;
  const findings: Finding[] = [];
  for await (const finding of disk.image.check()) {
    if (finding.kind === "error") errors += finding.count;
    else leaks += finding.count;
    if (finding.isMendable) mendable += finding.count;
    if (findings.length < FINDINGS_MAX) findings.push(finding);
  }
  findings.sort((a, b) => a.kind.localeCompare(b.kind));
  return { errors, leaks, mendable, findings, inUse: disk.inUse };
}

/**
 * Makes a new image; never overwrites.
 * @throws DiskError `usage` when the file exists or an option does not, `io`
 */
export async function create(request: CreateRequest): Promise<Info> {
  const format = formatNamed(request.format);
  if (!format.create) throw new DiskError("unsupported", `${format.name} images are not made`);
  const openOptions: OpenOptions = { format: request.format, ...(request.allow && { allow: request.allow }) };
  const source = sourceOf(request.path, openOptions);
  const asked = { virtualBytes: request.virtualBytes, options: request.options ?? {} };
  const made = await format.create(source, asked, parentsOf(source));
  await made[Symbol.asyncDispose]();
  return await info(request.path, openOptions);
}

/** @throws DiskError `corrupt`, `unsupported`, `refused`, `io` */
export function info(file: string, options: OpenOptions = {}): Promise<Info> {
  return reading(file, options, infoOf);
}

async function infoOf(disk: Disk): Promise<Info> {
  const { image } = disk;
  const { fileBytes, hostBytes } = await sizesOf(image);
  const volumes = [];
  for (const region of regionsOf(await disk.layout())) {
    const { content } = region;
    const start = startOf(region);
    if (content.kind === "table" || start === undefined) continue;
    volumes.push({
      name: region.name,
      label: region.label || (content.kind === "filesystem" ? content.filesystem.label : ""),
      start,
      bytes: region.device.bytes,
      filesystem: nameOf(content),
    });
  }
  return {
    path: disk.path,
    format: image.format,
    virtualBytes: image.bytes,
    fileBytes,
    hostBytes,
    grainBytes: image.grainBytes,
    inUse: disk.inUse,
    encrypted: image.encrypted,
    references: image.references.map(({ role, name, format }) => ({ role, name, format: format ?? null })),
    snapshots: (await image.snapshots()).map(({ id, name, bytes, stateBytes }) => ({
      id,
      name,
      bytes,
      stateBytes,
    })),
    details: image.details,
    volumes,
  };
}

function nameOf(content: Exclude<Content, { kind: "table" }>): string | null {
  if (content.kind === "filesystem") return content.filesystem.name;
  return content.kind === "member" ? content.membership.kind : content.name;
}
