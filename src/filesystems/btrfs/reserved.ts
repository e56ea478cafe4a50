/**
 * What is never free, though no extent holds it: the first mebibyte of every device, and the stripe that begins with
 * each copy of the superblock, even where a chunk lies around it (H1).
 */
import { ExtentSet } from "../../bytes/extents.ts";
import { STRIPE_BYTES } from "./chunks.ts";
import { COPIES_AT, type Superblock } from "./superblock.ts";

const RESERVED_BYTES = 1 << 20;

export function reserved(sb: Superblock): ExtentSet {
  const pieces = COPIES_AT.map((at) => ({ start: at, end: at + STRIPE_BYTES }));
  return ExtentSet.of({ start: 0, end: RESERVED_BYTES }, ...pieces).within({ start: 0, end: sb.deviceBytes });
}
