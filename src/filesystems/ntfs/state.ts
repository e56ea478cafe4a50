/**
 * Whether the volume may be believed: its version is known, no work on it is unfinished, its guest is awake.
 *
 *   $Volume       $VOLUME_INFORMATION: version, flags; $VOLUME_NAME: the label
 *   hiberfil.sys  in the root: `hibr`, `HIBR`: the guest's memory waits in it; shorter than a page: a volume that a
 *                 hibernated guest has mounted
 *
 * ntfs-3g volume.c and layout.h, VOLUME_FLAGS.
 */
import { printable } from "../../bytes/text.ts";
import { Refused } from "../refused.ts";
import { textAt, TYPE } from "./attributes.ts";
import { damaged } from "./refused.ts";
import { readFold } from "./names.ts";
import { findEntry } from "./directory.ts";
import { FILE, type FileTable } from "./table.ts";

const FLAG_NAMES: readonly (readonly [number, string])[] = [
  [0x0001, "is marked dirty"],
  [0x0002, "waits for its log to be resized"],
  [0x0004, "waits for an upgrade"],
  [0x0008, "was last mounted by Windows NT 4"],
  [0x0010, "waits for its change journal to be deleted"],
  [0x0020, "waits for its object identifiers to be repaired"],
  [0x4000, "is being checked by chkdsk"],
];
/** Set by chkdsk when it is done, and by Windows 8 and later for reasons of its own: neither is unfinished work. */
const FLAGS_HARMLESS = 0x8000 | 0x0080;

const INFORMATION_BYTES = 12;

/** @throws Refused */
export async function checkVolume(table: FileTable): Promise<void> {
  const file = await table.file(FILE.volume);
  const information = file.attributes.find(({ type }) => type === TYPE.volumeInformation);
  if (information?.content.kind !== "resident" || information.content.bytes < INFORMATION_BYTES) {
    throw damaged("$Volume has no version");
  }
  const { view } = information.record;
  const { at } = information.content;
  const version = `${view.getUint8(at + 8)}.${view.getUint8(at + 9)}`;
  if (version !== "3.0" && version !== "3.1") {
    throw new Refused(
      "version-unsupported",
      `NTFS ${version} is not read, only 3.0 and 3.1`,
      "let a newer Windows mount the volume, which upgrades it",
    );
  }
  const flags = view.getUint16(at + 10, true);
  for (const [flag, what] of FLAG_NAMES) {
    if ((flags & flag) === 0) continue;
    throw new Refused(
      flag === 1 ? "not-clean" : "unfinished-work",
      `$Volume: flags 0x${flags.toString(16)}: the volume ${what}`,
      "boot the guest, run chkdsk /f on the volume, and shut it down cleanly",
    );
  }
  const unknown = flags & ~FLAGS_HARMLESS;
  if (unknown !== 0) {
    throw new Refused(
      "feature-unknown",
      `$Volume: flag 0x${unknown.toString(16)} is not known`,
      "trim inside the guest instead",
    );
  }
}

/** @throws Refused when `$Volume` is damaged */
export async function readLabel(table: FileTable): Promise<string> {
  const file = await table.file(FILE.volume);
  const name = file.attributes.find(({ type }) => type === TYPE.volumeName);
  if (name?.content.kind !== "resident") return "";
  return printable(textAt(name.record.view, name.content.at, Math.floor(name.content.bytes / 2)));
}

const PAGE_BYTES = 4096;
/** In the header of a file whose memory image is gone, or was read back. */
const AWAKE: ReadonlySet<string> = new Set(["\0\0\0\0", "wake", "WAKE"]);

/** @throws Refused when the guest is hibernated */
export async function checkHibernation(table: FileTable): Promise<void> {
  const root = await table.file(FILE.root);
  const entry = await findEntry(table, root, "hiberfil.sys", await readFold(table));
  if (entry === undefined) return;
  const stream = table.stream(await table.file(entry.reference.number), TYPE.data);
  if (stream === undefined || stream.bytes < PAGE_BYTES) {
    throw hibernated("is shorter than a page: a hibernated guest has this volume mounted");
  }
  const header = new Uint8Array(4);
  await table.read(stream, 0, header);
  const signature = String.fromCharCode(...header);
  if (!AWAKE.has(signature))
    throw hibernated(`begins with "${printable(signature)}": it holds the guest's memory`);
}

function hibernated(what: string): Refused {
  return new Refused(
    "hibernated",
    `hiberfil.sys ${what}`,
    "resume the guest, turn fast startup off (powercfg /h off), and shut it down",
  );
}
