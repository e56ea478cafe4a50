import assert from "node:assert/strict";
import { deflateRawSync, zstdCompressSync } from "node:zlib";
import { suite, test } from "node:test";
import { viewOf } from "../../bytes/struct.ts";
import { type BlockDevice, readBytes, wholeMap } from "../../device/device.ts";
import { DiskError } from "../../error.ts";
import { SimulatedFile } from "../../testing/simulated-file.ts";
import { sourceOf } from "../../testing/simulated-source.ts";
import type { Image } from "../format.ts";
import { qcow2 } from "../qcow2.ts";
import { openContext } from "./context.ts";
import { draftImage, parseOptions, writeNewImage } from "./create.ts";
import { HeaderV2 } from "./header.ts";
import { compressedStretch, segments } from "./tables.ts";

const CLUSTER = 65536;
const MIB = 2 ** 20;
/** With clusters of 64 KiB: header, refcount table, refcount block, L1 table, L2 table, the guest's clusters. */
const AT = { refcountTable: CLUSTER, l1: 3 * CLUSTER, l2: 4 * CLUSTER, data: 5 * CLUSTER };
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;

interface Made {
  readonly options?: Record<string, string>;
  /** Words to write, by file offset. */
  readonly words?: Readonly<Record<number, bigint>>;
  readonly bytes?: Readonly<Record<number, Uint8Array>>;
  /** The file is cut to this length. */
  readonly cutTo?: number;
}

/** An image of 1 MiB with all clusters allocated, then changed. */
async function made({ options = {}, words = {}, bytes = {}, cutTo }: Made): Promise<SimulatedFile> {
  const file = new SimulatedFile(0, { name: "x" });
  const all = { preallocation: "metadata", ...options };
  await writeNewImage(file, draftImage(parseOptions({ virtualBytes: MIB, options: all })));
  for (const [at, content] of Object.entries(bytes)) await file.write(Number(at), content);
  for (const [at, word] of Object.entries(words)) {
    const buffer = new Uint8Array(8);
    viewOf(buffer).setBigUint64(0, word);
    await file.write(Number(at), buffer);
  }
  if (cutTo !== undefined) await file.truncate(cutTo);
  return file;
}

async function open(what: Made): Promise<Image> {
  return qcow2.open(sourceOf(await made(what)), () => Promise.reject(new Error("no parent")));
}

const whole = (device: BlockDevice) => readBytes(device, 0, device.bytes);

/** Reading and mapping both say what is wrong. */
async function fails(what: Made, message: RegExp): Promise<void> {
  await using image = await open(what);
  for (const action of [() => whole(image), () => wholeMap(image)]) {
    await assert.rejects(action, (error) => {
      assert.ok(error instanceof DiskError, String(error));
      assert.equal(error.kind, "corrupt");
      assert.match(error.message, message);
      return true;
    });
  }
}

