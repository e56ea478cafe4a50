/**
 * Linux swap areas: nothing in them is free, and behind the header nothing outlives a shutdown.
 *
 *   0     1024                                                   page - 10      page
 *   | boot | version, last page, bad pages, UUID, label | 1536: bad | "SWAPSPACE2" | pages … last page |
 *
 * A page has the length of the guest's, 4 to 64 KiB, and numbers have the guest's order of bytes; the version tells
 * which. Version 0, "SWAP-SPACE", has only a bitmap of pages, and today's kernels do not take it. A guest that sleeps
 * has put its memory here and another signature in the same place: then no byte of the whole disk is free (H3).
 *
 * Source: Linux, include/linux/swap.h and mm/swapfile.c; util-linux for the signatures of sleep.
 */
import { ExtentSet } from "../bytes/extents.ts";
import { raw, struct, u32be, u32le, uuidText, viewOf } from "../bytes/struct.ts";
import { shownName } from "../bytes/text.ts";
import { type BlockDevice, readBytes } from "../device/device.ts";
import type { FileSystem, FileSystemReader, OwnerDescription, Visit } from "./filesystem.ts";
import { findings, Refused } from "./refused.ts";
import { Door } from "./door.ts";

const PAGE_SIZES = [4096, 8192, 16_384, 32_768, 65_536];
const SIGNATURE_BYTES = 10;
const HEADER_AT = 1024;
const BAD_PAGES_AT = 1536;
/** The header, and whatever a boot loader may have put before it, for every length of a page. */
const KEPT_BYTES = 65_536;

/** The second header of a LUKS2 volume, wherever its length puts it: the area was made over one, or is one. */
const SECOND_LUKS2 = "SKUL\xba\xbe";
const SECOND_LUKS2_AT = [14, 15, 16, 17, 18, 19, 20, 21, 22].map((bit) => 2 ** bit);

type Meaning = "version 0" | "version 1" | "asleep";

const SIGNATURES: readonly (readonly [string, Meaning])[] = [
  ["SWAPSPACE2", "version 1"],
  ["SWAP-SPACE", "version 0"],
  ["S1SUSPEND", "asleep"],
  ["S2SUSPEND", "asleep"],
  ["ULSUSPEND", "asleep"],
  ["LINHIB0001", "asleep"],
];
/** Stands at the start, and leaves the swap area's own signature where it is. */
const TUXONICE = "\xed\xc3\x02\xe9\x98\x56\xe5\x0c";

const fields = (u32: typeof u32le) =>
  struct({ version: u32, lastPage: u32, badPages: u32, uuid: raw(16), label: raw(16) });
export const HeaderLE = fields(u32le);
export const HeaderBE = fields(u32be);

const HEADER_OWNER = -1;
const SPACE_OWNER = 1;

const { damaged, contradiction } = findings("run mkswap again in the guest");

interface Signature {
  readonly meaning: Meaning;
  readonly text: string;
  readonly pageBytes: number;
}

export const swap: FileSystemReader = {
  name: "swap",

  async probe(member) {
    return (await signatures(member)).length > 0;
  },

  async open([member]) {
    const area = new SwapArea(member!);
    await area.open();
    return area;
  },
};

/** All that are there: those of sleep first, then by length of the page. */
async function signatures(member: BlockDevice): Promise<Signature[]> {
  const head = Buffer.from(await readBytes(member, 0, Math.min(member.bytes, KEPT_BYTES))).toString("latin1");
  const found: Signature[] = [];
  for (const pageBytes of PAGE_SIZES) {
    const at = pageBytes - SIGNATURE_BYTES;
    for (const [text, meaning] of SIGNATURES) {
      if (head.startsWith(text, at)) found.push({ meaning, text, pageBytes });
    }
  }
  if (found.length > 0 && head.startsWith(TUXONICE))
    found.push({ meaning: "asleep", text: "TuxOnIce", pageBytes: 4096 });
  return found.toSorted((a, b) => Number(b.meaning === "asleep") - Number(a.meaning === "asleep"));
}

class SwapArea extends Door implements FileSystem {
  readonly name = "swap";
  readonly witness = { map: "swap header", walk: "whole area" };
  label = "";
  uuid = "";
  blockBytes = PAGE_SIZES[0]!;
  bytes: number;
  scratch: ExtentSet = ExtentSet.EMPTY;
  readonly #device: BlockDevice;

