/**
 * The tree of a FAT volume as names are looked up in it: a file has its long name, and is found by its short one too.
 */
import { printable } from "../../bytes/text.ts";
import { readBytes } from "../../device/device.ts";
import { contentOf, type ClusterHeap, type Holding } from "../cluster-chains.ts";
import type { Tree, TreeEntry } from "../cluster-tree.ts";
import type { Geometry } from "./boot-sector.ts";
import {
  ATTRIBUTE,
  DIRECTORY_BYTES_MAX,
  labelText,
  NameScan,
  type ShortEntry,
  shortText,
} from "./directory.ts";

/** FAT12/16 have a root without clusters. */
export function rootHolding({ rootCluster }: Geometry) {
  return { first: rootCluster, bytes: undefined, isContiguous: false };
}

/** The pieces of a directory; the root of FAT12/16 has no cluster. */
async function* piecesOf(
  heap: ClusterHeap,
  geometry: Geometry,
  directory: Holding,
): AsyncGenerator<Uint8Array> {
  if (directory.first === 0) yield await readBytes(heap.device, geometry.rootAt, geometry.rootBytes);
  else yield* contentOf(heap, directory, DIRECTORY_BYTES_MAX);
}

export function treeOf(heap: ClusterHeap, geometry: Geometry): Tree {
  const root = { ...rootHolding(geometry), name: "", shortName: "", isDirectory: true, validBytes: 0 };
  return {
    heap,
    root,
    directoryBytesMax: DIRECTORY_BYTES_MAX,
    folded: (name) => name.toUpperCase(),
    async *entries(directory) {
      const scan = new NameScan(geometry.bits);
      for await (const piece of piecesOf(heap, geometry, directory)) {
        for (const entry of scan.next(piece)) {
          const shortName = shortText(entry);
          const isLink = shortName === "." || shortName === "..";
          if (!isLink && (entry.attributes & ATTRIBUTE.label) === 0) yield entryOf(entry, shortName);
        }
      }
    },
  };
}

function entryOf({ attributes, first, bytes, longName }: ShortEntry, shortName: string): TreeEntry {
  const isDirectory = (attributes & ATTRIBUTE.directory) !== 0;
  return {
    name: longName === "" ? shortName : printable(longName).replaceAll("/", "\\x2f"),
    shortName: longName === "" ? "" : shortName,
    isDirectory,
    first,
    bytes: isDirectory ? undefined : bytes,
    validBytes: bytes,
    isContiguous: false,
  };
}

const NO_NAME = "NO NAME    ";

/** The label in the root directory is the guest's; that of the boot sector may be old. */
export async function labelOf(heap: ClusterHeap, geometry: Geometry): Promise<string> {
  const scan = new NameScan(geometry.bits);
  for await (const piece of piecesOf(heap, geometry, rootHolding(geometry))) {
    for (const { attributes, shortName } of scan.next(piece)) {
      if (attributes === ATTRIBUTE.label || attributes === (ATTRIBUTE.label | ATTRIBUTE.archive)) {
        return labelText(shortName);
      }
    }
  }
  const label = Buffer.from(geometry.bootLabel).toString("latin1");
  return label === NO_NAME ? "" : labelText(geometry.bootLabel);
}
