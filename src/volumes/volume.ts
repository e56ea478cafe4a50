/**
 * What every partition table and volume manager offers.
 */
import type { Extent, ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import type { Refusal } from "../error.ts";

export interface VolumeScheme {
  /** `gpt`, `mbr`, `lvm2`. */
  readonly name: string;
  /** What shows through it must not be read as if it were alone: a member of a set. It outranks every filesystem. */
  readonly hidesContent?: boolean;
  /** Whether the device begins with this scheme. Must not throw on any content. */
  probe(disk: BlockDevice): Promise<boolean>;
  /**
   * Reads the table. A damaged table gives a `refusal` and no volumes, so that everything counts as used.
   * @throws DiskError `io`
   */
  open(disks: readonly BlockDevice[]): Promise<VolumeTable>;
}

export interface VolumeTable {
  readonly scheme: string;
  readonly volumes: readonly Volume[];
  /** Per disk: bytes that no volume holds and no table, boot loader or reserve needs: what `--also gaps` may free. */
  readonly gaps: readonly ExtentSet[];
  /** Set: the table is not trusted, `volumes` is empty and every byte counts as used. */
  readonly refusal?: Refusal;
  /** Remarks for people: a hybrid MBR, a bad backup header. */
  readonly notes: readonly string[];
  /** What lies at a byte outside every volume: `GPT header`, `boot code`, `gap between partitions`. */
  describe(disk: number, at: number): string;
}

export interface Volume {
  /** Short and unique in its table: `1`, `2`, or `vg/root`. */
  readonly name: string;
  /** The name that a person gave it, or "". */
  readonly label: string;
  /** What the table says it holds: `EFI system`, `Linux`, a type code. */
  readonly type: string;
  readonly device: BlockDevice;
  /** Set: recognised, but not understood well enough; counts as used entirely. */
  readonly refusal?: Refusal;
  /** Where a range of the volume lies on the disks: ascending in the volume; a mirror gives several a byte. */
  places(range: Extent): Iterable<{ readonly disk: number; readonly at: number; readonly bytes: number }>;
  /** The volume's byte that lies at `at` of disk number `disk`; undefined when it holds no such byte. */
  find(disk: number, at: number): number | undefined;
}
