/**
 * Where the image's own tables lie in its file: everything that is neither guest data nor free.
 */
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import { bitmapStretches } from "./bitmaps.ts";
import type { Qcow2Context, Top } from "./context.ts";
import { corrupt, quoted } from "./corrupt.ts";
import { ClusterCounts } from "./counts.ts";
import { checkedSnapshot, distinctL1s, readSnapshots } from "./snapshots.ts";
import { l2TableAt, readL1, type L1Table } from "./tables.ts";

/** Every table with its name, and none twice. @throws DiskError `corrupt` */
export async function* structures(context: Qcow2Context): AsyncGenerator<Top> {
  const { file, header, l1, refcounts } = context;
  const { clusterBytes } = header;
  const seen = new ClusterCounts();
  yield* context.tops;
  yield* l2Tables(context, l1, "", seen);
  const snapshots = await readSnapshots(file, header);
  if (snapshots.bytes > 0) yield { name: "snapshot table", at: header.snapshotsAt, bytes: snapshots.bytes };
  for (const { entry, overlaps } of distinctL1s(snapshots.entries)) {
    checkedSnapshot(file, header, entry);
    const of = ` of snapshot ${quoted(entry.name)}`;
    const name = `L1 table${of}`;
    if (overlaps) throw corrupt(name, entry.l1At, "an overlap with another L1 table", "clusters of its own");
    yield { name, at: entry.l1At, bytes: entry.l1Entries * 8 };
    yield* l2Tables(context, await readL1(context, name, entry.l1At, entry.l1Entries), of, seen);
  }
  for (const block of await refcounts.existing()) {
    yield { name: `refcount block ${block}`, at: await refcounts.blockAt(block), bytes: clusterBytes };
  }
  if (header.cryptoHeader) yield { name: "LUKS header", ...header.cryptoHeader };
  for await (const { what, at, bytes } of bitmapStretches(file, header)) yield { name: what, at, bytes };
}

/** The L2 tables under `l1` that are not among the `seen`: snapshots share most of theirs. */
function* l2Tables(context: Qcow2Context, l1: L1Table, of: string, seen: ClusterCounts): Generator<Top> {
  const { clusterBytes } = context.header;
  for (let index = 0; index < l1.entries; index++) {
    const at = l2TableAt(context, l1, index);
    if (at === 0 || seen.get(at / clusterBytes) > 0) continue;
    seen.set(at / clusterBytes, 1);
    yield { name: `L2 table ${index}${of}`, at, bytes: clusterBytes };
  }
}

/** The clusters that hold tables. */
export async function tableClusters(context: Qcow2Context): Promise<ExtentSet> {
  const builder = new ExtentBuilder();
  for await (const { at, bytes } of structures(context)) builder.add(at, at + bytes);
  return builder.build().alignOutward(context.header.clusterBytes);
}

/** The table that owns byte `fileOffset` of the file, if one does. */
export async function describe(context: Qcow2Context, fileOffset: number): Promise<string | undefined> {
  const { clusterBytes } = context.header;
  const cluster = Math.floor(fileOffset / clusterBytes) * clusterBytes;
  for await (const { name, at, bytes } of structures(context)) {
    if (at < cluster + clusterBytes && at + bytes > cluster && at <= fileOffset) return name;
  }
  return undefined;
}
