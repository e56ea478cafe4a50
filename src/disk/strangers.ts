/**
 * What we know by name and do not read: it counts as used entirely, and the user is told what it is, in which version,
 * and what gives its space back instead.
 *
 *   signature       bytes at a place that tell
 *   verify          what else must hold, where the signature is short
 *   version         from the bytes at the place
 */
import { viewOf } from "../bytes/struct.ts";
import { type BlockDevice, readBytes } from "../device/device.ts";

export interface Stranger {
  /** With its version, where it has one: `NILFS2 2.0`. */
  readonly name: string;
  /** What the user can do instead. */
  readonly hint: string;
}

interface Signature {
  readonly name: string;
  readonly hint: string;
  /** In bytes from the start. */
  readonly at: number;
  readonly magic: string;
  /** Begins so many bytes before the magic; what `verify` and `version` are given. */
  readonly before?: number;
  readonly verify?: (view: DataView) => boolean;
  readonly version?: (view: DataView) => string;
}

/** As much as any of them needs. */
const SEEN_BYTES = 512;

const FSTRIM = "mount it in the guest and run `fstrim`; here only --also zeros returns space";
const READ_ONLY =
  "a read-only filesystem has no free space; what lies behind its end is found by --also zeros";
const REWRITE = "nothing trims it: fill its free space with zeros in the guest, then use --also zeros";
const WHOLE = "it holds something else: trim inside the guest, or use --also zeros";

const number =
  (at: number, isLittle = true) =>
  (view: DataView) =>
    `${view.getUint32(at, isLittle)}`;

const UFS = [8192, 65_536, 262_144, 0].flatMap((start) =>
  (
    [
      ["1", "\x54\x19\x01\x00"],
      ["1", "\x00\x01\x19\x54"],
      ["2", "\x19\x01\x54\x19"],
      ["2", "\x19\x54\x01\x19"],
    ] as const
  ).map(([version, magic]) => ({ name: `UFS${version}`, hint: REWRITE, at: start + 1372, magic })),
);

const MINIX = (
  [
    ["1", "\x7f\x13"],
    ["1", "\x8f\x13"],
    ["2", "\x68\x24"],
    ["2", "\x78\x24"],
  ] as const
).flatMap(([version, magic]) =>
  [true, false].map((isLittle) => ({
    name: `Minix ${version}`,
    hint: REWRITE,
    at: 1040,
    magic: isLittle ? magic : magic[1]! + magic[0]!,
    before: 16,
    verify: (view: DataView) => isMinix(view, isLittle),
  })),
);

/** The map of inodes is as long as their number says, and the data begins behind the maps. */
function isMinix(view: DataView, isLittle: boolean): boolean {
  const [inodes, inodeMap, zoneMap, firstData] = [0, 4, 6, 8].map((at) => view.getUint16(at, isLittle));
  return (
    inodes! > 0 &&
    inodeMap === Math.ceil((inodes! + 1) / 8192) &&
    zoneMap! > 0 &&
    firstData! > 2 + inodeMap! + zoneMap!
  );
}

const REISER = [0x10034, 0x2034].flatMap((at) =>
  (
    [
      ["3.5", "ReIsErFs"],
      ["3.6", "ReIsEr2Fs"],
      ["with its journal elsewhere", "ReIsEr3Fs"],
    ] as const
  ).map(([version, magic]) => ({ name: `ReiserFS ${version}`, hint: REWRITE, at, magic })),
);

const SQUASHFS = (["hsqs", "sqsh"] as const).map((magic) => ({
  name: "squashfs",
  hint: READ_ONLY,
  at: 0,
  magic,
  version: (view: DataView) =>
    `${view.getUint16(28, magic === "hsqs")}.${view.getUint16(30, magic === "hsqs")}`,
}));

const CRAMFS = [0, 512].flatMap((at) =>
  ["\x45\x3d\xcd\x28", "\x28\xcd\x3d\x45"].map((magic) => ({ name: "cramfs", hint: READ_ONLY, at, magic })),
);

const OCFS2 = [1024, 2048, 4096, 8192].map((at) => ({
  name: "OCFS2",
  hint: FSTRIM,
  at,
  magic: "OCFSV2",
  version: (view: DataView) => `${view.getUint16(0xc0, true)}.${view.getUint16(0xc2, true)}`,
}));

