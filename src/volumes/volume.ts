/**
 * What every partition table and volume manager offers.
 */
import type { Extent, ExtentSet } from "../bytes/extents.ts";
import type { BlockDevice } from "../device/device.ts";
import type { Membership } from "../device/membership.ts";
import type { Refusal } from "../error.ts";

export interface VolumeScheme {
  /** `gpt`, `mbr`, `lvm2`. */
  readonly name: string;
  /** What shows through it must not be read as if it were alone: a member of a set. It outranks every filesystem. */
  readonly hidesContent?: boolean;
  /** Its header may lie in a file of its own, and the disk shows nothing then: see `VolumeOptions.header`. */
  readonly detachable?: boolean;
  /** Whether the device begins with this scheme. Must not throw on any content. */
  probe(disk: BlockDevice): Promise<boolean>;
  /**
   * For schemes over several disks: which set this disk belongs to. Undefined when that cannot be told, and then `open`
   * says why. Must not throw on any content.
   */
  membership?(disk: BlockDevice): Promise<Membership | undefined>;
  /**
   * Reads the table. A damaged table gives a `refusal` and no volumes, so that everything counts as used.
   * @param disks one, or all of a set in the order of `Membership.members`, else ascending by `Membership.member`
   * @throws DiskError `io`
   */
  open(disks: readonly BlockDevice[], options?: VolumeOptions): Promise<VolumeTable>;
}

export interface VolumeOptions {
  /** Absent: what is encrypted counts as used. */
  readonly keys?: Keys;
  /** The header of what is encrypted, where it lies in a file of its own: only for schemes that are `detachable`. */
  readonly header?: BlockDevice;
}

/** Where passphrases come from. */
export interface Keys {
  /**
   * Passphrases or key files' contents to try, in turn: those that were given, then what the user is asked for.
   * @param volume for the question: `LUKS volume 3f0c…`
   */
  candidates(volume: string): AsyncIterable<Uint8Array>;
  /** Told which of them was right, so that it comes first the next time. */
  fitted(volume: string, key: Uint8Array): void;
  readonly argon2: Argon2;
}

/**
 * Argon2 (RFC 9106), version 1.3, which not every Node has.
 * @throws DiskError `unsupported` where there is none, or too little memory
 */
export type Argon2 = (
  passphrase: Uint8Array,
  costs: {
    readonly type: "argon2i" | "argon2id";
    readonly passes: number;
    readonly memoryKiB: number;
    readonly lanes: number;
    readonly salt: Uint8Array;
  },
  bytes: number,
) => Promise<Uint8Array>;

export interface VolumeTable {
  readonly scheme: string;
  readonly volumes: readonly Volume[];
  /** Per disk: bytes that no volume holds and no table, boot loader or reserve needs: what `--also gaps` may free. */
  readonly gaps: readonly ExtentSet[];
  /** Set: the table is not trusted, `volumes` is empty and every byte counts as used. */
  readonly refusal?: Refusal;
  /** `VolumeOptions.header`, when the table was read from it. */
  readonly header?: BlockDevice;
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
  /** What lies on the disks is ciphertext: a freed block reads as noise, not zeros, and freeing shows what is free (H34). */
  readonly encrypted?: boolean;
  /** Set: recognised, but not understood well enough; counts as used entirely. */
  readonly refusal?: Refusal;
  /** Set: its type says that it is a part of a set. Counts as used entirely where its content does not say so, too. */
  readonly unlessMember?: Refusal;
  /** Where a range of the volume lies on the disks: ascending in the volume; a mirror gives several a byte. */
  places(range: Extent): Iterable<{ readonly disk: number; readonly at: number; readonly bytes: number }>;
  /** The same places in no order and joined where they can be: for ranges that may be as long as the volume. */
  footprint(range: Extent): Iterable<{ readonly disk: number; readonly at: number; readonly bytes: number }>;
  /** The volume's byte that lies at `at` of disk number `disk`; undefined when it holds no such byte. */
  find(disk: number, at: number): number | undefined;
}
