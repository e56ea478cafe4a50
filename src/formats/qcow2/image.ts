/**
 * An image as everything but its format sees it: the disk of `read.ts`, with its snapshots, tables, check and plan.
 */
import { size } from "../../bytes/sizes.ts";
import type { ReadableFile } from "../../device/device.ts";
import type { Plan, Wish } from "../../reclaim/plan.ts";
import type { Finding, Image, Reference, Snapshot } from "../format.ts";
import { inspect } from "./check.ts";
import { CompressedClusters } from "./compressed.ts";
import type { Qcow2Context } from "./context.ts";
import { Compatible, type Header } from "./header.ts";
import { planReclaim } from "./plan.ts";
import { Qcow2Disk } from "./read.ts";
import { planRepairLeaks } from "./repair.ts";
import { checkedSnapshot, readSnapshots } from "./snapshots.ts";
import { describe, tableClusters } from "./structures.ts";
import { readL1 } from "./tables.ts";

export class Qcow2Image extends Qcow2Disk implements Image {
  readonly format = "qcow2";
  readonly parent: Image | undefined;
  readonly #context: Qcow2Context;
  protected readonly compressed: CompressedClusters;

  constructor(context: Qcow2Context, parent: Image | undefined) {
    const compressed = new CompressedClusters(context);
    super(context, context.l1, context.header.virtualBytes, parent, compressed);
    this.#context = context;
    this.compressed = compressed;
    this.parent = parent;
  }

  get grainBytes(): number {
    return this.#context.header.subclusterBytes;
  }

  get encrypted(): boolean {
    return this.#context.header.encryption !== "none";
  }

  get files(): ReadonlyMap<string, ReadableFile> {
    const { file, data, header } = this.#context;
    const files = new Map([["", file]]);
    if (header.externalData) files.set(header.dataFileName!, data);
    return files;
  }

  get references(): readonly Reference[] {
    return referencesOf(this.#context.header);
  }

  get summary(): string {
    return summaryOf(this.#context.header);
  }

  get details(): Image["details"] {
    return detailsOf(this.#context.header);
  }

  async tableBytes(): Promise<number> {
    return (await tableClusters(this.#context)).bytes;
  }

  async snapshots(): Promise<readonly Snapshot[]> {
    const { file, header } = this.#context;
    const { entries } = await readSnapshots(file, header);
    return entries.map((entry) => ({
      id: entry.id,
      name: entry.name,
      bytes: entry.virtualBytes,
      stateBytes: entry.stateBytes,
      open: async () => {
        checkedSnapshot(file, header, entry);
        const l1 = await readL1(
          this.#context,
          `L1 table of snapshot ${entry.id}`,
          entry.l1At,
          entry.l1Entries,
        );
        return new Qcow2Disk(this.#context, l1, entry.virtualBytes, this.parent, this.compressed);
      },
    }));
  }

  async *check(): AsyncGenerator<Finding> {
    yield* (await inspect(this.#context)).findings;
  }

  plan(wish: Wish): Promise<Plan> {
    return planReclaim(this.#context, wish, this);
  }

  repairLeaks(): Promise<Plan> {
    return planRepairLeaks(this.#context);
  }

  describe(fileOffset: number): Promise<string | undefined> {
    return describe(this.#context, fileOffset);
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    const { file, data } = this.#context;
    await this.parent?.[Symbol.asyncDispose]();
    if (data !== file) await data[Symbol.asyncDispose]();
    await file[Symbol.asyncDispose]();
  }
}

/** What the header names: nothing of it is opened. */
export function referencesOf(header: Header): Reference[] {
  const { backing, dataFileName, externalData } = header;
  const references: Reference[] = [];
  if (backing) references.push({ role: "backing", ...backing });
  if (externalData && dataFileName !== undefined)
    references.push({ role: "data", name: dataFileName, format: "raw" });
  return references;
}

function summaryOf(header: Header): string {
  const { clusterBytes, snapshotCount } = header;
  const snapshots =
    snapshotCount === 0 ? "no snapshots" : `${snapshotCount} snapshot${snapshotCount > 1 ? "s" : ""}`;
  const facts = [`${size(clusterBytes)} clusters`, snapshots];
  if (header.version === 2) facts.push("version 2");
  if (header.extendedL2) facts.push("subclusters");
  if (header.backing) facts.push("backing file");
  if (header.externalData) facts.push("external data file");
  if (header.encryption !== "none") facts.push(`encrypted (${header.encryption})`);
  if (header.dirty) facts.push("refcounts dirty");
  if (header.corrupt) facts.push("marked corrupt");
  return facts.join(", ");
}

function detailsOf(header: Header): Image["details"] {
  return {
    compat: header.version === 2 ? "0.10" : "1.1",
    clusterBytes: header.clusterBytes,
    refcountBits: 2 ** header.refcountOrder,
    lazyRefcounts: (header.compatible & Compatible.lazyRefcounts) !== 0n,
    extendedL2: header.extendedL2,
    compressionType: header.compression,
    encryption: header.encryption,
    snapshots: header.snapshotCount,
    bitmaps: header.bitmaps?.count ?? 0,
    dirty: header.dirty,
    corrupt: header.corrupt,
    externalData: header.externalData,
    rawExternalData: header.rawExternalData,
  };
}
