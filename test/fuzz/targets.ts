/**
 * Every parser of bytes that a guest or a stranger wrote.
 */
import type { FuzzTarget } from "../../src/testing/fuzz.ts";
import { apfs } from "./apfs.ts";
import { sparseimage, udif } from "./apple.ts";
import { btrfs } from "./btrfs.ts";
import { ext } from "./ext.ts";
import { hfsplus } from "./hfsplus.ts";
import { exfat, fat } from "./fat.ts";
import { f2fs } from "./f2fs.ts";
import { guard } from "./guard.ts";
import { journal } from "./journal.ts";
import { luks } from "./luks.ts";
import { nbdHandshake } from "./nbd-handshake.ts";
import { nbdTransmission } from "./nbd-transmission.ts";
import { ntfs } from "./ntfs.ts";
import { parallels } from "./parallels.ts";
import { parallelsBundle } from "./parallels-bundle.ts";
import { qcow2 } from "./qcow2.ts";
import { sets } from "./sets.ts";
import { vdi } from "./vdi.ts";
import { vhd } from "./vhd.ts";
import { vhdx } from "./vhdx.ts";
import { vmdk } from "./vmdk.ts";
import { volumes } from "./volumes.ts";
import { xfs } from "./xfs.ts";
import { xfsLog } from "./xfs-log.ts";

export const TARGETS: readonly FuzzTarget[] = [
  qcow2,
  parallels,
  parallelsBundle,
  sparseimage,
  udif,
  vdi,
  vhd,
  vhdx,
  vmdk,
  ext,
  btrfs,
  hfsplus,
  ntfs,
  fat,
  exfat,
  apfs,
  f2fs,
  guard,
  journal,
  sets,
  volumes,
  luks,
  xfs,
  xfsLog,
  nbdHandshake,
  nbdTransmission,
];
