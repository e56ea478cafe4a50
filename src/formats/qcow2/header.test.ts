import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { viewOf } from "../../bytes/struct.ts";
import { DiskError, type ErrorKind } from "../../error.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { draftImage, parseOptions, writeNewImage } from "./create.ts";
import { AUTOCLEAR_AT, COMPRESSION_AT, HeaderV2, HeaderV3, INCOMPATIBLE_AT, readHeader } from "./header.ts";

const CLUSTER = 65536;
const at = {
  ...HeaderV2.at,
  headerBytes: 72 + HeaderV3.at.headerBytes,
  refcountOrder: 72 + HeaderV3.at.refcountOrder,
};

/** A good image of 8 MiB, changed. */
async function image(
  change: (view: DataView, bytes: Uint8Array) => void = () => {},
  options: Record<string, string> = {},
): Promise<SimulatedFile> {
  const file = new SimulatedFile(0);
  await writeNewImage(file, draftImage(parseOptions({ virtualBytes: 8 * 2 ** 20, options })));
  const bytes = file.peek();
  change(viewOf(bytes), bytes);
  return SimulatedFile.from(bytes);
}

async function fails(
  kind: ErrorKind,
  message: RegExp,
  change: (view: DataView, bytes: Uint8Array) => void,
  options = {},
) {
  await assert.rejects(readHeader(await image(change, options)), (error) => {
    assert.ok(error instanceof DiskError, String(error));
    assert.equal(error.kind, kind, error.message);
    assert.match(error.message, message);
    return true;
  });
}

test("a header says what was asked for", async () => {
  const header = await readHeader(
    await image(undefined, { cluster_size: "16k", extended_l2: "on", refcount_bits: "1" }),
  );
  assert.equal(header.version, 3);
  assert.equal(header.clusterBytes, 16384);
  assert.equal(header.virtualBytes, 8 * 2 ** 20);
  assert.equal(header.l2EntryBytes, 16);
  assert.equal(header.l2Entries, 1024);
  assert.equal(header.l2SpanBytes, 16 * 2 ** 20);
  assert.equal(header.subclusterBytes, 512);
  assert.equal(header.refcountOrder, 0);
  assert.equal(header.extendedL2, true);
  assert.deepEqual([header.dirty, header.corrupt, header.externalData], [false, false, false]);
});

suite("limits of the fields (H23)", () => {
  const word = (offset: number, value: number) => (view: DataView) => view.setUint32(offset, value);
  const long = (offset: number, value: bigint) => (view: DataView) => view.setBigUint64(offset, value);
  const cases: readonly [string, ErrorKind, RegExp, (view: DataView) => void][] = [
    ["magic", "corrupt", /qcow2 magic at 0x0: found 0x1, expected 0x514649fb/, word(at.magic, 1)],
    ["version 1", "unsupported", /version 1/, word(at.version, 1)],
    ["version 4", "unsupported", /version 4/, word(at.version, 4)],
    ["cluster_bits 8", "corrupt", /cluster_bits at 0x14: found 8, expected 9 to 21/, word(at.clusterBits, 8)],
    ["cluster_bits 22", "corrupt", /cluster_bits/, word(at.clusterBits, 22)],
    ["cluster_bits 2^32-1", "corrupt", /cluster_bits/, word(at.clusterBits, 0xffffffff)],
    ["size past 2^53", "unsupported", /past 8 PiB/, long(at.virtualBytes, 2n ** 53n)],
    ["size 2^64-1", "unsupported", /past 8 PiB/, long(at.virtualBytes, 2n ** 64n - 1n)],
    ["size past the L1 table", "corrupt", /l1_size at 0x24: found 1, expected at least 2/, long(at.virtualBytes, 2n ** 29n + 512n)],
    ["l1_size past 32 MiB", "corrupt", /l1_size .* expected at most 4194304/, word(at.l1Entries, 4194305)],
    ["l1_size 2^31", "corrupt", /l1_size/, word(at.l1Entries, 0x80000000)],
    ["l1_size past the file", "corrupt", /L1 table at 0x30000: found 16777216 bytes/, word(at.l1Entries, 2 ** 21)],
    ["L1 off cluster", "corrupt", /L1 table at 0x30200: found an unaligned offset/, long(at.l1At, 0x30200n)],
    ["L1 at 0", "corrupt", /L1 table at 0x0: found offset 0/, long(at.l1At, 0n)],
    ["L1 at 2^63", "corrupt", /L1 table/, long(at.l1At, 2n ** 63n)],
    ["L1 at 2^56", "corrupt", /L1 table/, long(at.l1At, 2n ** 56n)],
    ["refcount table off cluster", "corrupt", /refcount table at 0x10001/, long(at.refcountTableAt, 0x10001n)],
    ["refcount table past the file", "corrupt", /refcount table/, long(at.refcountTableAt, 2n ** 40n)],
    ["no refcount table", "corrupt", /refcount_table_clusters .* found 0, expected 1 to 128/, word(at.refcountTableClusters, 0)],
    ["refcount table past 8 MiB", "corrupt", /refcount_table_clusters/, word(at.refcountTableClusters, 129)],
    ["65537 snapshots", "corrupt", /nb_snapshots .* expected at most 65536/, word(at.snapshotCount, 65537)],
    ["snapshots off cluster", "corrupt", /snapshot table/, (view) => { word(at.snapshotCount, 1)(view); long(at.snapshotsAt, 512n)(view); }],
    ["header_length 100", "corrupt", /header_length at 0x64: found 100, expected 104 to 65536/, word(at.headerBytes, 100)],
    ["header_length past the cluster", "corrupt", /header_length/, word(at.headerBytes, CLUSTER + 8)],
    ["refcount_order 7", "corrupt", /refcount_order/, word(at.refcountOrder, 7)],
    ["crypt_method 3", "unsupported", /encryption method 3/, word(at.cryptMethod, 3)],
    ["compression type without its bit", "corrupt", /compression_type at 0x68: found 1, expected 0/, (view) => view.setUint8(COMPRESSION_AT, 1)],
    ["compression bit without a type", "corrupt", /compression_type/, long(INCOMPATIBLE_AT, 8n)],
    ["compression type 2", "unsupported", /compression type 2/, (view) => { long(INCOMPATIBLE_AT, 8n)(view); view.setUint8(COMPRESSION_AT, 2); }],
    ["backing name past the cluster", "corrupt", /backing_file_offset/, long(at.backingAt, BigInt(CLUSTER + 1))],
    ["backing name too long", "corrupt", /backing_file_size .* expected at most 1023/, (view) => { long(at.backingAt, 512n)(view); word(at.backingBytes, 1024)(view); }],
    ["backing name over the end", "corrupt", /backing_file_size .* expected at most 10/, (view) => { long(at.backingAt, BigInt(CLUSTER - 10))(view); word(at.backingBytes, 11)(view); }],
    ["extension over the end", "corrupt", /header extension 0x6803f857 .* found 4294967295 bytes/, word(COMPRESSION_AT + 8 + 4, 0xffffffff)],
    ["subclusters in small clusters", "corrupt", /cluster_bits .* at least 14/, (view) => { word(at.clusterBits, 13)(view); word(at.refcountTableClusters, 1)(view); long(INCOMPATIBLE_AT, 16n)(view); }],
  ]; // prettier-ignore
  for (const [name, kind, message, change] of cases) test(name, () => fails(kind, message, change));
});

