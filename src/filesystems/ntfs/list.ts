/**
 * `$ATTRIBUTE_LIST`: where the attributes lie of a file that needs more than one record.
 *
 *   | type 4 | length 2 | name 1+1 | lowest VCN 8 | reference to the record 8 | id 2 | name … |     sorted by type
 *
 * libyal/libfsntfs documentation, "The attribute list attribute".
 */
import { viewOf } from "../../bytes/struct.ts";
import { textAt } from "./attributes.ts";
import { referenceAt, type Reference } from "./record.ts";
import { damaged } from "./refused.ts";

/** Windows makes none longer. */
export const LIST_BYTES_MAX = 2 ** 18;
const ENTRY_BYTES = 26;

export interface ListEntry {
  readonly type: number;
  readonly name: string;
  readonly firstVcn: number;
  readonly record: Reference;
}

/** The entries of the attribute list of record `owner`. @throws Refused for what cannot be */
export function listEntries(owner: number, bytes: Uint8Array): ListEntry[] {
  const view = viewOf(bytes);
  const entries: ListEntry[] = [];
  for (let at = 0; at < bytes.length;) {
    const left = bytes.length - at;
    const length = left >= ENTRY_BYTES ? view.getUint16(at + 4, true) : 0;
    const nameLength = length === 0 ? 0 : view.getUint8(at + 6);
    const nameAt = length === 0 ? 0 : view.getUint8(at + 7);
    const isCut = nameLength > 0 && nameAt + nameLength * 2 > length;
    if (length < ENTRY_BYTES || length % 8 !== 0 || length > left || isCut) {
      throw damaged(
        `attribute list of file record ${owner}: entry of ${length} bytes found with ${left} left`,
      );
    }
    entries.push({
      type: view.getUint32(at, true),
      name: nameLength === 0 ? "" : textAt(view, at + nameAt, nameLength),
      firstVcn: view.getUint32(at + 8, true) + view.getUint32(at + 12, true) * 2 ** 32,
      record: referenceAt(view, at + 16),
    });
    at += length;
  }
  return entries;
}
