/**
 * What a disk may read as while clients change it, many at a time: the model that a server is held against.
 *
 *   sector   one content, mostly; several where it is open what came of it: after a TRIM (old bytes or zeros), after
 *            changes that overlapped while both were in flight (either, in any order). A read settles it.
 *
 * A read beside no change must match one of the contents, sector by sector; a read beside changes may mix their bytes.
 */
import assert from "node:assert/strict";

const SECTOR_BYTES = 512;
/** A sector with more possible contents than this is not judged until it is written, or read, as a whole. */
const CONTENTS_MAX = 24;

export interface Change {
  readonly kind: "write" | "zero" | "trim";
  readonly start: number;
  readonly end: number;
  /** Of a write. */
  readonly data?: Uint8Array;
  /** Another change of the same bytes was in flight. */
  isTangled?: boolean;
}

/** A read in flight. */
export interface Look {
  readonly start: number;
  readonly end: number;
  /** Where a change got in its way: what the sectors could hold then. */
  contents?: Map<number, readonly Uint8Array[] | "anything">;
  readonly changes: Change[];
}

/** A part of a range in one sector: offsets in the sector, and of its first byte in the range. */
interface Part {
  readonly sector: number;
  readonly from: number;
  readonly to: number;
  readonly at: number;
}

export class ShadowDisk {
  readonly content: Buffer;
  /** Sectors whose content is open, and what they may hold. */
  readonly #open = new Map<number, Buffer[] | "anything">();
  readonly #changes = new Set<Change>();
  readonly #looks = new Set<Look>();

  constructor(content: Uint8Array) {
    this.content = Buffer.from(content);
  }

  get bytes(): number {
    return this.content.length;
  }

  /** Sectors whose content is open. */
  get openSectors(): number {
    return this.#open.size;
  }

  /** Whether a change of these bytes is in flight. */
  isBusy(start: number, end: number): boolean {
    for (const change of this.#changes) if (overlap(change, { start, end })) return true;
    return false;
  }

  begin(change: Change): void {
    for (const other of this.#changes) {
      if (!overlap(other, change)) continue;
      if (other.isTangled !== true) this.#widen(other);
      other.isTangled = change.isTangled = true;
    }
    for (const look of this.#looks) if (overlap(look, change)) this.#disturb(look, change);
    if (change.isTangled) this.#widen(change);
    this.#changes.add(change);
  }

  /** The change was answered. */
  end(change: Change, how: "done" | "failed" | "refused" = "done"): void {
    this.#changes.delete(change);
    if (how === "refused") return;
    const isOpen = change.isTangled === true || change.kind === "trim" || how === "failed";
    if (isOpen) return this.#widen(change);
    for (const part of partsOf(change.start, change.end)) this.#settle(part, change);
  }

  look(start: number, end: number): Look {
    const look: Look = { start, end, changes: [] };
    for (const change of this.#changes) if (overlap(change, look)) this.#disturb(look, change);
    this.#looks.add(look);
    return look;
  }

  /** Nothing was seen. */
  lookAway(look: Look): void {
    this.#looks.delete(look);
  }

  /** @throws AssertionError where the bytes could not be there */
  saw(look: Look, found: Uint8Array, label: string): void {
    this.#looks.delete(look);
    const bytes = Buffer.from(found.buffer, found.byteOffset, found.length);
    assert.equal(bytes.length, look.end - look.start, `${label}: the length of what was read`);
    if (look.contents !== undefined) return mixed(look, bytes, label);
    if (this.#open.size === 0) {
      if (bytes.compare(this.content, look.start, look.end) === 0) return;
    }
    for (const part of partsOf(look.start, look.end)) this.#mustMatch(part, bytes, label);
  }

  #mustMatch({ sector, from, to, at }: Part, bytes: Buffer, label: string): void {
    const base = sector * SECTOR_BYTES;
    const open = this.#open.get(sector);
    const piece = bytes.subarray(at, at + to - from);
    if (open === undefined) {
      if (piece.compare(this.content, base + from, base + to) === 0) return;
      wrong(label, base + from, piece, [this.content.subarray(base + from, base + to)]);
    }
    if (open === "anything") {
      if (to - from === this.#sectorBytes(sector)) this.#become(sector, [Buffer.from(piece)]);
      return;
    }
    const possible = open.filter((content) => piece.compare(content, from, to) === 0);
    if (possible.length === 0) {
      const contents = open.map((content) => content.subarray(from, to));
      wrong(label, base + from, piece, contents);
    }
    this.#become(sector, possible);
  }

  #sectorBytes(sector: number): number {
    return Math.min(SECTOR_BYTES, this.bytes - sector * SECTOR_BYTES);
  }

  #contentsOf(sector: number): Buffer[] | "anything" {
    const base = sector * SECTOR_BYTES;
    return this.#open.get(sector) ?? [Buffer.from(this.content.subarray(base, base + SECTOR_BYTES))];
  }

  #become(sector: number, contents: Buffer[]): void {
    const different: Buffer[] = [];
    for (const each of contents) if (!different.some((other) => other.equals(each))) different.push(each);
    if (different.length > CONTENTS_MAX) this.#open.set(sector, "anything");
    else if (different.length > 1) this.#open.set(sector, different);
    else {
      this.#open.delete(sector);
      this.content.set(different[0]!, sector * SECTOR_BYTES);
    }
  }

