/**
 * btrfs-progs as the judge of the Btrfs reader: what `dump-tree` and `dump-super` print, mapped to devices sector by
 * sector, without any of our arithmetic.
 */
import { ExtentBuilder, type ExtentSet } from "../bytes/extents.ts";
import { attempt, run } from "./tools.ts";

const STRIPE_BYTES = 65536;
const RESERVED = [
  { start: 0, end: 2 ** 20 },
  { start: 2 ** 26, end: 2 ** 26 + STRIPE_BYTES },
];

interface DumpedChunk {
  readonly start: number;
  readonly bytes: number;
  readonly type: string;
  readonly stripes: readonly { readonly device: number; readonly at: number }[];
}

const DUMP_TREE = ["inspect-internal", "dump-tree"];

const dumpTree = (paths: readonly string[], ...options: readonly string[]): string =>
  run("btrfs", [...DUMP_TREE, ...options, ...paths]);

interface DumpedBackup {
  readonly root: number;
  readonly generation: number;
  readonly chunkRoot: number;
  readonly extentRoot: number;
  readonly fileRoot: number;
}

/** The backups of roots in the first superblock. */
export function dumpedBackups(path: string): DumpedBackup[] {
  const text = run("btrfs", ["inspect-internal", "dump-super", "-f", path]);
  const found = text.matchAll(
    /backup_tree_root:\s+(\d+)\s+gen: (\d+)[^]*?backup_chunk_root:\s+(\d+)[^]*?backup_extent_root:\s+(\d+)[^]*?backup_fs_root:\s+(\d+)/g,
  );
  return [...found]
    .map(([, ...numbers]) => {
      const [root, generation, chunkRoot, extentRoot, fileRoot] = numbers.map(Number) as [
        number,
        number,
        number,
        number,
        number,
      ];
      return { root, generation, chunkRoot, extentRoot, fileRoot };
    })
    .filter(({ root }) => root !== 0);
}

interface DumpedFree {
  /** Per device, by its id: what no extent of the current tree holds. */
  readonly now: ReadonlyMap<number, ExtentSet>;
  /** And which no extent of a backup's extent tree holds. */
  readonly kept: ReadonlyMap<number, ExtentSet>;
  /** Whether all of the backups' trees could be read: later generations write over them. */
  readonly isWhole: boolean;
}

/** What dump-tree tells of free space. @param deviceBytes length of each device */
export function dumpedFree(paths: readonly string[], deviceBytes: number): DumpedFree {
  const chunks = dumpedChunks(dumpTree(paths, "-t", "chunk"));
  const nodeBytes = Number(
    /^nodesize\s+(\d+)/m.exec(run("btrfs", ["inspect-internal", "dump-super", paths[0]!]))![1],
  );
  const sets = new Map<number, { outside: ExtentBuilder; current: ExtentBuilder; older: ExtentBuilder }>();
  paths.forEach((_, index) => {
    const outside = new ExtentBuilder();
    for (const { start, end } of RESERVED) outside.add(start, Math.max(start, Math.min(end, deviceBytes)));
    sets.set(index + 1, { outside, current: new ExtentBuilder(), older: new ExtentBuilder() });
  });
  for (const line of dumpedExtents(dumpTree(paths, "-t", "extent"), nodeBytes)) {
    eachSector(chunks, line, (device, at) => sets.get(device)!.current.add(at, at + 4096));
  }
  let isWhole = true;
  for (const [root, chunkRoot] of olderExtentRoots(paths)) {
    const old = dumpedChunks(
      attempt("btrfs", [...DUMP_TREE, "--follow", "-b", `${chunkRoot}`, ...paths]).stdout,
    );
    const { stdout, stderr } = attempt("btrfs", [...DUMP_TREE, "--follow", "-b", root, ...paths]);
    if (stderr !== "") isWhole = false;
    for (const line of dumpedExtents(stdout, nodeBytes)) {
      eachSector([...old, ...chunks], line, (device, at) => sets.get(device)?.older.add(at, at + 4096));
    }
  }
  const now = new Map<number, ExtentSet>();
  const kept = new Map<number, ExtentSet>();
  for (const [device, { outside, current, older }] of sets) {
    const all = new ExtentBuilder();
    all.add(0, deviceBytes);
    now.set(device, all.build().subtract(outside.build()).subtract(current.build()));
    kept.set(device, now.get(device)!.subtract(older.build()));
  }
  return { now, kept, isWhole };
}

/** Where the sector at a logical address lies on the one device, in all its copies. */
export function dumpedPlaces(path: string, start: number): number[] {
  const places: number[] = [];
  const chunks = dumpedChunks(dumpTree([path], "-t", "chunk"));
  eachSector(chunks, { start, bytes: 4096 }, (_, at) => places.push(at));
  return places;
}

/**
 * Roots of the extent trees of all backups, those beside the root tree and those that the root tree leads to, each with
 * the root of the chunk tree of its time.
 */
function olderExtentRoots(paths: readonly string[]): Map<string, number> {
  const roots = new Map<string, number>();
  for (const { root, chunkRoot, extentRoot } of dumpedBackups(paths[0]!)) {
    roots.set(`${extentRoot}`, chunkRoot);
    const { stdout } = attempt("btrfs", [...DUMP_TREE, "--follow", "-b", `${root}`, ...paths]);
    const item = /key \(EXTENT_TREE ROOT_ITEM 0\)[^\n]*\n[^\n]*?bytenr (\d+)/.exec(stdout);
    if (item !== null) roots.set(item[1]!, chunkRoot);
  }
  return roots;
}

function dumpedExtents(text: string, nodeBytes: number): { start: number; bytes: number }[] {
  const found = text.matchAll(/key \((\d+) (EXTENT_ITEM|METADATA_ITEM) (\d+)\)/g);
  return [...found].map(([, start, type, offset]) => ({
    start: Number(start),
    bytes: type === "EXTENT_ITEM" ? Number(offset) : nodeBytes,
  }));
}

function dumpedChunks(text: string): DumpedChunk[] {
  const found = text.matchAll(
    /CHUNK_ITEM (\d+)\)[^\n]*\n\s+length (\d+) owner \d+ stripe_len \d+ type (\S+)\n((?:(?!\titem )[^\n]*\n)*)/g,
  );
  return [...found].map(([, start, bytes, type, rest]) => ({
    start: Number(start),
    bytes: Number(bytes),
    type: type!,
    stripes: [...rest!.matchAll(/stripe \d+ devid (\d+) offset (\d+)/g)].map(([, device, at]) => ({
      device: Number(device),
      at: Number(at),
    })),
  }));
}

function eachSector(
  chunks: readonly DumpedChunk[],
  extent: { readonly start: number; readonly bytes: number },
  found: (device: number, at: number) => void,
): void {
  for (let at = extent.start; at < extent.start + extent.bytes; at += 4096) {
    const chunk = chunks.find(({ start, bytes }) => at >= start && at < start + bytes);
    if (chunk === undefined) continue; // of a backup whose chunk tree was overwritten
    const inChunk = at - chunk.start;
    const isStriped = /RAID0|RAID10$/.test(chunk.type);
    const copies = chunk.type.endsWith("RAID10") ? 2 : 1;
    const stripe = Math.floor(inChunk / STRIPE_BYTES);
    const columns = chunk.stripes.length / copies;
    chunk.stripes.forEach(({ device, at: start }, index) => {
      if (!isStriped) found(device, start + inChunk);
      else if (Math.floor(index / copies) === stripe % columns) {
        found(device, start + Math.floor(stripe / columns) * STRIPE_BYTES + (inChunk % STRIPE_BYTES));
      }
    });
  }
}
