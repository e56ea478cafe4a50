/**
 * What every module about one open image shares: its files, its header, its active L1 table, and the caches.
 *
 * A reader opens `Qcow2Context<ReadableFile>`, a writer `Qcow2Context<HostFile>`. The header never changes while the
 * image is open; tables change in place: who writes to the file writes to `l1.view` or to the cached table too.
 */
import type { ReadableFile } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { TableCache } from "./cache.ts";
import type { Stretch } from "./corrupt.ts";
import { readHeader, type Header } from "./header.ts";
import { Refcounts } from "./refcounts.ts";
import { readL1, type L1Table } from "./tables.ts";

const L2_CACHE_BYTES = 32 * 2 ** 20;

export interface Qcow2Context<File extends ReadableFile = ReadableFile> {
  /** The image file: header and tables, and the guest's clusters unless there is an external data file. */
  readonly file: File;
  /** Where host offsets of guest clusters point: the external data file, else `file`. Compressed ones are in `file`. */
  readonly data: File;
  readonly header: Header;
  /** The guest's disk as it is now. */
  readonly l1: L1Table;
  /** L2 tables by file offset. */
  readonly l2: TableCache;
  readonly refcounts: Refcounts;
  /** The structures whose place the header states, on which nothing else may lie. */
  readonly tops: Top[];
}

export interface Top extends Stretch {
  readonly name: string;
}

/**
 * Opens the tables of `file`.
 * @param openData opens the external data file by the name that the image states (H22)
 * @throws DiskError `corrupt`, `unsupported`, and whatever `openData` throws
 */
export async function openContext<File extends ReadableFile>(
  file: File,
  openData: (name: string) => Promise<File>,
): Promise<Qcow2Context<File>> {
  const header = await readHeader(file);
  const l1 = await readL1({ file, header }, "L1 table", header.l1At, header.l1Entries);
  return {
    file,
    data: header.externalData ? await openData(dataFileName(header)) : file,
    header,
    l1,
    l2: new TableCache(file, header.clusterBytes, L2_CACHE_BYTES),
    refcounts: new Refcounts(file, header),
    tops: topsOf(header),
  };
}

function dataFileName(header: Header): string {
  if (header.dataFileName !== undefined) return header.dataFileName;
  throw new DiskError("unsupported", "the image keeps its data in another file, and does not name it", {
    hint: "set the name with: qemu-img amend -o data_file=NAME",
  });
}

function topsOf(header: Header): Top[] {
  const { clusterBytes } = header;
  const tops: Top[] = [
    { name: "header", at: 0, bytes: clusterBytes },
    {
      name: "refcount table",
      at: header.refcountTableAt,
      bytes: header.refcountTableClusters * clusterBytes,
    },
  ];
  if (header.l1Entries > 0) tops.push({ name: "L1 table", at: header.l1At, bytes: header.l1Entries * 8 });
  if (header.snapshotCount > 0) tops.push({ name: "snapshot table", at: header.snapshotsAt, bytes: 1 });
  return tops;
}
