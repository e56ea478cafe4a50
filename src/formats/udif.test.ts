import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { deflateSync } from "node:zlib";
import { crc32 } from "../bytes/checksum.ts";
import { readBytes } from "../device/device.ts";
import { conformance } from "../testing/conformance.ts";
import { tally } from "../testing/conformance/judge.ts";
import { corpus, unpack } from "../testing/corpus.ts";
import { Random } from "../testing/seeds.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { sourceOf } from "../testing/simulated-source.ts";
import { requires, run, scratch } from "../testing/tools.ts";
import { udif } from "./udif.ts";

const noParent = () => Promise.reject(new Error("it has no parent"));
const SECTOR = 512;
const Type = {
  zero: 0,
  raw: 1,
  ignore: 2,
  zlib: 0x80000005,
  bzip2: 0x80000006,
  comment: 0x7ffffffe,
  end: 0xffffffff,
};

interface Piece {
  readonly type: number;
  readonly sectors: number;
}

interface Made {
  readonly file: SimulatedFile;
  readonly content: Buffer;
  /** Offset of the chunk entries of a table in what its property list decodes to is 204; here its bytes. */
  readonly table: Buffer;
}

function checksum(into: Buffer, at: number, value: number): void {
  into.writeUInt32BE(2, at);
  into.writeUInt32BE(32, at + 4);
  into.writeUInt32BE(value, at + 8);
}

/** An image of one table, as hdiutil lays it out. `change` may spoil the table or the trailer. */
function make(
  pieces: readonly Piece[],
  random: Random,
  change?: (table: Buffer, trailer: Buffer) => void,
): Made {
  const parts: Buffer[] = [];
  const contents: Buffer[] = [];
  const entries: Buffer[] = [];
  let sector = 0;
  let at = 0;
  const add = (type: number, sectors: number, packed: Buffer) => {
    const entry = Buffer.alloc(40);
    entry.writeUInt32BE(type, 0);
    entry.writeBigUInt64BE(BigInt(sector), 8);
    entry.writeBigUInt64BE(BigInt(sectors), 16);
    entry.writeBigUInt64BE(BigInt(at), 24);
    entry.writeBigUInt64BE(BigInt(packed.length), 32);
    entries.push(entry);
    parts.push(packed);
    sector += sectors;
    at += packed.length;
  };
  for (const { type, sectors } of pieces) {
    const isEmpty = type === Type.zero || type === Type.ignore || type === Type.comment;
    const text = Buffer.from(
      Array.from({ length: sectors * 64 }, () => `w${random.below(90)}`.padEnd(8)).join(""),
    );
    const content = isEmpty ? Buffer.alloc(text.length) : text;
    const packed =
      type === Type.zlib
        ? deflateSync(content)
        : type === Type.bzip2
          ? spawnSync("bzip2", ["-c"], { input: content }).stdout
          : isEmpty
            ? Buffer.alloc(0)
            : content;
    add(type, type === Type.comment ? 0 : sectors, packed);
    if (type !== Type.comment) contents.push(content);
  }
  add(Type.end, 0, Buffer.alloc(0));
  const content = Buffer.concat(contents);
  const data = Buffer.concat(parts);
  const table = Buffer.alloc(204);
  table.write("mish");
  table.writeUInt32BE(1, 4);
  table.writeBigUInt64BE(BigInt(sector), 16);
  checksum(table, 64, crc32(content));
  table.writeUInt32BE(entries.length, 200);
  const whole = Buffer.concat([table, ...entries]);
  const trailer = Buffer.alloc(512);
  trailer.write("koly");
  trailer.writeUInt32BE(4, 4);
  trailer.writeUInt32BE(512, 8);
  trailer.writeBigUInt64BE(BigInt(data.length), 32);
  checksum(trailer, 80, crc32(data));
  trailer.writeBigUInt64BE(BigInt(data.length), 216);
  const sum = Buffer.alloc(4);
  sum.writeUInt32BE(crc32(content));
  checksum(trailer, 352, crc32(sum));
  trailer.writeBigUInt64BE(BigInt(sector), 492);
  change?.(whole, trailer);
  const list = Buffer.from(
    '<?xml version="1.0"?><plist version="1.0"><dict><key>resource-fork</key><dict><key>blkx</key><array><dict>' +
      `<key>Name</key><string>disk</string><key>Data</key><data>\n${whole.toString("base64")}\n</data>` +
      "</dict></array></dict></dict></plist>",
  );
  trailer.writeBigUInt64BE(BigInt(list.length), 224);
  const file = SimulatedFile.from(Buffer.concat([data, list, trailer]), { name: "disk.dmg" });
  return { file, content, table: whole };
}

