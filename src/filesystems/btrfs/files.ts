/**
 * Where the bytes of a file lie on the first member, and why they may not be its alone.
 */
import {
  type FoundFile,
  LISTED_MAX,
  type ListedFile,
  listedKind,
  type OwnerDescription,
} from "../filesystem.ts";
import { unlessDamaged } from "../refused.ts";
import { shownName } from "../../bytes/text.ts";
import { STRIPE_BYTES, eachPlace, type Chunk } from "./chunks.ts";
import { pieceAt, type FilePiece } from "./file-extents.ts";
import type { Inode } from "./inodes.ts";
import { isSubvolume, KEY, TREE, treeName } from "./keys.ts";
import { Lookup } from "./lookup.ts";
import { u64At } from "./node.ts";
import type { Volume } from "./opening.ts";
import type { Owners } from "./owners.ts";
import { Paths, placeOf, type Place } from "./paths.ts";
import { lastSnapshot } from "./root-items.ts";

type FoundExtent = FoundFile["extents"][number];

export class Files {
  readonly #volume: Volume;
  readonly #owners: Owners;
  readonly #lookup: Lookup;
  readonly #paths: Paths;

  constructor(volume: Volume, owners: Owners) {
    this.#volume = volume;
    this.#owners = owners;
    this.#lookup = new Lookup(volume);
    this.#paths = new Paths(this.#lookup);
  }

  async describe(owner: number): Promise<OwnerDescription> {
    const file = this.#owners.fileOf(owner);
    if (file === undefined)
      return { kind: owner < 0 ? "metadata" : "unknown", name: this.#owners.nameOf(owner) };
    if (file.tree === TREE.root) return { kind: "metadata", name: "free space cache" };
    if (!isSubvolume(file.tree))
      return { kind: "metadata", name: `${treeName(file.tree)}, inode ${file.inode}` };
    const place = { tree: file.tree, inode: BigInt(file.inode) };
    const inode = await unlessDamaged(this.#paths.inode(place));
    if (inode === undefined)
      return { kind: "unknown", name: `inode ${file.inode} of the ${treeName(file.tree)}` };
    const path = await unlessDamaged(this.#paths.pathOf(place));
    const name =
      path === undefined
        ? `${inode.kind} without a name, inode ${file.inode} of the ${treeName(file.tree)}`
        : inode.kind;
    return { kind: inode.kind, name, bytes: inode.bytes, ...(path !== undefined && { path }) };
  }

  async find(path: string): Promise<FoundFile | undefined> {
    const place = await unlessDamaged(this.#paths.lookUp(path));
    if (place === undefined) return undefined;
    return unlessDamaged(this.#found(place));
  }

  async #found(place: Place): Promise<FoundFile | undefined> {
    const inode = await this.#paths.inode(place);
    if (inode === undefined) return undefined;
    const pieces = await this.#pieces(place);
    const extents = pieces.flatMap((piece) => this.#onFirst(piece));
    const fixed = await this.#fixedBecause(place, inode, pieces);
    const owner = this.#owners.ofFile(place.tree, Number(place.inode));
    const kind = listedKind(inode.kind);
    return { owner, kind, bytes: inode.bytes, ...(fixed !== undefined && { fixed }), extents };
  }

  async list(path: string, atMost = LISTED_MAX): Promise<readonly ListedFile[] | undefined> {
    const directory = await unlessDamaged(this.#paths.lookUp(path));
    const inode = directory && (await unlessDamaged(this.#paths.inode(directory)));
    if (inode?.kind !== "directory") return undefined;
    const listed: ListedFile[] = [];
    await unlessDamaged(this.#list(directory!, listed, atMost));
    return listed;
  }

  async #list(directory: Place, listed: ListedFile[], atMost: number): Promise<void> {
    for await (const entry of this.#paths.entries(directory)) {
      if (listed.length >= atMost) return;
      const place = placeOf(directory, entry);
      const inode = place && (await unlessDamaged(this.#paths.inode(place)));
      if (inode === undefined) continue;
      listed.push({
        name: shownName(entry.name),
        kind: listedKind(inode.kind),
        allocatedBytes: inode.kind === "file" ? await this.#allocatedBytes(place!) : 0,
      });
    }
  }

  async #allocatedBytes(place: Place): Promise<number> {
    const pieces = (await unlessDamaged(this.#pieces(place))) ?? [];
    return pieces
      .filter(({ at, isInline }) => at !== 0 && !isInline)
      .reduce((sum, piece) => sum + (piece.isCompressed ? piece.extentBytes : piece.bytes), 0);
  }

  /** The pieces of a file that are no holes. */
  async #pieces({ tree, inode }: Place): Promise<FilePiece[]> {
    const pieces: FilePiece[] = [];
    for await (const { node, index } of this.#lookup.items(tree, inode, KEY.fileExtent)) {
      const piece = pieceAt(node, index);
      if (piece.at !== 0) pieces.push(piece);
    }
    return pieces;
  }

  #onFirst({
    fileOffset,
    at,
    bytes,
    extentAt,
    extentBytes,
    isCompressed,
    isUnwritten,
  }: FilePiece): FoundExtent[] {
    const found: FoundExtent[] = [];
    const [start, end] =
      isCompressed && extentAt !== 0 ? [extentAt, extentAt + extentBytes] : [at, at + bytes];
    const chunk = this.#volume.nodes.map.chunkOf(start, end - start);
    if (chunk === undefined) return found;
    for (let from = start; from < end;) {
      const to = chunk.columns === 1 ? end : Math.min(end, endOfStripe(chunk, from));
      let isFound = false;
      eachPlace(chunk, from, to, (member, first, stop) => {
        if (member !== 0 || isFound) return;
        isFound = true;
        found.push({
          fileOffset: fileOffset + from - start,
          at: first,
          bytes: stop - first,
          unwritten: isUnwritten,
        });
      });
      from = to;
    }
    return found;
  }

  async #fixedBecause(place: Place, inode: Inode, pieces: readonly FilePiece[]): Promise<string | undefined> {
    if (pieces.some(({ isInline }) => isInline)) return "inline";
    if (pieces.some(({ isCompressed }) => isCompressed)) return "compressed";
    const { map } = this.#volume.nodes;
    const chunks = pieces.map(({ at, bytes }) => map.chunkOf(at, bytes));
    if (chunks.some((chunk) => chunk === undefined || chunk.mirrors > 1)) return "mirrored";
    if (chunks.some((chunk) => chunk!.stripes.some(({ member }) => member !== 0)))
      return "on several devices";
    const root = await this.#lookup.item(TREE.root, place.tree, KEY.root);
    const snapshot = root === undefined ? Infinity : lastSnapshot(root.node, root.index);
    for (const piece of pieces) if (await this.#isShared(piece, snapshot)) return "shared";
    return inode.isUnchecked ? undefined : "checksummed";
  }

  /** Whether somebody else refers to an extent, or did when the last snapshot was taken: nodes are shared, too. */
  async #isShared({ extentAt, extentBytes }: FilePiece, snapshot: number): Promise<boolean> {
    const extent = await this.#lookup.item(TREE.extent, BigInt(extentAt), KEY.extent, BigInt(extentBytes));
    if (extent === undefined) return true;
    const at = extent.node.itemPlace(extent.index);
    const [references, generation] = [u64At(extent.node.view, at), u64At(extent.node.view, at + 8)];
    return references > 1 || generation <= snapshot;
  }
}

function endOfStripe(chunk: Chunk, at: number): number {
  return chunk.start + (Math.floor((at - chunk.start) / STRIPE_BYTES) + 1) * STRIPE_BYTES;
}