suite("entries that cannot be true", () => {
  const v2 = { compat: "0.10" };
  const extended = { extended_l2: "on" };
  const end = 21 * CLUSTER;
  const cases: readonly [string, RegExp, Made][] = [
    ["reserved bit of an L1 entry", /L1 entry 0 at 0x30000: found 0x8000000000040001, expected 0/, { words: { [AT.l1]: COPIED | BigInt(AT.l2) | 1n } }],
    ["L2 table off cluster", /L2 table 0 at 0x40200: found an unaligned offset, expected a multiple of 65536/, { words: { [AT.l1]: BigInt(AT.l2 + 512) } }],
    ["L2 table past the end", /L2 table 0 at 0x150000: found 65536 bytes, expected the end of the file at 0x150000/, { words: { [AT.l1]: BigInt(end) } }],
    ["L2 table at 2^55", /L2 table 0/, { words: { [AT.l1]: 1n << 55n } }],
    ["L2 table on the L1 table", /L2 table 0 at 0x30000: found an overlap with the L1 table/, { words: { [AT.l1]: BigInt(AT.l1) } }],
    ["L2 table on the refcount table", /overlap with the refcount table/, { words: { [AT.l1]: BigInt(AT.refcountTable) } }],
    ["L2 table cut short", /L2 table 0/, { cutTo: AT.data - 512 }],
    ["reserved bit 56 of an L2 entry", /L2 entry 0 at 0x40000: found 0x8100000000050000, expected 0 in its reserved/, { words: { [AT.l2]: COPIED | (1n << 56n) | BigInt(AT.data) } }],
    ["reserved bit 1 of an L2 entry", /L2 entry 0 .* reserved/, { words: { [AT.l2]: BigInt(AT.data) | 2n } }],
    ["cluster off cluster", /L2 entry 2 at 0x40010: found 0x0000000000050200, expected a multiple of 65536/, { words: { [AT.l2 + 16]: BigInt(AT.data + 512) } }],
    ["cluster past the end", /clusters from guest offset 0x0 at 0x150000: found an offset past the end/, { words: { [AT.l2]: BigInt(end) } }],
    ["cluster at 2^55", /found an offset past the end/, { words: { [AT.l2]: 1n << 55n } }],
    ["run of clusters that leads past the end", /clusters from guest offset 0x0 at 0x140000: found an offset past the end/, { cutTo: 10 * CLUSTER }],
    ["compressed on the header", /overlap with the header/, { words: { [AT.l2]: COMPRESSED | 100n } }],
    ["cluster on the L1 table", /overlap with the L1 table/, { words: { [AT.l2]: BigInt(AT.l1) } }],
    ["zero flag in version 2", /no zero flag/, { options: v2, words: { [AT.l2]: 1n } }],
    ["zero flag with subclusters", /no zero flag/, { options: extended, words: { [AT.l2]: 1n } }],
    ["subcluster both zero and allocated", /subcluster bitmap 0 at 0x40008/, { options: extended, words: { [AT.l2 + 8]: (1n << 35n) | (1n << 3n) } }],
    ["allocated subcluster without a cluster", /subcluster bitmap 0/, { options: extended, words: { [AT.l2]: 0n, [AT.l2 + 8]: 1n } }],
    ["compressed and copied", /without the copied flag/, { words: { [AT.l2]: COPIED | COMPRESSED | BigInt(AT.data) } }],
    ["compressed past the end", /an offset inside the file/, { words: { [AT.l2]: COMPRESSED | BigInt(end) } }],
    ["compressed on the refcount table", /overlap with the refcount table/, { words: { [AT.l2]: COMPRESSED | BigInt(CLUSTER + 100) } }],
  ]; // prettier-ignore
  for (const [name, message, what] of cases) test(name, () => fails(what, message));
});

suite("compressed clusters", () => {
  const streamed = (stream: Uint8Array, options: Record<string, string> = {}): Made => {
    const sectors = BigInt(Math.ceil(((AT.data % 512) + stream.length) / 512) - 1);
    return {
      options,
      words: { [AT.l2]: COMPRESSED | (sectors << 54n) | BigInt(AT.data) },
      bytes: { [AT.data]: stream },
    };
  };
  const zstd = { compression_type: "zstd" };
  const cluster = new Uint8Array(CLUSTER).map((_, i) => (i * i) >>> 7);
  const noise = new Uint8Array(2000).map((_, i) => i * 37);
  const first = async (what: Made) => {
    await using image = await open(what);
    return await readBytes(image, 0, CLUSTER);
  };

  for (const [name, compress, options] of [
    ["zlib", deflateRawSync, {}],
    ["zstd", zstdCompressSync, zstd],
  ] as const) {
    test(`${name}: what follows the stream is not its business`, async () => {
      for (const tail of [new Uint8Array(0), noise, compress(cluster)]) {
        assert.deepEqual(await first(streamed(Buffer.concat([compress(cluster), tail]), options)), cluster);
      }
    });

    test(`${name}: streams that are broken, short, long or bombs are corrupt (H24)`, async () => {
      const bomb = compress(new Uint8Array(64 * MIB));
      assert.ok(bomb.length < 70_000);
      for (const [stream, message] of [
        [compress(cluster.subarray(1)), /found 65535 bytes, expected a stream of 65536/],
        [
          compress(Buffer.concat([cluster, new Uint8Array(1)])),
          /cluster at 0x50000: found .*, expected a stream/,
        ],
        [compress(cluster).subarray(0, 500), /cluster at 0x50000/],
        [noise, /cluster at 0x50000/],
        [bomb.subarray(0, 65_000), /cluster at 0x50000/],
      ] as const) {
        await assert.rejects(first(streamed(stream, options)), { kind: "corrupt", message });
      }
    });
  }

  test("offset and length share one word, at a border that moves with the size of clusters", () => {
    for (let clusterBits = 9; clusterBits <= 21; clusterBits++) {
      const x = BigInt(70 - clusterBits);
      const sectors = 2n ** (62n - x) - 1n;
      const word = COMPRESSED | (sectors << x) | 0x1234567n;
      const header = { clusterBits } as Parameters<typeof compressedStretch>[0];
      const found = compressedStretch(header, Number(word >> 32n), Number(word & 0xffffffffn));
      assert.deepEqual(found, {
        host: 0x1234567,
        hostBytes: (Number(sectors) + 1) * 512 - (0x1234567 % 512),
      });
    }
  });
});

