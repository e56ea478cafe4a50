/**
 * Makes small empty HFS+ volumes for tests, as Technical Note TN1150 writes them down: no tool for it is at hand. What
 * then lives in them is the work of a kernel.
 *
 *   | boot, header | allocation | extents | catalog | attributes? | info, journal? | … | copy |
 */
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { viewOf } from "../bytes/struct.ts";
import { checksumOf } from "../filesystems/hfsplus/journal.ts";
import { TreeHeader } from "../filesystems/hfsplus/tree.ts";
import { CATALOG_ID, HEADER_AT, VolumeHeader } from "../filesystems/hfsplus/volume-header.ts";

export interface HfsPlusOptions {
  readonly bytes: number;
  /** Where the volume starts in the file, which keeps what lies before it. */
  readonly at?: number;
  readonly blockBytes?: number;
  readonly nodeBytes?: number;
  readonly catalogNodes?: number;
  readonly kind?: "HFS+" | "HFSX" | "HFSX, case-sensitive";
  readonly label?: string;
  readonly hasAttributes?: boolean;
  readonly journal?: "empty" | "dirty" | "uninitialised" | "elsewhere";
}

const JOURNAL_BYTES = 64 * 1024;
const DATE = 0xe0000000;

interface Plan {
  readonly blockBytes: number;
  readonly nodeBytes: number;
  readonly blocks: number;
  readonly usedBlocks: number;
  /** Start and count in blocks, and length in bytes, of every special file that there is. */
  readonly files: ReadonlyMap<
    number,
    { readonly start: number; readonly count: number; readonly bytes: number }
  >;
  readonly journalInfo: number;
}

const JOURNAL_INFO = 16;
const JOURNAL = 17;

/** Makes the volume in the file at `path`, which is made as long as it needs. */
export function makeHfsPlus(path: string, options: HfsPlusOptions): void {
  const { at = 0, bytes } = options;
  const plan = planOf(options);
  const file = openSync(path, "a+");
  closeSync(file);
  const disk = openSync(path, "r+");
  try {
    ftruncateSync(disk, at + bytes);
    const write = (where: number, content: Uint8Array) =>
      writeSync(disk, content, 0, content.length, at + where);
    const place = (id: number) => plan.files.get(id)!.start * plan.blockBytes;
    write(place(CATALOG_ID.allocation), bitmapOf(plan, bytes));
    write(place(CATALOG_ID.extents), treeOf(plan, CATALOG_ID.extents, [], options));
    write(
      place(CATALOG_ID.catalog),
      treeOf(plan, CATALOG_ID.catalog, catalogRecords(plan, options), options),
    );
    if (options.hasAttributes) {
      write(place(CATALOG_ID.attributes), treeOf(plan, CATALOG_ID.attributes, [], options));
    }
    if (options.journal !== undefined) {
      write(place(JOURNAL_INFO), journalInfo(place(JOURNAL), options.journal));
      if (options.journal !== "uninitialised")
        write(place(JOURNAL), journalHeader(options.journal === "dirty"));
    }
    const header = headerOf(plan, options);
    write(HEADER_AT, header);
    write(bytes - HEADER_AT, header);
  } finally {
    closeSync(disk);
  }
}

function planOf(options: HfsPlusOptions): Plan {
  const { bytes, blockBytes = 4096, nodeBytes = 4096, catalogNodes = 32 } = options;
  const blocks = Math.floor(bytes / blockBytes);
  const files = new Map<number, { start: number; count: number; bytes: number }>();
  let next = Math.ceil((HEADER_AT + VolumeHeader.bytes) / blockBytes);
  const add = (id: number, wanted: number): void => {
    const count = Math.ceil(wanted / blockBytes);
    files.set(id, { start: next, count, bytes: Math.floor((count * blockBytes) / nodeBytes) * nodeBytes });
    next += count;
  };
  add(CATALOG_ID.allocation, Math.ceil(blocks / 8));
  files.set(CATALOG_ID.allocation, {
    ...files.get(CATALOG_ID.allocation)!,
    bytes: files.get(CATALOG_ID.allocation)!.count * blockBytes,
  });
  add(CATALOG_ID.extents, 8 * nodeBytes);
  add(CATALOG_ID.catalog, catalogNodes * nodeBytes);
  if (options.hasAttributes) add(CATALOG_ID.attributes, 8 * nodeBytes);
  if (options.journal !== undefined) {
    add(JOURNAL_INFO, blockBytes);
    add(JOURNAL, JOURNAL_BYTES);
  }
  const copy = blocks - Math.floor((bytes - HEADER_AT) / blockBytes);
  return {
    blockBytes,
    nodeBytes,
    blocks,
    files,
    usedBlocks: next + Math.max(0, copy),
    journalInfo: files.get(JOURNAL_INFO)?.start ?? 0,
  };
}

