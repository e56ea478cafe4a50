/**
 * `$LogFile`: whether changes of metadata wait in the log that are not in their place yet (H2).
 *
 *   | restart page | restart page | log records …      all 0xff: emptied by a driver that found it clean
 *     RSTR: version, LSN, flags, list of the clients that have the log open; CHKD: chkdsk wrote it
 *
 * The later of the two pages counts. The log is done with when nobody has it open, or when it says that the volume is
 * clean. Version 2.0 is what Windows 8 and later write while the volume is mounted, and turn back into 1.1 when it is
 * shut down: what is left at 2.0 belongs to a guest that went to sleep (fast startup), or lost its power (H3).
 *
 * ntfs-3g logfile.c and logfile.h. Log records are never replayed.
 */
import { viewOf } from "../../bytes/struct.ts";
import { Refused } from "../refused.ts";
import { TYPE } from "./attributes.ts";
import { restoreSectors } from "./record.ts";
import { damaged } from "./refused.ts";
import type { Stream } from "./stream.ts";
import { FILE, type FileTable } from "./table.ts";

const MAGIC_RESTART = 0x52545352;
const MAGIC_CHKDSK = 0x444b4843;
const EMPTY = 0xffffffff;
const PAGE_BYTES_MAX = 65_536;
const FIRST_READ_BYTES = 4096;
const HEADER_BYTES = 30;
const AREA_BYTES = 24;
const NO_CLIENT = 0xffff;
const FLAG_CLEAN = 2;

interface RestartPage {
  readonly version: string;
  readonly lsn: bigint;
  readonly hasClient: boolean;
  readonly flags: number;
}

/** @throws Refused when the log is not done with */
export async function checkLog(table: FileTable): Promise<void> {
  const stream = table.stream(await table.file(FILE.log), TYPE.data);
  if (stream === undefined || stream.bytes < 4 * FIRST_READ_BYTES) {
    throw damaged(`$LogFile: ${stream?.bytes ?? 0} bytes found`);
  }
  const first = await readAt(table, stream, 0, FIRST_READ_BYTES);
  if (first.getUint32(0, true) === EMPTY) return checkEmptied(table, stream, first);
  const pageBytes = first.getUint32(16, true);
  const isPossible = pageBytes >= 512 && pageBytes <= PAGE_BYTES_MAX && pageBytes % 512 === 0;
  if (!isPossible || pageBytes * 2 > stream.bytes)
    throw damaged(`$LogFile: restart page of ${pageBytes} bytes found`);
  const pages: RestartPage[] = [];
  for (const at of [0, pageBytes]) pages.push(decodePage(await readAt(table, stream, at, pageBytes), at));
  const page = pages[1]!.lsn > pages[0]!.lsn ? pages[1]! : pages[0]!;
  if (page.version === "2.0") throw asleep();
  if (page.version !== "1.1") {
    throw new Refused("feature-unknown", `$LogFile: version ${page.version} found, 1.1 expected`, DIRTY_HINT);
  }
  if (page.hasClient && (page.flags & FLAG_CLEAN) === 0) {
    throw new Refused(
      "log-dirty",
      `$LogFile: restart flags 0x${page.flags.toString(16)}: the guest was not shut down cleanly`,
      DIRTY_HINT,
    );
  }
}

const DIRTY_HINT = "boot the guest and shut it down cleanly, or run chkdsk /f on the volume";

function asleep(): Refused {
  return new Refused(
    "hibernated",
    "$LogFile: version 2.0: the guest lost its power, or fast startup put its kernel to sleep",
    "boot the guest, turn fast startup off (powercfg /h off), and shut it down",
  );
}

async function readAt(table: FileTable, stream: Stream, at: number, bytes: number): Promise<DataView> {
  const into = new Uint8Array(bytes);
  await table.read(stream, at, into);
  return viewOf(into);
}

/** A driver that empties the log fills it; a record anywhere means that something else did. */
async function checkEmptied(table: FileTable, stream: Stream, first: DataView): Promise<void> {
  for (let at = 0; at < FIRST_READ_BYTES; at += 4) {
    if (first.getUint32(at, true) !== EMPTY)
      throw damaged(`$LogFile: neither empty nor a restart page at ${at}`);
  }
  for (let at = FIRST_READ_BYTES; at + 4 <= stream.bytes; at *= 2) {
    const word = await readAt(table, stream, at, 4);
    if (word.getUint32(0, true) !== EMPTY) throw damaged(`$LogFile: empty at its start, but not at ${at}`);
  }
}

function decodePage(view: DataView, at: number): RestartPage {
  const name = `$LogFile, restart page at ${at}`;
  const magic = view.getUint32(0, true);
  if (magic !== MAGIC_RESTART && magic !== MAGIC_CHKDSK) {
    throw damaged(`${name}: magic 0x${magic.toString(16)} found, "RSTR" expected`);
  }
  const isPlain = magic === MAGIC_CHKDSK && view.getUint16(6, true) === 0;
  if (!isPlain) restoreSectors(view, 0, view.byteLength, name);
  const area = view.getUint16(24, true);
  if (area < HEADER_BYTES || area % 8 !== 0 || area + AREA_BYTES > view.byteLength) {
    throw damaged(`${name}: restart area at ${area} found`);
  }
  return {
    version: `${view.getUint16(28, true)}.${view.getUint16(26, true)}`,
    lsn: view.getBigUint64(magic === MAGIC_CHKDSK ? 8 : area, true),
    hasClient: view.getUint16(area + 12, true) !== NO_CLIENT,
    flags: view.getUint16(area + 14, true),
  };
}
