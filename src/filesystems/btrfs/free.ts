/**
 * What may be given away, as far as maps can tell: free for the current trees, for every older generation, and for a log
 * that waits.
 */
import { SparseBitmap } from "../../bytes/bitmap.ts";
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import { eachPlace } from "./chunks.ts";
import { readMap } from "./extent-map.ts";
import { reachOlder } from "./older.ts";
import type { Volume } from "./opening.ts";
import type { Owners } from "./owners.ts";
import { traverse } from "./trees.ts";
import { reachLog } from "./walk.ts";

/** Per member. @throws Refused */
export async function freeExtents(volume: Volume, owners: Owners): Promise<ExtentSet[]> {
  const { sectorBytes } = volume.sb;
  const { free, nodes } = await readMap(volume);
  const pruned = await prunedNodes(volume);
  const kept = free.map(() => new SparseBitmap());
  const keep = (member: number, start: number, end: number) =>
    kept[member]!.setRange(start / sectorBytes, Math.ceil(end / sectorBytes));
  const isFollowed = (member: number, at: number) =>
    nodes[member]!.has(at / sectorBytes) && !pruned[member]!.has(at);
  await reachOlder(volume, { isFollowed, believesMaps: true }, keep);
  await reachLog(volume, owners, keep);
  return free.map((set, member) => without(set, kept[member]!, sectorBytes));
}

/** Where nodes lie of which some children were dropped, and freed, since their tree was deleted. Per member. */
async function prunedNodes({ members, nodes, roots }: Volume): Promise<Set<number>[]> {
  const pruned = members.map(() => new Set<number>());
  await traverse(nodes, [...roots.values()], {
    enters: ({ dropped }) => dropped !== undefined,
    node({ at, bytes }) {
      const chunk = nodes.map.chunkOf(at, bytes.length)!;
      eachPlace(chunk, at, at + bytes.length, (member, start) => pruned[member]!.add(start));
    },
    leaf() {},
  });
  return pruned;
}

function without(free: ExtentSet, kept: SparseBitmap, sectorBytes: number): ExtentSet {
  const rest = new ExtentBuilder(free.count);
  for (let i = 0; i < free.count; i++) {
    const end = free.end(i) / sectorBytes;
    for (let from = kept.nextClear(free.start(i) / sectorBytes, end); from < end;) {
      const to = kept.nextSet(from, end);
      rest.add(from * sectorBytes, to * sectorBytes);
      from = kept.nextClear(to, end);
    }
  }
  return rest.build();
}
