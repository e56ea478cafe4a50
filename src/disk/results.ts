/**
 * What the library and `--json` say: the JSON contract of the product, as types. Outside scripts read these names:
 * fields may be added, never renamed or removed. Byte counts are numbers up to 2^53 - 1.
 */
import type { ExtentSet } from "../bytes/extents.ts";
import type { Window } from "../device/window.ts";
import type { Refusal } from "../error.ts";
import type { PatternName } from "../live/pattern.ts";
import type { Grade } from "./erase/grade.ts";

/** The classes of a guest byte, everywhere the same. */
export const CLASSES = ["used", "metadata", "returnable", "hole", "guarded", "worthless", "unknown"] as const;
export type ByteClass = (typeof CLASSES)[number];

/** Who says that a byte is free. */
export type Witness = "guarded" | "filesystem" | "zeros" | "gaps" | WorthlessWord | "mapping-table";

export type Method = "auto" | "punch" | "pack";
export type Proof = "full" | "bitmap";
/** Kinds of content that a cleanly stopped guest does not need, and that `--also` may clear. */
export const WORTHLESS_WORDS = ["swap", "pagefile", "hiberfil"] as const;
export type WorthlessWord = (typeof WORTHLESS_WORDS)[number];
export const ALSO_WORDS = ["zeros", "gaps", ...WORTHLESS_WORDS] as const;
export type Also = (typeof ALSO_WORDS)[number];

/** The named refusals that the user lifted. `--allow replay,children,outside=DIR` */
export interface Allow {
  readonly replay?: boolean;
  readonly children?: boolean;
  readonly preallocated?: boolean;
  readonly shadowLoss?: boolean;
  /** What is free under encryption is given back (H34). */
  readonly discards?: boolean;
  readonly untestedHost?: boolean;
  /** Nothing but ullage wrote to the image since its guard was last open, whatever it looks like. */
  readonly guard?: boolean;
  /** Directories that backing and data files may lie in. */
  readonly outside?: readonly string[];
}

export interface OpenOptions {
  /** Overrides detection by content: `qcow2`, `raw`. */
  readonly format?: string;
  readonly allow?: Allow;
  /** Who opens the image for writing opens the guard beside it as well. */
  readonly withGuard?: boolean;
  /** The raw disk is only this part of the file. */
  readonly window?: Window;
  /** Passphrases, or what key files hold, for encrypted volumes. */
  readonly keys?: readonly Uint8Array[];
  /** Asked once for each encrypted volume that none of `keys` fits. Undefined: nobody knows. */
  readonly askKey?: (volume: string) => Promise<Uint8Array | undefined>;
  /** Files with LUKS headers of disks that do not show that they are encrypted. */
  readonly luksHeaders?: readonly string[];
  /** Other disks of the same guest: they are only read. Their volumes and their state count (H3, H36). */
  readonly companions?: readonly string[];
  /** Images that may be other disks of the same guest: looked at where members of something are missing (H36). */
  readonly candidates?: readonly string[];
}

export interface SurveyOptions extends OpenOptions {
  /** Default `full`. */
  readonly proof?: Proof;
  readonly also?: readonly Also[];
  readonly method?: Method;
  /** Holes smaller than this many bytes stay. */
  readonly minHoleBytes?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
}

/** Bytes done of a phase that takes long. */
export interface Progress {
  readonly phase:
    "reading" | "hashing" | "erasing" | "returning" | "copying" | "verifying" | "restoring" | "searching";
  readonly doneBytes: number;
  readonly totalBytes: number;
}

export interface VolumeReport {
  /** `2`, or `3/vg/root`; "" for a disk without a partition table. */
  readonly name: string;
  readonly label: string;
  /** Offset on the guest's disk in bytes. */
  readonly start: number;
  readonly bytes: number;
  /** `ext4`, or null where nothing was recognised. */
  readonly filesystem: string | null;
  readonly usedBytes: number;
  readonly freeBytes: number;
  /** Blocks marked used that nothing reaches: kept, counted. */
  readonly leakedBytes: number;
  readonly state: "clean" | "refused" | "unknown";
  readonly reason: Refusal | null;
  /** How the figures were found: `bitmaps + inode walk`. */
  readonly witness: string | null;
  readonly notes: readonly string[];
  /** The images that it lies on, when there are several; `bytes` above are those of this one. */
  readonly members?: readonly { readonly path: string; readonly bytes: number }[];
}

/** Allocated in the guest, and yet worth little: what may be cleared, and what the guest can clean up itself. */
export interface WorthlessReport {
  /** `swap`, `pagefile`, `hiberfil`, `package cache`, `trash` … */
  readonly kind: string;
  /** Name of the volume. */
  readonly volume: string;
  /** Path in the volume; "" for all of it. */
  readonly path: string;
  /** On this image. */
  readonly bytes: number;
  /** True: only a part of the folder was looked at, and it holds more. */
  readonly isPartial: boolean;
  /** The word that clears it; null where somebody might miss it. */
  readonly also: WorthlessWord | null;
  /** What the guest itself would do: `apt-get clean`; null when nothing needs to be done. */
  readonly command: string | null;
  /** Why `--also` leaves it alone. */
  readonly kept: string | null;
}

