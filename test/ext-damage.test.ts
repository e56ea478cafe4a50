/**
 * One wound each, in an otherwise healthy filesystem: every guard is seen to refuse (H1, H2, H24).
 */
import assert from "node:assert/strict";
import { closeSync, openSync, readSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { prove } from "../src/reclaim/prove.ts";
import { fileDevice } from "../src/testing/file-device.ts";
import { requires, run, scratch } from "../src/testing/tools.ts";
import { ext } from "../src/filesystems/ext.ts";
import type { Refusal } from "../src/error.ts";

/** A filesystem of 8 MiB in blocks of 1 KiB with a fragmented file, a directory and an attribute block. */
function healthy(t: TestContext, options: string): string {
  const folder = scratch(t);
  const image = join(folder, "image");
  const content = join(folder, "content");
  writeFileSync(content, Buffer.alloc(300_000, 7));
  run("mke2fs", ["-q", "-F", "-b", "1024", ...options.split(" "), image, "8M"]);
  const attribute = "x".repeat(600);
  edit(
    image,
    `write ${content} file`,
    "mkdir dir",
    `write ${content} other`,
    `ea_set other user.text ${attribute}`,
  );
  return image;
}

const EXT2 = "-t ext2 -I 128";
/** Without a journal, so that everything lies where debugfs finds it at once. */
const EXT4 = "-t ext4 -O ^has_journal -I 128";

function edit(image: string, ...commands: readonly string[]): void {
  run("debugfs", ["-w", "-f", "-", image], `${commands.join("\n")}\n`);
}

function ask(image: string, command: string): string {
  return run("debugfs", ["-R", command, image]);
}

/** Inverts a byte. */
function flip(image: string, at: number): void {
  const file = openSync(image, "r+");
  const byte = Buffer.alloc(1);
  readSync(file, byte, 0, 1, at);
  writeSync(file, Buffer.from([byte[0]! ^ 0xff]), 0, 1, at);
  closeSync(file);
}

function write32(image: string, at: number, value: number): void {
  const file = openSync(image, "r+");
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  writeSync(file, bytes, 0, 4, at);
  closeSync(file);
}

async function verdict(image: string): Promise<Refusal | undefined> {
  await using device = await fileDevice(image);
  const { refusal } = await prove(await ext.open([device], { replay: false }), "full");
  return refusal;
}

function blockOf(image: string, path: string, index: number): number {
  return Number(ask(image, `bmap ${path} ${index}`));
}

function position(image: string, structure: string): number {
  return Number(new RegExp(`${structure} at (\\d+)`).exec(run("dumpe2fs", [image]))![1]);
}

interface Wound {
  readonly name: string;
  readonly options: string;
  readonly code: string;
  readonly message: RegExp;
  readonly inflict: (image: string) => void;
}

const SUPERBLOCK = 1024;

const WOUNDS: readonly Wound[] = [
  {
    name: "a block of a file is marked free",
    options: EXT2,
    code: "contradiction",
    message: /in use, but marked free: block \d+ of \/file/,
    // Another one is marked used, so that the count is right.
    inflict: (image) => edit(image, `freeb ${blockOf(image, "file", 5)}`, "setb 8000"),
  },
  {
    name: "an inode with a link is marked free",
    options: EXT2,
    code: "contradiction",
    message: /inode 12: 1 links found, but the inode bitmap of group 0 calls it free/,
    inflict: (image) => edit(image, "freei file"),
  },
  {
    name: "two files claim a block",
    options: EXT2,
    code: "contradiction",
    message: /block \d+ of inode 14 belongs to another owner too/,
    inflict: (image) => edit(image, `sif other block[3] ${blockOf(image, "file", 5)}`),
  },
  {
    name: "a file claims a block of the inode table",
    options: EXT2,
    code: "contradiction",
    message: /belongs to another owner too/,
    inflict: (image) => edit(image, `sif other block[3] ${position(image, "Inode table")}`),
  },
  {
    name: "an indirect block lists itself",
    options: EXT2,
    code: "contradiction",
    message: /belongs to another owner too/,
    inflict: (image) => {
      const double = Number(/\(DIND\):(\d+)/.exec(ask(image, "stat file"))![1]);
      write32(image, double * 1024, double);
    },
  },
  {
    name: "a block outside of the filesystem",
    options: EXT2,
    code: "damaged",
    message: /blocks 4000000 to 4000001 found/,
    inflict: (image) => edit(image, "sif file block[0] 4000000"),
  },
  {
    name: "a directory names a free inode",
    options: EXT2,
    code: "contradiction",
    message: /inode 500 is free, but a directory names it/,
    inflict: (image) => edit(image, "link <500> dir/ghost"),
  },
  {
    name: "an entry of a directory has no length",
    options: EXT2,
    code: "damaged",
    message: /an entry at 0 of 0 bytes found/,
    inflict: (image) => write32(image, blockOf(image, "dir", 0) * 1024 + 4, 0),
  },
  {
    name: "the root is a file",
    options: EXT2,
    code: "damaged",
    message: /inode 2: file type 0x8000 found/,
    inflict: (image) => edit(image, "sif <2> mode 0100644"),
  },
  {
    name: "the free blocks of a group are miscounted",
    options: EXT2,
    code: "contradiction",
    message: /block bitmap of group 0: \d+ free clusters found, 7 expected/,
    inflict: (image) => edit(image, "set_bg 0 free_blocks_count 7"),
  },
  {
    name: "the bitmap lies on the inode table",
    options: EXT2,
    code: "contradiction|damaged",
    message: /./,
    inflict: (image) => edit(image, `set_bg 0 block_bitmap ${position(image, "Inode table") + 1}`),
  },
  {
    name: "not unmounted",
    options: EXT2,
    code: "not-clean",
    message: /state 0x0/,
    inflict: (image) => edit(image, "ssv state 0"),
  },
  {
    name: "errors were found",
    options: EXT4,
    code: "error-state",
    message: /state 0x3/,
    inflict: (image) => edit(image, "ssv state 3"),
  },
  {
    name: "the device was cut",
    options: EXT4,
    code: "truncated",
    message: /the filesystem has 8388608 bytes, the device only 8000000/,
    inflict: (image) => truncateSync(image, 8_000_000),
  },
  {
    name: "a flipped byte in the superblock",
    options: EXT4,
    code: "checksum",
    message: /^superblock: checksum 0x/,
    inflict: (image) => flip(image, SUPERBLOCK + 0x79),
  },
  {
    name: "a flipped byte in a group descriptor",
    options: EXT4,
    code: "checksum",
    message: /group descriptor 0: checksum/,
    inflict: (image) => flip(image, 2048 + 0x10),
  },
  {
    name: "a flipped byte in a group descriptor, crc16",
    options: "-t ext4 -O ^has_journal,^metadata_csum,uninit_bg -I 128",
    code: "checksum",
    message: /group descriptor 0: checksum/,
    inflict: (image) => flip(image, 2048 + 0x10),
  },
  {
    name: "a flipped byte in a block bitmap",
    options: EXT4,
    code: "checksum",
    message: /block bitmap of group 0: checksum/,
    inflict: (image) => flip(image, position(image, "Block bitmap") * 1024 + 900),
  },
  {
    name: "a flipped byte in an inode bitmap",
    options: EXT4,
    code: "checksum",
    message: /inode bitmap of group 0: checksum/,
    inflict: (image) => flip(image, position(image, "Inode bitmap") * 1024 + 100),
  },
  {
    name: "a flipped byte in an inode",
    options: EXT4,
    code: "checksum",
    message: /inode 12: checksum/,
    inflict: (image) => flip(image, position(image, "Inode table") * 1024 + 11 * 128 + 8),
  },
  {
    name: "a flipped byte in a directory",
    options: EXT4,
    code: "checksum",
    message: /block \d+ of directory inode 13: checksum/,
    inflict: (image) => flip(image, blockOf(image, "dir", 0) * 1024 + 500),
  },
  {
    name: "a flipped byte in an attribute block",
    options: EXT4,
    code: "checksum",
    message: /attribute block \d+ of inode 14: checksum/,
    inflict: (image) =>
      flip(image, Number(/File ACL: (\d+)/.exec(ask(image, "stat other"))![1]) * 1024 + 1000),
  },
  {
    name: "an inode behind those ever used",
    options: EXT4,
    code: "contradiction",
    message: /inode \d+ is in use, but group 0 has used only/,
    inflict: (image) => edit(image, "seti <400>", "set_bg 0 itable_unused 1900", "set_bg 0 checksum calc"),
  },
  {
    name: "an extent tree without its magic",
    options: EXT4,
    code: "checksum|damaged",
    message: /inode 12/,
    inflict: (image) => edit(image, "sif file block[0] 0"),
  },
];

for (const { name, options, code, message, inflict } of WOUNDS) {
  test(`refused: ${name}`, async (t) => {
    if (!requires(t, "mke2fs", "debugfs", "dumpe2fs")) return;
    const image = healthy(t, options);
    assert.equal(await verdict(image), undefined, "healthy before");
    inflict(image);
    const refusal = await verdict(image);
    assert.ok(refusal, "not refused");
    assert.match(refusal.code, new RegExp(`^(${code})$`));
    assert.match(refusal.message, message);
    assert.notEqual(refusal.hint, "");
  });
}

test("refused: a host has it mounted", async (t) => {
  if (!requires(t, "mke2fs", "dumpe2fs")) return;
  const image = join(scratch(t), "image");
  run("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "1024", "-O", "mmp,^metadata_csum", image, "8M"]);
  assert.equal(await verdict(image), undefined);
  const block = /MMP block number: +(\d+)/.exec(run("dumpe2fs", ["-h", image]))![1];
  write32(image, Number(block) * 1024 + 4, 77);
  assert.equal((await verdict(image))?.code, "mmp-in-use");
});

test("every feature bit that is not vouched for is refused by name", async (t) => {
  if (!requires(t, "mke2fs", "debugfs")) return;
  const image = healthy(t, EXT2);
  const file = openSync(image, "r+");
  t.after(() => closeSync(file));
  const refused: string[] = [];
  for (const word of ["compat", "incompat", "ro_compat"]) {
    const at = SUPERBLOCK + { compat: 0x5c, incompat: 0x60, ro_compat: 0x64 }[word]!;
    const before = Buffer.alloc(4);
    readSync(file, before, 0, 4, at);
    for (let bit = 0; bit < 32; bit++) {
      const after = Buffer.from(before);
      after.writeUInt32LE((before.readUInt32LE() | (1 << bit)) >>> 0);
      writeSync(file, after, 0, 4, at);
      const refusal = await verdict(image);
      if (refusal?.code.startsWith("feature-")) {
        const number = `0x${(2 ** bit).toString(16)}`;
        assert.ok(
          refusal.message.includes(number) || refusal.code === "feature-unsupported",
          refusal.message,
        );
        refused.push(`${word} ${number}`);
      }
      writeSync(file, before, 0, 4, at);
    }
  }
  // Those of Linux and e2fsprogs that mke2fs can set, and no others, are let through to further checks.
  const accepted = { compat: 0x1e3f, incompat: 0x3e7de, ro_compat: 0x1b77b };
  const expected = Object.entries(accepted).flatMap(([word, mask]) =>
    Array.from({ length: 32 }, (_, bit) => bit)
      .filter((bit) => ((mask >>> bit) & 1) === 0)
      .map((bit) => `${word} 0x${(2 ** bit).toString(16)}`),
  );
  assert.deepEqual(refused, expected);
});