  /** The change happened in every case. */
  #settle(part: Part, change: Change): void {
    const { sector, from, to } = part;
    const open = this.#open.get(sector);
    if (open === undefined) apply(change, this.content, sector * SECTOR_BYTES + from, part);
    else if (open !== "anything") {
      for (const content of open) apply(change, content, from, part);
      this.#become(sector, open);
    } else if (to - from === this.#sectorBytes(sector)) {
      const content = Buffer.alloc(to - from);
      apply(change, content, 0, part);
      this.#become(sector, [content]);
    }
  }

  /** The change may have happened. */
  #widen(change: Change): void {
    for (const part of partsOf(change.start, change.end)) {
      const contents = this.#contentsOf(part.sector);
      if (contents === "anything") continue;
      const after = contents.map((content) => {
        const changed = Buffer.from(content);
        apply(change, changed, part.from, part);
        return changed;
      });
      this.#become(part.sector, [...contents, ...after]);
    }
  }

  #disturb(look: Look, change: Change): void {
    if (look.contents === undefined) {
      look.contents = new Map();
      for (const { sector } of partsOf(look.start, look.end)) {
        const contents = this.#contentsOf(sector);
        look.contents.set(
          sector,
          contents === "anything" ? contents : contents.map((each) => Buffer.from(each)),
        );
      }
    }
    look.changes.push(change);
  }
}

function overlap(a: { start: number; end: number }, b: { start: number; end: number }): boolean {
  return a.start < b.end && b.start < a.end;
}

function* partsOf(start: number, end: number): Generator<Part> {
  for (let at = start; at < end;) {
    const sector = Math.floor(at / SECTOR_BYTES);
    const base = sector * SECTOR_BYTES;
    const stop = Math.min(end, base + SECTOR_BYTES);
    yield { sector, from: at - base, to: stop - base, at: at - start };
    at = stop;
  }
}

/** Puts the part of a change where it belongs. */
function apply({ kind, data }: Change, into: Uint8Array, offset: number, { from, to, at }: Part): void {
  if (kind === "write") into.set(data!.subarray(at, at + to - from), offset);
  else into.fill(0, offset, offset + to - from);
}

/** Each byte is one that could be there, of whatever was under way. */
function mixed({ start, end, contents, changes }: Look, bytes: Buffer, label: string): void {
  for (const { sector, from, to, at } of partsOf(start, end)) {
    const possible = contents!.get(sector)!;
    if (possible === "anything") continue;
    for (let i = from; i < to; i++) {
      const byte = bytes[at + i - from]!;
      const where = sector * SECTOR_BYTES + i;
      const isPossible =
        possible.some((content) => content[i] === byte) ||
        changes.some((change) => {
          if (where < change.start || where >= change.end) return false;
          return (change.kind === "write" ? change.data![where - change.start] : 0) === byte;
        });
      if (!isPossible) assert.fail(`${label}: byte ${where} is ${byte}, which nobody wrote there`);
    }
  }
}

function wrong(label: string, at: number, found: Buffer, possible: readonly Buffer[]): never {
  const difference = possible.map((content) => content.findIndex((byte, i) => byte !== found[i]));
  const first = Math.max(...difference);
  assert.fail(
    `${label}: byte ${at + first} is ${found[first]}; it could be ${possible.map((content) => content[first]).join(" or ")}`,
  );
}
