/**
 * The owners of blocks that are no files: the container's own structures, and those of every volume.
 *
 *   below zero: -1 - (0 for the container, 1 + number for a volume) * 16 - index of the structure
 */

export const STRUCTURES = [
  "container superblock",
  "checkpoint descriptors",
  "checkpoint data",
  "space manager",
  "object map",
  "key bag",
  "EFI driver",
  "blocked-out area",
  "earlier checkpoints",
  "volume superblock",
  "file-system tree",
  "extent records",
  "snapshots",
  "data without a file",
] as const;

export type Structure = (typeof STRUCTURES)[number];

const PLACES = 16;

/** @param volume its number; undefined for the container */
export function structureOwner(structure: Structure, volume?: number): number {
  return -1 - ((volume === undefined ? 0 : volume + 1) * PLACES + STRUCTURES.indexOf(structure));
}

/** What `structureOwner` made a number of. */
export function structureOf(owner: number): {
  readonly structure: string;
  readonly volume: number | undefined;
} {
  const place = -1 - owner;
  const volume = Math.floor(place / PLACES) - 1;
  return { structure: STRUCTURES[place % PLACES] ?? "unknown", volume: volume < 0 ? undefined : volume };
}