/** Volume descriptors lie 2 or 4 KiB apart; that of UDF stands behind those of ISO 9660, which it then outranks. */
const UDF = [2048, 4096].flatMap((step) =>
  Array.from({ length: 16 }, (_, i) => 0x8001 + (i + 1) * step).flatMap((at) => [
    { name: "UDF 1", hint: READ_ONLY, at, magic: "NSR02" },
    { name: "UDF 2", hint: READ_ONLY, at, magic: "NSR03" },
  ]),
);

const FILESYSTEMS: readonly Signature[] = [
  { name: "XFS log", hint: "it belongs to a filesystem on another device", at: 0, magic: "\xfe\xed\xba\xbe" },
  {
    name: "ReFS",
    hint: "run `Optimize-Volume -ReTrim` in the guest; here only --also zeros returns space",
    at: 3,
    magic: "ReFS\0\0\0\0",
    before: 3,
    version: (view) => `${view.getUint8(40)}.${view.getUint8(41)}`,
  },
  { name: "JFS", hint: REWRITE, at: 32_768, magic: "JFS1", version: number(4) },
  {
    name: "NILFS2",
    hint: FSTRIM,
    at: 1030,
    magic: "\x34\x34",
    before: 6,
    verify: (view) => view.getUint32(0, true) === 2 && view.getUint16(8, true) <= 1024,
    version: (view) => `${view.getUint32(0, true)}.${view.getUint16(4, true)}`,
  },
  ...UFS,
  ...MINIX,
  ...REISER,
  { name: "Reiser4", hint: FSTRIM, at: 0x10000, magic: "ReIsEr4" },
  ...OCFS2,
  {
    name: "GFS2",
    hint: FSTRIM,
    at: 0x10000,
    magic: "\x01\x16\x19\x70",
    version: (view) => `${view.getUint32(24) - 1800}`,
  },
  {
    name: "HPFS",
    hint: REWRITE,
    at: 0x2000,
    magic: "\x49\xe8\x95\xf9",
    version: (view) => `${view.getUint8(8)}`,
  },
  { name: "BFS", hint: REWRITE, at: 0, magic: "\xce\xfa\xad\x1b" },
  { name: "BeFS", hint: REWRITE, at: 544, magic: "BFS1" },
  { name: "BeFS", hint: REWRITE, at: 544, magic: "1SFB" },
  { name: "VxFS", hint: REWRITE, at: 0x400, magic: "\xf5\xfc\x01\xa5", version: number(4) },
  { name: "VxFS", hint: REWRITE, at: 0x2000, magic: "\xa5\x01\xfc\xf5", version: number(4, false) },
  {
    name: "NSS",
    hint: REWRITE,
    at: 0x1000,
    magic: "SPB5",
    version: (view) => `${view.getUint16(8, true)}.${`${view.getUint16(10, true)}`.padStart(2, "0")}`,
  },
  { name: "UBIFS", hint: REWRITE, at: 0, magic: "\x31\x18\x10\x06" },
  { name: "zonefs", hint: REWRITE, at: 0, magic: "SFOZ" },
  { name: "mpool", hint: REWRITE, at: 0, magic: "mpoolDev" },
  { name: "ScoutFS", hint: WHOLE, at: 0x10004, magic: "\x8b\x42\x3c\x10" },
  {
    name: "VMFS",
    hint: "run `esxcli storage vmfs unmap` on the host that mounts it",
    at: 0x200000,
    magic: "\x5e\xf1\xab\x2f",
    version: (view) => `${view.getUint8(8)}`,
  },
  ...SQUASHFS,
  { name: "EROFS", hint: READ_ONLY, at: 1024, magic: "\xe2\xe1\xf5\xe0" },
  ...CRAMFS,
  { name: "romfs", hint: READ_ONLY, at: 0, magic: "-rom1fs-" },
  ...UDF,
  { name: "ISO 9660", hint: READ_ONLY, at: 0x8001, magic: "CD001" },
  { name: "High Sierra", hint: READ_ONLY, at: 0x8009, magic: "CDROM" },
];

