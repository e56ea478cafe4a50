/**
 * Linux RAID superblocks of version 1 by hand: the kernel here has no md, and `mdadm --examine` judges them.
 */
import { viewOf } from "../bytes/struct.ts";
import { SuperblockV1 } from "../volumes/mdraid/version-1.ts";

type Values = Parameters<typeof SuperblockV1.encode>[0];

/** A clean member of a set in which every member is in service. */
export function memberSuperblock(role: number, members: number, values: Values): Uint8Array {
  const bytes = new Uint8Array(4096);
  const common: Values = {
    magic: 0xa92b4efc,
    major: 1,
    uuid: Buffer.from("a set by hand..."),
    name: "host:0",
    resyncOffset: 0xffff_ffff_ffff_ffffn,
    events: 17n,
    members,
    roles: members,
    number: role,
  };
  SuperblockV1.encode({ ...common, ...values }, bytes);
  for (let i = 0; i < members; i++) viewOf(bytes).setUint16(256 + i * 2, i, true);
  fixChecksum(bytes);
  return bytes;
}

/** Makes the checksum fit what the superblock at the start of `bytes` says. */
export function fixChecksum(bytes: Uint8Array): void {
  const view = viewOf(bytes);
  const end = Math.min(bytes.length - 2, 256 + view.getUint32(SuperblockV1.at.roles, true) * 2);
  let sum = 0n;
  for (let at = 0; at + 4 <= end; at += 4) {
    if (at !== SuperblockV1.at.checksum) sum += BigInt(view.getUint32(at, true));
  }
  if (end % 4 === 2) sum += BigInt(view.getUint16(end - 2, true));
  const folded = ((sum & 0xffff_ffffn) + (sum >> 32n)) & 0xffff_ffffn;
  view.setUint32(SuperblockV1.at.checksum, Number(folded), true);
}
