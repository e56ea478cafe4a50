/**
 * Members of one set, brought together (H36): a volume group on two disks, a RAID set, a filesystem on several devices.
 *
 *   member 2 of vg0 (disk 1) ─┐
 *                             ├─ every member once → opened, in the order of the set
 *   member 1 of vg0 (disk 0) ─┘
 *
 * A set with a member missing, or with one that is there twice (a copy beside its original), is not guessed at: its
 * members count as used and say why. What a set holds may be a member of another: a volume group on RAID.
 */
import { below, type Content, type LayoutOptions, type MemberContent, type Region } from "../layout.ts";
import { childrenOf, DEPTH_MAX } from "./content.ts";

/** A region that is a member. */
type Member = Region & { readonly content: MemberContent };

/** Opens every set that is whole, and the sets inside those. @throws DiskError `io` */
export async function joinSets(roots: readonly Region[], options: LayoutOptions): Promise<Region[]> {
  const sets: Region[] = [];
  const tried = new Set<string>();
  for (let depth = 0; depth <= DEPTH_MAX; depth++) {
    const whole = [...groupsOf([...roots, ...sets])].filter(
      ([key, members]) => !tried.has(key) && isWhole(members),
    );
    if (whole.length === 0) break;
    for (const [key, members] of whole) {
      tried.add(key);
      const set = await openSet(members, options, depth);
      if (set) sets.push(set);
    }
  }
  return sets;
}

/** Members by their set: those first that say which it is, and behind them those that it expects. */
function groupsOf(regions: readonly Region[]): Map<string, Member[]> {
  const groups = new Map<string, Member[]>();
  const unsaid: Member[] = [];
  for (const region of regions.flatMap((outer) => [...below(outer)])) {
    if (!isMember(region)) continue;
    const { kind, set } = region.content.membership;
    const key = `${kind} ${set}`;
    if (set === "") unsaid.push(region);
    else groups.set(key, [...(groups.get(key) ?? []), region]);
  }
  for (const members of groups.values()) {
    const { kind, members: expected } = members[0]!.content.membership;
    const isExpected = ({ content: { membership } }: Member): boolean =>
      membership.kind === kind && (expected?.includes(membership.member) ?? false);
    members.push(...unsaid.filter(isExpected));
  }
  return groups;
}

function isMember(region: Region): region is Member {
  return region.content.kind === "member";
}

/** Whether each member is there exactly once; notes on the members when one is there twice. */
function isWhole(members: readonly Member[]): boolean {
  const { total, kind, name, set, members: expected } = members[0]!.content.membership;
  const ids = new Set(members.map(({ content }) => content.membership.member));
  if (ids.size < members.length) {
    for (const { content } of members) {
      content.reason = {
        code: "members-twice",
        message: `a member of ${kind} ${name === "" ? set : name} is here twice`,
        hint: "name only the disks that the guest uses together, without copies of them",
      };
    }
    return false;
  }
  return ids.size === total && (expected ?? []).every((id) => ids.has(id));
}

async function openSet(
  members: readonly Member[],
  options: LayoutOptions,
  depth: number,
): Promise<Region | undefined> {
  const ordered = inOrder(members);
  const { opener, membership } = members[0]!.content;
  const devices = ordered.map(({ device }) => device);
  let content: Content;
  if (opener.as === "filesystem") {
    const filesystem = await opener.reader.open(devices, options);
    content = { kind: "filesystem", filesystem, reader: opener.reader, members: ordered };
  } else {
    const table = await opener.scheme.open(devices, options);
    if (table.refusal) {
      for (const { content: member } of members) member.reason = table.refusal;
      return undefined;
    }
    const children = await childrenOf(table, ordered, options, depth);
    content = { kind: "table", table, members: ordered, children };
  }
  for (const { content: member } of members) member.reason = undefined;
  const [first] = ordered;
  return {
    name: membership.name === "" ? membership.set : membership.name,
    label: "",
    type: membership.kind,
    device: first!.device,
    encrypted: ordered.some(({ encrypted }) => encrypted),
    places: (range) => first!.places(range),
    footprint: (range) => first!.footprint(range),
    find: (disk, at) => first!.find(disk, at),
    content,
  };
}

function inOrder(members: readonly Member[]): readonly Member[] {
  const order = members[0]!.content.membership.members ?? [];
  const rank = ({ content: { membership } }: Member): number => order.indexOf(membership.member);
  return members.toSorted(
    (a, b) =>
      rank(a) - rank(b) ||
      a.content.membership.member.localeCompare(b.content.membership.member, "en", { numeric: true }),
  );
}
