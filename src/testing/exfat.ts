/**
 * exFAT volumes without a kernel: mkfs.exfat makes an empty one, and files are written into its bytes by hand.
 * fsck.exfat judges the result in the tests.
 */
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { ExtentSet } from "../bytes/extents.ts";
import { BootSector, regionChecksum } from "../filesystems/exfat/boot-region.ts";
import { setChecksum } from "../filesystems/exfat/entry-sets.ts";
import { blklsFree } from "./cluster-volume.ts";
import { Random } from "./seeds.ts";
import { run } from "./tools.ts";

export const ENTRY_BYTES = 32;
const NAME_UNITS = 15;
const END = 0xffffffff;

export interface DraftDirectory {
  readonly clusters: number[];
  /** Bytes of entries so far. */
  used: number;
}

export interface DraftFile {
  readonly content: Uint8Array;
  /** Clusters with gaps between them, linked by the allocation table; else in a row, without. */
  readonly scattered?: boolean;
  readonly validBytes?: number;
  /** Entries behind the name, of whole length. */
  readonly extra?: readonly Uint8Array[];
}

export class ExfatDraft {
  readonly bytes: Buffer;
  readonly root: DraftDirectory;
  readonly fatAt: number;
  readonly heapAt: number;
  readonly clusterBytes: number;
  readonly sectorBytes: number;
  /** Where the bitmap lies. */
  readonly bitmapAt: number;
  /** Behind the last cluster of a directory. */
  directoriesEnd: number;
  #next: number;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
    const boot = BootSector.decode(bytes);
    this.sectorBytes = 1 << boot.sectorShift;
    this.fatAt = boot.fatOffset * this.sectorBytes;
    this.heapAt = boot.heapOffset * this.sectorBytes;
    this.clusterBytes = this.sectorBytes << boot.clusterShift;
    const rootAt = this.clusterAt(boot.rootCluster);
    let used = 0;
    let bitmapAt = 0;
    for (; bytes[rootAt + used] !== 0; used += ENTRY_BYTES) {
      if (bytes[rootAt + used] === 0x81) bitmapAt = this.clusterAt(bytes.readUInt32LE(rootAt + used + 20));
    }
    this.bitmapAt = bitmapAt;
    this.root = { clusters: [boot.rootCluster], used };
    this.#next = boot.rootCluster + 1;
    this.directoriesEnd = this.clusterAt(this.#next);
  }

  clusterAt(cluster: number): number {
    return this.heapAt + (cluster - 2) * this.clusterBytes;
  }

  /** Where the table has the entry of a cluster. */
  entryAt(cluster: number): number {
    return this.fatAt + cluster * 4;
  }

  setUsed(cluster: number, isUsed: boolean): void {
    const at = this.bitmapAt + ((cluster - 2) >> 3);
    const bit = 1 << ((cluster - 2) & 7);
    this.bytes[at] = isUsed ? this.bytes[at]! | bit : this.bytes[at]! & ~bit;
  }

  /** @returns where its set of entries lies */
  addFile(directory: DraftDirectory, name: string, file: DraftFile): number {
    const { content, scattered = false, extra = [] } = file;
    const clusters = this.take(Math.ceil(content.length / this.clusterBytes), scattered);
    clusters.forEach((cluster, index) => {
      const from = index * this.clusterBytes;
      this.bytes.set(content.subarray(from, from + this.clusterBytes), this.clusterAt(cluster));
    });
    const sizes = { bytes: content.length, validBytes: file.validBytes ?? content.length };
    return this.#addSet(directory, name, { attributes: 0x20, clusters, scattered, ...sizes, extra });
  }

