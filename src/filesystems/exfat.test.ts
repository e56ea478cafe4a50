import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { balanceOf, contentOf, openedVolume, refusalOf, sha256 } from "../testing/cluster-volume.ts";
import { ENTRY_BYTES, ExfatDraft, exfatFree, fillExfat, filledExfat } from "../testing/exfat.ts";
import { attached } from "../testing/mounted.ts";
import { attempt, requires, run, scratch } from "../testing/tools.ts";
import { exfat } from "./exfat.ts";

const MIB = 2 ** 20;

const MAKES = [
  { bytes: 4 * MIB, options: ["-c", "512"] },
  { bytes: 5 * MIB, options: ["-c", "4096"] },
  { bytes: 20 * MIB + 4096, options: ["-c", "32K", "-b", "64K"] },
  { bytes: 64 * MIB, options: ["-c", "128K", "--pack-bitmap"] },
];

for (const { bytes, options } of MAKES) {
  test(`a filled volume balances: mkfs.exfat ${options.join(" ")}`, async (t) => {
    if (!requires(t, "mkfs.exfat", "fsck.exfat", "dump.exfat", "blkls", "fls")) return;
    const folder = scratch(t);
    const draft = filledExfat(folder, bytes, ...options, "-L", "label");
    const image = join(folder, "filled.img");
    writeFileSync(image, draft.bytes);
    const checked = attempt("fsck.exfat", ["-n", image]);
    assert.equal(checked.status, 0, checked.stdout);
    const volume = await openedVolume(t, exfat, image);
    const { free, leakedBytes } = await balanceOf(volume.filesystem);
    assert.equal(leakedBytes, 0, "free and reached add up to the whole");
    assert.equal(volume.filesystem.label, "label");
    assert.deepEqual([...free], [...exfatFree(image)]);

    const half = await contentOf(volume, "/half written");
    const start = (await volume.filesystem.find("/half written"))!.extents[0]!.at;
    assert.ok(half.subarray(0, 700).equals(draft.bytes.subarray(start, start + 700)));
    assert.ok(
      half.subarray(700).every((byte) => byte === 0),
      "what was never written is zeros",
    );
    let files = 0;
    for (const [, address, path] of run("fls", ["-r", "-p", "-F", image]).matchAll(/^r\/r (\S+):\t(.*)$/gm)) {
      if (/^\$|Volume Label Entry|half written/.test(path!)) continue;
      const found = await volume.filesystem.find(`/${path!.toUpperCase()}`);
      assert.equal(found?.kind, "file", path);
      if (files++ % 4 !== 0) continue;
      const content = run("sh", ["-c", 'icat "$1" "$2" | sha256sum', "sh", image, address!]).slice(0, 64);
      assert.equal(sha256(await contentOf(volume, path!)), content, path);
      if (found.extents.length > 0) {
        assert.equal((await volume.filesystem.describe(found.owner)).path, `/${path}`);
      }
    }
    assert.equal(files, 28);
    assert.equal((await volume.filesystem.find("/"))!.kind, "directory");
  });
}

test("a filled volume with sectors of 4096 bytes balances", async (t) => {
  if (!requires(t, "mkfs.exfat", "fsck.exfat", "dump.exfat", "blkls")) return;
  const image = join(scratch(t), "image");
  writeFileSync(image, Buffer.alloc(16 * MIB));
  const loop = attached(t, image, "--sector-size", "4096");
  if (loop === undefined) return;
  run("mkfs.exfat", [loop]);
  run("losetup", ["--detach", loop]);
  const draft = fillExfat(readFileSync(image));
  assert.equal(draft.sectorBytes, 4096);
  writeFileSync(image, draft.bytes);
  assert.equal(attempt("fsck.exfat", ["-n", image]).status, 0);
  const volume = await openedVolume(t, exfat, image);
  const { free, leakedBytes } = await balanceOf(volume.filesystem);
  assert.equal(leakedBytes, 0);
  assert.deepEqual([...free], [...exfatFree(image)]);
});

interface Damage {
  readonly what: string;
  /** Of the set of `scattered`, which lies in the root's first cluster. */
  readonly damage: (draft: ExfatDraft, set: number) => void;
  /** `code: message` of the refusal; "" when it is none. */
  readonly refusal: RegExp;
}

const boot = (at: number, value: number, bytes: 1 | 2 | 4 = 1): Damage["damage"] => {
  return (draft) => {
    for (const region of [0, 12]) draft.bytes.writeUIntLE(value, region * draft.sectorBytes + at, bytes);
    draft.fixBoot();
  };
};
const flags =
  (value: number): Damage["damage"] =>
  (draft) =>
    void draft.bytes.writeUInt16LE(value, 106);
