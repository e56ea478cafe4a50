/**
 * Double entry (H1): a block is free only when the filesystem's allocation map says so *and* a walk of everything
 * reachable does not come across it.
 *
 *                     map: free           map: used
 *   walk reaches      contradiction       used
 *   walk does not     FREE                leak: kept, counted
 *
 * One contradiction refuses the whole volume: whoever damaged it once may have damaged more.
 */
import { SparseBitmap } from "../bytes/bitmap.ts";
import { ExtentSet } from "../bytes/extents.ts";
import type { Refusal } from "../error.ts";

/** `full`: both entries must agree. `bitmap`: the verified allocation map is trusted. */
export type Proof = "full" | "bitmap";

/** What is judged: a filesystem, as far as its space is concerned. */
export interface Ledger {
  readonly blockBytes: number;
  /** Length in bytes from the start of member 0; what lies behind it is never free. */
  readonly bytes: number;
  readonly refusal: Refusal | undefined;
  free(): Promise<readonly ExtentSet[]>;
  walk(visit: (member: number, start: number, end: number, owner: number) => void): Promise<void>;
  describe(owner: number): Promise<{ readonly name: string; readonly path?: string }>;
}

export interface Proven {
  /** Per member: what may be given away. All empty when refused. */
  readonly free: readonly ExtentSet[];
  /** Bytes of member 0 that are marked used, though nothing reaches them. They are kept. */
  readonly leakedBytes: number;
  readonly refusal: Refusal | undefined;
}

const NAMED_MAX = 3;

export async function prove(ledger: Ledger, proof: Proof): Promise<Proven> {
  const claimed = await ledger.free();
  if (ledger.refusal) return refused(claimed.length, ledger.refusal);
  const free = claimed.map((set, member) =>
    (member === 0 ? set.within({ start: 0, end: ledger.bytes }) : set).alignInward(ledger.blockBytes),
  );
  if (proof === "bitmap") return { free, leakedBytes: 0, refusal: undefined };

  const reached = free.map(() => new SparseBitmap());
  const { blockBytes } = ledger;
  await ledger.walk((member, start, end) => {
    reached[member]?.setRange(Math.floor(start / blockBytes), Math.ceil(end / blockBytes));
  });
  if (ledger.refusal) return refused(free.length, ledger.refusal);

  const contradictions = free.flatMap((set, member) =>
    reachableIn(set, member, reached[member]!, blockBytes),
  );
  if (contradictions.length > 0) return refused(free.length, await accuse(ledger, contradictions));
  return { free, leakedBytes: leaked(ledger, free[0], reached[0]), refusal: undefined };
}

function refused(members: number, refusal: Refusal): Proven {
  return { free: Array<ExtentSet>(members).fill(ExtentSet.EMPTY), leakedBytes: 0, refusal };
}

interface Contradiction {
  readonly member: number;
  readonly block: number;
}

/** The first few blocks of `free` that the walk reached. */
function reachableIn(
  free: ExtentSet,
  member: number,
  reached: SparseBitmap,
  blockBytes: number,
): Contradiction[] {
  const found: Contradiction[] = [];
  for (let i = 0; i < free.count; i++) {
    const end = free.end(i) / blockBytes;
    let block = reached.nextSet(free.start(i) / blockBytes, end);
    for (; block < end; block = reached.nextSet(block + 1, end)) {
      found.push({ member, block });
      if (found.length === NAMED_MAX) return found;
    }
  }
  return found;
}

function leaked(ledger: Ledger, free: ExtentSet | undefined, reached: SparseBitmap | undefined): number {
  if (!free || !reached) return 0;
  const blocks = Math.floor(ledger.bytes / ledger.blockBytes);
  return Math.max(0, blocks * ledger.blockBytes - free.bytes - reached.count * ledger.blockBytes);
}

/** Walks again to learn who owns the contested blocks: worth it, because it ends the run. */
async function accuse(ledger: Ledger, contradictions: readonly Contradiction[]): Promise<Refusal> {
  const owners = new Map<Contradiction, number>();
  await ledger.walk((member, start, end, owner) => {
    for (const contested of contradictions) {
      const at = contested.block * ledger.blockBytes;
      if (contested.member === member && start < at + ledger.blockBytes && at < end) {
        owners.set(contested, owner);
      }
    }
  });
  const named: string[] = [];
  for (const [{ block }, owner] of owners) {
    const { name, path } = await ledger.describe(owner);
    named.push(`block ${block} of ${path ?? name}`);
  }
  return {
    code: "contradiction",
    message: `in use, but marked free: ${named.join(", ")}`,
    hint: "Let the guest's own check (fsck, chkdsk) repair the filesystem first.",
  };
}
