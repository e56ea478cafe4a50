/**
 * What a damaged disk is told, besides what all formats tell.
 */
import { damaged, hex } from "../blocks/damaged.ts";

/** A name out of the image, safe to print (H25). */
export function quoted(text: string): string {
  return JSON.stringify(text).replace(/[^\x20-\x7e]/gu, (c) => `\\u{${c.codePointAt(0)!.toString(16)}}`);
}

/** @throws DiskError `corrupt` when a structure does not lie in its file */
export function mustLieInside(
  file: { readonly bytes: number },
  structure: string,
  at: number,
  bytes: number,
): void {
  if (at + bytes <= file.bytes) return;
  throw damaged(structure, at, `${bytes} bytes`, `the end of the file at ${hex(file.bytes)} or before`);
}
