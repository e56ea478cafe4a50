/**
 * Explain: who owns this byte, or who says that it is free; where a file's bytes lie; why an image is so big.
 */
import { DiskError } from "../error.ts";
import type { Image } from "../formats/format.ts";
import { allocationOf } from "./allocation.ts";
import { largestOwners, reasonsFor } from "./explain-size.ts";
import type { FileSystem } from "../filesystems/filesystem.ts";
import {
  type FileSystemContent,
  type Layout,
  type MemberContent,
  OWN_DISK,
  type Region,
  regionsOf,
} from "./layout.ts";
import { maskedBy } from "./guarded.ts";
import { type Disk, reading } from "./open.ts";
import type { Explained, ExplainedOffset, ExplainOptions } from "./results.ts";
import { prospectOf } from "./survey.ts";
import { type Usage, usageOf } from "./usage.ts";

/** @throws DiskError `usage` for an offset outside the disk or a file that is not there; as `open` */
export function explain(file: string, options: ExplainOptions = {}): Promise<Explained> {
  return reading(file, options, (disk) => explainDisk(disk, options));
}

async function explainDisk(disk: Disk, options: ExplainOptions): Promise<Explained> {
  const file = disk.path;
  if (options.file !== undefined)
    return { path: file, offsets: [], file: await locateFile(disk, options.file) };
  if (options.offsets !== undefined && options.offsets.length > 0) {
    const usage = await usageOf(disk, await allocationOf(disk.image), options);
    const offsets = [];
    for (const offset of options.offsets) offsets.push(await explainOffset(disk, offset, usage));
    return { path: file, offsets };
  }
  const { survey } = await prospectOf(disk, options, "survey");
  return {
    path: file,
    offsets: [],
    owners: await largestOwners(await disk.layout()),
    reasons: await reasonsFor(disk, survey),
    survey,
  };
}

type Verdict = Pick<ExplainedOffset, "class" | "witness" | "owner" | "ownerPath"> & {
  readonly trail: readonly string[];
};

async function explainOffset(disk: Disk, offset: number, usage: Usage): Promise<ExplainedOffset> {
  if (!(offset >= 0 && offset < disk.image.bytes)) {
    throw new DiskError("usage", `offset ${offset} is outside the disk of ${disk.image.bytes} bytes`, {
      hint: "offsets are bytes of the guest's disk; --sector counts 512-byte sectors",
    });
  }
  const { fileOffset, mapped, pinned, depth } = await placeOf(disk.image, offset);
  const verdict = await judgeOnDisk({ layout: await disk.layout(), usage, offset });
  if (maskedBy(disk.guard).has(offset)) {
    const trail = [...verdict.trail, "trimmed or zeroed, and guarded: ullage undo brings it back"];
    return { offset, fileOffset, ...verdict, class: "guarded", witness: "guard", trail };
  }
  const spare = verdict.class === "returnable" || verdict.class === "unknown";
  if (!mapped && spare) {
    const witness = verdict.class === "unknown" ? "mapping table" : verdict.witness;
    return { offset, fileOffset, ...verdict, class: "hole", witness };
  }
  const trail = [...verdict.trail];
  if (pinned) trail.push("a snapshot or a reflink holds the same bytes: they stay until it goes");
  if (depth > 0) trail.push(`read from backing image number ${depth}`);
  const kept = verdict.class === "returnable" && (pinned || depth > 0);
  return { offset, fileOffset, ...verdict, ...(kept && { class: "used" as const }), trail };
}

/** What backs a guest byte. */
async function placeOf(image: Image, offset: number) {
  for await (const batch of image.map({ start: offset, end: offset + 1 })) {
    for (const run of batch) {
      if (offset < run.start || offset >= run.end) continue;
      const fileOffset = run.place && run.depth === 0 ? run.place.at + offset - run.start : null;
      const mapped = run.place !== undefined || run.kind === "data" || run.kind === "compressed";
      return { fileOffset, mapped: mapped && run.kind !== "hole", pinned: run.shared, depth: run.depth };
    }
  }
  return { fileOffset: null, mapped: false, pinned: false, depth: 0 };
}

