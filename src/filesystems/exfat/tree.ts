/**
 * The tree of an exFAT volume as names are looked up in it, by the volume's own up-case table.
 */
import { printable } from "../../bytes/text.ts";
import { contentOf, type ClusterHeap } from "../cluster-chains.ts";
import type { Tree, TreeEntry } from "../cluster-tree.ts";
import type { Geometry } from "./boot-region.ts";
import { ATTRIBUTE, DIRECTORY_BYTES_MAX, nameOf, SetScan, type Stream } from "./entry-sets.ts";
import { folded, type UpCase } from "./up-case.ts";

/** Only its chain tells how long the root is. */
export function rootHolding({ rootCluster }: Geometry) {
  return { first: rootCluster, bytes: undefined, isContiguous: false };
}

export function treeOf(heap: ClusterHeap, geometry: Geometry, upCase: UpCase): Tree {
  const root = { ...rootHolding(geometry), name: "", shortName: "", isDirectory: true, validBytes: 0 };
  return {
    heap,
    root,
    directoryBytesMax: DIRECTORY_BYTES_MAX,
    folded: (name) => folded(name, upCase),
    async *entries(directory) {
      let found: TreeEntry[] = [];
      const scan = new SetScan(`directory in cluster ${directory.first}`, directory === root, undefined, {
        file: (set, stream, attributes) => found.push(entryOf(set, stream, attributes)),
        extra: () => {},
        system: () => {},
      });
      for await (const bytes of contentOf(heap, directory, DIRECTORY_BYTES_MAX)) {
        const goesOn = scan.next(bytes);
        yield* found;
        found = [];
        if (!goesOn) return;
      }
    },
  };
}

function entryOf(set: Uint8Array, stream: Stream, attributes: number): TreeEntry {
  const { first, bytes, validBytes, isContiguous } = stream;
  return {
    first,
    bytes,
    validBytes,
    isContiguous,
    name: printable(nameOf(set, stream)).replaceAll("/", "\\x2f"),
    shortName: "",
    isDirectory: (attributes & ATTRIBUTE.directory) !== 0,
    ...((attributes & ATTRIBUTE.encrypted) !== 0 && { fixed: "encrypted" }),
  };
}