test("a file cut anywhere in its header is corrupt, and never a bug", async () => {
  const whole = (await image()).peek();
  for (const bytes of [
    0,
    4,
    71,
    72,
    103,
    104,
    111,
    500,
    CLUSTER - 1,
    CLUSTER,
    3 * CLUSTER,
    3 * CLUSTER + 7,
  ]) {
    await assert.rejects(
      readHeader(SimulatedFile.from(whole.slice(0, bytes))),
      { kind: "corrupt" },
      `${bytes} bytes`,
    );
  }
  await readHeader(SimulatedFile.from(whole.slice(0, 3 * CLUSTER + 8)));
});

test("unknown incompatible features are named as the image names them, safe to print (H17, H25)", async () => {
  const unknown = (view: DataView, bytes: Uint8Array) => {
    view.setBigUint64(INCOMPATIBLE_AT, (1n << 4n) | (1n << 9n) | (1n << 63n));
    bytes.set(Buffer.from("\0\x09evil\x1b[2J\u202e"), COMPRESSION_AT + 8 + 8);
  };
  await fails("unsupported", /"evil\\u001b\[2J.*" \(bit 9\), "unnamed" \(bit 63\)$/, unknown);
});

test("unknown compatible and autoclear features are harmless", async () => {
  const header = await readHeader(
    await image((view) => {
      view.setBigUint64(AUTOCLEAR_AT - 8, 2n ** 40n);
      view.setBigUint64(AUTOCLEAR_AT, 2n ** 63n);
    }),
  );
  assert.equal(header.autoclear, 2n ** 63n);
});

test("the length of the disk is cut to whole sectors, as a guest sees it", async () => {
  const header = await readHeader(await image((view) => view.setBigUint64(at.virtualBytes, 1000n)));
  assert.equal(header.virtualBytes, 512);
});

test("where LUKS and bitmaps keep their own is in extensions of fixed length", async () => {
  const extension = (type: number, bytes: number) => (view: DataView) => {
    view.setUint32(COMPRESSION_AT + 8, type);
    view.setUint32(COMPRESSION_AT + 12, bytes);
    view.setBigUint64(COMPRESSION_AT + 16, 0x50000n);
    view.setBigUint64(COMPRESSION_AT + 24, 0x1000n);
    view.setBigUint64(COMPRESSION_AT + 32, 0n);
  };
  const luks = await readHeader(await image(extension(0x0537be77, 16)));
  assert.deepEqual(luks.cryptoHeader, { at: 0x50000, bytes: 0x1000 });
  await fails("corrupt", /crypto header extension .* found 8 bytes, expected 16/, extension(0x0537be77, 8));
  await fails("corrupt", /bitmaps extension .* found 16 bytes, expected 24/, extension(0x23852875, 16));
});
