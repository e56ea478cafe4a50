import assert from "node:assert/strict";
import { basename } from "node:path";
import { test } from "node:test";
import type { BlockDevice } from "../device/device.ts";
import { FILESYSTEMS } from "../filesystems/all.ts";
import { corpus, corpusFiles, unpack } from "../testing/corpus.ts";
import { fileDevice } from "../testing/file-device.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { attempt, requires, run } from "../testing/tools.ts";
import { blankDisk } from "../testing/partitions.ts";
import { SCHEMES } from "../volumes/all.ts";
import { strangerIn } from "./strangers.ts";

/** Everything that the device is taken for, in words. */
async function namesOf(device: BlockDevice): Promise<string> {
  const names = [];
  for (const reader of FILESYSTEMS) if (await reader.probe(device)) names.push(reader.name);
  for (const scheme of SCHEMES) {
    if (!(await scheme.probe(device))) continue;
    names.push(scheme.name);
    if (scheme.name === "raid") names.push((await scheme.open([device])).refusal!.message);
  }
  const stranger = await strangerIn(device);
  if (stranger !== undefined) names.push(stranger.name);
  return names.join(", ");
}

/** What a type of blkid is called here; `$` stands for blkid's version. */
const NAMES: Readonly<Record<string, string>> = {
  adaptec_raid_member: "Adaptec",
  apfs: "apfs",
  bcache: "a bcache set",
  befs: "BeFS",
  bfs: "BFS",
  BitLocker: "bitlocker",
  btrfs: "btrfs",
  ceph_bluestore: "Ceph BlueStore",
  cramfs: "cramfs",
  crypto_LUKS: "luks",
  ddf_raid_member: "DDF",
  drbd: "DRBD mirror",
  drbdmanage_control_volume: "DRBD control volume",
  erofs: "EROFS",
  exfat: "exfat",
  ext2: "ext",
  ext3: "ext",
  ext4: "ext",
  f2fs: "f2fs",
  gfs2: "GFS2 $",
  hfs: "hfs",
  hfsplus: "hfsplus",
  hpfs: "HPFS $",
  hpt37x_raid_member: "HighPoint",
  hpt45x_raid_member: "HighPoint",
  iso9660: "ISO 9660",
  isw_raid_member: "Intel",
  jbd: "ext",
  jfs: "JFS",
  jmicron_raid_member: "JMicron",
  linux_raid_member: "mdraid",
  lsi_mega_raid_member: "LSI",
  LVM2_member: "lvm2",
  minix: "Minix $",
  mpool: "mpool",
  nilfs2: "NILFS2 $",
  nss: "NSS $",
  ntfs: "ntfs",
  nvidia_raid_member: "NVIDIA",
  ocfs2: "OCFS2 $",
  promise_fasttrack_raid_member: "Promise",
  reiser4: "Reiser4",
  reiserfs: "ReiserFS",
  romfs: "romfs",
  silicon_medley_raid_member: "Silicon",
  squashfs: "squashfs $",
  squashfs3: "squashfs $",
  swap: "swap",
  swsuspend: "swap",
  ubi: "UBI $",
  ubifs: "UBIFS",
  udf: "UDF",
  ufs: "UFS$",
  vdo: "VDO",
  vfat: "fat",
  via_raid_member: "VIA",
  VMFS: "VMFS $",
  VMFS_volume_member: "VMFS volume member $",
  vxfs: "VxFS $",
  xfs: "xfs",
  xfs_external_log: "XFS log",
  zfs_member: "ZFS pool of version $",
  zonefs: "zonefs",
  "table atari": "Atari",
  "table dos": "mbr",
  "table gpt": "gpt",
  "table sgi": "SGI",
  "table sun": "Sun",
};

/** Those that this blkid does not know or finds ambiguous, and what they are. */
const UNKNOWN_TO_BLKID: Readonly<Record<string, string>> = {
  "bcachefs.img": "a bcachefs",
  "bcachefs-2.img": "a bcachefs",
  "bcachefs-3.img": "a bcachefs",
  "bsd.img": "bsd",
  "cs_fvault2.img": "Core Storage",
  "dasd-cdl.img": "DASD",
  "dasd-ldl.img": "DASD",
  "erofs-minix-magic.img": "EROFS",
  "scoutfs_data.img": "ScoutFS",
  "scoutfs_meta.img": "ScoutFS",
};

