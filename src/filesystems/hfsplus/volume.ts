/**
 * What an HFS+ volume consists of: the special files, found from the volume header.
 */
import type { BlockDevice } from "../../device/device.ts";
import { forkDevice } from "./fork.ts";
import { extentsOf, FORK_TYPE } from "./overflow.ts";
import { unknown } from "./refused.ts";
import { openTree, type Tree } from "./tree.ts";
import { CATALOG_ID, type Header } from "./volume-header.ts";

export interface Volume {
  /** From the first to the last byte of the HFS+ volume, without a wrapper. */
  readonly device: BlockDevice;
  readonly header: Header;
  readonly overflow: Tree;
  readonly catalog: Tree;
  /** Without: no file has attributes. */
  readonly attributes: Tree | undefined;
  readonly ignoresCase: boolean;
}

const KEY_COMPARE = { none: 0, folding: 0xcf, binary: 0xbc };

/** @throws Refused */
export async function openVolume(device: BlockDevice, header: Header): Promise<Volume> {
  const extentsFork = header.forks.get(CATALOG_ID.extents)!;
  const overflow = await openTree(
    extentsFork.name,
    forkDevice(device, extentsFork, extentsFork.given, header.blockBytes),
  );
  const treeOf = async (id: number): Promise<Tree> =>
    openTree(header.forks.get(id)!.name, await specialFile({ device, header, overflow }, id));
  const catalog = await treeOf(CATALOG_ID.catalog);
  const hasAttributes = header.forks.get(CATALOG_ID.attributes)!.blocks > 0;
  return {
    device,
    header,
    overflow,
    catalog,
    attributes: hasAttributes ? await treeOf(CATALOG_ID.attributes) : undefined,
    ignoresCase: ignoresCase(header, catalog.keyCompare),
  };
}

/** A special file as a device. @throws Refused */
export async function specialFile(
  { device, header, overflow }: Pick<Volume, "device" | "header" | "overflow">,
  id: number,
): Promise<BlockDevice> {
  const fork = header.forks.get(id)!;
  return forkDevice(
    device,
    fork,
    await extentsOf(overflow, header, id, FORK_TYPE.data, fork),
    header.blockBytes,
  );
}

function ignoresCase({ isX }: Header, keyCompare: number): boolean {
  if (isX && keyCompare === KEY_COMPARE.binary) return false;
  if (keyCompare === KEY_COMPARE.folding || (!isX && keyCompare === KEY_COMPARE.none)) return true;
  throw unknown(`catalog file: key comparison 0x${keyCompare.toString(16)} is not known`);
}
