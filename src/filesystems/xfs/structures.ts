/**
 * The filesystem's own structures, and the numbers below zero by which a walk calls them.
 */
import type { OwnerDescription } from "../filesystem.ts";

const NAMES = {
  headers: "superblock and headers",
  list: "free list",
  byBlock: "tree of free space by block",
  bySize: "tree of free space by size",
  inodes: "tree of inodes",
  freeInodes: "tree of free inodes",
  rmap: "tree of owners",
  refcount: "tree of shared blocks",
  chunks: "inodes",
  staging: "blocks kept for copy-on-write",
  log: "log",
} as const;

export type Structure = keyof typeof NAMES;

const STRUCTURES = Object.keys(NAMES) as Structure[];

/** The owner number of a structure of an AG: below zero, inodes are above. */
export function structureOwner(structure: Structure, ag: number): number {
  return -1 - (ag * STRUCTURES.length + STRUCTURES.indexOf(structure));
}

/** @param owner below zero */
export function describeStructure(owner: number): OwnerDescription {
  const index = -1 - owner;
  const structure = STRUCTURES[index % STRUCTURES.length]!;
  if (structure === "log") return { kind: "journal", name: NAMES.log };
  return { kind: "metadata", name: `${NAMES[structure]} of AG ${Math.floor(index / STRUCTURES.length)}` };
}
