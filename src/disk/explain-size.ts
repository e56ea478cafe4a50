/**
 * Why is it so big: the largest owners, what is returnable, whether the guest's TRIM seems to arrive, and what would
 * keep the image small.
 */
import { size } from "../bytes/sizes.ts";
import { allocationOf } from "./allocation.ts";
import { type Layout, regionsOf, startOf } from "./layout.ts";
import type { Disk } from "./open.ts";
import type { Owner, Survey } from "./results.ts";

const OWNERS_SHOWN = 10;
/** A guest whose TRIM arrives leaves at most this share of the image unreturned. */
const TRIM_LEAVES = 0.1;

/** The owners of most bytes over all filesystems, descending. */
export async function largestOwners(layout: Layout): Promise<Owner[]> {
  const largest: Owner[] = [];
  for (const region of regionsOf(layout)) {
    if (region.content.kind !== "filesystem" || startOf(region) === undefined) continue;
    const { filesystem } = region.content;
    if (filesystem.refusal) continue;
    const bytesOf = new Map<number, number>();
    await filesystem.walk((member, start, end, owner) => {
      if (member === 0) bytesOf.set(owner, (bytesOf.get(owner) ?? 0) + end - start);
    });
    const top = [...bytesOf].sort((a, b) => b[1] - a[1]).slice(0, OWNERS_SHOWN);
    for (const [owner, bytes] of top) {
      const { name, path } = await filesystem.describe(owner);
      largest.push({ volume: region.name, path: path ?? null, name, bytes });
    }
  }
  return largest.sort((a, b) => b.bytes - a.bytes).slice(0, OWNERS_SHOWN);
}

/** Sentences, the most telling first. */
export async function reasonsFor(disk: Disk, survey: Survey): Promise<string[]> {
  const reasons: string[] = [];
  const owned = survey.hostBytes ?? survey.fileBytes;
  const share = (bytes: number) => `${Math.round((100 * bytes) / Math.max(1, owned))} %`;
  if (survey.reclaimableBytes > 0) {
    reasons.push(
      `${share(survey.reclaimableBytes)} of the image is space that the guest freed and the host was never told about: ` +
        `ullage reclaim returns it`,
    );
  }
  if (survey.volumes.some(({ state }) => state === "clean")) {
    const arrives = survey.regions.get("returnable")!.bytes < owned * TRIM_LEAVES;
    reasons.push(
      arrives
        ? "little freed space is still stored: the guest's TRIM seems to arrive, or little was ever deleted"
        : "much freed space is still stored: the guest's TRIM does not seem to arrive; attach the disk with " +
            "discard=unmap and run fstrim in the guest (systemctl enable fstrim.timer) to keep it small",
    );
  }
  const allocation = await allocationOf(disk.image);
  if (allocation.shared.count > 0) {
    reasons.push(
      `${share(allocation.shared.bytes)} is shared with snapshots or reflinks and stays until they go`,
    );
  }
  if (survey.unknownBytes * 100 > owned) {
    reasons.push(
      `${share(Math.min(survey.unknownBytes, owned))} lies in volumes that are not understood or refused and counts as used`,
    );
  }
  const clearable = survey.worthless.filter(({ also, kept }) => also !== null && kept === null);
  if (clearable.length > 0) {
    const bytes = clearable.reduce((sum, each) => sum + each.bytes, 0);
    const words = [...new Set(clearable.map(({ also }) => also))].join(",");
    reasons.push(
      `${size(bytes)} of the guest's disk are swap and the like, worth nothing while it is shut down: ` +
        `ullage reclaim --also ${words} returns what of it is stored`,
    );
  }
  for (const { kind, path, bytes, isPartial, command } of survey.worthless.filter(
    ({ also }) => also === null,
  )) {
    reasons.push(
      `${isPartial ? "more than " : ""}${size(bytes)} are ${kind} in ${path}: in the guest, ${command}`,
    );
  }
  if (allocation.unwritten.bytes > 0) {
    reasons.push(`${share(allocation.unwritten.bytes)} was preallocated on the host and never written`);
  }
  if (survey.tableBytes * 20 > owned)
    reasons.push(`${share(survey.tableBytes)} is the image format's own tables`);
  return reasons;
}
