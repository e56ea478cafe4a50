/**
 * Sparse bundle: Apple's folder of bands, each a file that holds the same length of the disk.
 *
 *   disk.sparsebundle/Info.plist, Info.bckup     lengths; the second is a copy of the first
 *                     token                      what Apple's tools lock; says when the bands are encrypted
 *                     bands/0, bands/1f …        the disk, from band × band-size on; what is missing reads as zeros
 *
 * Rooms: `info` (the property list), `band` (files, few open at a time), `image`, `plan`.
 * Specification: libmodi's "Mac OS disk image types", "Sparse bundle".
 */
import { parseBytes } from "../bytes/sizes.ts";
import { readBytes, type HostFile, type ReadableFile } from "../device/device.ts";
import type { Folder, Source } from "../device/source.ts";
import { DiskError } from "../error.ts";
import type { CreateOptions, ImageFormat } from "./format.ts";
import { Band, OpenBands, WritableBand } from "./sparsebundle/band.ts";
import {
  type BandMaker,
  type Bundle,
  fileName,
  SparseBundle,
  WritableSparseBundle,
} from "./sparsebundle/image.ts";
import {
  BAND_BYTES_MAX,
  INFO,
  type Info,
  isSparseBundle,
  readInfo,
  SECTOR_BYTES,
  writtenInfo,
} from "./sparsebundle/info.ts";

export const sparsebundle: ImageFormat = {
  name: "sparsebundle",
  about: {
    kinds: "bands of any length",
    packs: true,
    checks: "errors",
    layers: "",
  },
  isBundle: true,
  probe: async ({ folder }) => folder !== undefined && isSparseBundle(folder),
  references: () => Promise.resolve([]),

  async open(source) {
    const folder = folderOf(source);
    const all = new OpenBands();
    const opener: Opener<ReadableFile, Band> = {
      open: (name) => folder.file(name).open(),
      band: (bytes, openFile) => new Band(bytes, openFile, all),
      writes: false,
    };
    return new SparseBundle(await opened(folder, opener));
  },

  async openWritable(source) {
    return writable(folderOf(source));
  },

  async create(source, options) {
    const info = infoOf(options);
    const folder = await source.makeFolder?.(["bands"]);
    if (folder === undefined)
      throw new DiskError("unsupported", `${source.name}: no folder can be made here`);
    for (const name of ["token", "Info.bckup", INFO]) {
      await using file = await folder.file(name).create!();
      if (name !== "token") await file.write(0, writtenInfo(info));
      await file.flush();
    }
    return writable(folder);
  },
};

function folderOf({ folder, name }: Source): Folder {
  if (folder) return folder;
  throw new DiskError("usage", `${name}: a sparse bundle is a folder, and this is none`);
}

/** How files are opened, and what becomes of a band. */
interface Opener<F extends ReadableFile, B extends Band> {
  readonly open: (name: string) => Promise<F>;
  readonly band: (bytes: number, openFile: () => Promise<F>) => B;
  readonly writes: boolean;
}

async function writable(folder: Folder): Promise<WritableSparseBundle> {
  const all = new OpenBands();
  const openFile = async (name: string): Promise<HostFile> => {
    const source = folder.file(name);
    if (!source.openWritable) throw new DiskError("unsupported", `${source.name} can only be read`);
    return source.openWritable();
  };
  const bundle = await opened(folder, {
    open: openFile,
    band: (bytes, open) => new WritableBand(bytes, open, all),
    writes: true,
  });
  const maker: BandMaker = {
    async make(number) {
      const name = fileName(number);
      const source = folder.file(name);
      if (!source.create) throw new DiskError("unsupported", `${source.name} cannot be made`);
      await (await source.create())[Symbol.asyncDispose]();
      return new WritableBand(0, () => openFile(name), all);
    },
    async remove(number) {
      await folder.remove?.(fileName(number));
    },
  };
  return new WritableSparseBundle(bundle, maker);
}

/** The lock on the bundle is taken first. */
async function opened<F extends ReadableFile, B extends Band>(
  folder: Folder,
  { open, band, writes }: Opener<F, B>,
): Promise<Bundle<F, B>> {
  const held: [F, ...F[]] = [await open(INFO)];
  try {
    const info = await readInfo(held[0]);
    if ((await folder.list("")).includes("token")) {
      held.push(await open("token"));
      await refuseEncryption(held.at(-1)!);
    }
    const bands = new Map<number, B>();
    const strangers: string[] = [];
    const identities = new Set<string>();
    for (const name of await folder.list("bands")) {
      const number = /^(0|[1-9a-f][0-9a-f]{0,12})$/.test(name) ? Number.parseInt(name, 16) : Infinity;
      if (number >= Math.ceil(info.bytes / info.bandBytes)) {
        strangers.push(name);
        continue;
      }
      await using file = await folder.file(fileName(number)).open();
      const { identity } = await file.stat();
      if (writes && identities.has(identity)) {
        throw new DiskError("corrupt", `${fileName(number)} is the same file as another band`, {
          hint: "hard links were made of equal bands; copy the bundle, and reclaim the copy",
        });
      }
      identities.add(identity);
      bands.set(
        number,
        band(file.bytes, () => open(fileName(number))),
      );
    }
    return { info, held, bands, strangers };
  } catch (error) {
    for (const file of held) await file[Symbol.asyncDispose]();
    throw error;
  }
}

const ENCRYPTED = "encrcdsa";

async function refuseEncryption(token: ReadableFile): Promise<void> {
  const magic = Buffer.from(await readBytes(token, 0, Math.min(ENCRYPTED.length, token.bytes)));
  if (magic.toString("latin1") !== ENCRYPTED) return;
  throw new DiskError("unsupported", `token: the bundle is encrypted (${ENCRYPTED})`, {
    code: "encrypted",
    hint: "hdiutil compact, on a Mac, asks for its passphrase",
  });
}

const BAND_BYTES = 8 * 2 ** 20;

/** @throws DiskError `usage` */
function infoOf({ virtualBytes, options }: CreateOptions): Info {
  const { "band-size": size = String(BAND_BYTES), ...rest } = options;
  const [unknown] = Object.keys(rest);
  if (unknown !== undefined) throw new DiskError("usage", `sparse bundles have no option ${unknown}`);
  const bandBytes = parseBytes(size) ?? 0;
  if (bandBytes === 0 || bandBytes > BAND_BYTES_MAX || bandBytes % SECTOR_BYTES !== 0) {
    throw new DiskError(
      "usage",
      `band-size is ${size}; expected whole sectors, at most ${BAND_BYTES_MAX} bytes`,
    );
  }
  return { bytes: virtualBytes, bandBytes };
}