const inSet = (at: number, value: number, bytes: 1 | 2 | 4 = 1): Damage["damage"] => {
  return (draft, set) => {
    draft.bytes.writeUIntLE(value, set + at, bytes);
    draft.fixSet(set);
  };
};
/** Where an entry of the root lies that describes the volume. */
const systemAt = (draft: ExfatDraft, type: number): number => {
  let at = draft.clusterAt(draft.root.clusters[0]!);
  while (draft.bytes[at] !== type) at += ENTRY_BYTES;
  return at;
};
const inSystem = (type: number, at: number, value: number, bytes: 1 | 4): Damage["damage"] => {
  return (draft) => void draft.bytes.writeUIntLE(value, systemAt(draft, type) + at, bytes);
};
const chain = (index: number, entry: (clusters: readonly number[]) => number): Damage["damage"] => {
  return (draft, set) => {
    const clusters = clustersOf(draft, set);
    draft.bytes.writeUInt32LE(entry(clusters), draft.entryAt(clusters[index]!));
  };
};

function clustersOf(draft: ExfatDraft, set: number): number[] {
  const clusters = [draft.bytes.readUInt32LE(set + 52)];
  for (let next = clusters[0]!; (next = draft.bytes.readUInt32LE(draft.entryAt(next))) !== 0xffffffff;) {
    clusters.push(next);
  }
  return clusters;
}

