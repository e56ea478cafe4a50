/**
 * Apple's property lists in XML: `Info.plist` of a sparse bundle, the resources of a disk image.
 *
 *   <plist version="1.0"> <dict> <key>band-size</key> <integer>8388608</integer> … </dict> </plist>
 *
 * Definition: Apple's DTD PropertyList-1.0. Binary lists are not read: disk images have none.
 */
import { type Element, parseXml } from "../../bytes/xml.ts";
import { DiskError } from "../../error.ts";

export type Plist = string | number | boolean | Uint8Array | readonly Plist[] | ReadonlyMap<string, Plist>;

/** @throws DiskError `corrupt`, as `what` */
export function parsePlist(source: Uint8Array, what: string): ReadonlyMap<string, Plist> {
  const { name, children } = parseXml(source, what);
  const [only, second] = children;
  const value = name === "plist" && second === undefined && only ? valueOf(only, what) : undefined;
  if (value instanceof Map) return value as ReadonlyMap<string, Plist>;
  throw new DiskError("corrupt", `${what}: <${name}>, expected a property list that is a dictionary`);
}

/** The XML parser keeps the depth within bounds. */
function valueOf({ name, text, children }: Element, what: string): Plist {
  switch (name) {
    case "dict":
      return dictionaryOf(children, what);
    case "array":
      return children.map((child) => valueOf(child, what));
    case "string":
    case "date":
      return text;
    case "true":
      return true;
    case "false":
      return false;
    case "data":
      return Buffer.from(text, "base64");
    case "real":
    case "integer": {
      const number = Number(text.trim());
      if (text.trim() !== "" && Number.isFinite(number)) return number;
      throw new DiskError("corrupt", `${what}: ${JSON.stringify(text.slice(0, 40))} is no number`);
    }
    default:
      throw new DiskError("corrupt", `${what}: <${name}> is no value of a property list`);
  }
}

function dictionaryOf(children: readonly Element[], what: string): ReadonlyMap<string, Plist> {
  const entries = new Map<string, Plist>();
  for (let i = 0; i < children.length; i += 2) {
    const [key, value] = [children[i]!, children[i + 1]];
    if (key.name !== "key" || value === undefined) {
      throw new DiskError("corrupt", `${what}: <${key.name}> where a key and its value belong`);
    }
    if (entries.has(key.text)) throw new DiskError("corrupt", `${what}: the key ${key.text} stands twice`);
    entries.set(key.text, valueOf(value, what));
  }
  return entries;
}
