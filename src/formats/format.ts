/**
 * What every image format offers. A format is one file (a door, with rooms where it is big), one test that runs the
 * conformance suite, and one line in `all.ts`.
 */
import type { Extent } from "../bytes/extents.ts";
import type { BlockDevice, HostFile, Place, ReadableFile, WritableDevice } from "../device/device.ts";
import type { Source } from "../device/source.ts";
import type { Plan, Wish } from "../reclaim/plan.ts";

export interface ImageFormat {
  /** As in `--format` and JSON. */
  readonly name: string;
  readonly about: About;
  /** An image is a folder of files: it is only asked about folders, and only these are. */
  readonly isBundle?: boolean;
  /** Whether the content is this format's; never decided by a name (H21). Must not throw on any content. */
  probe(source: Source): Promise<boolean>;
  /** The files that the image refers to, from its header alone and without opening any of them (H33). */
  references(source: Source): Promise<readonly Reference[]>;
  /** @throws DiskError `corrupt`, `unsupported`, `refused`, `io` */
  open(source: Source, parent: OpenParent): Promise<Image>;
  openWritable?(source: Source, parent: OpenParent): Promise<WritableImage>;
  /** Makes a new image; the source must not exist. An image above another one asks for `parent`. */
  create?(source: Source, options: CreateOptions, parent?: OpenParent): Promise<WritableImage>;
}

/** What people want to know of a format, beyond what its functions show: `docs/FORMATS.md` is made of both. */
export interface About {
  /** The kinds of image that are understood. */
  readonly kinds: string;
  /** Whether `--pack` makes files shorter. */
  readonly packs: boolean;
  /** What `check` finds. */
  readonly checks: string;
  /** How images lie upon images; "" where they do not. */
  readonly layers: string;
}

/** Opens a backing image by the name and format that the child states; consent and depth are the caller's business (H22, H24). */
export type OpenParent = (name: string, format: string | undefined) => Promise<Image>;

export interface CreateOptions {
  readonly virtualBytes: number;
  /** The format's own options, by the names that `qemu-img create -o` uses. */
  readonly options: Readonly<Record<string, string>>;
}

export interface Image extends BlockDevice {
  readonly format: string;
  /** Bytes that the mapping table can drop at once. */
  readonly grainBytes: number;
  /** The files that hold the image, by the names that the steps of a plan use. The image itself is `""`. */
  readonly files: ReadonlyMap<string, ReadableFile>;
  /** The image that unmapped ranges are read from. */
  readonly parent: Image | undefined;
  /** Names of the files this image refers to as backing or data files, as it states them. */
  readonly references: readonly Reference[];
  /** By what children may know this image besides its name: UUIDs, a content identifier (H33). Lower case. */
  readonly identifiers?: readonly string[];
  /** One line for people: `64 KiB clusters, 2 snapshots`. */
  readonly summary: string;
  /** Set when the payload is not the guest's plain bytes (LUKS): nothing can be read from it. */
  readonly encrypted: boolean;
  /** Facts for `info --json`. */
  readonly details: Readonly<Record<string, string | number | boolean>>;
  /** Bytes of the files that are the image's own tables: the `metadata` of the survey. */
  tableBytes(): Promise<number>;
  snapshots(): Promise<readonly Snapshot[]>;
  check(): AsyncIterable<Finding>;
  /** A plan that gives leaked clusters back, without touching anything else. */
  repairLeaks?(): Promise<Plan>;
  /**
   * Reads only. @throws DiskError `refused` or `unsupported` when the image must not be written (dirty, corrupt,
   * unknown feature)
   */
  plan(wish: Wish): Promise<Plan>;
  /** Who owns a byte of the image file that is no guest data: `L2 table 3`, `refcount block 0`; undefined: guest data or nothing. */
  describe(fileOffset: number): Promise<string | undefined>;
}

/** An image opened for writing: its files are locked, and the steps of a plan are carried out on them. */
export type WritableImage = Image &
  WritableDevice & {
    readonly files: ReadonlyMap<string, HostFile>;
    /**
     * A place in a file for the first part of `range`, to be written there at once by the caller, before anything else is
     * asked of the image; until then it reads as before, or zeros. It is mapped with the next flush.
     * @param range begins at a multiple of `grainBytes`, and ends at one or at the end of the disk
     * @returns undefined where the image wants to write itself: occupied, compressed, copied on write
     */
    claim?(range: Extent): Promise<ClaimedPlace | undefined>;
  };

/** The content of a claimed range lies there, one to one. */
export interface ClaimedPlace extends Place {
  readonly file: HostFile;
}

export interface Reference {
  readonly role: "backing" | "data";
  readonly name: string;
  readonly format: string | undefined;
  /** The identifier that the parent must have, where the image states one: compared with `identifiers`. */
  readonly id?: string;
}

export interface Snapshot {
  readonly id: string;
  readonly name: string;
  /** The snapshot's disk length in bytes. */
  readonly bytes: number;
  /** Length of a saved machine state in bytes; 0 when there is none. */
  readonly stateBytes: number;
  open(): Promise<BlockDevice>;
}

/** One thing that `check` found. Counted as `qemu-img check` counts. */
export interface Finding {
  readonly kind: "error" | "leak";
  /** An error in the safe direction: it costs copies or space, never data, and `--repair leaks` mends it. */
  readonly isMendable: boolean;
  /** How many errors or leaked clusters this finding stands for. */
  readonly count: number;
  /** Structure, offset, found and expected. */
  readonly message: string;
}
