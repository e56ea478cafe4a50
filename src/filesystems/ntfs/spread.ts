/**
 * Files that need more than one record: what a walk in the order of the table can compare only at its end.
 *
 *   attribute list of A:  "X holds a part of A"     ─┐ must meet
 *   extension record X:   "I belong to A"           ─┘
 *   pieces of one attribute:  VCN 0 to 9, 10 to 19, … must join, and fill what the first says is allocated
 *
 * An extension record that no list names is an orphan: its clusters were visited, and stay.
 */
import { attributeName, type Attribute, type Runs } from "./attributes.ts";
import type { ListEntry } from "./list.ts";
import type { FileRecord, Reference } from "./record.ts";
import { damaged } from "./refused.ts";
import { Refused } from "../refused.ts";

/** Pieces, and entries of lists, that are remembered. Far more than any volume that a guest can still use. */
const REMEMBERED_MAX = 1 << 22;

interface Piece {
  readonly key: string;
  readonly firstVcn: number;
  readonly endVcn: number;
  /** Clusters that the whole attribute has; stated by its first piece. */
  readonly allocated: number | undefined;
}

export class Spread {
  /** Who an extension record says that it belongs to, with both sequence numbers. */
  readonly #extensions = new Map<number, string>();
  readonly #listed = new Map<number, string>();
  readonly #pieces: Piece[] = [];

  extension(record: FileRecord, base: Reference): void {
    this.#extensions.set(record.number, `${record.sequence} of ${base.number}, ${base.sequence}`);
  }

  list(base: FileRecord, entries: readonly ListEntry[]): void {
    for (const { record } of entries) {
      if (record.number === base.number) continue;
      const claim = `${record.sequence} of ${base.number}, ${base.sequence}`;
      const before = this.#listed.get(record.number);
      if (before !== undefined && before !== claim) {
        throw damaged(`file record ${record.number}: the attribute lists of two files name it`);
      }
      this.#listed.set(record.number, claim);
    }
    this.#limit(this.#listed.size);
  }

  piece(base: number, attribute: Attribute, { firstVcn, endVcn, sizes }: Runs, clusterBytes: number): void {
    const key = `file ${base}, attribute 0x${attribute.type.toString(16)} "${attribute.name}"`;
    const allocated = sizes && sizes.allocated / clusterBytes;
    if (allocated !== undefined && !Number.isInteger(allocated)) {
      throw damaged(
        `${attributeName(attribute)}: ${sizes!.allocated} bytes allocated, whole clusters expected`,
      );
    }
    this.#pieces.push({ key, firstVcn, endVcn, allocated });
    this.#limit(this.#pieces.length);
  }

  /** @throws Refused when what was gathered does not meet */
  check(): void {
    for (const [number, claim] of this.#listed) {
      const found = this.#extensions.get(number);
      if (found !== claim) {
        throw damaged(`file record ${number}: ${found ?? "no extension record"} found, ${claim} expected`);
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

  #limit(count: number): void {
    if (count <= REMEMBERED_MAX) return;
    throw new Refused(
      "unsupported",
      `more than ${REMEMBERED_MAX} parts of files in extension records`,
      "defragment the volume in the guest",
    );
  }
}
