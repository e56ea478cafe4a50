/**
 * Fuzzing of VDI: dynamic and fixed images. A child is not among them: its parent is found by a UUID that no mutant
 * keeps.
 */
import { Header, SECTOR_BYTES } from "../../src/formats/vdi/header.ts";
import { vdi as format } from "../../src/formats/vdi.ts";
import { type Folder, ownImage } from "../../src/testing/foreign-image.ts";
import { type FuzzTarget, type Sample, spotOf } from "../../src/testing/fuzz.ts";
import { SimulatedFile } from "../../src/testing/simulated-file.ts";
import { fuzzImage } from "./image.ts";

const VIRTUAL_BYTES = 1024 * 1024;

const KINDS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  "blocks of 16 KiB": { block_size: "16384" },
  "blocks of 256 KiB": { block_size: "262144" },
  fixed: { block_size: "16384", subformat: "fixed" },
};

export const vdi: FuzzTarget = {
  name: "vdi",
  needs: [],

  async samples() {
    const folder: Folder = new Map();
    const writes = [
      { start: 300 * 1024, end: 500 * 1024, pattern: 17 },
      { start: 0, end: 70 * 1024, pattern: 18 },
    ];
    const samples: Sample[] = [];
    for (const [name, options] of Object.entries(KINDS)) {
      await ownImage(format, { folder, name, virtualBytes: VIRTUAL_BYTES, options, writes });
      const header = spotOf(Header, 0);
      const spots = [header, header, { at: SECTOR_BYTES, bytes: 256 }];
      samples.push({ name, bytes: folder.get(name)!.peek(), spots });
    }
    return samples;
  },

  run(bytes, random) {
    return fuzzImage({ format, file: SimulatedFile.from(bytes), virtualBytes: VIRTUAL_BYTES }, random);
  },
};
