/**
 * Fuzzing of Apple's images of one file: sparse images with further index nodes, and UDIF, of which the property list
 * and its tables are mutated as text.
 */
import { deflateSync } from "node:zlib";
import { readBytes, wholeMap } from "../../src/device/device.ts";
import { Header } from "../../src/formats/sparseimage/nodes.ts";
import { sparseimage as sparse } from "../../src/formats/sparseimage.ts";
import { udif as format } from "../../src/formats/udif.ts";
import { type FuzzTarget, outcome, spotOf } from "../../src/testing/fuzz.ts";
import { SimulatedFile } from "../../src/testing/simulated-file.ts";
import { sourceOf } from "../../src/testing/simulated-source.ts";
import { fuzzImage } from "./image.ts";

const BAND_BYTES = 512;
const BANDS = 1100;
const NODE_BYTES = 4096;
const SECOND_AT = NODE_BYTES + 1008 * BAND_BYTES;

export const sparseimage: FuzzTarget = {
  name: "sparseimage",
  needs: [],

  async samples() {
    const bytes = new Uint8Array(SECOND_AT + NODE_BYTES + (BANDS - 1008) * BAND_BYTES);
    const view = new DataView(bytes.buffer);
    const next = SECOND_AT;
    const sectors = BANDS;
    Header.encode(
      { magic: "sprs", version: 3, band_sectors: 1, flags: 1, sectors_low: sectors, next, sectors },
      bytes,
    );
    bytes.set(Buffer.from("sprs"), SECOND_AT);
    for (let i = 0; i < BANDS; i++) {
      const isFirst = i < 1008;
      view.setUint32(isFirst ? 64 + i * 4 : SECOND_AT + 56 + (i - 1008) * 4, BANDS - i);
      const at = isFirst ? NODE_BYTES + i * BAND_BYTES : SECOND_AT + NODE_BYTES + (i - 1008) * BAND_BYTES;
      bytes.fill(1 + (i % 255), at, at + BAND_BYTES);
    }
    const spots = [spotOf(Header, 0), { at: 64, bytes: 4032 }, { at: SECOND_AT, bytes: NODE_BYTES }];
    return [{ name: "two nodes", bytes, spots }];
  },

  run(bytes, random) {
    const virtualBytes = BANDS * BAND_BYTES;
    return fuzzImage({ format: sparse, file: SimulatedFile.from(bytes), virtualBytes }, random);
  },
};

const DISK_BYTES_MAX = 64 * 2 ** 20;

export const udif: FuzzTarget = {
  name: "udif",
  needs: [],

  async samples() {
    const packed = deflateSync(Buffer.alloc(64 * 512, "packed "));
    const table = Buffer.alloc(204 + 3 * 40);
    table.write("mish");
    table.writeBigUInt64BE(128n, 16);
    table.writeUInt32BE(3, 200);
    for (const [i, [type, sector, sectors, length]] of [
      [0x8000_0005, 0, 64, packed.length],
      [0, 64, 64, 0],
      [0xffff_ffff, 128, 0, 0],
    ].entries()) {
      const at = 204 + i * 40;
      table.writeUInt32BE(type!, at);
      for (const [field, value] of [sector, sectors, 0, length].entries()) {
        table.writeBigUInt64BE(BigInt(value!), at + 8 + field * 8);
      }
    }
    const list = Buffer.from(
      "<plist><dict><key>resource-fork</key><dict><key>blkx</key><array><dict>" +
        `<key>Data</key><data>${table.toString("base64")}</data></dict></array></dict></dict></plist>`,
    );
    const trailer = Buffer.alloc(512);
    trailer.write("koly");
    trailer.writeUInt32BE(4, 4);
    trailer.writeUInt32BE(512, 8);
    trailer.writeBigUInt64BE(BigInt(packed.length), 32);
    trailer.writeBigUInt64BE(BigInt(packed.length), 216);
    trailer.writeBigUInt64BE(BigInt(list.length), 224);
    trailer.writeBigUInt64BE(128n, 492);
    const bytes = new Uint8Array(Buffer.concat([packed, list, trailer]));
    const tableAt = packed.length + list.indexOf("<data>") + 6;
    const spots = [
      { at: packed.length, bytes: list.length },
      { at: tableAt, bytes: Math.floor((table.length * 4) / 3) },
      { at: bytes.length - 512, bytes: 512 },
      { at: 0, bytes: packed.length },
    ];
    return [{ name: "zlib and zeros", bytes, spots }];
  },

  run: (bytes) =>
    outcome(async () => {
      await using image = await format.open(sourceOf(SimulatedFile.from(bytes)), () => {
        throw new Error("it has no parent");
      });
      const end = Math.min(image.bytes, DISK_BYTES_MAX);
      await wholeMap(image, { start: 0, end });
      await readBytes(image, 0, end);
      if (image.bytes > DISK_BYTES_MAX) return "larger";
      let errors = 0;
      for await (const { count } of image.check()) errors += count;
      return errors > 0 ? "with errors" : "read";
    }),
};
