import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { type TestContext, test } from "node:test";
import { readBytes } from "../device/device.ts";
import { fileDevice } from "../testing/file-device.ts";
import { keysOf } from "../testing/keys.ts";
import {
  type Encrypted,
  encryptedByCryptsetup,
  encryptedByQemu,
  filledByQemu,
  PASSPHRASE,
  PBKDF2,
  writeByQemu,
} from "../testing/luks.ts";
import { Random } from "../testing/seeds.ts";
import { requires, run } from "../testing/tools.ts";
import { luks } from "./luks.ts";
import type { Keys, Volume, VolumeTable } from "./volume.ts";

async function opened(t: TestContext, path: string, keys?: Keys): Promise<VolumeTable> {
  const disk = await fileDevice(path);
  t.after(() => disk[Symbol.asyncDispose]());
  assert.ok(await luks.probe(disk));
  return luks.open([disk], keys === undefined ? {} : { keys });
}

function only({ volumes, refusal }: VolumeTable): Volume {
  assert.equal(refusal, undefined);
  assert.equal(volumes.length, 1);
  return volumes[0]!;
}

async function readsAs(t: TestContext, { path, plain }: Encrypted): Promise<Volume> {
  const volume = only(await opened(t, path, keysOf("not this", PASSPHRASE)));
  assert.equal(volume.refusal, undefined);
  assert.equal(volume.encrypted, true);
  const { device } = volume;
  assert.ok(device.bytes >= plain.length);
  assert.deepEqual(Buffer.from(await readBytes(device, 0, plain.length)), Buffer.from(plain));
  return volume;
}

test("LUKS1 of QEMU is read", async (t) => {
  if (!requires(t, "qemu-img")) return;
  await readsAs(
    t,
    encryptedByQemu(t, "cipher-alg=aes-192,cipher-mode=xts,ivgen-alg=plain64,hash-alg=ripemd160"),
  );
});

const LUKS1 = [
  [],
  ["--cipher", "aes-xts-plain64", "--key-size", "256", "--hash", "sha1"],
  ["--cipher", "aes-xts-plain", "--key-size", "512", "--hash", "sha512"],
  ["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256", "--hash", "ripemd160"],
  ["--cipher", "aes-cbc-essiv:sha256", "--key-size", "128", "--hash", "sha224"],
  ["--cipher", "aes-cbc-plain", "--key-size", "128", "--hash", "sha384"],
  ["--cipher", "aes-cbc-plain64", "--key-size", "256", "--hash", "sha256"],
];

for (const options of LUKS1) {
  test(`LUKS1 of cryptsetup that QEMU filled is read: ${options.join(" ")}`, async (t) => {
    if (!requires(t, "qemu-img", "cryptsetup")) return;
    await readsAs(t, filledByQemu(t, options));
  });
}

const CRYPTSETUP = [
  [...PBKDF2],
  ["--sector-size", "512", ...PBKDF2, "--hash", "sha512", "--key-size", "256"],
  ["--sector-size", "1024", ...PBKDF2, "--hash", "sha1"],
  ["--sector-size", "2048", ...PBKDF2, "--hash", "sha3-256"],
  ["--sector-size", "4096", ...PBKDF2, "--hash", "blake2b-512"],
  ["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256", ...PBKDF2],
  ["--cipher", "aes-cbc-plain64", "--key-size", "128", ...PBKDF2, "--hash", "blake2s-256"],
  ["--pbkdf", "argon2id", "--pbkdf-memory", "1024", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "2"],
  ["--pbkdf", "argon2i", "--pbkdf-memory", "32", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1"],
];

for (const options of CRYPTSETUP) {
  test(`LUKS2 of cryptsetup is read: ${options.join(" ")}`, async (t) => {
    if (!requires(t, "cryptsetup")) return;
    await readsAs(t, encryptedByCryptsetup(t, options));
  });
}

test("any stretch can be read, and lies where places() says", async (t) => {
  if (!requires(t, "cryptsetup")) return;
  const encrypted = encryptedByCryptsetup(t, ["--sector-size", "4096", ...PBKDF2]);
  const volume = await readsAs(t, encrypted);
  const { device } = volume;
  const random = new Random(7);
  for (let i = 0; i < 50; i++) {
    const start = random.below(encrypted.plain.length);
    const end = random.between(start, Math.min(start + 20_000, encrypted.plain.length) + 1);
    const found = await readBytes(device, start, end - start);
    assert.deepEqual(Buffer.from(found), Buffer.from(encrypted.plain.subarray(start, end)));
    if (start === end) continue;
    const [place, ...others] = volume.places({ start, end });
    assert.deepEqual(others, []);
    assert.equal(place!.bytes, end - start);
    assert.equal(volume.find(0, place!.at), start);
  }
  for await (const runs of device.map({ start: 0, end: device.bytes })) {
    assert.deepEqual(new Set(runs.map(({ kind }) => kind)), new Set(["data"]));
  }
  const ciphertext = readFileSync(encrypted.path);
  assert.equal([...volume.places({ start: 0, end: device.bytes })][0]!.at + device.bytes, ciphertext.length);
});

test("sectors beyond 2 TiB are numbered as QEMU numbers them", async (t) => {
  if (!requires(t, "qemu-img", "cryptsetup")) return;
  const at = 2 ** 41 - 4096;
  for (const cipher of ["aes-xts-plain", "aes-xts-plain64", "aes-cbc-essiv:sha256"]) {
    const { path } = filledByQemu(t, ["--cipher", cipher, "--key-size", "256"]);
    run("truncate", ["-s", "+2T", path]);
    writeByQemu(t, path, { at, bytes: 8192, value: 0x5a });
    const { device } = only(await opened(t, path, keysOf(PASSPHRASE)));
    assert.deepEqual(new Set(await readBytes(device, at, 8192)), new Set([0x5a]), cipher);
  }
});