const VOLUMES: readonly Signature[] = [
  { name: "LVM1", hint: WHOLE, at: 0, magic: "HM\x01\0" },
  { name: "LVM2 snapshot", hint: WHOLE, at: 0, magic: "SnAp" },
  {
    name: "VMFS volume member",
    hint: "run `esxcli storage vmfs unmap` on the host that mounts it",
    at: 0x100000,
    magic: "\x0d\xd0\x01\xc0",
    version: number(4),
  },
  {
    name: "Core Storage",
    hint: WHOLE,
    at: 88,
    magic: "CS",
    before: 88,
    // The first block of a volume, of version 1.
    verify: (view) => view.getUint16(8, true) === 1 && view.getUint16(10, true) === 0x10,
  },
  { name: "VDO", hint: "run `fstrim` in the guest, above it", at: 0, magic: "dmvdo001" },
  {
    name: "Stratis pool",
    hint: "run `fstrim` on its filesystems in the guest",
    at: 516,
    magic: "!Stra0tis\x86\xff\x02^\x41rh",
  },
  { name: "Ceph BlueStore", hint: WHOLE, at: 0, magic: "bluestore block device" },
  { name: "DRBD control volume", hint: WHOLE, at: 0, magic: "$DRBDmgr=q" },
  { name: "UBI", hint: WHOLE, at: 0, magic: "UBI#", version: (view) => `${view.getUint8(4)}` },
  { name: "Windows dynamic disk", hint: WHOLE, at: 0xc00, magic: "PRIVHEAD" },
];

const TABLES: readonly Signature[] = [
  {
    name: "Sun disk label",
    hint: WHOLE,
    at: 508,
    magic: "\xda\xbe",
    before: 508,
    verify: (view) =>
      Array.from({ length: 256 }, (_, i) => view.getUint16(i * 2)).reduce((a, b) => a ^ b) === 0,
  },
  { name: "Solaris disk label", hint: WHOLE, at: 524, magic: "\xee\xde\x0d\x60" },
  { name: "SGI disk label", hint: WHOLE, at: 0, magic: "\x0b\xe5\xa9\x41" },
  { name: "Amiga disk label", hint: WHOLE, at: 0, magic: "RDSK" },
  { name: "Apple partition map", hint: WHOLE, at: 512, magic: "PM\0\0" },
  { name: "AIX disk label", hint: WHOLE, at: 0, magic: "\xc9\xc2\xd4\xc1" },
  { name: "DASD disk label", hint: WHOLE, at: 0x2000, magic: "\xe5\xd6\xd3\xf1" },
  { name: "DASD disk label", hint: WHOLE, at: 0x2000, magic: "\xd3\xd5\xe7\xf1" },
  ...["GEM", "BGM", "LNX", "SWP", "RAW", "XGM"].map((type) => ({
    name: "Atari disk label",
    hint: WHOLE,
    at: 455,
    magic: type,
    before: 455,
    verify: isAtari,
  })),
];

/** The first of four entries is in use and lies on a disk of as many sectors as the label says. */
function isAtari(view: DataView): boolean {
  const [sectors, start, length] = [450, 458, 462].map((at) => view.getUint32(at));
  return view.getUint8(454) === 1 && start! > 0 && length! > 0 && start! + length! <= sectors!;
}

const STRANGERS: readonly Signature[] = [...VOLUMES, ...FILESYSTEMS, ...TABLES];

/** So far most signatures lie; they are read at once. */
const HEAD_BYTES = 72 * 1024;

/** What the device holds, by name, as far as it is known and not read. */
export async function strangerIn(device: BlockDevice): Promise<Stranger | undefined> {
  const head = Buffer.from(await readBytes(device, 0, Math.min(device.bytes, HEAD_BYTES)));
  for (const signature of STRANGERS) {
    const { at, magic, before = 0, verify, version, name, hint } = signature;
    if (at + magic.length > device.bytes) continue;
    const isNear = at + magic.length <= head.length;
    const found = isNear ? head.subarray(at, at + magic.length) : await readBytes(device, at, magic.length);
    if (Buffer.from(found).toString("latin1") !== magic) continue;
    const seen = new Uint8Array(SEEN_BYTES);
    const start = at - before;
    seen.set(await readBytes(device, start, Math.min(SEEN_BYTES, device.bytes - start)));
    if (verify !== undefined && !verify(viewOf(seen))) continue;
    return { name: version === undefined ? name : `${name} ${version(viewOf(seen))}`, hint };
  }
  return undefined;
}