/** The byte that is asked for, and what the survey says of its disk. */
interface Question {
  readonly layout: Layout;
  readonly usage: Usage;
  readonly offset: number;
}

async function judgeOnDisk(question: Question): Promise<Verdict> {
  const { layout, usage, offset } = question;
  const verdict = await judge(question, layout.roots[OWN_DISK]!);
  const spare = usage.contents.find(({ extents }) => extents.has(offset));
  if (verdict.class !== "used" || spare === undefined) return verdict;
  const { kind, kept } = spare;
  if (kept !== undefined) return { ...verdict, trail: [...verdict.trail, `${kind}, and stays: ${kept}`] };
  const trail = [...verdict.trail, `worth nothing once the guest is shut down: --also ${kind} returns it`];
  return { ...verdict, class: "worthless", trail };
}

async function judge(question: Question, region: Region): Promise<Verdict> {
  const { content } = region;
  const { offset } = question;
  if (content.kind === "stranger") {
    const trail = [`${content.name ?? "not recognised"}: ${content.reason.message}`];
    return { class: "unknown", witness: COUNTS_AS_USED, owner: content.name, ownerPath: null, trail };
  }
  if (content.kind === "member") return await judgeMember(question, region, content);
  if (content.kind === "filesystem") return await judgeBlock(question, region, content);
  const { table, children, members } = content;
  for (const child of children) {
    if (child.find(OWN_DISK, offset) === undefined) continue;
    const inner = await judge(question, child);
    const label = child.label === "" ? "" : ` "${child.label}"`;
    return {
      ...inner,
      trail: [`${table.scheme} volume ${child.name}${label} (${child.type})`, ...inner.trail],
    };
  }
  const [number, at] = memberAt(members, offset)!;
  const what = table.refusal ? table.refusal.message : table.describe(number, at);
  const gap = table.gaps[number]?.has(at) ?? false;
  return {
    class: table.refusal ? "unknown" : gap ? "used" : "metadata",
    witness: `${table.scheme} partition table`,
    owner: what,
    ownerPath: null,
    trail: gap ? [what, "kept by default; --also gaps returns it"] : [what],
  };
}

const COUNTS_AS_USED = "none: counts as used";

/** Which of the devices holds the byte, and where. */
function memberAt(members: readonly Region[], offset: number): readonly [number, number] | undefined {
  for (const [number, member] of members.entries()) {
    const at = member.find(OWN_DISK, offset);
    if (at !== undefined) return [number, at];
  }
  return undefined;
}

async function judgeMember(
  question: Question,
  region: Region,
  { membership, reason }: MemberContent,
): Promise<Verdict> {
  const { kind, name, set } = membership;
  const part = `member of ${kind} ${name === "" ? set : name}`;
  const whole = question.layout.sets.find(
    ({ content }) =>
      (content.kind === "table" || content.kind === "filesystem") && content.members.includes(region),
  );
  if (reason === undefined && whole !== undefined) {
    const inner = await judge(question, whole);
    return { ...inner, trail: [part, ...inner.trail] };
  }
  const trail = [`${part}: ${reason?.message}`];
  return { class: "unknown", witness: COUNTS_AS_USED, owner: part, ownerPath: null, trail };
}

