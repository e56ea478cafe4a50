/**
 * Other disks of the same guest, where volumes lie on several (H36). Those that were named always count. Candidates are
 * opened only when members are missing on the judged disk, and only those stay open that complete something with it:
 *
 *   judged ── vg0 ── second ── md0 ── third      both stay
 *   unrelated                                    closed again, whoever uses it
 */
import { DiskError } from "../error.ts";
import { identityAt } from "../host/medium.ts";
import { below, type Layout, OWN_DISK, type Region, regionsOf } from "./layout.ts";

/** Names of further files, each file once, whatever it is called. */
export function distinctFrom(own: string, others: readonly string[]): string[] {
  const seen = new Set([identityAt(own)]);
  return others.filter((file) => {
    const identity = identityAt(file);
    if (identity !== undefined && seen.has(identity)) return false;
    seen.add(identity);
    return true;
  });
}

/** Whether something on the judged disk is a part of what is not whole. */
export function missesMembers(layout: Layout): boolean {
  return [...regionsOf(layout)].some(
    ({ content }) => content.kind === "member" && content.reason !== undefined,
  );
}

/** Numbers of the disks that have a part in something of the judged one, or in something of such a disk. */
export function disksBeside({ sets }: Layout): ReadonlySet<number> {
  const beside = new Set([OWN_DISK]);
  const spans = sets.map((set) => new Set(disksOf(set)));
  for (let known = 0; known < beside.size;) {
    known = beside.size;
    for (const disks of spans) {
      if ([...disks].some((disk) => beside.has(disk))) for (const disk of disks) beside.add(disk);
    }
  }
  return beside;
}

function* disksOf(set: Region): Generator<number> {
  for (const { content } of below(set)) {
    if (content.kind !== "table" && content.kind !== "filesystem") continue;
    for (const member of content.members) {
      for (const { disk } of member.footprint({ start: 0, end: member.device.bytes })) yield disk;
    }
  }
}

/** What cannot be read is no member of anything, and the set then says what is missing. */
export function isUnreadable(error: unknown): boolean {
  return error instanceof DiskError && UNREADABLE.has(error.kind);
}

const UNREADABLE: ReadonlySet<string> = new Set(["corrupt", "unsupported", "refused"]);