/** What was trimmed, zeroed or written over while the image was served, and can be taken back. */
export interface GuardReport {
  readonly guardedBytes: number;
  /** Of these, bytes that lie in the image and are read as zeros. */
  readonly maskedBytes: number;
  /** Of these, bytes that lie in the guard's log. */
  readonly savedBytes: number;
  /** Why it does not fit the image: then nothing is masked. */
  readonly doubt: string | null;
}

export interface Survey {
  readonly path: string;
  readonly format: string;
  /** One line for people: `64 KiB clusters, no snapshots`. */
  readonly summary: string;
  readonly inUse: boolean;
  readonly exact: boolean;
  readonly virtualBytes: number;
  readonly fileBytes: number;
  /** Null on a block device. */
  readonly hostBytes: number | null;
  readonly usedBytes: number;
  readonly freeBytes: number;
  readonly unknownBytes: number;
  /** What the default method would return on this host. */
  readonly reclaimableBytes: number;
  /** How much shorter `--pack` would make the files. */
  readonly packableBytes: number;
  /** The image's own tables. */
  readonly tableBytes: number;
  /** Of `reclaimableBytes`: whole clusters, and holes inside clusters that stay. */
  readonly unmapBytes: number;
  readonly punchBytes: number;
  readonly method: "punch" | "pack";
  readonly proof: Proof;
  /** Free bytes by who says so; a byte counts for the first witness only. */
  readonly witnesses: readonly { readonly witness: Witness; readonly bytes: number }[];
  /** What the guard beside the image holds; null without one. */
  readonly guard: GuardReport | null;
  readonly volumes: readonly VolumeReport[];
  readonly worthless: readonly WorthlessReport[];
  readonly notes: readonly string[];
  /** Guest bytes by class, for strip and map; not part of the JSON. */
  readonly regions: ReadonlyMap<ByteClass, ExtentSet>;
}

export interface ReclaimOptions extends SurveyOptions {
  readonly dryRun?: boolean;
  /** Hash all used ranges before and after. */
  readonly verify?: boolean;
  /** Asked once, with the plan in hand and the lock held; false leaves everything as it is. */
  readonly confirm?: (prospect: Survey, host: HostSpace) => Promise<boolean>;
}

/** The host's filesystem that holds the image. */
export interface HostSpace {
  readonly mountPoint: string;
  readonly freeBytes: number;
}

export interface Reclaimed {
  readonly path: string;
  readonly applied: boolean;
  readonly method: "punch" | "pack";
  readonly beforeHostBytes: number | null;
  readonly afterHostBytes: number | null;
  readonly beforeFileBytes: number;
  readonly afterFileBytes: number;
  readonly predictedBytes: number;
  readonly reclaimedBytes: number;
  readonly unmappedBytes: number;
  readonly punchedBytes: number;
  readonly packedBytes: number;
  readonly hostFreeBefore: HostSpace;
  readonly hostFreeAfter: HostSpace;
  /** True: the used ranges were hashed before and after and are equal. Null: not asked for. */
  readonly verified: boolean | null;
  /** What was found by the check of the image afterwards. */
  readonly check: { readonly errors: number; readonly leaks: number } | null;
  readonly notes: readonly string[];
  /** The survey that the plan was made from; not part of the JSON. */
  readonly survey: Survey;
}

export interface EraseOptions extends Omit<ReclaimOptions, "confirm" | "method"> {
  /** Default `random`. */
  readonly pattern?: PatternName;
  /** Asked once, with the plan in hand and the lock held; false leaves everything as it is. */
  readonly confirm?: (prospect: Survey, host: HostSpace, intent: EraseIntent) => Promise<boolean>;
}

/** What an erasure is about to do. */
export interface EraseIntent {
  readonly pattern: PatternName;
  /** Bytes of the image's files that are to be overwritten. */
  readonly bytes: number;
  /** What the host allows at best. */
  readonly grade: Grade;
  readonly reasons: readonly string[];
}

export interface Erased extends Reclaimed {
  readonly pattern: PatternName;
  /** What was proved; `none` where nothing was done. */
  readonly grade: Grade;
  /** What the host allows at best. */
  readonly bestGrade: Grade;
  /** Why it is not more, and what it is worth: sentences. In a dry run, of the best that the host allows. */
  readonly reasons: readonly string[];
  /** Bytes of the image's files that were overwritten; in a dry run, that would be. */
  readonly erasedBytes: number;
  /** Free bytes of the guest that were left: a snapshot, a reflink or a backing image holds them as well. */
  readonly sharedBytes: number;
  /** Free bytes of the guest in compressed clusters: overwritten only as far as whole blocks are given back. */
  readonly compressedBytes: number;
  /** With `verify`: what was planted before, and looked for in all that the host holds of the image afterwards. */
  readonly canaries: { readonly planted: number; readonly found: number } | null;
  /** With `verify`: samples of what was erased; they may lie elsewhere in the image rightly. */
  readonly samples: { readonly taken: number; readonly found: number } | null;
}

