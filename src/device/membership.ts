/**
 * A device that is one of several which only together hold something: a volume group, a RAID set, a filesystem on many
 * disks. Alone it says which set it belongs to, and how many make the set whole (H36).
 */
export interface Membership {
  /** What the set is: `LVM2 volume group`, `Linux RAID`, `Btrfs`. */
  readonly kind: string;
  /** Identifies the set, as its members spell it: a UUID. "": this one cannot say, and belongs where it is expected. */
  readonly set: string;
  /** What a person calls the set, or "". */
  readonly name: string;
  /** Identifies this member in its set; two devices that claim the same are a copy and its original. */
  readonly member: string;
  /** The identifiers of all members, when this one knows them; in the order in which the set is opened. */
  readonly members?: readonly string[];
  /** How many members make the set whole, where it can say. 1: this device alone is all of it. */
  readonly total: number;
}
