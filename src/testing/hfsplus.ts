/**
 * Makes small HFS+ volumes for tests, as Technical Note TN1150 writes them down: no tool for it is at hand. Empty ones
 * are filled by a kernel; those with files have what no kernel here makes: long attributes, bad blocks, resource forks.
 *
 *   | wrapper? | boot, header | allocation | trees | info, journal? | files in pieces … | copy |
 */
import { closeSync, fstatSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { viewOf } from "../bytes/struct.ts";
import { checksumOf } from "../filesystems/hfsplus/journal.ts";
import { CATALOG_ID, HEADER_AT, VolumeHeader } from "../filesystems/hfsplus/volume-header.ts";
import { MasterDirectoryBlock } from "../filesystems/hfsplus/wrapper.ts";
import * as trees from "./hfsplus-trees.ts";

export interface HfsPlusOptions {
  readonly bytes: number;
  /** Where the volume starts in the file, which keeps what lies before it. */
  readonly at?: number;
  readonly blockBytes?: number;
  readonly nodeBytes?: number;
  readonly kind?: "HFS+" | "HFSX" | "HFSX, case-sensitive";
  readonly hasAttributes?: boolean;
  readonly journal?: "empty" | "dirty" | "uninitialised" | "elsewhere";
  /** The first has number 32, the next 33, … */
  readonly files?: readonly HfsPlusFile[];
  /** In how many pieces of one block. */
  readonly badBlocks?: number;
}

/** Forks are in pieces of two blocks, as many as are given. */
export interface HfsPlusFile {
  readonly name: string;
  readonly data?: number;
  readonly resource?: number;
  /** An attribute that is too long for its record. */
  readonly attribute?: number;
  readonly isCompressed?: boolean;
}

export const FIRST_FILE = 32;
const LABEL = "ullage";
const JOURNAL_BYTES = 64 * 1024;
const JOURNAL_INFO = 16;
const JOURNAL = 17;
const DATE = 0xe0000000;
const TREE_NODES = 64;
const SECTOR_BYTES = 512;

interface Piece {
  readonly start: number;
  readonly count: number;
}

interface Fork {
  readonly bytes: number;
  readonly pieces: readonly Piece[];
}

const NO_FORK: Fork = { bytes: 0, pieces: [] };

/** Makes the volume in the file at `path`. */
export function makeHfsPlus(path: string, options: HfsPlusOptions): void {
  closeSync(openSync(path, "a"));
  const disk = openSync(path, "r+");
  try {
    new Maker(options).write(disk);
  } finally {
    closeSync(disk);
  }
}

class Maker {
  readonly #options: HfsPlusOptions;
  readonly #blockBytes: number;
  readonly #nodeBytes: number;
  readonly #blocks: number;
  readonly #bitmap: Uint8Array;
  readonly #special = new Map<number, Fork>();
  readonly #overflow: trees.TreeRecord[] = [];
  readonly #catalog: trees.TreeRecord[] = [];
  readonly #attributes: trees.TreeRecord[] = [];
  #next: number;
  #used = 0;

  constructor(options: HfsPlusOptions) {
    const { bytes, blockBytes = 4096, nodeBytes = 4096 } = options;
    this.#options = options;
    this.#blockBytes = blockBytes;
    this.#nodeBytes = nodeBytes;
    this.#blocks = Math.floor(bytes / blockBytes);
    this.#bitmap = new Uint8Array(Math.ceil(this.#blocks / 8));
    this.#next = Math.ceil((HEADER_AT + VolumeHeader.bytes) / blockBytes);
    this.#mark(0, this.#next);
    this.#mark(Math.floor((bytes - HEADER_AT) / blockBytes), this.#blocks);
    this.#addSpecial(CATALOG_ID.allocation, this.#bitmap.length);
    for (const id of [CATALOG_ID.extents, CATALOG_ID.catalog]) this.#addSpecial(id, TREE_NODES * nodeBytes);
    if (options.hasAttributes) this.#addSpecial(CATALOG_ID.attributes, TREE_NODES * nodeBytes);
    if (options.journal !== undefined) {
      this.#addSpecial(JOURNAL_INFO, blockBytes);
      this.#addSpecial(JOURNAL, JOURNAL_BYTES);
    }
    if (options.badBlocks !== undefined) {
      this.#spill(CATALOG_ID.badBlocks, 0, this.#pieces(options.badBlocks, 1), 0);
    }
    this.#addFiles();
  }

  #addFiles(): void {
    const { journal, files = [] } = this.#options;
    this.#addRecord(1, LABEL, trees.folderRecord(files.length + (journal === undefined ? 0 : 2), DATE));
    this.#addRecord(2, "", trees.threadRecord(3, 1, LABEL));
    if (journal !== undefined) {
      this.#addFile(JOURNAL, ".journal", this.#special.get(JOURNAL)!, NO_FORK, false);
      this.#addFile(JOURNAL_INFO, ".journal_info_block", this.#special.get(JOURNAL_INFO)!, NO_FORK, false);
    }
    for (const [
      i,
      { name, data = 0, resource = 0, attribute = 0, isCompressed = false },
    ] of files.entries()) {
      const id = FIRST_FILE + i;
      if (attribute > 0) this.#addAttribute(id, attribute);
      this.#addFile(id, name, this.#fork(data), this.#fork(resource), isCompressed);
    }
  }

  #addFile(id: number, name: string, data: Fork, resource: Fork, isCompressed: boolean): void {
    const record = trees.fileRecord(id, this.#forkData(data), this.#forkData(resource), isCompressed);
    this.#addRecord(2, name, record);
    this.#addRecord(id, "", trees.threadRecord(4, 2, name));
    this.#spill(id, 0, data.pieces.slice(8), blocksOf(data.pieces.slice(0, 8)));
    this.#spill(id, 0xff, resource.pieces.slice(8), blocksOf(resource.pieces.slice(0, 8)));
  }

  #addRecord(parent: number, name: string, data: Uint8Array): void {
    this.#catalog.push({ key: trees.catalogKey(parent, name), data });
  }

  #addAttribute(id: number, pieces: number): void {
    const fork = this.#fork(pieces);
    const add = (firstBlock: number, type: number, content: Uint8Array): void => {
      const key = trees.attributeKey(id, firstBlock, "org.ullage.long");
      this.#attributes.push({ key, data: trees.attributeRecord(type, content) });
    };
    this.#attributes.push({
      key: trees.attributeKey(id, 0, "org.ullage"),
      data: trees.attributeRecord(0x10, Buffer.from("short")),
    });
    add(0, 0x20, this.#forkData(fork));
    for (let i = 8; i < pieces; i += 8) {
      add(blocksOf(fork.pieces.slice(0, i)), 0x30, extentsOf(fork.pieces.slice(i, i + 8)));
    }
  }

  #addSpecial(id: number, bytes: number): void {
    const count = Math.ceil(bytes / this.#blockBytes);
    this.#special.set(id, { bytes: count * this.#blockBytes, pieces: [this.#take(count)] });
  }

  #fork(pieces: number): Fork {
    return { bytes: pieces * 2 * this.#blockBytes, pieces: this.#pieces(pieces, 2) };
  }

  /** Pieces with a free block behind each. */
  #pieces(pieces: number, blocks: number): Piece[] {
    return Array.from({ length: pieces }, () => {
      const piece = this.#take(blocks);
      this.#next++;
      return piece;
    });
  }

  #take(count: number): Piece {
    const start = this.#next;
    this.#next += count;
    this.#mark(start, this.#next);
    return { start, count };
  }

  #mark(start: number, end: number): void {
    for (let block = start; block < Math.min(end, this.#blocks); block++) {
      const mask = 0x80 >> (block & 7);
      if ((this.#bitmap[block >> 3]! & mask) === 0) this.#used++;
      this.#bitmap[block >> 3]! |= mask;
    }
  }

  /** Puts the pieces of a fork from `first` on into the overflow file. */
  #spill(id: number, forkType: number, pieces: readonly Piece[], first: number): void {
    for (let i = 0; i < pieces.length; i += 8) {
      const key = trees.overflowKey(forkType, id, first + blocksOf(pieces.slice(0, i)));
      this.#overflow.push({ key, data: extentsOf(pieces.slice(i, i + 8)) });
    }
  }

  #forkData({ bytes, pieces }: Fork): Uint8Array {
    const fork = new Uint8Array(80);
    const view = viewOf(fork);
    view.setUint32(4, bytes);
    view.setUint32(8, this.#blockBytes);
    view.setUint32(12, blocksOf(pieces));
    fork.set(extentsOf(pieces.slice(0, 8)), 16);
    return fork;
  }

  write(disk: number): void {
    const { at = 0, bytes, journal, hasAttributes } = this.#options;
    ftruncateSync(disk, Math.max(fstatSync(disk).size, at + bytes));
    const write = (where: number, content: Uint8Array) =>
      writeSync(disk, content, 0, content.length, at + where);
    const place = (id: number) => this.#special.get(id)!.pieces[0]!.start * this.#blockBytes;
    write(place(CATALOG_ID.allocation), this.#bitmap);
    write(place(CATALOG_ID.extents), this.#tree(CATALOG_ID.extents, this.#overflow));
    write(place(CATALOG_ID.catalog), this.#tree(CATALOG_ID.catalog, this.#catalog));
    if (hasAttributes)
      write(place(CATALOG_ID.attributes), this.#tree(CATALOG_ID.attributes, this.#attributes));
    if (journal !== undefined) {
      write(place(JOURNAL_INFO), journalInfo(place(JOURNAL), journal));
      if (journal !== "uninitialised") write(place(JOURNAL), journalHeader(journal === "dirty"));
    }
    const header = this.#header();
    write(HEADER_AT, header);
    write(bytes - HEADER_AT, header);
  }

  #tree(id: number, records: readonly trees.TreeRecord[]): Uint8Array {
    const sorted = records.toSorted((a, b) => Buffer.compare(sortKey(id, a.key), sortKey(id, b.key)));
    const compare = this.#options.kind === "HFSX, case-sensitive" ? 0xbc : 0xcf;
    return trees.makeTree(
      {
        nodeBytes: this.#nodeBytes,
        nodes: Math.floor(this.#special.get(id)!.bytes / this.#nodeBytes),
        maxKeyBytes: id === CATALOG_ID.extents ? 10 : id === CATALOG_ID.catalog ? 516 : 266,
        variableKeys: id !== CATALOG_ID.extents,
        keyCompare: id === CATALOG_ID.catalog ? compare : 0,
      },
      sorted,
    );
  }

  #header(): Uint8Array {
    const { kind = "HFS+", journal, files = [] } = this.#options;
    const isX = kind !== "HFS+";
    const header = new Uint8Array(VolumeHeader.bytes);
    const fork = (id: number) => this.#forkData(this.#special.get(id) ?? NO_FORK);
    VolumeHeader.encode(
      {
        signature: isX ? 0x4858 : 0x482b,
        version: isX ? 5 : 4,
        attributes: journal === undefined ? 0x100 : 0x2100,
        lastMountedVersion: journal === undefined ? "10.0" : "HFSJ",
        journalInfoBlock: this.#special.get(JOURNAL_INFO)?.pieces[0]!.start ?? 0,
        createDate: DATE,
        blockBytes: this.#blockBytes,
        blocks: this.#blocks,
        freeBlocks: this.#blocks - this.#used,
        nextCatalogId: FIRST_FILE + files.length,
        identifier: Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8),
        allocation: fork(CATALOG_ID.allocation),
        extents: fork(CATALOG_ID.extents),
        catalog: fork(CATALOG_ID.catalog),
        attributesFile: fork(CATALOG_ID.attributes),
      },
      header,
    );
    const view = viewOf(header);
    view.setUint32(VolumeHeader.at.otherDates, DATE);
    view.setUint32(VolumeHeader.at.counts, files.length + (journal === undefined ? 0 : 2));
    view.setUint32(VolumeHeader.at.allocationHints + 4, this.#blockBytes);
    view.setUint32(VolumeHeader.at.allocationHints + 8, this.#blockBytes);
    return header;
  }
}

const blocksOf = (pieces: readonly Piece[]): number => pieces.reduce((sum, { count }) => sum + count, 0);

function extentsOf(pieces: readonly Piece[]): Uint8Array {
  const extents = new Uint8Array(64);
  const view = viewOf(extents);
  pieces.forEach(({ start, count }, i) => {
    view.setUint32(i * 8, start);
    view.setUint32(i * 8 + 4, count);
  });
  return extents;
}

/** A key so that its bytes sort as the tree sorts it; names are in lower case. */
function sortKey(id: number, key: Uint8Array): Uint8Array {
  if (id === CATALOG_ID.extents)
    return Buffer.concat([key.subarray(4, 8), key.subarray(2, 3), key.subarray(8)]);
  if (id === CATALOG_ID.catalog) return Buffer.concat([key.subarray(2, 6), key.subarray(8)]);
  return Buffer.concat([key.subarray(4, 8), key.subarray(14), key.subarray(8, 12)]);
}

function journalInfo(at: number, journal: NonNullable<HfsPlusOptions["journal"]>): Uint8Array {
  const info = new Uint8Array(180);
  const view = viewOf(info);
  view.setUint32(0, { empty: 1, dirty: 1, uninitialised: 5, elsewhere: 2 }[journal]);
  view.setUint32(40, at);
  view.setUint32(48, JOURNAL_BYTES);
  return info;
}

function journalHeader(isDirty: boolean): Uint8Array {
  const header = new Uint8Array(SECTOR_BYTES);
  const view = viewOf(header);
  view.setUint32(0, 0x4a4e4c78, true);
  view.setUint32(4, 0x12345678, true);
  view.setUint32(8, SECTOR_BYTES, true);
  view.setUint32(16, isDirty ? 8192 : SECTOR_BYTES, true);
  view.setUint32(24, JOURNAL_BYTES, true);
  view.setUint32(32, 4096, true);
  view.setUint32(40, SECTOR_BYTES, true);
  view.setUint32(36, checksumOf(header), true);
  return header;
}

/** Makes an HFS volume around an HFS+ volume; `at` of the latter is where it will lie. */
export function makeWrapped(path: string, options: HfsPlusOptions & { readonly at: number }): void {
  makeHfsPlus(path, options);
  const block = new Uint8Array(SECTOR_BYTES);
  const firstBlockSector = 8;
  const blockBytes = 2048;
  MasterDirectoryBlock.encode(
    {
      signature: 0x4244,
      bitmapSector: 3,
      firstBlockSector,
      blockBytes,
      blocks: Math.ceil((options.at + options.bytes) / blockBytes),
      embeddedSignature: 0x482b,
      embeddedStart: (options.at - firstBlockSector * SECTOR_BYTES) / blockBytes,
      embeddedBlocks: options.bytes / blockBytes,
    },
    block,
  );
  // Locked for software, with spared blocks: so that systems without HFS+ leave it alone.
  viewOf(block).setUint16(10, 0x8200);
  const disk = openSync(path, "r+");
  ftruncateSync(disk, options.at + options.bytes + 2 * SECTOR_BYTES);
  writeSync(disk, block, 0, block.length, HEADER_AT);
  closeSync(disk);
}