const SOME: readonly Piece[] = [
  { type: Type.zlib, sectors: 512 },
  { type: Type.zero, sectors: 100 },
  { type: Type.raw, sectors: 77 },
  { type: Type.comment, sectors: 0 },
  { type: Type.bzip2, sectors: 300 },
  { type: Type.ignore, sectors: 9 },
  { type: Type.zlib, sectors: 1 },
];

conformance(udif, [
  {
    name: "chunks of all kinds",
    async make(t, random) {
      if (!requires(t, "bzip2")) return undefined;
      const { file, content } = make(SOME, random);
      return { files: new Map([["disk.dmg", file]]), image: "disk.dmg", content };
    },
  },
]);

test("QEMU reads the same", async (t) => {
  if (!requires(t, "qemu-img")) return;
  const path = join(scratch(t), "disk.dmg");
  const { file, content } = make(
    SOME.filter(({ type }) => type !== Type.bzip2),
    new Random(3),
  );
  await file.save(path);
  run("qemu-img", ["convert", "-f", "dmg", "-O", "raw", path, `${path}.raw`]);
  assert.ok(readFileSync(`${path}.raw`).equals(content));
});

test("images that hdiutil made read as QEMU reads them, and their checksums match", async (t) => {
  if (!requires(t, "qemu-img") || corpus(t) === undefined) return;
  const folder = scratch(t);
  for (const name of [
    "log2timeline+dfvfs/test_data/hfsplus_zlib.dmg",
    "Xilinx+qemu/tests/qemu-iotests/sample_images/simple-dmg.dmg.bz2",
  ]) {
    const path = unpack(t, name);
    const raw = join(folder, "raw");
    run("qemu-img", ["convert", "-f", "dmg", "-O", "raw", path, raw]);
    await using image = await udif.open(
      sourceOf(await SimulatedFile.load(path, { name: "disk.dmg" })),
      noParent,
    );
    const content = Buffer.from(await readBytes(image, 0, image.bytes));
    const expected = readFileSync(raw);
    // QEMU ends the disk with the last chunk, the trailer says how long it is.
    assert.ok(content.subarray(0, expected.length).equals(expected), name);
    assert.deepEqual(await tally(image), { errors: 0, leaks: 0, first: undefined }, name);
  }
});

test("each checksum is verified", async () => {
  const pieces = [{ type: Type.raw, sectors: 8 }];
  const { file } = make(pieces, new Random(1));
  await file.write(5, Uint8Array.of(0));
  await using spoiled = await udif.open(sourceOf(file), noParent);
  assert.equal((await tally(spoiled)).errors, 2, "of the data fork and of the table");
  const master = make(pieces, new Random(1), (_, trailer) => trailer.writeUInt32BE(1, 360));
  await using wrong = await udif.open(sourceOf(master.file), noParent);
  assert.match((await tally(wrong)).first!, /all block tables/);
});

test("a chunk that unpacks to more than it holds is corrupt, and costs no memory (H24)", async (t) => {
  if (!requires(t, "bzip2")) return;
  for (const type of [Type.zlib, Type.bzip2]) {
    for (const sectors of [7, 9]) {
      const { file } = make(
        [
          { type, sectors: 8 },
          { type: Type.zero, sectors: 8 },
        ],
        new Random(1),
        (table) => {
          table.writeBigUInt64BE(BigInt(sectors), 204 + 16);
          table.writeBigUInt64BE(BigInt(sectors), 204 + 40 + 8);
          table.writeBigUInt64BE(BigInt(7), 204 + 40 + 16);
        },
      );
      await using image = await udif.open(sourceOf(file), noParent);
      // Too long is found while it is unpacked, too short when it is done.
      const message = sectors === 7 ? /does not unpack to 3584|more than 3584/ : /expected 4608/;
      await assert.rejects(readBytes(image, 0, SECTOR), { kind: "corrupt", message }, `${type} ${sectors}`);
    }
  }
});