function bitmapOf({ blocks, blockBytes, files }: Plan, bytes: number): Uint8Array {
  const bitmap = new Uint8Array(Math.ceil(blocks / 8));
  const mark = (start: number, end: number): void => {
    for (let block = start; block < Math.min(end, blocks); block++)
      bitmap[block >> 3]! |= 0x80 >> (block & 7);
  };
  mark(0, Math.ceil((HEADER_AT + VolumeHeader.bytes) / blockBytes));
  mark(Math.floor((bytes - HEADER_AT) / blockBytes), blocks);
  for (const { start, count } of files.values()) mark(start, start + count);
  return bitmap;
}

/** A tree of one leaf, or of none. */
function treeOf(
  { files, nodeBytes }: Plan,
  id: number,
  records: readonly Uint8Array[],
  { kind = "HFS+" }: HfsPlusOptions,
): Uint8Array {
  const nodes = files.get(id)!.bytes / nodeBytes;
  const used = records.length === 0 ? 1 : 2;
  const tree = new Uint8Array(used * nodeBytes);
  const map = nodeBytes - 256 - 8;
  describe(tree, 0, { kind: 1, height: 0, offsets: [14, 120, 248, 248 + map] }, nodeBytes);
  const maxKeyBytes = new Map([
    [CATALOG_ID.extents, 10],
    [CATALOG_ID.catalog, 516],
    [CATALOG_ID.attributes, 266],
  ]).get(id)!;
  TreeHeader.encode(
    {
      depth: used - 1,
      root: used - 1,
      leafRecords: records.length,
      firstLeaf: used - 1,
      lastLeaf: used - 1,
      nodeBytes,
      maxKeyBytes,
      nodes,
      freeNodes: nodes - used,
      keyCompare: id !== CATALOG_ID.catalog ? 0 : kind === "HFSX, case-sensitive" ? 0xbc : 0xcf,
      attributes: id === CATALOG_ID.extents ? 2 : 6,
    },
    tree,
  );
  tree[248] = used === 1 ? 0x80 : 0xc0;
  if (used === 1) return tree;
  const offsets = [14];
  for (const record of records) {
    tree.set(record, nodeBytes + offsets.at(-1)!);
    offsets.push(offsets.at(-1)! + record.length);
  }
  describe(tree, nodeBytes, { kind: 0xff, height: 1, offsets }, nodeBytes);
  return tree;
}

function describe(
  tree: Uint8Array,
  at: number,
  { kind, height, offsets }: { kind: number; height: number; offsets: readonly number[] },
  nodeBytes: number,
): void {
  const view = viewOf(tree);
  view.setUint8(at + 8, kind);
  view.setUint8(at + 9, height);
  view.setUint16(at + 10, offsets.length - 1);
  offsets.forEach((offset, i) => view.setUint16(at + nodeBytes - 2 * (i + 1), offset));
}

function catalogRecords(plan: Plan, { label = "ullage" }: HfsPlusOptions): Uint8Array[] {
  const folder = new Uint8Array(88);
  const view = viewOf(folder);
  view.setUint16(0, 1);
  view.setUint32(4, plan.journalInfo === 0 ? 0 : 2);
  view.setUint32(8, 2);
  for (let date = 12; date < 28; date += 4) view.setUint32(date, DATE);
  view.setUint16(42, 0o40755);
  const records = [concat(keyOf(1, label), folder), concat(keyOf(2, ""), threadOf(3, 1, label))];
  if (plan.journalInfo === 0) return records;
  const own = [
    { id: JOURNAL, name: ".journal" },
    { id: JOURNAL_INFO, name: ".journal_info_block" },
  ];
  for (const { id, name } of own) records.push(concat(keyOf(2, name), fileOf(plan, id)));
  for (const { id, name } of own.toReversed()) records.push(concat(keyOf(id, ""), threadOf(4, 2, name)));
  return records;
}

