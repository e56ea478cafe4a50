/** Object ids of trees, and the types of items. */

export const TREE = {
  root: 1n,
  extent: 2n,
  chunk: 3n,
  device: 4n,
  filesystem: 5n,
  rootDirectory: 6n,
  checksum: 7n,
  quota: 8n,
  uuid: 9n,
  freeSpace: 10n,
  blockGroup: 11n,
  log: 2n ** 64n - 6n,
  relocation: 2n ** 64n - 8n,
  dataRelocation: 2n ** 64n - 9n,
} as const;

/** Subvolumes and snapshots have ids from here on. */
export const FIRST_SUBVOLUME = 256n;
const LAST_SUBVOLUME = 2n ** 64n - 256n;

/** Whether it is a tree of files that people see. */
export const isSubvolume = (tree: bigint): boolean =>
  tree === TREE.filesystem || (tree >= FIRST_SUBVOLUME && tree <= LAST_SUBVOLUME);

const NAMES: ReadonlyMap<bigint, string> = new Map([
  [TREE.root, "root tree"],
  [TREE.extent, "extent tree"],
  [TREE.chunk, "chunk tree"],
  [TREE.device, "device tree"],
  [TREE.filesystem, "file tree"],
  [TREE.checksum, "checksum tree"],
  [TREE.quota, "quota tree"],
  [TREE.uuid, "UUID tree"],
  [TREE.freeSpace, "free space tree"],
  [TREE.blockGroup, "block group tree"],
  [TREE.log, "log tree"],
  [TREE.relocation, "relocation tree"],
  [TREE.dataRelocation, "data relocation tree"],
]);

export const treeName = (tree: bigint): string =>
  NAMES.get(tree) ?? (isSubvolume(tree) ? `file tree of subvolume ${tree}` : `tree ${tree}`);

/** Item types that are looked at. */
export const KEY = {
  inode: 1,
  inodeReference: 12,
  inodeReferences: 13,
  directoryItem: 84,
  directoryIndex: 96,
  fileExtent: 108,
  root: 132,
  rootBackReference: 144,
  extent: 168,
  metadata: 169,
  blockGroup: 192,
  freeSpaceExtent: 199,
  freeSpaceBitmap: 200,
  deviceExtent: 204,
  device: 216,
  chunk: 228,
  deviceReplace: 250,
} as const;

/** Every item type that is known. One that is not may refer to space that nobody else does. */
const KNOWN = [
  [0, 1, 12, 13, 24, 36, 37, 48, 60, 72, 84, 96, 108, 128, 132, 144, 156, 168, 169, 172, 176, 178, 182, 184],
  [192, 198, 199, 200, 204, 216, 228, 240, 242, 244, 246, 248, 249, 250, 251, 252, 253],
].flat();

export const IS_KNOWN = Uint8Array.from({ length: 256 }, (_, type) => (KNOWN.includes(type) ? 1 : 0));
