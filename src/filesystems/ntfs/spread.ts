/**
 * Files that need more than one record: what a walk in the order of the table can compare only at its end.
 *
 *   attribute list of A:  "X holds a part of A"     ─┐ must meet
 *   extension record X:   "I belong to A"           ─┘
 *   pieces of one attribute:  VCN 0 to 9, 10 to 19, … must join, and fill what the first says is allocated
 *
 * An extension record that no list names is an orphan: its clusters were visited, and stay.
 */
import { printable } from "../../bytes/text.ts";
import { attributeName, type Attribute, type Runs } from "./attributes.ts";
import type { ListEntry } from "./list.ts";
import type { FileRecord, Reference } from "./record.ts";
import { damaged } from "./refused.ts";
import { Refused } from "../refused.ts";

/** Extension records, and pieces of attributes, that are remembered: more than in a volume that is still of use. */
const EXTENSIONS_MAX = 1 << 21;
const PIECES_MAX = 1 << 20;

interface Piece {
  readonly key: string;
  readonly firstVcn: number;
  readonly endVcn: number;
  /** Clusters that the whole attribute has; stated by its first piece. */
  readonly allocated: number | undefined;
}

export class Spread {
  /** By the number of an extension record: a claim of whose it is. */
  readonly #extensions = new Map<number, number>();
  readonly #listed = new Map<number, number>();
  readonly #pieces: Piece[] = [];

  extension({ number, sequence }: FileRecord, base: Reference): void {
    this.#extensions.set(number, claimOf(base.number, sequence));
    limit("extension records", this.#extensions.size, EXTENSIONS_MAX);
  }

  list(base: FileRecord, entries: readonly ListEntry[]): void {
    for (const { record } of entries) {
      if (record.number === base.number) continue;
      const claim = claimOf(base.number, record.sequence);
      if ((this.#listed.get(record.number) ?? claim) !== claim) {
        throw damaged(`file record ${record.number}: the attribute lists of two files name it`);
      }
      this.#listed.set(record.number, claim);
    }
    limit("extension records", this.#listed.size, EXTENSIONS_MAX);
  }

  piece(base: number, attribute: Attribute, { firstVcn, endVcn, sizes }: Runs, clusterBytes: number): void {
    const key = `file ${base}, attribute 0x${attribute.type.toString(16)} "${printable(attribute.name)}"`;
    const allocated = sizes && sizes.allocated / clusterBytes;
    if (allocated !== undefined && !Number.isInteger(allocated)) {
      throw damaged(
        `${attributeName(attribute)}: ${sizes!.allocated} bytes allocated, whole clusters expected`,
      );
    }
    this.#pieces.push({ key, firstVcn, endVcn, allocated });
    limit("pieces of attributes", this.#pieces.length, PIECES_MAX);
  }

  /** @throws Refused when what was gathered does not meet */
  check(): void {
    for (const [number, claim] of this.#listed) {
      const found = this.#extensions.get(number);
      if (found !== claim) {
        throw damaged(`file record ${number}: ${shownClaim(found)} found, ${shownClaim(claim)} expected`);
      }
    }
    const pieces = this.#pieces.sort((a, b) =>
      a.key < b.key ? -1 : a.key > b.key ? 1 : a.firstVcn - b.firstVcn,
    );
    let before: Piece | undefined;
    let left = 0;
    for (const piece of pieces) {
      const isFirst = piece.key !== before?.key;
      if (isFirst && left !== 0) throw damaged(`${before!.key}: ${left} clusters are missing`);
      if (isFirst !== (piece.allocated !== undefined))
        throw damaged(`${piece.key}: no piece begins with VCN 0`);
      const expected = isFirst ? 0 : before!.endVcn;
      if (piece.firstVcn !== expected)
        throw damaged(`${piece.key}: VCN ${piece.firstVcn} found, ${expected} expected`);
      left = (isFirst ? piece.allocated! : left) - (piece.endVcn - piece.firstVcn);
      before = piece;
    }
    if (left !== 0) throw damaged(`${before!.key}: ${left} clusters are missing`);
  }
}

/** Whose an extension record is, and its own sequence number, in one number. */
function claimOf(base: number, sequence: number): number {
  return base * 65_536 + sequence;
}

function shownClaim(claim: number | undefined): string {
  return claim === undefined ? "no extension record" : `${claim % 65_536} of ${Math.floor(claim / 65_536)}`;
}

function limit(what: string, count: number, max: number): void {
  if (count <= max) return;
  throw new Refused("unsupported", `more than ${max} ${what}`, "defragment the volume in the guest");
}
