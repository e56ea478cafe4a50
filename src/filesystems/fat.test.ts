import assert from "node:assert/strict";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { readBytes } from "../device/device.ts";
import { balanceOf, contentOf, openedVolume, refusalOf } from "../testing/cluster-volume.ts";
import { FAT_TOOLS, fatFree, makeFat, mshowfatRuns } from "../testing/fat.ts";
import { attempt, requires, run, scratch } from "../testing/tools.ts";
import { fat } from "./fat.ts";

const MAKES = [
  { name: "fat12", options: "-F 12", kibibytes: 4000 },
  { name: "fat12", options: "-F 12 -f 1 -r 224 -a -s 2", kibibytes: 3001 },
  { name: "fat16", options: "-F 16 -s 1 -a", kibibytes: 8003 },
  { name: "fat16", options: "-F 16 -S 4096 -s 1", kibibytes: 20000 },
  { name: "fat16", options: "-F 16 -s 128", kibibytes: 280000 },
  { name: "fat32", options: "-F 32 -s 1", kibibytes: 34000 },
  { name: "fat32", options: "-F 32 -s 2 -f 1 -R 38 -a", kibibytes: 70000 },
  { name: "fat32", options: "-F 32 -S 4096 -s 1", kibibytes: 270000 },
];

for (const { name, options, kibibytes } of MAKES) {
  test(`a volume filled by mtools balances: ${options}, ${kibibytes} KiB`, async (t) => {
    if (!requires(t, ...FAT_TOOLS, "blkls", "mshowfat")) return;
    const folder = scratch(t);
    const image = makeFat(folder, options.split(" "), kibibytes);
    assert.equal(attempt("fsck.fat", ["-n", image]).status, 0);
    const volume = await openedVolume(t, fat, image);
    const { device, filesystem } = volume;
    const { free, leakedBytes } = await balanceOf(filesystem);
    assert.equal(filesystem.name, name);
    assert.equal(leakedBytes, 0, "free and reached add up to the whole");
    assert.deepEqual([...free], [...fatFree(image)]);

    const boot = Buffer.from(await readBytes(device, 0, 512));
    const clusterBytes = boot[13]! * boot.readUInt16LE(11);
    const names = readdirSync(join(folder, "tree"), { recursive: true, encoding: "utf8" });
    let compared = 0;
    for (const path of names.filter((path) => statSync(join(folder, "tree", path)).isFile())) {
      const found = await filesystem.find(path.toUpperCase());
      const isGone = /many.*number 1|^F\d*[02468]\.TXT/.test(path);
      assert.equal(found === undefined, isGone, path);
      if (found === undefined) continue;
      const source = readFileSync(join(folder, "tree", path));
      assert.ok(source.equals(await contentOf(volume, path)), path);
      if (source.length === 0 || compared++ % 9 !== 0) continue;
      assert.deepEqual(
        found.extents.map(({ bytes }) => bytes / clusterBytes),
        mshowfatRuns(image, `/${path}`).map(({ first, end }) => end - first),
      );
      assert.equal((await filesystem.describe(found.owner)).path, `/${path}`);
    }
    assert.ok(compared > 90);
    const listed = await filesystem.list("/");
    const wanted = run("sh", ["-c", 'LC_ALL=C.UTF-8 mdir -b -a -i "$1" ::/ | sort', "sh", image])
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => line.slice(3).replace(/\/$/, ""));
    assert.deepEqual(listed!.map((entry) => entry.name).sort(), wanted);
  });
}

/** A volume's bytes, and where things are in them. */
class Draft {
  readonly bytes: Buffer;
  readonly #bits: number;
  readonly #fatAt: number;
  readonly #fatBytes: number;
  readonly #fats: number;
  /** The entry of `large.bin`, by its short name. */
  readonly entry: number;

