/**
 * Explain: who owns this byte, or who says that it is free; where a file's bytes lie; why an image is so big.
 */
import { DiskError } from "../error.ts";
import type { FileSystem } from "../filesystems/filesystem.ts";
import { prove } from "../reclaim/prove.ts";
import type { Image } from "../formats/format.ts";
import { largestOwners, reasonsFor } from "./explain-size.ts";
import { type Region, regionsOf } from "./layout.ts";
import { type Disk, reading } from "./open.ts";
import type { Explained, ExplainedOffset, ExplainOptions } from "./results.ts";
import { prospectOf } from "./survey.ts";

/** @throws DiskError `usage` for an offset outside the disk or a file that is not there; as `open` */
export function explain(file: string, options: ExplainOptions = {}): Promise<Explained> {
  return reading(file, options, (disk) => explainDisk(disk, options));
}

async function explainDisk(disk: Disk, options: ExplainOptions): Promise<Explained> {
  const file = disk.path;
  if (options.file !== undefined)
    return { path: file, offsets: [], file: await locateFile(disk, options.file) };
  if (options.offsets !== undefined && options.offsets.length > 0) {
    const offsets = [];
    for (const offset of options.offsets) offsets.push(await explainOffset(disk, offset, options));
    return { path: file, offsets };
  }
  const { survey } = await prospectOf(disk, options, "survey");
  const root = await disk.layout();
  return {
    path: file,
    offsets: [],
    owners: await largestOwners(root),
    reasons: await reasonsFor(disk, survey),
    survey,
  };
}

type Verdict = Pick<ExplainedOffset, "class" | "witness" | "owner" | "ownerPath"> & {
  readonly trail: readonly string[];
};

async function explainOffset(disk: Disk, offset: number, options: ExplainOptions): Promise<ExplainedOffset> {
  if (!(offset >= 0 && offset < disk.image.bytes)) {
    throw new DiskError("usage", `offset ${offset} is outside the disk of ${disk.image.bytes} bytes`, {
      hint: "offsets are bytes of the guest's disk; --sector counts 512-byte sectors",
    });
  }
  const { fileOffset, mapped, pinned, depth } = await placeOf(disk.image, offset);
  const root = await disk.layout();
  const verdict = await judge(root, offset, options);
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

async function judge(region: Region, offset: number, options: ExplainOptions): Promise<Verdict> {
  const at = region.find(offset)!;
  const { content } = region;
  if (content.kind === "stranger") {
    const trail = [`${content.name ?? "not recognised"}: ${content.reason.message}`];
    return { class: "unknown", witness: "none: counts as used", owner: content.name, ownerPath: null, trail };
  }
  if (content.kind === "filesystem") return judgeBlock(content.filesystem, at, options);
  for (const child of content.children) {
    if (child.find(offset) === undefined) continue;
    const inner = await judge(child, offset, options);
    const label = child.label === "" ? "" : ` "${child.label}"`;
    return {
      ...inner,
      trail: [`${content.table.scheme} volume ${child.name}${label} (${child.type})`, ...inner.trail],
    };
  }
  const what = content.table.refusal ? content.table.refusal.message : content.table.describe(0, at);
  const gap = content.table.gaps[0]?.has(at) ?? false;
  return {
    class: content.table.refusal ? "unknown" : gap ? "used" : "metadata",
    witness: `${content.table.scheme} partition table`,
    owner: what,
    ownerPath: null,
    trail: gap ? [what, "kept by default; --also gaps returns it"] : [what],
  };
}

async function judgeBlock(filesystem: FileSystem, at: number, options: ExplainOptions): Promise<Verdict> {
  const block = Math.floor(at / filesystem.blockBytes);
  const label = filesystem.label === "" ? "" : ` "${filesystem.label}"`;
  const trail = [`${filesystem.name}${label}, block ${block} of ${filesystem.blockBytes} bytes`];
  const { map, walk } = filesystem.witness;
  let owner: number | undefined;
  await filesystem.walk((member, start, end, candidate) => {
    if (member === 0 && at >= start && at < end) owner ??= candidate;
  });
  if (owner !== undefined) {
    const { kind, name, path } = await filesystem.describe(owner);
    const own = kind === "metadata" || kind === "journal";
    trail.push(path === undefined ? name : `${name} ${path}`);
    return { class: own ? "metadata" : "used", witness: walk, owner: name, ownerPath: path ?? null, trail };
  }
  const proven = filesystem.refusal ? undefined : await prove(filesystem, options.proof ?? "full");
  const refusal = filesystem.refusal ?? proven?.refusal;
  if (refusal) {
    trail.push(`${refusal.message}: counts as used`);
    return { class: "unknown", witness: "none: counts as used", owner: null, ownerPath: null, trail };
  }
  if (proven?.free[0]?.has(at)) {
    return { class: "returnable", witness: `${map} + ${walk}`, owner: null, ownerPath: null, trail };
  }
  const beyond = at >= filesystem.bytes;
  trail.push(
    beyond
      ? "behind the end of the filesystem: kept"
      : `${map} call it used, and nothing reaches it: a leak, kept`,
  );
  return { class: "used", witness: map, owner: null, ownerPath: null, trail };
}

async function locateFile(disk: Disk, wanted: string): Promise<NonNullable<Explained["file"]>> {
  const colon = wanted.indexOf(":");
  const named = colon > 0 && !wanted.startsWith("/") ? wanted.slice(0, colon) : undefined;
  const inGuest = named === undefined ? wanted : wanted.slice(colon + 1);
  for (const region of regionsOf(await disk.layout())) {
    if (region.content.kind !== "filesystem" || (named !== undefined && region.name !== named)) continue;
    const found = await region.content.filesystem.find(inGuest);
    if (!found) continue;
    const pieces = [];
    for (const extent of found.extents) {
      let fileOffset = extent.fileOffset;
      for (const { at, bytes } of region.places({ start: extent.at, end: extent.at + extent.bytes })) {
        pieces.push(...(await inImage(disk.image, { fileOffset, at, bytes, unwritten: extent.unwritten })));
        fileOffset += bytes;
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
