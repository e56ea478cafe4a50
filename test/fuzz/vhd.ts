/**
 * Fuzzing of VHD: every kind, with a child whose blocks are held in part. All mutants have their checksums set right
 * half of the time, so that they get past footers and header.
 */
import { viewOf } from "../../src/bytes/struct.ts";
import { checksumOf, COOKIE, Footer, SECTOR_BYTES } from "../../src/formats/vhd/footer.ts";
import { Header, HEADER_COOKIE, Locator } from "../../src/formats/vhd/header.ts";
import { vhd as format } from "../../src/formats/vhd.ts";
import { type Folder, ownImage } from "../../src/testing/foreign-image.ts";
import { chunksOf, type FuzzTarget, type Sample, type Spot, spotOf } from "../../src/testing/fuzz.ts";
import { SimulatedFile } from "../../src/testing/simulated-file.ts";
import { simulatedSource } from "../../src/testing/simulated-source.ts";
import { fuzzImage } from "./image.ts";

const VIRTUAL_BYTES = 1024 * 1024;
const HEADER_AT = 512;

const KINDS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  "blocks of 16 KiB": { block_size: "16384" },
  "blocks of 512 KiB": { block_size: "524288" },
  fixed: { subformat: "fixed" },
  child: { block_size: "16384", backing_file: "parent.vhd" },
};

/** The parent of the child among the samples. */
let parent: SimulatedFile | undefined;

export const vhd: FuzzTarget = {
  name: "vhd",
  needs: [],

  async samples() {
    const folder: Folder = new Map();
    const made = { folder, virtualBytes: VIRTUAL_BYTES };
    const below = [{ start: 0, end: VIRTUAL_BYTES / 2, pattern: 5 }];
    await ownImage(format, { ...made, name: "parent.vhd", writes: below });
    parent = folder.get("parent.vhd")!;
    const samples: Sample[] = [];
    for (const [name, options] of Object.entries(KINDS)) {
      const writes = [
        { start: 300 * 1024, end: 500 * 1024, pattern: 17 },
        { start: 0, end: 70 * 1024, pattern: 18 },
      ];
      await ownImage(format, { ...made, name, options, writes });
      samples.push(sampleOf(name, folder.get(name)!.peek()));
    }
    return samples;
  },

  run(bytes, random) {
    const openParent = () =>
      format.open(simulatedSource(new Map([["parent.vhd", parent!.fork()]]), "parent.vhd"), never);
    return fuzzImage(
      { format, file: SimulatedFile.from(bytes), virtualBytes: VIRTUAL_BYTES, openParent },
      random,
    );
  },
};

function never(): never {
  throw new Error("the parent has none");
}

function sampleOf(name: string, bytes: Uint8Array): Sample {
  const spots: Spot[] = [spotOf(Footer, bytes.length - SECTOR_BYTES)];
  if (name === "fixed") return { name, bytes, spots, fix };
  spots.push(spotOf(Footer, 0), spotOf(Header, HEADER_AT), spotOf(Header, HEADER_AT));
  spots.push(spotOf(Locator, HEADER_AT + Header.at.locators));
  const { tableOffset } = Header.decode(bytes, HEADER_AT);
  spots.push(
    { at: tableOffset, bytes: SECTOR_BYTES },
    { at: tableOffset + SECTOR_BYTES, bytes: SECTOR_BYTES },
  );
  spots.push(...chunksOf(bytes.subarray(0, 8192), (chunk) => chunk.every((byte) => byte === chunk[0])));
  return { name, bytes, spots, fix };
}

/** Sets the checksums of footers and header right. */
function fix(bytes: Uint8Array): void {
  const startsWith = (at: number, cookie: string) =>
    Buffer.from(bytes.buffer, bytes.byteOffset + at, cookie.length).toString("latin1") === cookie;
  const seal = (at: number, length: number, cookie: string, checksumAt: number) => {
    if (at < 0 || at + length > bytes.length || !startsWith(at, cookie)) return;
    viewOf(bytes).setUint32(at + checksumAt, checksumOf(bytes.subarray(at, at + length), checksumAt));
  };
  seal(0, Footer.bytes, COOKIE, Footer.at.checksum);
  seal(bytes.length - SECTOR_BYTES, Footer.bytes, COOKIE, Footer.at.checksum);
  seal(HEADER_AT, Header.bytes, HEADER_COOKIE, Header.at.checksum);
}