  constructor(bytes: Buffer, bits: number) {
    this.bytes = bytes;
    this.#bits = bits;
    const sectorBytes = bytes.readUInt16LE(11);
    this.#fatAt = bytes.readUInt16LE(14) * sectorBytes;
    this.#fatBytes = (bytes.readUInt16LE(22) || bytes.readUInt32LE(36)) * sectorBytes;
    this.#fats = bytes[16]!;
    this.entry = bytes.indexOf("LARGE   BIN");
  }

  /** How many there are, or a few less. */
  get clusters(): number {
    const sectors = this.bytes.readUInt16LE(19) || this.bytes.readUInt32LE(32);
    const before = (this.#fatAt + this.#fats * this.#fatBytes) / this.bytes.readUInt16LE(11);
    return Math.floor((sectors - before) / this.bytes[13]!) - 40;
  }

  get first(): number {
    return this.bytes.readUInt16LE(this.entry + 20) * 65536 + this.bytes.readUInt16LE(this.entry + 26);
  }

  set first(cluster: number) {
    this.bytes.writeUInt16LE(cluster >>> 16, this.entry + 20);
    this.bytes.writeUInt16LE(cluster & 0xffff, this.entry + 26);
  }

  link(cluster: number, value: number): void {
    for (let copy = 0; copy < this.#fats; copy++) {
      const at = this.#fatAt + copy * this.#fatBytes + Math.floor((cluster * this.#bits) / 8);
      if (this.#bits === 32) this.bytes.writeUInt32LE(value >>> 0, at);
      else if (this.#bits === 16) this.bytes.writeUInt16LE(value & 0xffff, at);
      else {
        const old = this.bytes.readUInt16LE(at);
        const fresh = cluster & 1 ? (old & 0xf) | ((value & 0xfff) << 4) : (old & 0xf000) | (value & 0xfff);
        this.bytes.writeUInt16LE(fresh, at);
      }
    }
  }

  set(at: number, value: number, bytes: 1 | 2 | 4 = 1): void {
    this.bytes.writeUIntLE(value, at, bytes);
  }

  /** Gives another file the clusters and the length of `large.bin`. */
  share(shortName: string): void {
    const other = this.bytes.indexOf(shortName);
    this.bytes.copy(this.bytes, other + 20, this.entry + 20, this.entry + 22);
    this.bytes.copy(this.bytes, other + 26, this.entry + 26, this.entry + 32);
  }

  differ(): void {
    this.bytes[this.#fatAt + this.#fatBytes + 100]! ^= 1;
  }
}

type Damage = readonly [what: string, damage: (draft: Draft) => void, refusal: RegExp];

/** What goes for all widths. The state is at another place in FAT32. */
const damages = (stateAt: number): readonly Damage[] => [
  ["nothing", () => {}, /^$/],
  ["H2: the dirty bit of the boot sector", (d) => d.set(stateAt, 1), /^not-clean: /],
  ["the error bit of the boot sector", (d) => d.set(stateAt, 2), /^error-state: /],
  ["copies of the table that differ", (d) => d.differ(), /^contradiction: copies 1 and 2/],
  ["another medium in the table", (d) => d.set(21, 0xf0), /^damaged: .*media/],
  ["three tables", (d) => d.set(16, 3), /^feature-unsupported: /],
  ["no clusters", (d) => (d.set(19, 60, 2), d.set(32, 0, 4)), /^damaged: /],
  ["a longer volume", (d) => (d.set(19, 0, 2), d.set(32, 1 << 20, 4)), /^(damaged|truncated): /],
  ["two lengths", (d) => (d.set(19, 4000, 2), d.set(32, 4001, 4)), /^damaged: .*one number/],
  ["a chain into a loop", (d) => d.link(d.first + 20, d.first), /^(damaged|contradiction): /],
  ["a chain that ends early", (d) => d.link(d.first + 9, 0xfffffff), /^damaged: .*expected/],
  ["a chain into a bad cluster", (d) => d.link(d.first + 9, 0xffffff7), /^damaged: .*bad/],
  ["a chain into nothing", (d) => d.link(d.first + 9, 0), /^damaged: .*free/],
  ["a chain to the outside", (d) => d.link(d.first + 9, 0xfffffe0), /^damaged: .*followed/],
  ["a chain into another file", (d) => d.link(d.first + 9, d.first - 1), /^(damaged|contradiction): /],
  ["two files with the same clusters", (d) => d.share("EXACT      "), /^contradiction: cluster \d+ of/],
  ["a shorter file", (d) => d.set(d.entry + 28, 9000, 4), /^damaged: .*longer/],
  ["a longer file", (d) => d.set(d.entry + 28, 900_000, 4), /^damaged: .*expected/],
  ["a file of nothing with clusters", (d) => d.set(d.entry + 28, 0, 4), /^damaged: /],
  ["a file without clusters", (d) => (d.first = 0), /^damaged: .*no cluster/],
  ["a first cluster outside", (d) => (d.first = 0xfff0), /^(damaged|contradiction): /],
  ["a first cluster that is reserved", (d) => (d.first = 1), /^damaged: /],
  ["unknown attributes", (d) => d.set(d.entry + 11, 0x80), /^damaged: .*attributes/],
  ["a label with clusters", (d) => d.set(d.entry + 11, 0x08), /^damaged: .*label/],
  ["a file that is called a directory", (d) => d.set(d.entry + 11, 0x10), /^damaged: /],
  ["an end in the middle", (d) => d.set(d.entry - 64, 0), /^damaged: .*behind the end/],
  [
    "a link to another directory",
    (d) => d.set(d.bytes.indexOf(".          ") + 26, 7, 2),
    /^damaged: .*leads to cluster 7/,
  ],
  ["a name that nobody writes", (d) => d.set(d.entry + 3, 0x3a), /^damaged: .*character 0x3a/],
  ["a name in Shift-JIS: trail bytes look like separators", (d) => d.set(d.entry + 3, 0x7c955c83, 4), /^$/],
  ["a name that begins with such a character", (d) => d.set(d.entry, 0x5c05, 2), /^$/],
  ["a separator behind two of them", (d) => d.set(d.entry + 3, 0x5c5c83, 4), /^damaged: .*character 0x5c/],
  ["a lost cluster that leads nowhere", (d) => d.link(d.clusters, d.clusters + 99), /^damaged: .*followed/],
  ["a deleted file whose clusters stay", (d) => d.set(d.entry, 0xe5), /^$/],
];

const WIDTHS = [
  { bits: 12, stateAt: 37, kibibytes: 4000 },
  { bits: 16, stateAt: 37, kibibytes: 9000 },
  { bits: 32, stateAt: 65, kibibytes: 34_000 },
];

for (const { bits, stateAt, kibibytes } of WIDTHS) {
  test(`FAT${bits}: every guard refuses, and says why`, async (t) => {
    if (!requires(t, ...FAT_TOOLS)) return;
    const image = readFileSync(makeFat(scratch(t), ["-F", `${bits}`], kibibytes));
    const more: Damage[] = [];
    const inTable = (value: number) => (draft: Draft) => draft.link(1, value);
    if (bits !== 32) {
      more.push(["a cut root directory", (d) => d.set(17, 1, 2), /^damaged: .*root entries/]);
      more.push(["a table that is too short", (d) => d.set(22, 1, 2), /^damaged: .*a table of/]);
    }
    if (bits === 16) {
      more.push(["H2: the dirty bit of the table", inTable(0x7fff), /^not-clean: /]);
      more.push(["the error bit of the table", inTable(0xbfff), /^error-state: /]);
      const many = (d: Draft) => (d.set(13, 1), d.set(19, 0, 2), d.set(32, 1 << 20, 4));
      more.push(["more clusters than 16 bits can name", many, /^damaged: .*at most 65524/]);
    } else if (bits === 32) {
      more.push(["H2: the dirty bit of the table", inTable(0x07ffffff), /^not-clean: /]);
      more.push(["the error bit of the table", inTable(0x0bffffff), /^error-state: /]);
      more.push(["tables that are not mirrored", (d) => d.set(40, 0x80), /^feature-unsupported: .*0x80/]);
      more.push(["another version", (d) => d.set(42, 1, 2), /^feature-unsupported: .*version/]);
      more.push(["a root outside", (d) => d.set(44, 1 << 27, 4), /^damaged: .*root/]);
      more.push(["another backup", (d) => d.set(6 * 512 + 36, 1, 4), /^contradiction: .*backup/]);
      more.push(["a backup that never was", (d) => d.bytes.fill(0, 6 * 512, 7 * 512), /^$/]);
      more.push(["a partition that was moved", (d) => d.set(28, 4096, 4), /^$/]);
      more.push(["a backup outside", (d) => d.set(50, 50, 2), /^damaged: .*backup/]);
      more.push(["reserved bits of an entry", (d) => d.link(d.first + 9, 0xf0000000 + d.first + 10), /^$/]);
    }
    for (const [what, damage, refusal] of [...damages(stateAt), ...more]) {
      const draft = new Draft(Buffer.from(image), bits);
      damage(draft);
      assert.match(await refusalOf(fat, draft.bytes), refusal, what);
    }
    assert.match(await refusalOf(fat, image.subarray(0, image.length >> 1)), /^truncated: /);
  });
}

test("H3: a Windows that hibernates on FAT keeps everything", async (t) => {
  if (!requires(t, ...FAT_TOOLS)) return;
  const folder = scratch(t);
  const refusalWith = async (content: string, bytes: number) => {
    const [image, file] = [join(folder, "image"), join(folder, "file")];
    run("rm", ["-f", image]);
    run("mkfs.fat", ["-C", "-F", "16", image, "9000"]);
    writeFileSync(file, Buffer.concat([Buffer.from(content), Buffer.alloc(bytes)]));
    run("mcopy", ["-i", image, file, "::/HIBERFIL.SYS"]);
    return refusalOf(fat, readFileSync(image));
  };
  assert.match(await refusalWith("hibr", 9000), /^hibernated: /);
  assert.match(await refusalWith("HIBR", 9000), /^hibernated: /);
  assert.match(await refusalWith("", 100), /^hibernated: /);
  assert.equal(await refusalWith("wake", 9000), "");
  assert.equal(await refusalWith("", 9000), "");
});

test("H21: what only looks like FAT is not taken for it", async (t) => {
  if (!requires(t, "mkfs.fat")) return;
  const image = join(scratch(t), "image");
  run("mkfs.fat", ["-C", "-F", "32", image, "34000"]);
  const original = readFileSync(image);
  const others: readonly [string, (bytes: Buffer) => unknown][] = [
    ["NTFS", (bytes) => bytes.write("NTFS    ", 3)],
    ["BitLocker", (bytes) => bytes.write("-FVE-FS-", 3)],
    ["BitLocker To Go", (bytes) => bytes.write("3bd66749292ed84a8399f6a339e3d001", 424, "hex")],
    ["no signature", (bytes) => bytes.writeUInt16LE(0, 510)],
    ["no jump", (bytes) => (bytes[0] = 0)],
    ["no table", (bytes) => (bytes[16] = 0)],
    ["no reserved sector", (bytes) => bytes.writeUInt16LE(0, 14)],
    ["clusters of three sectors", (bytes) => (bytes[13] = 3)],
    ["sectors of 500 bytes", (bytes) => bytes.writeUInt16LE(500, 11)],
    ["an unknown medium", (bytes) => (bytes[21] = 0x12)],
    ["a root directory of FAT16", (bytes) => bytes.writeUInt16LE(512, 17)],
  ];
  assert.equal(await refusalOf(fat, original), "");
  for (const [what, change] of others) {
    const bytes = Buffer.from(original);
    change(bytes);
    assert.equal(await refusalOf(fat, bytes), "not recognised", what);
  }
});
