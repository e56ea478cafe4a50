/**
 * The parent locator: by which identifier and under which names a differencing disk knows its parent.
 *
 *   | type, count | key at, value at, lengths | … | p a r e n t _ l i n k a g e | { 8 3 e d … } | …      UTF-16
 *
 * The names are Windows paths. Here the parent is looked for under its relative path, and beside the child under the
 * last part of each path; whether it is opened, the caller decides (H22).
 * Specification: [MS-VHDX] 2.6.2.6.
 */
import { DiskError } from "../../error.ts";
import { printable } from "../../bytes/text.ts";
import type { Image, OpenParent, Reference } from "../format.ts";
import { corrupt, LOCATOR_TYPE, ParentLocatorEntry, ParentLocatorHeader } from "./structures.ts";

export interface ParentLocator {
  /** Identifiers that the parent may have, lower case without braces: `parent_linkage` and `parent_linkage2`. */
  readonly linkages: readonly string[];
  /** Names of the parent's file, with `/`, in the order in which they are tried. */
  readonly names: readonly string[];
}

/** The specification knows five keys; others may add some. */
const KEYS_MAX = 64;
const PATH_KEYS = ["relative_path", "volume_path", "absolute_win32_path"] as const;
const GUID = /^\{?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\}?$/;

/** @param at of the region, for messages */
export function parseLocator(item: Uint8Array, at: number): ParentLocator {
  const { locatorType, keyValueCount } = ParentLocatorHeader.decode(item);
  if (locatorType !== LOCATOR_TYPE) {
    throw new DiskError("unsupported", `parent locator of type ${locatorType}, expected a VHDX file`);
  }
  if (keyValueCount > KEYS_MAX) throw corrupt("KeyValueCount", at, keyValueCount, `at most ${KEYS_MAX}`);
  const values = new Map<string, string>();
  for (let i = 0; i < keyValueCount; i++) {
    const entry = ParentLocatorEntry.decode(item, ParentLocatorHeader.bytes + i * ParentLocatorEntry.bytes);
    const key = textAt(item, entry.keyOffset, entry.keyLength, at);
    if (values.has(key)) throw corrupt("parent locator", at, `${printable(key)} twice`, "each key once");
    values.set(key, textAt(item, entry.valueOffset, entry.valueLength, at));
  }
  const linkages = ["parent_linkage", "parent_linkage2"].flatMap((key) => {
    const value = values.get(key);
    if (value === undefined) return [];
    const guid = GUID.exec(value.toLowerCase())?.[1];
    if (guid === undefined) throw corrupt(key, at, printable(value), "a GUID");
    return [guid];
  });
  if (linkages.length === 0)
    throw corrupt("parent locator", at, "no parent_linkage", "the parent's identifier");
  const names = namesOf(values);
  if (names.length === 0) throw corrupt("parent locator", at, "no path", PATH_KEYS.join(", "));
  return { linkages, names };
}

function textAt(item: Uint8Array, at: number, bytes: number, region: number): string {
  if (at === 0 || bytes === 0 || bytes % 2 !== 0 || at + bytes > item.length) {
    throw corrupt("parent locator", region, `text at ${at}+${bytes}`, `text inside of ${item.length} bytes`);
  }
  return Buffer.from(item.buffer, item.byteOffset + at, bytes).toString("utf16le");
}

function namesOf(values: ReadonlyMap<string, string>): string[] {
  const names: string[] = [];
  const relative = values.get("relative_path");
  if (relative !== undefined) names.push(relative.replaceAll("\\", "/").replace(/^(?:\.\/+)+/, ""));
  for (const key of PATH_KEYS) {
    const last = values.get(key)?.split(/[\\/]/).at(-1);
    if (last !== undefined) names.push(last);
  }
  return [...new Set(names.filter((name) => name !== "" && !name.includes("\0")))];
}

/** A locator for a new child of `parent`, whose file lies beside the child's. */
export function encodeLocator(parentName: string, linkage: string): Uint8Array {
  const pairs: readonly (readonly [string, string])[] = [
    ["parent_linkage", `{${linkage}}`],
    ["relative_path", parentName.includes("/") ? parentName.replaceAll("/", "\\") : `.\\${parentName}`],
  ];
  const texts = pairs.map(
    ([key, value]) => [Buffer.from(key, "utf16le"), Buffer.from(value, "utf16le")] as const,
  );
  let at = ParentLocatorHeader.bytes + pairs.length * ParentLocatorEntry.bytes;
  const item = new Uint8Array(texts.reduce((sum, [key, value]) => sum + key.length + value.length, at));
  ParentLocatorHeader.encode({ locatorType: LOCATOR_TYPE, keyValueCount: pairs.length }, item);
  for (const [i, [key, value]] of texts.entries()) {
    const entry = {
      keyOffset: at,
      valueOffset: at + key.length,
      keyLength: key.length,
      valueLength: value.length,
    };
    ParentLocatorEntry.encode(entry, item, ParentLocatorHeader.bytes + i * ParentLocatorEntry.bytes);
    item.set(key, at);
    item.set(value, at + key.length);
    at += key.length + value.length;
  }
  return item;
}

/** What the child says of its parent: each name with each identifier (H33). */
export function referencesOf(locator: ParentLocator | undefined): readonly Reference[] {
  if (!locator) return [];
  return locator.names.flatMap((name) =>
    locator.linkages.map((id): Reference => ({ role: "backing", name, format: "vhdx", id })),
  );
}

/**
 * Opens the parent under the first of its names that leads to it.
 * @throws DiskError `refused` when none does, or when the parent was changed since
 */
export async function openLinked(locator: ParentLocator, openParent: OpenParent): Promise<Image> {
  const failures: DiskError[] = [];
  for (const name of locator.names) {
    let parent: Image;
    try {
      parent = await openParent(name, "vhdx");
    } catch (error) {
      if (!(error instanceof DiskError)) throw error;
      failures.push(error);
      continue;
    }
    if (locator.linkages.some((id) => parent.identifiers?.includes(id))) return parent;
    const found = parent.identifiers?.join() ?? "none";
    await parent[Symbol.asyncDispose]();
    failures.unshift(
      new DiskError(
        "refused",
        `parent "${printable(name)}": DataWriteGuid ${found}, the child expects ${locator.linkages.join(" or ")}`,
        {
          code: "parent-changed",
          hint: "the parent was changed after the child was made: restore it from a copy",
        },
      ),
    );
  }
  const [first] = failures;
  if (first && first.kind !== "io") throw first;
  const names = locator.names.map((name) => `"${printable(name)}"`).join(", ");
  throw new DiskError("refused", `the parent is not found as ${names}: ${first?.message ?? "no name"}`, {
    code: "parent-missing",
    hint: "put the parent beside this image, under the name that this image knows",
    cause: first,
  });
}