test("a run of clusters is one segment, across borders of 4 GiB too", async () => {
  const file = await made({ options: { cluster_size: "65536" } });
  const words: Record<number, bigint> = {};
  const base = 2 ** 32 - 3 * CLUSTER;
  for (let i = 0; i < 8; i++) words[AT.l2 + i * 8] = COPIED | BigInt(base + i * CLUSTER);
  words[AT.l2 + 8 * 8] = 0n;
  words[AT.l2 + 9 * 8] = 0n;
  words[AT.l2 + 10 * 8] = 1n;
  const other = await made({ words });
  await other.truncate(2 ** 33);
  const found = async (from: SimulatedFile, range: { start: number; end: number }) => {
    const context = await openContext(from, () => Promise.reject(new Error("no data file")));
    const all = [];
    for await (const batch of segments(context, context.l1, range)) all.push(...batch);
    return all.map(({ start, end, kind, host }) => [start, end, kind, host]);
  };
  assert.deepEqual(await found(file, { start: 0, end: MIB }), [[0, MIB, "data", AT.data]]);
  assert.deepEqual(await found(other, { start: 100, end: 11 * CLUSTER + 7 }), [
    [100, 8 * CLUSTER, "data", base + 100],
    [8 * CLUSTER, 10 * CLUSTER, "unallocated", -1],
    [10 * CLUSTER, 11 * CLUSTER, "zero", -1],
    [11 * CLUSTER, 11 * CLUSTER + 7, "data", AT.data + 11 * CLUSTER],
  ]);
});

test("a snapshot table that is cut, too long or of impossible entries is corrupt", async () => {
  const table = 21 * CLUSTER;
  const entry = new Uint8Array(56);
  const view = viewOf(entry);
  view.setBigUint64(0, BigInt(AT.l1));
  view.setUint32(8, 1);
  view.setUint32(36, 16);
  view.setBigUint64(48, BigInt(MIB));
  const snapshots = async (change: (view: DataView) => void, count = 1, cutTo = table + 4096) => {
    const changed = entry.slice();
    change(viewOf(changed));
    const header = new Uint8Array(4);
    viewOf(header).setUint32(0, count);
    const words = { [HeaderV2.at.snapshotsAt]: BigInt(table) };
    const image = await open({
      words,
      bytes: { [table]: changed, [HeaderV2.at.snapshotCount]: header },
      cutTo,
    });
    const found = await image.snapshots();
    for (const snapshot of found) await whole(await snapshot.open());
    return found;
  };
  const [good] = await snapshots(() => {});
  assert.equal(good?.bytes, MIB);
  const corrupt = (message: RegExp) => ({ kind: "corrupt", message });
  await assert.rejects(
    snapshots(() => {}, 1, table + 50),
    corrupt(/snapshot table entry 0 at 0x150000/),
  );
  await assert.rejects(
    snapshots(() => {}, 65536),
    corrupt(/snapshot table entry \d+ at/),
  );
  await assert.rejects(
    snapshots((v) => v.setUint32(36, 1025)),
    corrupt(/1025 bytes of extra data/),
  );
  await assert.rejects(
    snapshots((v) => v.setUint16(12, 65535)),
    corrupt(/65551 bytes of data/),
  );
  await assert.rejects(
    snapshots((v) => v.setUint32(8, 4194305)),
    corrupt(/L1 table of snapshot "" .* at most 4194304/),
  );
  await assert.rejects(
    snapshots((v) => v.setBigUint64(0, 512n)),
    corrupt(/L1 table of snapshot "" at 0x200/),
  );
  await assert.rejects(
    snapshots((v) => v.setBigUint64(0, 2n ** 60n)),
    corrupt(/L1 table of snapshot/),
  );
  await assert.rejects(
    snapshots((v) => v.setBigUint64(48, 2n ** 60n)),
    { kind: "unsupported" },
  );
});
