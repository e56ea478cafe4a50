/**
 * What the volumes of a disk say of their space, each on its own word, and added up in bytes of the disk.
 */
import { ExtentBuilder, ExtentSet } from "../bytes/extents.ts";
import type { Refusal } from "../error.ts";
import type { FileSystem, Visit } from "../filesystems/filesystem.ts";
import { type Proven, prove } from "../reclaim/prove.ts";
import { holdsNoFilesystem } from "../volumes/partition-types.ts";
import {
  allRegionsOf,
  type FileSystemContent,
  type Layout,
  onDisk,
  OWN_DISK,
  type Region,
  regionsOf,
  startOf,
} from "./layout.ts";
import type { Proof, VolumeReport } from "./results.ts";

/** How the filesystems of a disk are judged. */
export interface Judgement {
  readonly proof: Proof;
  readonly inUse: boolean;
  /** `--allow discards`: what is free under encryption may be given back (H34). */
  readonly discards: boolean;
  /** A hibernated guest's memory was found in one of its files. */
  readonly suspended: Refusal | undefined;
  /** The images' names, by the number of the disk. */
  readonly names: readonly string[];
}

export interface Tally {
  readonly volumes: readonly VolumeReport[];
  readonly notes: readonly string[];
  readonly metadata: ExtentSet;
  /** Free by a filesystem's word. */
  readonly free: ExtentSet;
  /** Ranges of filesystems that were understood: inside them only their own word counts. */
  readonly understood: ExtentSet;
  readonly unknown: ExtentSet;
  readonly gaps: ExtentSet;
  /** Why it is not certain that the guest was shut down cleanly, in words. */
  readonly doubt: string | undefined;
}

export async function tallyOf(layout: Layout, judgement: Judgement): Promise<Tally> {
  const counter = new Counter(layout, judgement);
  for (const region of regionsOf(layout)) await counter.count(region);
  return {
    volumes: counter.volumes,
    notes: counter.notes,
    metadata: counter.metadata.build(),
    free: counter.free,
    understood: counter.understood.build(),
    unknown: counter.unknown.build(),
    gaps: counter.gaps,
    doubt: doubtAbout(layout, counter.volumes),
  };
}

class Counter {
  readonly volumes: VolumeReport[] = [];
  readonly notes: string[] = [];
  readonly metadata = new ExtentBuilder();
  readonly understood = new ExtentBuilder();
  readonly unknown = new ExtentBuilder();
  free = ExtentSet.EMPTY;
  gaps = ExtentSet.EMPTY;
  readonly #judgement: Judgement;
  /** Refuses all filesystems: the state of the whole guest forbids it. */
  readonly #forbidden: Refusal | undefined;

  constructor(layout: Layout, judgement: Judgement) {
    this.#judgement = judgement;
    this.#forbidden = hibernationOf(layout) ?? judgement.suspended;
  }