async function judgeBlock(
  { usage, offset }: Question,
  region: Region,
  { filesystem, members }: FileSystemContent,
): Promise<Verdict> {
  const [number, at] = memberAt(members, offset)!;
  const block = Math.floor(at / filesystem.blockBytes);
  const label = filesystem.label === "" ? "" : ` "${filesystem.label}"`;
  const trail = [`${filesystem.name}${label}, block ${block} of ${filesystem.blockBytes} bytes`];
  const { map, walk } = filesystem.witness;
  let owner: number | undefined;
  await filesystem.walk((member, start, end, candidate) => {
    if (member === number && at >= start && at < end) owner ??= candidate;
  });
  if (owner !== undefined) {
    const { kind, name, path } = await filesystem.describe(owner);
    const own = kind === "metadata" || kind === "journal";
    trail.push(path === undefined ? name : `${name} ${path}`);
    return { class: own ? "metadata" : "used", witness: walk, owner: name, ownerPath: path ?? null, trail };
  }
  if (!usage.kept.has(offset)) {
    return { class: "returnable", witness: `${map} + ${walk}`, owner: null, ownerPath: null, trail };
  }
  const report = usage.volumes.find(({ name }) => name === region.name);
  const refusal = filesystem.refusal ?? report?.reason;
  if (refusal) {
    trail.push(`${refusal.message}: counts as used`);
    return { class: "unknown", witness: COUNTS_AS_USED, owner: null, ownerPath: null, trail };
  }
  trail.push(await whyKept(region, filesystem, number, at));
  return { class: "used", witness: map, owner: null, ownerPath: null, trail };
}

/** Why a byte that nothing reaches stays all the same. */
async function whyKept(region: Region, filesystem: FileSystem, member: number, at: number): Promise<string> {
  if (member === 0 && at >= filesystem.bytes) return "behind the end of the filesystem: kept";
  const isFree = (await filesystem.free())[member]?.has(at) ?? false;
  return isFree && region.encrypted
    ? "free, and stays under encryption: --allow discards returns it"
    : `${filesystem.witness.map} call it used, and nothing reaches it: a leak, kept`;
}

async function locateFile(disk: Disk, wanted: string): Promise<NonNullable<Explained["file"]>> {
  const colon = wanted.indexOf(":");
  const named = colon > 0 && !wanted.startsWith("/") ? wanted.slice(0, colon) : undefined;
  const inGuest = named === undefined ? wanted : wanted.slice(colon + 1);
  for (const region of regionsOf(await disk.layout())) {
    if (region.content.kind !== "filesystem" || (named !== undefined && region.name !== named)) continue;
    const found = await region.content.filesystem.find(inGuest);
    if (!found) continue;
    const [member] = region.content.members;
    const pieces = [];
    for (const { at: first, bytes: length, fileOffset, unwritten } of found.extents) {
      for (const { disk: number, at, bytes } of member!.places({ start: first, end: first + length })) {
        if (number !== OWN_DISK) continue;
        const within = member!.find(OWN_DISK, at)! - first;
        pieces.push(
          ...(await inImage(disk.image, { fileOffset: fileOffset + within, at, bytes, unwritten })),
        );
      }
    }
    return { volume: region.name, path: inGuest, bytes: found.bytes, pieces };
  }
  throw new DiskError("usage", `no understood filesystem of this disk has a file "${inGuest}"`, {
    hint: "write VOLUME:/path to name the volume, as survey lists it",
  });
}

interface Piece {
  readonly fileOffset: number;
  readonly at: number;
  readonly bytes: number;
  readonly unwritten: boolean;
}

/** Splits a piece of a file where its place in the image file jumps. */
async function inImage(image: Image, { fileOffset, at, bytes, unwritten }: Piece) {
  const pieces = [];
  for await (const batch of image.map({ start: at, end: at + bytes })) {
    for (const run of batch) {
      const start = Math.max(run.start, at);
      const end = Math.min(run.end, at + bytes);
      const place = run.place && run.depth === 0 ? run.place.at + start - run.start : null;
      const last = pieces.at(-1);
      const joined =
        last !== undefined &&
        (last.imageOffset === null ? place === null : last.imageOffset + last.bytes === place);
      if (joined) last.bytes += end - start;
      else {
        pieces.push({
          fileOffset: fileOffset + start - at,
          bytes: end - start,
          offset: start,
          sector: Math.floor(start / 512),
          imageOffset: place,
          unwritten,
        });
      }
    }
  }
  return pieces;
}