function keyOf(parent: number, name: string): Uint8Array {
  const key = new Uint8Array(8 + 2 * name.length);
  const view = viewOf(key);
  view.setUint16(0, 6 + 2 * name.length);
  view.setUint32(2, parent);
  writeName(view, 6, name);
  return key;
}

function threadOf(type: number, parent: number, name: string): Uint8Array {
  const thread = new Uint8Array(10 + 2 * name.length);
  const view = viewOf(thread);
  view.setUint16(0, type);
  view.setUint32(4, parent);
  writeName(view, 8, name);
  return thread;
}

function writeName(view: DataView, at: number, name: string): void {
  view.setUint16(at, name.length);
  for (let i = 0; i < name.length; i++) view.setUint16(at + 2 + 2 * i, name.charCodeAt(i));
}

function fileOf(plan: Plan, id: number): Uint8Array {
  const file = new Uint8Array(248);
  const view = viewOf(file);
  view.setUint16(0, 2);
  view.setUint16(2, 2);
  view.setUint32(8, id);
  view.setUint16(42, 0o100600);
  file.set(forkOf(plan, id), 88);
  return file;
}

function forkOf({ files, blockBytes }: Plan, id: number): Uint8Array {
  const fork = new Uint8Array(80);
  const { start, count, bytes } = files.get(id) ?? { start: 0, count: 0, bytes: 0 };
  const view = viewOf(fork);
  view.setUint32(4, bytes);
  view.setUint32(8, count * blockBytes);
  view.setUint32(12, count);
  view.setUint32(16, start);
  view.setUint32(20, count);
  return fork;
}

function headerOf(plan: Plan, { kind = "HFS+", journal }: HfsPlusOptions): Uint8Array {
  const { blockBytes, blocks, usedBlocks } = plan;
  const isX = kind !== "HFS+";
  const header = new Uint8Array(VolumeHeader.bytes);
  VolumeHeader.encode(
    {
      signature: isX ? 0x4858 : 0x482b,
      version: isX ? 5 : 4,
      attributes: journal === undefined ? 0x100 : 0x2100,
      lastMountedVersion: journal === undefined ? "10.0" : "HFSJ",
      journalInfoBlock: plan.journalInfo,
      createDate: DATE,
      blockBytes,
      blocks,
      freeBlocks: blocks - usedBlocks,
      nextCatalogId: 18,
      identifier: Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8),
      allocation: forkOf(plan, CATALOG_ID.allocation),
      extents: forkOf(plan, CATALOG_ID.extents),
      catalog: forkOf(plan, CATALOG_ID.catalog),
      attributesFile: forkOf(plan, CATALOG_ID.attributes),
    },
    header,
  );
  const view = viewOf(header);
  view.setUint32(VolumeHeader.at.otherDates, DATE);
  view.setUint32(VolumeHeader.at.counts, journal === undefined ? 0 : 2);
  view.setUint32(VolumeHeader.at.allocationHints + 4, blockBytes);
  view.setUint32(VolumeHeader.at.allocationHints + 8, blockBytes);
  return header;
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
  const header = new Uint8Array(512);
  const view = viewOf(header);
  view.setUint32(0, 0x4a4e4c78, true);
  view.setUint32(4, 0x12345678, true);
  view.setUint32(8, 512, true);
  view.setUint32(16, isDirty ? 8192 : 512, true);
  view.setUint32(24, JOURNAL_BYTES, true);
  view.setUint32(32, 4096, true);
  view.setUint32(40, 512, true);
  view.setUint32(36, checksumOf(header), true);
  return header;
}

function concat(...parts: readonly Uint8Array[]): Uint8Array {
  return Buffer.concat(parts);
}