  async count(region: Region): Promise<void> {
    const { content } = region;
    if (content.kind === "filesystem") return await this.#countFilesystem(region, content);
    if (content.kind === "stranger") {
      const state = content.reason.code === "ambiguous" ? "refused" : "unknown";
      return this.#keepAll(region, [region], content.name, content.reason, state);
    }
    if (content.kind === "member") {
      const { membership, reason } = content;
      if (reason) this.#keepAll(region, [region], membership.kind, reason, "refused");
      return;
    }
    const { table, members } = content;
    this.notes.push(...table.notes);
    if (table.refusal) return this.#keepAll(region, members, table.scheme, table.refusal, "refused");
    if (this.#forbidden) return;
    for (const [i, gaps] of table.gaps.entries()) {
      const mayGive = !members[i]!.encrypted || this.#judgement.discards;
      if (mayGive) this.gaps = this.gaps.union(onDisk(members[i]!, gaps));
    }
  }

  async #countFilesystem(region: Region, content: FileSystemContent): Promise<void> {
    const { filesystem, members } = content;
    const metadata = members.map(() => new ExtentBuilder());
    const known = this.#forbidden ?? filesystem.refusal;
    const proven: Proven = known
      ? { free: members.map(() => ExtentSet.EMPTY), leakedBytes: 0, refusal: known }
      : await prove(watchingMetadata(filesystem, metadata), this.#judgement.proof);
    const refusal = proven.refusal ?? filesystem.refusal;
    if (refusal) {
      const state = this.#judgement.inUse ? "unknown" : "refused";
      return this.#keepAll(region, members, filesystem.name, refusal, state);
    }
    const notes = [...filesystem.notes];
    let free = ExtentSet.EMPTY;
    for (const [i, member] of members.entries()) {
      const end = i === 0 ? Math.min(filesystem.bytes, member.device.bytes) : member.device.bytes;
      free = free.union(onDisk(member, proven.free[i]!.within({ start: 0, end })));
      for (const { start, end } of onDisk(member, wholeOf(member))) this.understood.add(start, end);
      for (const { start, end } of onDisk(member, metadata[i]!.build())) this.metadata.add(start, end);
    }
    if (!region.encrypted || this.#judgement.discards) this.free = this.free.union(free);
    else if (free.count > 0) notes.push("free space under encryption stays (--allow discards returns it)");
    if (region.encrypted && this.#judgement.discards)
      notes.push("what is returned under encryption reads as noise");
    const heading = this.#headingOf(region, members);
    if (heading === undefined) return;
    const { map, walk } = filesystem.witness;
    this.volumes.push({
      ...heading,
      label: region.label || filesystem.label,
      filesystem: filesystem.name,
      usedBytes: heading.bytes - free.bytes,
      freeBytes: free.bytes,
      leakedBytes: proven.leakedBytes,
      state: "clean",
      reason: null,
      witness: this.#judgement.proof === "full" ? `${map} + ${walk}` : map,
      notes,
    });
  }

  /** What a report says of every volume; undefined when none of it lies on the judged disk. */
  #headingOf({ name, label }: Region, members: readonly Region[]) {
    const start = members.map(startOf).find((at) => at !== undefined);
    if (start === undefined) return undefined;
    const byDisk = bytesByDisk(members);
    const parts = [...byDisk].map(([disk, bytes]) => ({ path: this.#judgement.names[disk] ?? "", bytes }));
    return { name, label, start, bytes: byDisk.get(OWN_DISK)!, ...(parts.length > 1 && { members: parts }) };
  }

  /** Everything in it counts as used. */
  #keepAll(
    region: Region,
    members: readonly Region[],
    filesystem: string | null,
    reason: Refusal,
    state: "refused" | "unknown",
  ): void {
    const heading = this.#headingOf(region, members);
    if (heading === undefined) return;
    for (const member of members) {
      for (const { start, end } of onDisk(member, wholeOf(member))) this.unknown.add(start, end);
    }
    this.volumes.push({
      ...heading,
      filesystem,
      usedBytes: heading.bytes,
      freeBytes: 0,
      leakedBytes: 0,
      state,
      reason,
      witness: null,
      notes: [],
    });
  }
}

const wholeOf = ({ device }: Region): ExtentSet => ExtentSet.of({ start: 0, end: device.bytes });

/** How many bytes of `members` lie on each disk, by its number. */
function bytesByDisk(members: readonly Region[]): Map<number, number> {
  const bytesOf = new Map<number, number>();
  for (const member of members) {
    for (const { disk, bytes } of member.footprint({ start: 0, end: member.device.bytes })) {
      bytesOf.set(disk, (bytesOf.get(disk) ?? 0) + bytes);
    }
  }
  return bytesOf;
}

/** The filesystem, with an eye on what of its walk is its own metadata. */
function watchingMetadata(filesystem: FileSystem, metadata: readonly ExtentBuilder[]) {
  return {
    blockBytes: filesystem.blockBytes,
    bytes: filesystem.bytes,
    get refusal() {
      return filesystem.refusal;
    },
    free: () => filesystem.free(),
    describe: (owner: number) => filesystem.describe(owner),
    walk: (visit: Visit) =>
      filesystem.walk((member, start, end, owner) => {
        if (owner < 0) metadata[member]?.add(start, end);
        visit(member, start, end, owner);
      }),
  };
}

/** H3: a resumed guest goes on with the filesystems as it remembers them, on whichever disk its memory lies. */
function hibernationOf(layout: Layout): Refusal | undefined {
  for (const { content } of allRegionsOf(layout)) {
    const said = content.kind === "filesystem" ? content.filesystem.refusal : undefined;
    if (said?.code === "hibernated") return said;
  }
  return undefined;
}

/** Filesystems that look the same while they are mounted. */
const WITHOUT_MARK = new Set(["btrfs", "apfs", "fat12"]);

/** Only filesystems have a mark that says how the guest was stopped, and not all of them. */
function doubtAbout(layout: Layout, volumes: readonly VolumeReport[]): string | undefined {
  const refused = volumes.find(({ state }) => state === "refused");
  if (refused) return `volume ${refused.name} is refused: ${refused.reason?.message}`;
  let marks = 0;
  for (const { name, type, content } of allRegionsOf(layout)) {
    const which = name === "" ? "the disk" : `volume ${name}`;
    if (content.kind === "stranger" && !(content.reason.code === "unknown" && holdsNoFilesystem(type)))
      return `${which} is not read: ${content.reason.message}`;
    if (content.kind === "member" && content.reason) return `${which} is ${content.reason.message}`;
    if (content.kind === "table" && content.table.refusal)
      return `${which}: ${content.table.refusal.message}`;
    if (content.kind !== "filesystem") continue;
    if (content.filesystem.refusal) return `${which}: ${content.filesystem.refusal.message}`;
    if (content.filesystem.isUnclean) return `${which} was not unmounted`;
    const { name: kind, scratch } = content.filesystem;
    if (scratch === undefined && !WITHOUT_MARK.has(kind)) marks++;
  }
  return marks === 0 ? "no filesystem says that the guest was shut down" : undefined;
}
