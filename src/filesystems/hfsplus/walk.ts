/**
 * The walk: everything that is reachable from the volume header.
 *
 *   volume header and its copy, journal
 *   forks of the special files
 *   extents overflow file → extents of every fork with more than eight; also the bad blocks
 *   catalog               → both forks of every file, deleted ones that are still open among them
 *   attributes file       → attributes that are too long for their record
 *
 * A fork is whole when its own extents and those of the overflow file are as many blocks as it says. A block that two
 * owners claim is damage: freeing or writing one hurts the other.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import { FILE, RECORD, recordType } from "./catalog.ts";
import { forkBlocks, visitFork, visitRecord } from "./fork.ts";
import type { Journal } from "./journal.ts";
import { FORK_TYPE, readOverflow, type Overflow } from "./overflow.ts";
import { OWNER } from "./owners.ts";
import { contradiction, unknown } from "./refused.ts";
import { visitLeaves } from "./tree.ts";
import { HEADER_AT, VolumeHeader } from "./volume-header.ts";
import type { Volume } from "./volume.ts";

/** Bytes of the volume, aligned outward to blocks. */
export type VisitBytes = (start: number, end: number, owner: number) => void;

/** @throws Refused for every damage and contradiction on the way */
export async function walk(volume: Volume, journal: Journal | undefined, visit: VisitBytes): Promise<void> {
  const walker = new Walker(volume, visit);
  walker.visitFixed(journal);
  await walker.visitFiles();
  if (volume.attributes !== undefined) await walker.visitAttributes();
}

const ATTRIBUTE_KEY = { file: 4, firstBlock: 8 };
const ATTRIBUTE = { inline: 0x10, fork: 0x20, extents: 0x30 };
/** How long a record of each type is at least. */
const ATTRIBUTE_BYTES: ReadonlyMap<number, number> = new Map([
  [ATTRIBUTE.inline, 16],
  [ATTRIBUTE.fork, 88],
  [ATTRIBUTE.extents, 72],
]);
const FORK_AT = 8;

class Walker {
  readonly #volume: Volume;
  readonly #visit: VisitBytes;
  readonly #claimed = new SparseBitmap();
  #overflow: Overflow | undefined;
  /** Whose extents are being visited. */
  #owner = 0;
  readonly #extent = (start: number, count: number): void => this.#claim(start, start + count);

  constructor(volume: Volume, visit: VisitBytes) {
    this.#volume = volume;
    this.#visit = visit;
  }

  visitFixed(journal: Journal | undefined): void {
    const { header } = this.#volume;
    const copyEnd = Math.min(header.copyAt + HEADER_AT, header.bytes);
    this.#owner = OWNER.header;
    this.#claimBytes(0, HEADER_AT + VolumeHeader.bytes);
    this.#owner = OWNER.copy;
    if (header.copyAt < copyEnd) this.#claimBytes(header.copyAt, copyEnd);
    // Files of the catalog claim the journal; it is theirs.
    if (journal !== undefined) {
      this.#visitOutward(journal.info.start, journal.info.end, OWNER.journalInfo);
      this.#visitOutward(journal.ring.start, journal.ring.end, OWNER.journal);
    }
    for (const [id, { given }] of header.forks) {
      this.#owner = -id;
      for (let i = 0; i < given.length; i += 2) this.#extent(given[i]!, given[i + 1]!);
    }
  }

  async visitFiles(): Promise<void> {
    const { header, overflow, catalog } = this.#volume;
    this.#overflow = await readOverflow(overflow, header, (file, start, count) => {
      this.#owner = file < FIRST_FILE ? -file : file;
      this.#extent(start, count);
    });
    for (const [id, fork] of header.forks) {
      if (!this.#overflow.completes(id, FORK_TYPE.data, fork.givenBlocks, fork.blocks)) {
        throw contradiction(`${fork.name}: its extents are not ${fork.blocks} blocks`);
      }
    }
    await visitLeaves(catalog, "of the disk", (view, key, data, end) => {
      if (recordType(catalog, view, key, data, end) !== RECORD.file) return;
      this.#owner = view.getUint32(data + FILE.id);
      this.#fork(view, data + FILE.data, FORK_TYPE.data);
      this.#fork(view, data + FILE.resource, FORK_TYPE.resource);
    });
  }

  #fork(view: DataView, at: number, forkType: number): void {
    const { blocks } = this.#volume.header;
    const total = forkBlocks(view, at);
    const given = visitFork(view, at, blocks, this.#extent);
    if (!this.#overflow!.completes(this.#owner, forkType, given, total)) {
      throw contradiction(
        `file ${this.#owner}: ${given} blocks and those of the overflow file are not the ${total} that its fork has`,
      );
    }
  }

  async visitAttributes(): Promise<void> {
    const tree = this.#volume.attributes!;
    const { blocks } = this.#volume.header;
    /** Where the fork of the attribute that was met last ends, and where it should. */
    let [next, total] = [0, 0];
    const checkWhole = (): void => {
      if (next !== total) {
        throw contradiction(`an attribute of file ${this.#owner}: ${next} blocks of ${total} found`);
      }
    };
    await visitLeaves(tree, "of keys", (view, key, data, end) => {
      const type = end - data < 4 ? 0 : view.getUint32(data);
      const expected = ATTRIBUTE_BYTES.get(type);
      if (expected === undefined || end - data < expected) {
        throw unknown(
          `attributes file: a record of type 0x${type.toString(16)} and ${end - data} bytes found`,
        );
      }
      const file = view.getUint32(key + ATTRIBUTE_KEY.file);
      if (type === ATTRIBUTE.extents) {
        if (file !== this.#owner || view.getUint32(key + ATTRIBUTE_KEY.firstBlock) !== next) {
          throw contradiction(`attributes file: extents of file ${file} that follow none`);
        }
        next = visitRecord(view, data + FORK_AT, blocks, next, this.#extent);
        return;
      }
      checkWhole();
      this.#owner = file;
      [next, total] = [0, 0];
      if (type !== ATTRIBUTE.fork) return;
      total = forkBlocks(view, data + FORK_AT);
      next = visitFork(view, data + FORK_AT, blocks, this.#extent);
    });
    checkWhole();
  }

  #claimBytes(start: number, end: number): void {
    const { blockBytes } = this.#volume.header;
    this.#claim(Math.floor(start / blockBytes), Math.ceil(end / blockBytes));
  }

  /** @throws Refused when any of the blocks belongs to somebody else */
  #claim(start: number, end: number): void {
    const { blockBytes } = this.#volume.header;
    const taken = this.#claimed.nextSet(start, end);
    if (taken < end) {
      throw contradiction(`block ${taken} of file ${this.#owner} belongs to another owner too`);
    }
    this.#claimed.setRange(start, end);
    this.#visit(start * blockBytes, end * blockBytes, this.#owner);
  }

  #visitOutward(start: number, end: number, owner: number): void {
    const { blockBytes } = this.#volume.header;
    this.#visit(Math.floor(start / blockBytes) * blockBytes, Math.ceil(end / blockBytes) * blockBytes, owner);
  }
}

/** Numbers below are those of special files. */
const FIRST_FILE = 16;