  addDirectory(directory: DraftDirectory, name: string, count: number, scattered: boolean): DraftDirectory {
    const clusters = this.take(count, scattered);
    const bytes = count * this.clusterBytes;
    this.#addSet(directory, name, {
      attributes: 0x10,
      clusters,
      scattered,
      bytes,
      validBytes: bytes,
      extra: [],
    });
    this.directoriesEnd = this.clusterAt(this.#next);
    return { clusters, used: 0 };
  }

  growRoot(count: number): void {
    const clusters = this.take(count, true);
    this.bytes.writeUInt32LE(clusters[0]!, this.entryAt(this.root.clusters.at(-1)!));
    this.root.clusters.push(...clusters);
  }

  /** Marks clusters as used, and links them where they lie scattered. */
  take(count: number, scattered: boolean): number[] {
    const clusters = Array.from({ length: count }, (_, i) => this.#next + (scattered ? i * 2 : i));
    if (count > 0) this.#next = clusters.at(-1)! + 1;
    clusters.forEach((cluster, index) => {
      this.setUsed(cluster, true);
      if (scattered) this.bytes.writeUInt32LE(clusters[index + 1] ?? END, this.entryAt(cluster));
    });
    return clusters;
  }

  #addSet(
    directory: DraftDirectory,
    name: string,
    file: {
      attributes: number;
      clusters: readonly number[];
      scattered: boolean;
      bytes: number;
      validBytes: number;
      extra: readonly Uint8Array[];
    },
  ): number {
    const names = Math.ceil(name.length / NAME_UNITS);
    const set = Buffer.alloc((2 + names + file.extra.length) * ENTRY_BYTES);
    set[0] = 0x85;
    set[1] = 1 + names + file.extra.length;
    set.writeUInt16LE(file.attributes, 4);
    for (const at of [8, 12, 16]) set.writeUInt32LE(0x5d7a_6000, at);
    set[32] = 0xc0;
    set[33] = file.clusters.length > 0 && !file.scattered ? 3 : 1;
    set[35] = name.length;
    set.writeUInt16LE(nameHash(name), 36);
    set.writeUInt32LE(file.validBytes, 40);
    set.writeUInt32LE(file.clusters[0] ?? 0, 52);
    set.writeUInt32LE(file.bytes, 56);
    for (let i = 0; i < names; i++) set[(2 + i) * ENTRY_BYTES] = 0xc1;
    for (let i = 0; i < name.length; i++) {
      const entry = 2 + Math.floor(i / NAME_UNITS);
      set.writeUInt16LE(name.charCodeAt(i), entry * ENTRY_BYTES + 2 + (i % NAME_UNITS) * 2);
    }
    file.extra.forEach((entry, i) => set.set(entry, (2 + names + i) * ENTRY_BYTES));
    set.writeUInt16LE(setChecksum(set), 2);
    return this.#place(directory, set);
  }

  /** Entry by entry: the end of a cluster may cut a set. @returns where its first entry lies */
  #place(directory: DraftDirectory, set: Uint8Array): number {
    const first = this.#placeIn(directory);
    for (let at = 0; at < set.length; at += ENTRY_BYTES) {
      this.bytes.set(set.subarray(at, at + ENTRY_BYTES), this.#placeIn(directory));
      directory.used += ENTRY_BYTES;
    }
    return first;
  }

  #placeIn({ clusters, used }: DraftDirectory): number {
    return this.clusterAt(clusters[Math.floor(used / this.clusterBytes)]!) + (used % this.clusterBytes);
  }

  /** Sets the checksum of a set anew that lies in one cluster. */
  fixSet(at: number): void {
    const set = this.bytes.subarray(at, at + (1 + this.bytes[at + 1]!) * ENTRY_BYTES);
    set.writeUInt16LE(setChecksum(set), 2);
  }

  /** Sets the checksums of both boot regions anew. */
  fixBoot(): void {
    for (const region of [0, 12]) {
      const start = region * this.sectorBytes;
      const end = 11 * this.sectorBytes;
      const sum = regionChecksum(this.bytes.subarray(start, start + end), end);
      for (let at = 0; at < this.sectorBytes; at += 4) this.bytes.writeUInt32LE(sum, start + end + at);
    }
  }
}

/** By the specification, over the name in capitals. */
function nameHash(name: string): number {
  let hash = 0;
  for (const byte of Buffer.from(name.toUpperCase(), "utf16le")) {
    hash = (((hash & 1) << 15) | (hash >> 1)) + byte;
    hash &= 0xffff;
  }
  return hash;
}

/** A volume of mkfs.exfat with files of every kind, in directories of both kinds. */
export function filledExfat(folder: string, bytes: number, ...options: readonly string[]): ExfatDraft {
  const image = join(folder, "exfat.img");
  writeFileSync(image, "");
  truncateSync(image, bytes);
  run("mkfs.exfat", [...options, image]);
  return fillExfat(readFileSync(image));
}

/** @param empty the bytes of an empty volume */
export function fillExfat(empty: Buffer): ExfatDraft {
  const draft = new ExfatDraft(empty);
  const random = new Random(3);
  const content = (length: number) => random.bytes(length);
  draft.growRoot(2);
  const row = draft.addDirectory(draft.root, "In a row", 6, false);
  const linked = draft.addDirectory(row, "linked", 6, true);
  draft.addFile(draft.root, "empty", { content: content(0) });
  draft.addFile(draft.root, "Höhe.txt", { content: content(5000) });
  draft.addFile(draft.root, "scattered", { content: content(20_000), scattered: true });
  draft.addFile(draft.root, "half written", { content: content(9000), validBytes: 700 });
  for (let i = 0; i < 12; i++) {
    draft.addFile(row, `A name that takes several entries, ${i}`, { content: content(i * 700) });
    draft.addFile(linked, `file ${i}`, { content: content(i * 900), scattered: i % 2 === 0 });
  }
  draft.addFile(linked, "leaf", { content: content(3333) });
  return draft;
}

/** What blkls calls unallocated among the clusters. */
export function exfatFree(image: string): ExtentSet {
  const told = run("dump.exfat", [image]);
  const number = (name: string) => Number(new RegExp(`^${name}[^:]*:\\s+(\\d+)`, "m").exec(told)![1]);
  const sectorBytes = 2 ** number("Sector Size Bits");
  const start = number("Cluster Heap Offset") * sectorBytes;
  const end = start + number("Total Clusters") * number("Cluster size");
  return blklsFree(image, sectorBytes, { start, end });
}
