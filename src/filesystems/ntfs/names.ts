/**
 * Names: UTF-16 of any kind, compared without regard to case by the volume's own table, `$UpCase`.
 */
import { printable } from "../../bytes/text.ts";
import { TYPE } from "./attributes.ts";
import { damaged } from "./refused.ts";
import { FILE, type FileTable } from "./table.ts";

const UNITS = 65_536;

/** Folds a name as the guest does: names that are equal afterwards are the same. */
export type Fold = (name: string) => string;

/** @throws Refused when the table is damaged */
export async function readFold(table: FileTable): Promise<Fold> {
  const stream = table.stream(await table.file(FILE.upCase), TYPE.data);
  if (stream?.bytes !== UNITS * 2)
    throw damaged(`$UpCase: ${stream?.bytes ?? 0} bytes found, ${UNITS * 2} expected`);
  const upper = new Uint16Array(UNITS);
  await table.read(stream, 0, new Uint8Array(upper.buffer));
  return (name) => {
    let folded = "";
    for (let i = 0; i < name.length; i++) folded += String.fromCharCode(upper[name.charCodeAt(i)]!);
    return folded;
  };
}

/** A name as it may be shown (H25). */
export function shownText(name: string): string {
  return printable(name).replaceAll("/", "\\x2f");
}