export interface ExplainOptions extends OpenOptions {
  readonly proof?: Proof;
  /** Guest offsets in bytes. */
  readonly offsets?: readonly number[];
  /** A file of the guest: where its bytes lie. `2:/etc/passwd` names the volume, `/etc/passwd` searches all. */
  readonly file?: string;
}

export interface ExplainedOffset {
  readonly offset: number;
  readonly class: ByteClass;
  /** Who says so: `partition table`, `bitmaps + inode walk`, `mapping table`. */
  readonly witness: string;
  /** What owns the byte: `superblock`, `inode table of group 7`, `file`; null when nothing does. */
  readonly owner: string | null;
  /** Path of the owning file in its filesystem. */
  readonly ownerPath: string | null;
  /** Where the byte lies in the image file; null when it lies nowhere. */
  readonly fileOffset: number | null;
  /** From the outside in, for people: `partition 2 (Linux)`, `ext4 "root", group 7, block 238003`. */
  readonly trail: readonly string[];
}

export interface Owner {
  readonly volume: string;
  readonly path: string | null;
  readonly name: string;
  readonly bytes: number;
}

export interface Explained {
  readonly path: string;
  readonly offsets: readonly ExplainedOffset[];
  /** Without offsets: the largest owners, descending. */
  readonly owners?: readonly Owner[];
  /** Without offsets: why the image is so big and what would keep it small, in sentences. */
  readonly reasons?: readonly string[];
  /** With `--path`: the pieces of that file, ascending; `sector` counts 512 bytes of the guest's disk. */
  readonly file?: {
    readonly volume: string;
    readonly path: string;
    readonly bytes: number;
    readonly pieces: readonly {
      readonly fileOffset: number;
      readonly bytes: number;
      readonly offset: number;
      readonly sector: number;
      /** Where it lies in the image file; null when unmapped or compressed. */
      readonly imageOffset: number | null;
      readonly unwritten: boolean;
    }[];
  };
  readonly survey?: Survey;
}

export interface CheckOptions extends OpenOptions {
  readonly repair?: "leaks";
  readonly confirm?: (
    findings: readonly {
      readonly kind: "error" | "leak";
      readonly count: number;
      readonly message: string;
    }[],
  ) => Promise<boolean>;
}

export interface Checked {
  readonly path: string;
  /** Somebody writes to the image: what is found may be the change itself. */
  readonly inUse: boolean;
  readonly exact: boolean;
  readonly errors: number;
  readonly leaks: number;
  /** Leaks given back by `--repair leaks`. */
  readonly repairedLeaks: number;
  /** The first findings, worst first; at most 100. */
  readonly findings: readonly {
    readonly kind: "error" | "leak";
    readonly count: number;
    readonly message: string;
  }[];
}

export interface Info {
  readonly path: string;
  readonly format: string;
  readonly virtualBytes: number;
  readonly fileBytes: number;
  readonly hostBytes: number | null;
  readonly grainBytes: number;
  readonly inUse: boolean;
  readonly encrypted: boolean;
  readonly references: readonly {
    readonly role: "backing" | "data";
    readonly name: string;
    readonly format: string | null;
  }[];
  readonly snapshots: readonly {
    readonly id: string;
    readonly name: string;
    readonly bytes: number;
    readonly stateBytes: number;
  }[];
  readonly details: Readonly<Record<string, string | number | boolean>>;
  readonly volumes: readonly Pick<VolumeReport, "name" | "label" | "start" | "bytes" | "filesystem">[];
}

export interface CreateRequest {
  readonly path: string;
  readonly format: string;
  readonly virtualBytes: number;
  /** By the names of `qemu-img create -o`. */
  readonly options?: Readonly<Record<string, string>>;
  readonly allow?: Allow;
}

export interface ConvertOptions extends OpenOptions {
  /** The format of the copy; without it the destination's suffix says which. */
  readonly to?: string;
  readonly proof?: Proof;
  /** Options of the new image, by the names of `qemu-img create -o`. */
  readonly options?: Readonly<Record<string, string>>;
  /** Copy everything that is mapped, also what the guest no longer uses. */
  readonly includeFree?: boolean;
  /** The copy is based on the same image as the source, instead of holding its content. */
  readonly keepChain?: boolean;
  /** Replace the destination, once the copy is whole. */
  readonly force?: boolean;
  /** Read both images again and compare. */
  readonly verify?: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
}

export interface Converted {
  readonly path: string;
  readonly destination: string;
  readonly format: string;
  readonly sourceFormat: string;
  readonly virtualBytes: number;
  /** Guest bytes that hold something and were copied. */
  readonly copiedBytes: number;
  /** Of these, bytes that share the host's blocks with the source (reflink). */
  readonly sharedBytes: number;
  /** Length of the copy's files; what the host stores for them. */
  readonly fileBytes: number;
  readonly hostBytes: number | null;
  /** True: both were read again and are equal. Null: not asked for. */
  readonly verified: boolean | null;
  readonly notes: readonly string[];
}
