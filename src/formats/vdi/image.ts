/**
 * A VDI, opened.
 *
 *   header ─→ parent by UUID ─→ block map ─→ BlockImage
 *
 * A writer keeps what the others rely on: a new block gets the slot behind those that are allocated, where the file
 * ends; the count follows with the map when the data are durable; what was modified has a new UUID.
 * Specification: VirtualBox, src/VBox/Storage/VDICore.h and VDI.cpp.
 */
import { size } from "../../bytes/sizes.ts";
import type { HostFile, ReadableFile } from "../../device/device.ts";
import type { Source } from "../../device/source.ts";
import { DiskError } from "../../error.ts";
import { BlockImage, type ImageFacts, WritableBlockImage } from "../blocks/image.ts";
import type { WriterHooks } from "../blocks/write.ts";
import type { Finding, Image, OpenParent, WritableImage } from "../format.ts";
import { Header, readHeader, type VdiHeader } from "./header.ts";
import { countBytes, layOut, type VdiLayout } from "./layout.ts";
import { openParentOf, referenceOf } from "./parent.ts";

export function openVdi(file: ReadableFile, source: Source, openParent: OpenParent): Promise<Image> {
  return openAs(file, source, openParent, (layout, facts) => new BlockImage(layout, facts));
}

export function openWritableVdi(
  file: HostFile,
  source: Source,
  openParent: OpenParent,
): Promise<WritableImage> {
  return openAs(file, source, openParent, (layout, facts) => {
    return new WritableBlockImage(layout, facts, hooksOf(layout));
  });
}

async function openAs<F extends ReadableFile, I>(
  file: F,
  source: Source,
  openParent: OpenParent,
  make: (layout: VdiLayout<F>, facts: ImageFacts) => I,
): Promise<I> {
  const header = await readHeader(file);
  const parent = header.parent && (await openParentOf(source, header.parent, openParent));
  try {
    const layout = await layOut(file, header, parent?.image);
    return make(layout, factsOf(header, layout, parent));
  } catch (error) {
    await parent?.image[Symbol.asyncDispose]();
    throw error;
  }
}

function factsOf(
  header: VdiHeader,
  layout: VdiLayout<ReadableFile>,
  parent: { readonly image: Image; readonly name: string } | undefined,
): ImageFacts {
  const { kind, uuid, modified, faults } = header;
  const all = [...faults, ...countFaults(layout)];
  return {
    format: "vdi",
    summary: `${kind}, blocks of ${size(layout.blockBytes)}`,
    details: {
      subformat: kind,
      blocks: header.fields.blocks,
      blocksAllocated: header.fields.blocksAllocated,
      uuid,
      modified,
    },
    references: header.parent && parent ? [referenceOf(header.parent, parent.name)] : [],
    identifiers: [uuid],
    parent: parent?.image,
    async *check(): AsyncGenerator<Finding> {
      for (const message of all) yield { kind: "error", isMendable: false, count: 1, message };
    },
    requireWritable: () => requireFaultless(all),
  };
}

/** Where the count is too low, whoever writes next overwrites a block. */
function countFaults({ allocated, slots }: VdiLayout<ReadableFile>): string[] {
  if (allocated >= slots) return [];
  return [
    `blocks allocated at 0x${Header.at.blocksAllocated.toString(16)}: found ${allocated}, expected ${slots}`,
  ];
}

function requireFaultless([fault]: readonly string[]): void {
  if (fault === undefined) return;
  throw new DiskError("refused", `this VDI is only read: ${fault}`, {
    code: "vdi-fault",
    hint: "convert the image into a new one",
  });
}

function hooksOf(layout: VdiLayout<HostFile>): WriterHooks {
  const { file, modification, baseBytes, unitBytes } = layout;
  return {
    async begin() {
      const { hostBytes } = await file.stat();
      const end = baseBytes + layout.allocated * unitBytes;
      // Behind the allocated blocks lies nobody's; the next block is to lie there, and to begin as zeros.
      if (hostBytes !== null && file.bytes > end) await file.truncate(end);
      await file.write(Header.at.uuidModify, modification);
      await file.flush();
    },
    async settle({ slots }) {
      if (slots <= layout.allocated) return;
      await file.write(Header.at.blocksAllocated, countBytes(slots));
      // Before any entry: whoever opened the image in between would put its next block over a new one.
      await file.flush();
      layout.allocated = slots;
    },
  };
}
