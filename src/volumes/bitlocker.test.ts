import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { corpus, unpack } from "../testing/corpus.ts";
import { fileDevice } from "../testing/file-device.ts";
import { SimulatedFile } from "../testing/simulated-file.ts";
import { attempt, requires } from "../testing/tools.ts";
import { bitlocker } from "./bitlocker.ts";

/** As cryptsetup writes what Windows calls otherwise. */
const MODES: Readonly<Record<string, string>> = {
  "cbc-elephant": "with diffuser",
  "cbc-eboiv": "AES-CBC",
  "xts-plain64": "AES-XTS",
};

test("BitLocker of other people is recognised, with its method as cryptsetup says it", async (t) => {
  if (corpus(t) === undefined || !requires(t, "cryptsetup")) return;
  const folder = join(unpack(t, "mbroz+cryptsetup/tests/bitlk-images.tar.xz"), "bitlk-images");
  const names = readdirSync(folder).filter((name) => name.endsWith(".img"));
  assert.ok(names.length >= 20);
  for (const name of names) {
    await using disk = await fileDevice(join(folder, name));
    assert.ok(await bitlocker.probe(disk), name);
    const { refusal, volumes } = await bitlocker.open([disk]);
    assert.deepEqual(volumes, []);
    assert.equal(refusal?.code, "locked");
    const { stdout } = attempt("cryptsetup", ["bitlkDump", join(folder, name)]);
    const mode = /Cipher mode: *\t*(\S+)/.exec(stdout)?.[1];
    if (mode !== undefined) assert.ok(refusal.message.includes(MODES[mode]!), `${name}: ${refusal.message}`);
    assert.equal(refusal.message.includes("To Go"), name.includes("togo"), name);
    assert.equal(refusal.message.includes("written to"), /eow|partially/.test(name), name);
  }
});

test("BitLocker To Go is not taken for a FAT32, Vista's is known, and neither needs more than a sector", async (t) => {
  const sector = new Uint8Array(512);
  const bytes = Buffer.from(sector.buffer);
  const message = async () => {
    const disk = SimulatedFile.from(sector);
    return (await bitlocker.probe(disk)) ? (await bitlocker.open([disk])).refusal?.message : undefined;
  };
  bytes.write("\xeb\x58\x90MSWIN4.1", "latin1");
  bytes.write("FAT32   ", 82, "latin1");
  assert.equal(await message(), undefined);
  assert.equal(bitlocker.hidesContent, true);
  bytes.write("3bd66749292ed84a8399f6a339e3d001", 424, "hex");
  bytes.fill(0xff, 440, 448);
  assert.equal(await message(), "BitLocker To Go: it is not decrypted");
  bytes.write("\xeb\x52\x90-FVE-FS-", "latin1");
  assert.equal(await message(), "BitLocker of Windows Vista: it is not decrypted");
  if (corpus(t) === undefined) return;
  await using disk = await fileDevice(unpack(t, "log2timeline+dfvfs/test_data/bdetogo.raw"));
  assert.match((await bitlocker.open([disk])).refusal!.message, /To Go/);
});