const DAMAGES: readonly Damage[] = [
  { what: "nothing", damage: () => {}, refusal: /^$/ },
  { what: "the percentage in use", damage: (draft) => (draft.bytes[112] = 77), refusal: /^$/ },
  { what: "H2: the dirty flag", damage: flags(2), refusal: /^not-clean: / },
  { what: "the flag of a failed medium", damage: flags(4), refusal: /^error-state: / },
  { what: "the flag to clear before use", damage: flags(8), refusal: /^$/ },
  { what: "the second table in use", damage: flags(1), refusal: /^feature-unsupported: / },
  { what: "an unknown volume flag", damage: flags(0x10), refusal: /^feature-unsupported: / },
  { what: "revision 1.1", damage: boot(104, 0x0101, 2), refusal: /^feature-unsupported: .*0x101/ },
  { what: "TexFAT", damage: boot(110, 2), refusal: /^feature-unsupported: .*TexFAT/ },
  { what: "huge clusters", damage: boot(109, 25), refusal: /^damaged: / },
  { what: "sectors of 256 bytes", damage: boot(108, 8), refusal: /^damaged: / },
  { what: "a root outside", damage: boot(96, 99_999, 4), refusal: /^damaged: / },
  { what: "more clusters than fit", damage: boot(92, 1 << 24, 4), refusal: /^damaged: / },
  { what: "a table inside of the boot regions", damage: boot(80, 20, 4), refusal: /^damaged: / },
  { what: "a sign of FAT", damage: boot(11, 2, 2), refusal: /^damaged: / },
  { what: "a longer volume", damage: boot(72, 1 << 24, 4), refusal: /^truncated: / },
  { what: "the boot code", damage: (draft) => (draft.bytes[300]! ^= 1), refusal: /^checksum: boot region/ },
  {
    what: "the backup",
    damage: (draft) => (draft.bytes[12 * 512 + 300]! ^= 1),
    refusal: /^checksum: backup/,
  },
  {
    what: "another backup",
    damage(draft) {
      draft.bytes[12 * 512 + 100]! ^= 1;
      draft.fixBoot();
    },
    refusal: /^contradiction: .*backup differ/,
  },
  {
    what: "the checksum of a set",
    damage: (draft, set) => (draft.bytes[set + 8]! ^= 1),
    refusal: /^checksum: /,
  },
  { what: "the hash of a name", damage: inSet(36, 1, 2), refusal: /^checksum: .*hash/ },
  { what: "a name that is not allowed", damage: inSet(68, 0x2f, 2), refusal: /^damaged: .*name/ },
  { what: "a name without an entry", damage: inSet(35, 40), refusal: /^damaged: .*name/ },
  { what: "a name that goes on", damage: inSet(66 + 18, 0x61, 2), refusal: /^damaged: .*goes on/ },
  { what: "no name", damage: inSet(35, 0), refusal: /^damaged: .*name/ },
  { what: "a file without a stream", damage: inSet(32, 0xc1), refusal: /^damaged: .*stream/ },
  { what: "an unknown flag of a stream", damage: inSet(33, 5), refusal: /^damaged: .*flags/ },
  { what: "clusters of a stream that has none", damage: inSet(33, 0), refusal: /^damaged: .*none/ },
  { what: "a set counted too long", damage: inSet(1, 3), refusal: /^damaged: / },
  { what: "an unknown critical entry", damage: inSet(0, 0x86), refusal: /^feature-unsupported: .*0x86/ },
  { what: "an entry without a set", damage: inSet(0, 0x05), refusal: /^damaged: .*0xc0/ },
  { what: "padding of TexFAT", damage: inSet(0, 0xa1), refusal: /^feature-unsupported: .*0xa1/ },
  { what: "an unknown benign set: lost clusters stay", damage: inSet(0, 0xa5), refusal: /^$/ },
  { what: "a length of 2^60", damage: inSet(63, 0x10), refusal: /^damaged: / },
  { what: "more valid bytes than there are", damage: inSet(42, 1), refusal: /^damaged: .*valid/ },
  { what: "a longer file", damage: inSet(56, 25_000, 4), refusal: /^damaged: .*expected/ },
  { what: "a shorter file", damage: inSet(56, 13_000, 4), refusal: /^damaged: / },
  { what: "a file that is called a row", damage: inSet(33, 3), refusal: /^contradiction: / },
  { what: "a first cluster outside", damage: inSet(52, 1 << 20, 4), refusal: /^damaged: / },
  { what: "a directory of odd length", damage: inSet(4, 0x10), refusal: /^damaged: .*directory/ },
  {
    what: "a row behind the last cluster",
    damage(draft, set) {
      draft.bytes[set + 33] = 3;
      draft.bytes.writeUInt32LE(draft.bytes.readUInt32LE(92) + 1, set + 52);
      draft.fixSet(set);
    },
    refusal: /^damaged: .*reach behind the last/,
  },
  {
    what: "a bitmap that is too short",
    damage: inSystem(0x81, 24, 9, 4),
    refusal: /^damaged: .*bitmap: 9 bytes/,
  },
  {
    what: "a bitmap of the second table",
    damage: inSystem(0x81, 1, 1, 1),
    refusal: /^damaged: .*bitmap: flags/,
  },
  {
    what: "two bitmaps",
    damage(draft) {
      const [bitmap, table] = [systemAt(draft, 0x81), systemAt(draft, 0x82)];
      draft.bytes.copy(draft.bytes, table, bitmap, bitmap + ENTRY_BYTES);
    },
    refusal: /^damaged: .*a second entry 0x81/,
  },
  { what: "no bitmap", damage: inSystem(0x81, 0, 1, 1), refusal: /^damaged: .*no allocation bitmap/ },
  { what: "another up-case table", damage: inSystem(0x82, 4, 1, 4), refusal: /^checksum: up-case table/ },
  {
    what: "an up-case table in two pieces",
    damage(draft) {
      const first = draft.bytes.readUInt32LE(systemAt(draft, 0x82) + 20);
      draft.bytes.writeUInt32LE(700, draft.entryAt(first));
      draft.bytes.writeUInt32LE(0xffffffff, draft.entryAt(700));
    },
    refusal: /^damaged: up-case table: 2 pieces/,
  },
  {
    what: "a chain into a loop",
    damage: chain(2, ([first]) => first!),
    refusal: /^(damaged|contradiction): /,
  },
  { what: "a chain that ends early", damage: chain(2, () => 0xffffffff), refusal: /^damaged: .*expected/ },
  { what: "a chain into a bad cluster", damage: chain(2, () => 0xfffffff7), refusal: /^damaged: .*bad/ },
  { what: "a chain into nothing", damage: chain(2, () => 0), refusal: /^damaged: .*free/ },
  { what: "a chain to the outside", damage: chain(2, () => 0xfffffff8), refusal: /^damaged: .*followed/ },
  {
    what: "a chain into another file's clusters",
    damage: chain(2, ([first]) => first! - 1),
    refusal: /^(contradiction|damaged): /,
  },
  {
    what: "H1: a cluster in use that the bitmap calls free",
    damage: (draft, set) => draft.setUsed(clustersOf(draft, set)[3]!, false),
    refusal: /^contradiction: in use, but marked free: .*\/scattered/,
  },
  {
    what: "H1: a cluster of a row that the bitmap calls free",
    damage: (draft, set) => draft.setUsed(clustersOf(draft, set)[0]! - 1, false),
    refusal: /^contradiction: in use, but marked free/,
  },
  {
    what: "two files with the same clusters",
    damage(draft, set) {
      const other = draft.bytes.indexOf(Buffer.from("Höhe.txt", "utf16le")) - 2 * ENTRY_BYTES - 2;
      draft.bytes.copy(draft.bytes, set + 33, other + 33, other + 34);
      draft.bytes.copy(draft.bytes, set + 40, other + 40, other + 64);
      draft.fixSet(set);
    },
    refusal: /^contradiction: cluster \d+ of/,
  },
  { what: "a lost cluster stays", damage: (draft) => draft.setUsed(700, true), refusal: /^$/ },
];

test("every guard refuses, and says why", async (t) => {
  if (!requires(t, "mkfs.exfat")) return;
  const { bytes } = filledExfat(scratch(t), 5 * MIB, "-c", "4096");
  const set = bytes.indexOf(Buffer.from("scattered", "utf16le")) - 2 * ENTRY_BYTES - 2;
  for (const { what, damage, refusal } of DAMAGES) {
    const draft = new ExfatDraft(Buffer.from(bytes));
    damage(draft, set);
    assert.match(await refusalOf(exfat, draft.bytes), refusal, what);
  }
});
