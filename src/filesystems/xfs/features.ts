/**
 * The feature words of the superblock. A bit that is not listed as understood refuses the whole filesystem (H1).
 *
 *   version 4:  versionnum (its low four bits are the version), features2
 *   version 5:  the same, and compat, ro_compat, incompat, log_incompat
 *
 * Names are those of mkfs.xfs(8) where it has one. fs/xfs/libxfs/xfs_format.h of Linux lists the bits.
 */
import { Refused } from "../refused.ts";
import type { Superblock } from "./superblock.ts";

const VERSION = {
  attr: 0x10,
  nlink: 0x20,
  quota: 0x40,
  align: 0x80,
  dalign: 0x100,
  shared: 0x200,
  logv2: 0x400,
  sector: 0x800,
  extflg: 0x1000,
  dirv2: 0x2000,
  "ascii-ci": 0x4000,
  morebits: 0x8000,
} as const;

const FEATURES2 = {
  "lazy-count": 0x2,
  attr2: 0x8,
  "parent (IRIX)": 0x10,
  projid32bit: 0x80,
  crc: 0x100,
  ftype: 0x200,
} as const;

const RO_COMPAT = { finobt: 0x1, rmapbt: 0x2, reflink: 0x4, inobtcount: 0x8 } as const;

const INCOMPAT = {
  ftype: 0x1,
  sparse: 0x2,
  "meta-uuid": 0x4,
  bigtime: 0x8,
  needsrepair: 0x10,
  nrext64: 0x20,
  exchange: 0x40,
  parent: 0x80,
  metadir: 0x100,
  zoned: 0x200,
  "zone-gaps": 0x400,
} as const;

/** Only intents of the log speak of it. */
const LOG_INCOMPAT = { "logged-attributes": 0x1 } as const;

/** Known by name, but nothing here vouches for a filesystem that has one. */
const REFUSED = new Set(["shared", "parent (IRIX)", "metadir", "zoned", "zone-gaps"]);

export const hasVersion = (sb: Superblock, name: keyof typeof VERSION) =>
  (sb.versionnum & VERSION[name]) !== 0;
export const hasFeature2 = (sb: Superblock, name: keyof typeof FEATURES2) =>
  (sb.features2 & FEATURES2[name]) !== 0;
export const hasRoCompat = (sb: Superblock, name: keyof typeof RO_COMPAT) =>
  (sb.roCompat & RO_COMPAT[name]) !== 0;
export const hasIncompat = (sb: Superblock, name: keyof typeof INCOMPAT) =>
  (sb.incompat & INCOMPAT[name]) !== 0;

/** Whether directories say what kind of file an entry leads to. */
export const hasTypes = (sb: Superblock) => hasFeature2(sb, "ftype") || hasIncompat(sb, "ftype");

/** @throws Refused `feature-unknown`, `feature-unsupported` or `needs-repair`, naming the bit */
export function checkFeatures(sb: Superblock): void {
  checkWord("versionnum", sb.versionnum & ~0xf, VERSION);
  checkWord("features2", sb.features2, FEATURES2);
  checkWord("compat", sb.compat, {});
  checkWord("ro_compat", sb.roCompat, RO_COMPAT);
  checkWord("incompat", sb.incompat, INCOMPAT);
  checkWord("log_incompat", sb.logIncompat, LOG_INCOMPAT);
  for (const name of ["extflg", "dirv2"] as const) {
    if (!hasVersion(sb, name)) {
      throw new Refused(
        "feature-unsupported",
        `superblock: an XFS without ${name} is not supported`,
        "all of this filesystem counts as used",
      );
    }
  }
  if (hasIncompat(sb, "needsrepair")) {
    throw new Refused(
      "needs-repair",
      "superblock: it says itself that it needs a repair",
      "run xfs_repair on it in the guest, then try again",
    );
  }
}

function checkWord(word: string, value: number, known: Readonly<Record<string, number>>): void {
  const names = new Map(Object.entries(known).map(([name, bit]) => [bit, name]));
  for (let shift = 0; shift < 32; shift++) {
    const bit = (1 << shift) >>> 0;
    if ((value & bit) === 0) continue;
    const name = names.get(bit);
    if (name === undefined) {
      throw new Refused(
        "feature-unknown",
        `superblock: ${word} feature bit 0x${bit.toString(16)} is unknown`,
        "a newer Ullage may know it",
      );
    }
    if (REFUSED.has(name)) {
      throw new Refused(
        "feature-unsupported",
        `superblock: the feature ${name} is not supported`,
        "all of this filesystem counts as used",
      );
    }
  }
}
