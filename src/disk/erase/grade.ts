/**
 * What an erasure proves, in the words of SAFETY: never more than is known of the filesystem and the devices below.
 *
 *   none         nothing was erased
 *   logical      reads as zeros, through the image and through the file, freshly opened
 *   overwritten  and the same blocks of a magnetic disk were overwritten and flushed before they were given back
 *
 * Nothing here means "irrecoverable". A disk remaps sectors, keeps caches, was copied, backed up, snapshotted. What was
 * always encrypted, and whose key is destroyed, is the real answer to forensics.
 */
import { size } from "../../bytes/sizes.ts";
import type { Stack } from "../../host/stack.ts";

export const GRADES = ["none", "logical", "overwritten"] as const;
export type Grade = (typeof GRADES)[number];

export interface Graded {
  readonly grade: Grade;
  /** Why it is not more, and what it is worth: sentences. */
  readonly reasons: readonly string[];
}

/** Filesystems that write over the blocks of a file where they lie. */
const IN_PLACE = ["ext4", "xfs"];

/** What was seen while it was done. */
export interface Evidence {
  /** The device held the blocks at the same places before and after they were overwritten; undefined where the host does not tell. */
  readonly stayedInPlace: boolean | undefined;
  /** Given back without being overwritten: allocated and never written, or zeroed by the host. */
  readonly unwrittenBytes: number;
}

/** Of what was overwritten, flushed, given back, and reads as zeros. */
export function gradeOf(stack: Stack, { stayedInPlace, unwrittenBytes }: Evidence): Graded {
  const doubts = [...doubtsOf(stack), ...moved(stayedInPlace), ...unreached(unwrittenBytes)];
  if (doubts.length > 0) return { grade: "logical", reasons: [...doubts, ...hostTrims(stack), ANSWER] };
  const names = stack.devices.map(({ name }) => name).join(", ");
  const worth = `overwritten in place on ${names}: sectors that the disk has remapped are not reached`;
  return { grade: "overwritten", reasons: [worth, ANSWER] };
}

/** What the host allows at best, before anything was done. */
export function bestGrade(stack: Stack): Graded {
  return gradeOf(stack, { stayedInPlace: true, unwrittenBytes: 0 });
}

/** Of a disk that is served, at best: while it is written to, its map shows neither places nor reflinks. */
export function servedGrade(stack: Stack): Graded {
  return gradeOf(stack, { stayedInPlace: undefined, unwrittenBytes: 0 });
}

/** Of an image whose files lie in several places: that of the worst. */
export function lowest(grades: readonly Graded[]): Graded {
  const grade = GRADES.find((each) => grades.some((one) => one.grade === each))!;
  const reasons = grades.filter((one) => one.grade === grade).flatMap((one) => one.reasons);
  return { grade, reasons: [...new Set(reasons)] };
}

const ANSWER = "encryption, with its key destroyed, is the real answer to forensics; erasing is not";

function doubtsOf({ filesystem, journalsData, devices, opaque }: Stack): string[] {
  const doubts: string[] = [];
  if (filesystem !== undefined && !IN_PLACE.includes(filesystem))
    doubts.push(`${filesystem} is not known to overwrite a file where it lies`);
  if (journalsData !== false)
    doubts.push(
      journalsData === true
        ? "the host's filesystem writes the file's content to its journal too"
        : "whether the host's filesystem journals the file's content is not known",
    );
  if (opaque !== undefined) doubts.push(`what lies below ${opaque} is not known`);
  for (const { name, medium } of devices) {
    if (medium === "flash") doubts.push(`${name} is flash: it writes elsewhere and keeps the old cells`);
    if (medium === "shingled") doubts.push(`${name} is shingled: it may write elsewhere first`);
    if (medium === "unknown") doubts.push(`${name} does not say what it is`);
  }
  return doubts;
}

function moved(stayedInPlace: boolean | undefined): string[] {
  if (stayedInPlace === true) return [];
  return [
    stayedInPlace === false
      ? "the host moved blocks of the file when they were overwritten"
      : "where the blocks of the file lie is not known",
  ];
}

function unreached(bytes: number): string[] {
  if (bytes === 0) return [];
  return [`${size(bytes)} that the host had zeroed without writing are given back without being overwritten`];
}

function hostTrims({ passesDiscards, devices }: Stack): string[] {
  if (passesDiscards) return ["the host passes on what is freed: a device may drop it for good, or may not"];
  if (devices.some(({ discards }) => discards === true))
    return ["the device takes discards, and the host does not pass them on by itself: fstrim does"];
  return [];
}
