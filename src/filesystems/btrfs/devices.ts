/**
 * The device tree: which parts of each device belong to a chunk. It is the map of chunks seen from the other side,
 * and both must say the same.
 *
 *   key (device, 204, place)  →  | tree | object | chunk @16 | length @24 | UUID |
 */
import { ExtentBuilder, type ExtentSet } from "../../bytes/extents.ts";
import { Refused } from "../refused.ts";
import { treeRoot } from "./extent-map.ts";
import { KEY, TREE } from "./keys.ts";
import { u64At, type Node } from "./node.ts";
import type { Volume } from "./opening.ts";
import { contradiction, damaged } from "./refused.ts";
import { traverse } from "./trees.ts";

const EXTENT_BYTES = 48;
const CHUNK_AT = 16;
const LENGTH_AT = 24;

const REPLACE_BYTES = 80;
const REPLACE_STATE_AT = 32;
const REPLACE_STARTED = 1;
const REPLACE_SUSPENDED = 4;

/** What of each member is in no chunk. @throws Refused */
export async function unallocated(volume: Volume): Promise<ExtentSet[]> {
  const { members, nodes } = volume;
  const held = members.map(() => new ExtentBuilder());
  const stripes = stripesOf(volume);
  await traverse(nodes, [treeRoot(volume, TREE.device)], {
    enters: nodes.onceEach(),
    leaf(node) {
      for (let index = 0; index < node.count; index++) {
        if (node.type(index) === KEY.deviceReplace) checkReplace(node, index);
        if (node.type(index) !== KEY.deviceExtent) continue;
        const device = node.id(index);
        const start = node.offset(index);
        const length =
          node.itemBytes(index) === EXTENT_BYTES ? u64At(node.view, node.itemPlace(index) + LENGTH_AT) : 0;
        const chunk = u64At(node.view, node.itemPlace(index) + CHUNK_AT);
        if (!stripes.delete(stripeName(device, start, length, chunk))) {
          throw damaged(`device extent at ${start} of device ${device}: chunk ${chunk} has no such stripe`);
        }
        held[members.findIndex((member) => member.sb.deviceId === device)]!.add(start, start + length);
      }
    },
  });
  for (const stripe of stripes) throw damaged(`device tree: no extent for ${stripe}`);
  return held.map((builder, index) => {
    const set = builder.build();
    const whole = new ExtentBuilder();
    whole.add(0, members[index]!.sb.deviceBytes);
    const sum = nodes.map.chunks.reduce(
      (bytes, chunk) =>
        bytes + chunk.stripes.filter(({ member }) => member === index).length * chunk.stripeBytes,
      0,
    );
    if (set.bytes !== sum) throw contradiction(`device ${members[index]!.sb.deviceId}: stripes overlap`);
    return whole.build().subtract(set);
  });
}

function stripesOf({ members, nodes }: Volume): Set<string> {
  const stripes = new Set<string>();
  for (const chunk of nodes.map.chunks) {
    for (const { member, at } of chunk.stripes) {
      stripes.add(stripeName(members[member]!.sb.deviceId, at, chunk.stripeBytes, chunk.start));
    }
  }
  return stripes;
}

const stripeName = (device: number, at: number, bytes: number, chunk: number): string =>
  `${bytes} bytes of chunk ${chunk} at ${at} of device ${device}`;

/** While a device is replaced, its successor holds bytes that no chunk tells of. */
function checkReplace(node: Node, index: number): void {
  const isWhole = node.itemBytes(index) >= REPLACE_BYTES;
  const state = isWhole ? u64At(node.view, node.itemPlace(index) + REPLACE_STATE_AT) : REPLACE_STARTED;
  if (state !== REPLACE_STARTED && state !== REPLACE_SUSPENDED) return;
  throw new Refused(
    "device-replace",
    "device tree: a device is being replaced",
    "let btrfs replace finish, or cancel it, in the guest",
  );
}
