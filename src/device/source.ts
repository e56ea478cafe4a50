/**
 * Where an image's bytes come from: a file, and the other files that it names with its owner's consent.
 *
 * Formats never meet the host: they are handed a `Source`, so that tests hand them a simulated one. Names found in
 * an image are a guest's or a stranger's words; `refer` is the one door for them, and the policy of H22 stands there.
 */
import type { HostFile, ReadableFile } from "./device.ts";

export interface Source {
  /** For messages: the path as the user gave it, or the name by which another image refers to it. */
  readonly name: string;
  /** Opens for reading; takes no lock and never fails because of one. */
  open(): Promise<ReadableFile>;
  /**
   * Opens for writing, locked against QEMU and against ourselves (H16).
   * @throws DiskError `busy` when another process holds it
   */
  openWritable?(): Promise<HostFile>;
  /** Makes the file, new and empty. @throws DiskError `usage` when it is there already */
  create?(): Promise<HostFile>;
  /**
   * Makes a file beside it, new and empty, for an image of several files.
   * @param name without a folder
   * @throws DiskError `usage` when it is there already, `refused` for a name with a folder
   */
  createBeside?(name: string): Promise<HostFile>;
  /**
   * Another file, by a name that this image holds.
   * @throws DiskError `refused` when the policy forbids it: outside the directory, a symlink, a FIFO, a device (H22)
   */
  refer(name: string): Promise<Source>;
  /** Set where this is a folder, such as a bundle: then there is nothing to `open`. */
  readonly folder?: Folder | undefined;
  /** Makes this folder, new and empty, and those below it that files will need. @throws DiskError `usage` when it exists */
  makeFolder?(under: readonly string[]): Promise<Folder>;
  /** The other regular files of the folder that this file lies in, for parents that are known by identifier only. */
  siblings?(): AsyncIterable<Source>;
}

/** A folder that is one image. Its files are plain ones, really below it: links, devices and `..` are refused (H22). */
export interface Folder {
  /**
   * Names of the regular files in `under` ("" for the folder itself), ascending. Empty where there is no such folder.
   * @throws DiskError `unsupported` when there are more than a million
   */
  list(under: string): Promise<readonly string[]>;
  /** The file of that name, such as `Info.plist` or `bands/1f`; whether it exists is found when it is opened. */
  file(name: string): Source;
  /** Removes a file. @throws DiskError `io` */
  remove?(name: string): Promise<void>;
}