/** LUKS2 whose first header was made into a swap area: the reader of swap refuses it. */
const DELIBERATELY_OTHERWISE: Readonly<Record<string, string>> = { "swap-luks.img": "swap" };

test("everything in util-linux' suite is called what blkid calls it", async (t) => {
  if (corpus(t) === undefined || !requires(t, "blkid")) return;
  const files = corpusFiles(/util-linux.*blkid\/images-(fs|pt)\/(?!fat32_(mkdosfs|xp)_).*\.img\.xz$/);
  assert.ok(files.length > 90);
  for (const file of files) {
    const path = unpack(t, file);
    await using device = await fileDevice(path);
    const name = basename(path);
    const names = await namesOf(device);
    const said = attempt("blkid", ["-p", "-o", "export", path]).stdout;
    const value = (key: string) => new RegExp(`^${key}=(.*)$`, "m").exec(said)?.[1];
    const table = value("PTTYPE");
    const type = value("TYPE") ?? (table === undefined ? undefined : `table ${table}`);
    const special = DELIBERATELY_OTHERWISE[name] ?? UNKNOWN_TO_BLKID[name];
    const expected = special ?? (type === undefined ? undefined : NAMES[type]);
    if (type === undefined && special === undefined) {
      assert.equal(names, "", `${name} is unknown to blkid`);
      continue;
    }
    assert.notEqual(expected, undefined, `${name}: blkid says ${type}`);
    const wanted = expected!.replace("$", value("VERSION") ?? "").toLowerCase();
    assert.ok(names.toLowerCase().includes(wanted), `${name}: ${wanted} is not in "${names}"`);
  }
});

/** What mkfs makes, and how it is called here. */
const MADE: readonly (readonly [tool: string, args: readonly string[], name: RegExp])[] = [
  ["mkfs.jfs", ["-q"], /^JFS [12]$/],
  ["mkfs.nilfs2", ["-q", "-f"], /^NILFS2 2\.0$/],
  ["mkfs.minix", ["-1"], /^Minix 1$/],
  ["mkfs.minix", ["-2"], /^Minix 2$/],
  ["mkudffs", ["--media-type=hd"], /^UDF 2$/],
  ["mkudffs", ["--media-type=hd", "--udfrev=1.02"], /^UDF 1$/],
];

test("what mkfs makes is named with its version, and what it has instead", async (t) => {
  for (const [tool, args, name] of MADE) {
    if (!requires(t, tool)) continue;
    const path = blankDisk(t, 160 * 1024 * 1024);
    run(tool, [...args, path]);
    await using device = await fileDevice(path);
    const stranger = await strangerIn(device);
    assert.match(stranger?.name ?? "", name, tool);
    assert.ok(stranger!.hint.length > 20);
  }
});

test("ReFS is named with the version in its boot sector", async () => {
  for (const [version, name] of [
    ["0102", "ReFS 1.2"],
    ["0304", "ReFS 3.4"],
  ] as const) {
    const sector = Buffer.alloc(4096);
    sector.write("ReFS", 3);
    sector.set(Buffer.from(version, "hex"), 40);
    const stranger = await strangerIn(SimulatedFile.from(sector));
    assert.equal(stranger?.name, name);
    assert.match(stranger!.hint, /ReTrim/);
  }
});

test("a short signature alone is not believed", async () => {
  const device = new SimulatedFile(4 * 1024 * 1024);
  for (const [at, magic] of [
    [1024, "BD"],
    [1030, "\x34\x34"],
    [1040, "\x7f\x13"],
    [1040, "\x13\x8f"],
    [508, "\xda\xbe\x01\x01"],
    [455, "GEM"],
    [88, "CS"],
    [4 * 1024 * 1024 - 512, "JM\x01\x02\x03"],
    [4 * 1024 * 1024 - 512, "\x55\xaa\x01\x02\x03"],
    [4 * 1024 * 1024 - 416, "\0\0\0\x2f"],
  ] as const) {
    await device.write(at, Buffer.from(magic, "latin1"));
    assert.equal(await namesOf(device), "", magic);
    await device.write(at, new Uint8Array(magic.length));
  }
});

test("any bytes and any length: a name or none, never an exception", async () => {
  for (const seed of seeds(200)) {
    const random = new Random(seed);
    const device = SimulatedFile.from(random.bytes(random.below(1600)));
    await strangerIn(device);
    await namesOf(device);
  }
});