  constructor(device: BlockDevice) {
    super();
    this.#device = device;
    this.bytes = device.bytes;
  }

  async open(): Promise<void> {
    await this.guarded(async () => {
      const [first, second] = await signatures(this.#device);
      if (first === undefined) throw damaged("no signature of a swap area");
      this.blockBytes = first.pageBytes;
      if (first.meaning === "asleep") throw asleep(first);
      if (second !== undefined) {
        const [one, two] = [first, second].map(
          ({ text, pageBytes }) => `${text} for pages of ${pageBytes} bytes`,
        );
        throw contradiction(`the swap area has the signatures ${one} and ${two}`);
      }
      await this.#rejectLuks();
      if (first.meaning === "version 1") await this.#readHeader(first.pageBytes);
      else this.notes.push("swap area of version 0: no kernel of today uses it");
    });
    this.bytes = Math.floor(this.bytes / this.blockBytes) * this.blockBytes;
  }

  async #rejectLuks(): Promise<void> {
    for (const at of SECOND_LUKS2_AT) {
      if (at + SECOND_LUKS2.length > this.#device.bytes) return;
      const found = await readBytes(this.#device, at, SECOND_LUKS2.length);
      if (Buffer.from(found).toString("latin1") === SECOND_LUKS2)
        throw contradiction(`the swap area has the second header of a LUKS2 volume at ${at}`);
    }
  }

  async #readHeader(pageBytes: number): Promise<void> {
    const page = await readBytes(this.#device, 0, pageBytes);
    const isLittle = HeaderLE.decode(page, HEADER_AT).version === 1;
    const header = (isLittle ? HeaderLE : HeaderBE).decode(page, HEADER_AT);
    if (header.version !== 1) {
      const version = HeaderLE.decode(page, HEADER_AT).version;
      throw new Refused(
        "features",
        `swap header at ${HEADER_AT} has version ${version}, expected 1`,
        "trim in the guest",
      );
    }
    this.label = shownName(header.label.subarray(0, [...header.label, 0].indexOf(0)));
    this.uuid = header.uuid.every((byte) => byte === 0) ? "" : uuidText(header.uuid);
    const bytes = (header.lastPage + 1) * pageBytes;
    if (header.lastPage === 0 || bytes > this.#device.bytes) {
      throw damaged(
        `swap header: the last page is ${header.lastPage} of ${pageBytes} bytes, the area has ${this.#device.bytes} bytes`,
      );
    }
    const room = (pageBytes - SIGNATURE_BYTES - BAD_PAGES_AT) / 4;
    if (header.badPages > room)
      throw damaged(`swap header: ${header.badPages} bad pages, expected at most ${Math.floor(room)}`);
    const bad = Array.from({ length: header.badPages }, (_, i) =>
      viewOf(page).getUint32(BAD_PAGES_AT + i * 4, isLittle),
    );
    const beyond = bad.find((number) => number === 0 || number > header.lastPage);
    if (beyond !== undefined)
      throw damaged(`swap header: bad page ${beyond}, expected 1 to ${header.lastPage}`);
    if (bad.length > 0) this.notes.push(`${bad.length} bad pages`);
    this.bytes = bytes;
    this.scratch = ExtentSet.of({ start: Math.min(KEPT_BYTES, bytes), end: bytes }).subtract(
      ExtentSet.from(bad.map((number) => ({ start: number * pageBytes, end: (number + 1) * pageBytes }))),
    );
  }

  async free(): Promise<readonly ExtentSet[]> {
    return [ExtentSet.EMPTY];
  }

  async walk(visit: Visit): Promise<void> {
    const kept = Math.min(KEPT_BYTES, this.bytes);
    if (kept > 0) visit(0, 0, kept, HEADER_OWNER);
    if (this.bytes > kept) visit(0, kept, this.bytes, SPACE_OWNER);
  }

  override async describe(owner: number): Promise<OwnerDescription> {
    return owner === HEADER_OWNER
      ? { kind: "metadata", name: "swap header" }
      : { kind: "special", name: "swap space", bytes: Math.max(0, this.bytes - KEPT_BYTES) };
  }
}

function asleep({ text, pageBytes }: Signature): Refused {
  return new Refused(
    "hibernated",
    `the guest sleeps, and its memory is in this swap area: ${text.trim()} for pages of ${pageBytes} bytes`,
    "resume the guest and shut it down",
  );
}
