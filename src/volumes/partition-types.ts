/**
 * What partition types are called. Only names: whether a partition holds a filesystem is read from its content.
 */

/** By the type GUID of GPT, in text. */
const GPT_TYPES: ReadonlyMap<string, string> = new Map([
  ["c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "EFI system"],
  ["21686148-6449-6e6f-744e-656564454649", "BIOS boot"],
  ["024dee41-33e7-11d3-9d69-0008c781f39f", "MBR partition scheme"],
  ["9e1a2d38-c612-4316-aa26-8b49521e5a8b", "PowerPC PReP boot"],
  ["bc13c2ff-59e6-4262-a352-b275fd6f7172", "Linux extended boot"],
  ["0fc63daf-8483-4772-8e79-3d69d8477de4", "Linux"],
  ["4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "Linux root (x86-64)"],
  ["b921b045-1df0-41c3-af44-4c6f280d3fae", "Linux root (ARM-64)"],
  ["44479540-f297-41b2-9af7-d131d5f0458a", "Linux root (x86)"],
  ["69dad710-2ce4-4e3c-b16c-21a1d49abed3", "Linux root (ARM)"],
  ["72ec70a6-cf74-40e6-bd49-4bda08e8f224", "Linux root (RISC-V-64)"],
  ["933ac7e1-2eb4-4f13-b844-0e14e2aef915", "Linux home"],
  ["3b8f8425-20e0-4f3b-907f-1a25a76f98e8", "Linux server data"],
  ["4d21b016-b534-45c2-a9fb-5c16e091fd2d", "Linux variable data"],
  ["0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "Linux swap"],
  ["e6d6d379-f507-44c2-a23c-238f2a3df928", "Linux LVM"],
  ["a19d880f-05fc-4d3b-a006-743f0f84911e", "Linux RAID"],
  ["ca7d7ccb-63ed-4c53-861c-1742536059cc", "Linux LUKS"],
  ["8da63339-0007-60c0-c436-083ac8230908", "Linux reserved"],
  ["ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", "Microsoft basic data"],
  ["e3c9e316-0b5c-4db8-817d-f92df00215ae", "Microsoft reserved"],
  ["de94bba4-06d1-4d40-a16a-bfd50179d6ac", "Windows recovery"],
  ["5808c8aa-7e8f-42e0-85d2-e1e90434cfb3", "Windows LDM metadata"],
  ["af9b60a0-1431-4f62-bc68-3311714a69ad", "Windows LDM data"],
  ["e75caf8f-f680-4cee-afa3-b001e56efc2d", "Windows Storage Spaces"],
  ["48465300-0000-11aa-aa11-00306543ecac", "Apple HFS+"],
  ["7c3457ef-0000-11aa-aa11-00306543ecac", "Apple APFS"],
  ["53746f72-6167-11aa-aa11-00306543ecac", "Apple Core Storage"],
  ["426f6f74-0000-11aa-aa11-00306543ecac", "Apple boot"],
  ["83bd6b9d-7f41-11dc-be0b-001560b84f0f", "FreeBSD boot"],
  ["516e7cb4-6ecf-11d6-8ff8-00022d09712b", "FreeBSD disklabel"],
  ["516e7cb5-6ecf-11d6-8ff8-00022d09712b", "FreeBSD swap"],
  ["516e7cb6-6ecf-11d6-8ff8-00022d09712b", "FreeBSD UFS"],
  ["516e7cba-6ecf-11d6-8ff8-00022d09712b", "FreeBSD ZFS"],
  ["6a898cc3-1dd2-11b2-99a6-080020736631", "ZFS"],
  ["6a945a3b-1dd2-11b2-99a6-080020736631", "Solaris reserved"],
  ["fe3a2a5d-4f32-41a7-b725-accc3285a309", "ChromeOS kernel"],
  ["3cb8e202-3b7e-47dd-8a3c-7ff2a13cfcec", "ChromeOS root"],
  ["aa31e02a-400f-11db-9590-000c2911d1b8", "VMware VMFS"],
]);

/** By the type byte of the MBR. */
const MBR_TYPES: ReadonlyMap<number, string> = new Map([
  [0x01, "FAT12"],
  [0x04, "FAT16"],
  [0x06, "FAT16"],
  [0x07, "NTFS, exFAT or HPFS"],
  [0x0b, "FAT32"],
  [0x0c, "FAT32"],
  [0x0e, "FAT16"],
  [0x27, "Windows recovery"],
  [0x42, "Windows LDM"],
  [0x81, "Minix"],
  [0x82, "Linux swap"],
  [0x83, "Linux"],
  [0x8e, "Linux LVM"],
  [0xa5, "FreeBSD"],
  [0xa6, "OpenBSD"],
  [0xa8, "Apple UFS"],
  [0xa9, "NetBSD"],
  [0xaf, "Apple HFS+"],
  [0xbf, "Solaris"],
  [0xef, "EFI system"],
  [0xfb, "VMware VMFS"],
  [0xfd, "Linux RAID"],
]);

/** Types whose content means something only together with other partitions or disks. */
const SETS: ReadonlyMap<string, string> = new Map([
  ["Linux RAID", "a Linux RAID set"],
  ["Windows LDM", "a Windows dynamic disk"],
  ["Windows LDM metadata", "a Windows dynamic disk"],
  ["Windows LDM data", "a Windows dynamic disk"],
  ["Windows Storage Spaces", "a Windows storage pool"],
]);

/** Types that bring a table of their own, which may reach outside of the partition. */
const TABLES_WITHIN: ReadonlySet<string> = new Set([
  "Windows LDM",
  "Windows LDM metadata",
  "Windows LDM data",
  "MBR partition scheme",
  "Minix",
  "FreeBSD",
  "FreeBSD disklabel",
  "OpenBSD",
  "NetBSD",
  "Apple UFS",
  "Solaris",
]);

/** Types that firmware, boot loaders and tables have for themselves. */
const BARE: ReadonlySet<string> = new Set([
  "BIOS boot",
  "PowerPC PReP boot",
  "Microsoft reserved",
  "FreeBSD boot",
  "Solaris reserved",
]);

/** The name of a GPT type, or the GUID itself. */
export function gptTypeName(guid: string): string {
  return GPT_TYPES.get(guid) ?? guid;
}

/** The name of an MBR type, or its number. */
export function mbrTypeName(type: number): string {
  return MBR_TYPES.get(type) ?? `type 0x${type.toString(16).padStart(2, "0")}`;
}

/** The set that a partition with this type name is only a part of. */
export function setOf(typeName: string): string | undefined {
  return SETS.get(typeName);
}

/** Whether no guest's state can be in what has this type name, when nothing in it is recognised. */
export function holdsNoFilesystem(typeName: string): boolean {
  return BARE.has(typeName);
}

/** Why, with partitions of these type names, space outside of them may belong to someone all the same. */
export function reachOutside(typeNames: readonly string[]): string | undefined {
  const name = typeNames.find((typeName) => TABLES_WITHIN.has(typeName));
  return name === undefined ? undefined : `the ${name} partition has a table of its own`;
}