const CHUNK = 204;

test("what tables and trailers must not say", async () => {
  type Change = (table: Buffer, trailer: Buffer) => void;
  const cases: readonly (readonly [Change, "corrupt" | "unsupported", RegExp])[] = [
    [(table) => table.write("mush"), "corrupt", /mish/],
    [(table) => table.writeUInt32BE(99, 200), "corrupt", /99 chunks/],
    [(table) => table.writeBigUInt64BE(1n, 8), "corrupt", /a disk of/],
    [(table) => table.writeBigUInt64BE(2n ** 60n, CHUNK + 8), "unsupported", /8 PiB/],
    [(table) => table.writeBigUInt64BE(20n, CHUNK + 16), "corrupt", /inside its table/],
    [(table) => table.writeBigUInt64BE(9n, CHUNK + 16), "corrupt", /4096 bytes for 4608/],
    [(table) => table.writeBigUInt64BE(1n, CHUNK + 24), "corrupt", /data fork up to/],
    [(table) => table.writeBigUInt64BE(0n, CHUNK + 40 + 8), "corrupt", /disk offset 0 again/],
    [(table) => table.writeUInt32BE(0x80000004, CHUNK), "unsupported", /ADC/],
    [(table) => table.writeUInt32BE(0x80000007, CHUNK), "unsupported", /LZFSE/],
    [(table) => table.writeUInt32BE(0x80000008, CHUNK), "unsupported", /LZMA/],
    [(table) => table.writeUInt32BE(3, CHUNK), "unsupported", /type 0x3/],
    [(_, trailer) => trailer.writeUInt32BE(5, 4), "unsupported", /version 5/],
    [(_, trailer) => trailer.writeUInt32BE(2, 60), "unsupported", /2 segments/],
    [(_, trailer) => trailer.writeBigUInt64BE(2n ** 40n, 32), "corrupt", /data fork/],
    [(_, trailer) => trailer.writeBigUInt64BE(2n ** 40n, 216), "corrupt", /property list/],
    [(_, trailer) => trailer.writeBigUInt64BE(2n ** 52n, 492), "corrupt", /8 PiB/],
    [(_, trailer) => trailer.write("kolx"), "corrupt", /koly/],
  ];
  for (const [change, kind, message] of cases) {
    const pieces = [
      { type: Type.raw, sectors: 8 },
      { type: Type.zero, sectors: 8 },
    ];
    const { file } = make(pieces, new Random(1), change);
    await assert.rejects(udif.open(sourceOf(file), noParent), { kind, message }, String(message));
  }
});

test("an encrypted image is named so", async () => {
  const { file } = make([{ type: Type.raw, sectors: 8 }], new Random(1));
  await file.write(0, Buffer.from("encrcdsa"));
  assert.equal(await udif.probe(sourceOf(file)), true);
  await assert.rejects(udif.open(sourceOf(file), noParent), { kind: "unsupported", code: "encrypted" });
});

test("a chunk of zeros without end does not hold up the checksums (H24)", async () => {
  const sectors = 2 ** 22;
  const { file } = make([{ type: Type.zero, sectors: 1 }], new Random(1), (table, trailer) => {
    table.writeBigUInt64BE(BigInt(sectors), 16);
    table.writeBigUInt64BE(BigInt(sectors), 204 + 16);
    trailer.writeBigUInt64BE(BigInt(sectors), 492);
  });
  await using image = await udif.open(sourceOf(file), noParent);
  let reads = 0;
  image.read = async () => void reads++;
  const found: string[] = [];
  for await (const { message } of image.check()) found.push(message);
  assert.equal(reads, 0);
  assert.equal(found.length, 1);
  assert.match(found[0]!, /checksum of block table/);
});
