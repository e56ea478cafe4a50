/** What LUKS headers are refused for, and what cryptsetup says to the same. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { corpus, unpack } from "../testing/corpus.ts";
import { fuzzDevice, outcome } from "../testing/fuzz.ts";
import { keysOf } from "../testing/keys.ts";
import {
  COPY_BYTES,
  editJson,
  encryptedByCryptsetup,
  fixChecksum,
  jsonOf,
  keyFile,
  newHeader,
  PASSPHRASE,
  PBKDF2,
  SMALL,
} from "../testing/luks.ts";
import { Random, seeds } from "../testing/seeds.ts";
import { attempt, requires, run, scratch } from "../testing/tools.ts";
import { gpt } from "./gpt.ts";
import { luks } from "./luks.ts";
import { HASHES } from "./luks/hash.ts";
import { parseJson } from "./luks/json.ts";
import { Luks1Layout, SlotLayout } from "./luks/luks1.ts";
import { Luks2Layout } from "./luks/luks2.ts";
import type { Keys, VolumeTable } from "./volume.ts";

const MiB = 1024 * 1024;

async function openedBytes(bytes: Uint8Array, keys: Keys = keysOf(PASSPHRASE)): Promise<VolumeTable> {
  return luks.open([fuzzDevice(bytes)], { keys });
}

/** The code of the refusal of the table or of its volume; undefined when it is decrypted. */
async function codeOf(bytes: Uint8Array, keys?: Keys): Promise<string | undefined> {
  const { refusal, volumes, gaps } = await openedBytes(bytes, keys);
  assert.equal(gaps[0]!.bytes, 0);
  if (refusal) assert.deepEqual(volumes, []);
  return refusal?.code ?? volumes[0]!.refusal?.code;
}

function cryptsetupOpens(t: TestContext, bytes: Uint8Array, passphrase = PASSPHRASE): boolean {
  const folder = scratch(t);
  const path = join(folder, "copy");
  writeFileSync(path, bytes);
  const key = ["--key-file", keyFile(folder, passphrase)];
  return attempt("cryptsetup", ["open", "--test-passphrase", ...key, path]).status === 0;
}

const luks2 = (t: TestContext): Uint8Array =>
  new Uint8Array(readFileSync(encryptedByCryptsetup(t, PBKDF2).path));

test("without its key, or with another one, a volume is locked", async (t) => {
  if (!requires(t, "cryptsetup")) return;
  for (const bytes of [luks2(t), newHeader(t, ["--type", "luks1"])]) {
    for (const keys of [undefined, keysOf(), keysOf("other", PASSPHRASE + "\n")]) {
      const { volumes, refusal } = await luks.open([fuzzDevice(bytes)], keys && { keys });
      assert.equal(refusal, undefined);
      assert.equal(volumes[0]!.refusal?.code, "locked");
      assert.match(volumes[0]!.refusal!.hint, /--key-file/);
      assert.equal(volumes[0]!.encrypted, true);
    }
    assert.equal(await codeOf(bytes), undefined);
  }
});

test("each hash that is known opens what cryptsetup made with it", async (t) => {
  if (!requires(t, "cryptsetup")) return;
  for (const hash of Object.keys(HASHES)) {
    assert.equal(await codeOf(newHeader(t, ["--type", "luks1", "--hash", hash])), undefined, hash);
  }
});

test("of two copies of the LUKS2 header the whole and newer one counts, as with cryptsetup", async (t) => {
  if (!requires(t, "cryptsetup")) return;
  const good = luks2(t);
  const flip = (bytes: Uint8Array, at: number): Uint8Array => {
    bytes[at]! ^= 0x40;
    return bytes;
  };
  const older = (at: number): Uint8Array => {
    const bytes = editJson(good, ({ digests }) => void (digests["0"]!["segments"] = []));
    const other = at === 0 ? COPY_BYTES : 0;
    bytes.set(good.subarray(other, other + COPY_BYTES), other);
    Luks2Layout.encode({ sequence: Luks2Layout.decode(good).sequence - 1 }, bytes, at);
    fixChecksum(bytes, at);
    return bytes;
  };
  const cases: readonly (readonly [string, Uint8Array, string | undefined, number])[] = [
    ["as it is", good, undefined, 0],
    ["the first damaged", flip(good.slice(), 5000), undefined, 1],
    ["the second damaged", flip(good.slice(), COPY_BYTES + 5000), undefined, 1],
    ["the length of the first damaged", flip(good.slice(), 14), undefined, 1],
    ["the first older, and useless", older(0), undefined, 1],
    ["the second older, and useless", older(COPY_BYTES), undefined, 1],
    ["both damaged", flip(flip(good.slice(), 5000), COPY_BYTES + 5000), "luks-damaged", 0],
  ];
  for (const [name, bytes, code, notes] of cases) {
    assert.equal(await codeOf(bytes), code, name);
    assert.equal(cryptsetupOpens(t, bytes), code === undefined, `cryptsetup: ${name}`);
    assert.equal((await openedBytes(bytes)).notes.length, notes, name);
  }
  const contradiction = editJson(good, ({ config }) => void (config["flags"] = []));
  contradiction.set(good.subarray(0, COPY_BYTES));
  assert.equal(await codeOf(contradiction), "luks-damaged");
});

test("what is not vouched for in a LUKS2 header is refused by name", async (t) => {
  if (!requires(t, "cryptsetup")) return;
  const good = luks2(t);
  type Change = Parameters<typeof editJson>[1];
  const cases: readonly (readonly [string | undefined, Change])[] = [
    [undefined, () => {}],
    ["luks-requirement", ({ config }) => ((config["requirements"] = { mandatory: ["inline-hw-tags"] }), 0)],
    [
      "luks-reencryption",
      ({ config }) => ((config["requirements"] = { mandatory: ["online-reencrypt-v2"] }), 0),
    ],
    ["luks-requirement", ({ config }) => ((config["requirements"] = { later: [] }), 0)],
    ["luks-integrity", ({ segments }) => ((segments["0"]!["integrity"] = { type: "hmac(sha256)" }), 0)],
    ["luks-segments", ({ segments }) => ((segments["0"]!["type"] = "hw-opal"), 0)],
    ["luks-segments", ({ segments }) => ((segments["0"]!["type"] = "linear"), 0)],
    ["luks-segments", ({ segments }) => ((segments["1"] = segments["0"]!), 0)],
    ["luks-reencryption", ({ segments }) => ((segments["0"]!["flags"] = ["in-reencryption"]), 0)],
    ["luks-cipher", ({ segments }) => ((segments["0"]!["encryption"] = "serpent-xts-plain64"), 0)],
    ["luks-cipher", ({ segments }) => ((segments["0"]!["encryption"] = "cipher_null-ecb"), 0)],
    ["luks-cipher", ({ segments }) => ((segments["0"]!["encryption"] = "aes-xts-plain64be"), 0)],
    ["luks-damaged", ({ segments }) => ((segments["0"]!["sector_size"] = 513), 0)],
    ["luks-damaged", ({ segments }) => ((segments["0"]!["sector_size"] = 1536), 0)],
    ["luks-damaged", ({ segments }) => ((segments["0"]!["offset"] = "4096"), 0)],
    ["luks-cut", ({ segments }) => ((segments["0"]!["size"] = "99999999999488"), 0)],
    ["luks-damaged", ({ segments }) => ((segments["0"]!["size"] = "-1"), 0)],
    ["luks-segments", ({ segments }) => ((segments["0"]!["iv_tweak"] = "8"), 0)],
    ["luks-detached", ({ segments }) => ((segments["0"]!["offset"] = "0"), 0)],
    ["luks-digest", ({ digests }) => ((digests["0"]!["type"] = "md5"), 0)],
    ["luks-damaged", ({ digests }) => ((digests["1"] = digests["0"]!), 0)],
    ["luks-hash", ({ digests }) => ((digests["0"]!["hash"] = "whirlpool"), 0)],
    ["luks-no-slot", ({ digests }) => ((digests["0"]!["keyslots"] = []), 0)],
    ["luks-reencryption", ({ keyslots }) => ((keyslots["1"] = { ...keyslots["0"]!, type: "reencrypt" }), 0)],
    ["luks-damaged", ({ keyslots }) => ((keyslots["1"] = keyslots["0"]!), 0)],
    ["luks-damaged", ({ keyslots }) => ((keyslots["0"]!["key_size"] = 4096), 0)],
    ["luks-kdf", ({ keyslots }) => ((keyslots["0"]!.kdf["type"] = "scrypt"), 0)],
    ["luks-costs", ({ keyslots }) => ((keyslots["0"]!.kdf["iterations"] = 4294967295), 0)],
    ["luks-damaged", ({ keyslots }) => ((keyslots["0"]!.kdf["salt"] = "A".repeat(1020) + "%"), 0)],
    ["luks-damaged", ({ config }) => ((config["json_size"] = "4096"), 0)],
    ["luks-damaged", () => "[".repeat(33)],
    ["luks-damaged", () => `"${"\\".repeat(3)}`],
    ["luks-damaged", () => "null"],
  ];
  for (const [code, change] of cases) {
    assert.equal(await codeOf(editJson(good, change)), code, String(change));
  }
  const argon2 =
    (rest: object): Change =>
    ({ keyslots }) => {
      const { salt } = keyslots["0"]!.kdf;
      keyslots["0"]!.kdf = { type: "argon2id", time: 4, memory: 32, cpus: 1, salt, ...rest };
    };
  assert.equal(await codeOf(editJson(good, argon2({}))), "locked");
  for (const rest of [
    { memory: 5_000_000 },
    { cpus: 5 },
    { memory: 4_000_000, time: 100 },
    { memory: 4 },
    { salt: "" },
  ]) {
    assert.equal(await codeOf(editJson(good, argon2(rest))), "luks-costs", JSON.stringify(rest));
  }
});

test("JSON is bounded before it is parsed", () => {
  const nested = (depth: number): string => `${'{"a":'.repeat(depth)}0${"}".repeat(depth)}`;
  assert.equal(parseJson(nested(32)).has("a"), true);
  assert.throws(() => parseJson(nested(33)), /nested more than 32/);
  assert.equal(parseJson(`{"a": "${"[{,".repeat(60_000)}\\""}`).has("a"), true);
  for (const many of [`[${"0,".repeat(60_000)}0]`, `[${"[],".repeat(30_000)}0]`]) {
    assert.throws(() => parseJson(many), /more than 50000 values/);
  }
  for (const text of ["", "{", '{"a', '"\\', "{'a': 1}", "\0"]) {
    assert.throws(() => parseJson(text), /cannot be parsed/);
  }
  const json = parseJson('{"__proto__": {"a": "1"}, "n": 1.5, "s": "18446744073709551616", "t": "12"}');
  assert.equal(json.get("__proto__").get("a").size(), 1);
  assert.equal(json.get("t").size(), 12);
  assert.equal(json.has("toString"), false);
  assert.throws(() => json.get("n").number(0, 2), /not a whole number/);
  assert.throws(() => json.get("s").size(), /past 8 PiB/);
  assert.throws(() => json.get("t").get("x"), /not an object/);
});

test("a stale partition table at the end of the disk does not outrank LUKS", async (t) => {
  if (!requires(t, "cryptsetup", "sfdisk")) return;
  const folder = scratch(t);
  const path = join(folder, "disk");
  writeFileSync(path, new Uint8Array(4 * MiB));
  run("sfdisk", ["-q", path], "label: gpt\nsize=1M\n");
  const disk = new Uint8Array(readFileSync(path));
  disk.set(newHeader(t, ["--type", "luks1"]).subarray(0, 3 * MiB));
  const { refusal } = await gpt.open([fuzzDevice(disk)]);
  assert.equal(refusal?.code, "gpt-ambiguous");
});

test("CBC in long sectors is refused: a hole that ends in one would damage what follows", async (t) => {
  if (!requires(t, "cryptsetup")) return;
  const cipher = ["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"];
  for (const [sectorBytes, code] of [
    ["512", undefined],
    ["1024", "luks-cipher"],
  ] as const) {
    const { path } = encryptedByCryptsetup(t, [...cipher, "--sector-size", sectorBytes, ...PBKDF2]);
    assert.equal(await codeOf(new Uint8Array(readFileSync(path))), code);
  }
});

test("a LUKS1 header that contradicts itself is refused", async (t) => {
  if (!requires(t, "cryptsetup")) return;
  const good = newHeader(t, ["--type", "luks1"]);
  const slotAt = (i: number): number => Luks1Layout.bytes + i * SlotLayout.bytes;
  const header = (values: Parameters<typeof Luks1Layout.encode>[0]) => (bytes: Uint8Array) =>
    Luks1Layout.encode(values, bytes);
  const slot = (i: number, values: Parameters<typeof SlotLayout.encode>[0]) => (bytes: Uint8Array) =>
    SlotLayout.encode(values, bytes, slotAt(i));
  const cases: readonly (readonly [string | undefined, (bytes: Uint8Array) => void])[] = [
    [undefined, () => {}],
    ["luks-version", header({ version: 3 })],
    ["luks-reencryption", (bytes) => bytes.set([0xde, 0xad], 4)],
    ["luks-cipher", header({ cipherName: "twofish" })],
    ["luks-hash", header({ hash: "whirlpool" })],
    ["luks-key-length", header({ keyBytes: 20 })],
    ["luks-key-length", header({ keyBytes: 0xffffffff })],
    ["luks-detached", header({ payloadSector: 0 })],
    ["luks-cut", header({ payloadSector: 0x7fffffff })],
    ["luks-damaged", header({ payloadSector: 100 })],
    ["luks-costs", header({ digestIterations: 0xffffffff })],
    ["luks-damaged", header({ digestIterations: 0 })],
    ["luks-damaged", slot(3, { stripes: 4001 })],
    ["luks-damaged", slot(3, { state: 1 })],
    ["luks-damaged", slot(3, { areaSector: 8 })],
    ["luks-damaged", slot(0, { areaSector: 0x7fffffff })],
    ["luks-costs", slot(0, { iterations: 0xffffffff })],
    ["luks-damaged", slot(0, { iterations: 0 })],
    ["locked", slot(0, { state: 0xdead })],
    ["locked", slot(0, { iterations: 1001 })],
  ];
  for (const [code, change] of cases) {
    const bytes = good.slice();
    change(bytes);
    assert.equal(await codeOf(bytes), code, String(change));
  }
  assert.equal(await codeOf(good.slice(0, 592)), "luks-damaged");
  assert.equal(await luks.probe(fuzzDevice(good.slice(0, 591))), false);
});

test("the header may lie in a file of its own", async (t) => {
  if (!requires(t, "cryptsetup")) return;
  const { path, plain } = encryptedByCryptsetup(t, PBKDF2);
  const whole = new Uint8Array(readFileSync(path));
  const { segments } = JSON.parse(jsonOf(whole)) as { segments: Record<string, { offset: string }> };
  const payloadAt = Number(segments["0"]!.offset);
  const header = fuzzDevice(
    editJson(whole, (json) => void (json.segments["0"]!["offset"] = "0")).slice(0, payloadAt),
  );
  const disk = fuzzDevice(whole.slice(payloadAt));
  assert.equal(await luks.probe(disk), false);
  assert.equal((await luks.open([header], { keys: keysOf(PASSPHRASE) })).refusal?.code, "luks-detached");
  const { volumes, header: from } = await luks.open([disk], { keys: keysOf(PASSPHRASE), header });
  assert.equal(from, header);
  const read = new Uint8Array(plain.length);
  await volumes[0]!.device.read(0, read);
  assert.deepEqual(Buffer.from(read), Buffer.from(plain));
  assert.deepEqual([...volumes[0]!.places({ start: 7, end: 9 })], [{ disk: 0, at: 7, bytes: 2 }]);
});

test("headers of other people: what cryptsetup opens is opened, and what is not is refused", async (t) => {
  if (corpus(t) === undefined || !requires(t, "cryptsetup")) return;
  const tests = "mbroz+cryptsetup/tests";
  const open = (name: string): Uint8Array => new Uint8Array(readFileSync(unpack(t, `${tests}/${name}`)));
  for (const name of ["compatimage.img.xz", "compatv10image.img.xz", "compatimage2.img.xz"]) {
    assert.equal(await codeOf(open(name), keysOf("compatkey")), undefined, name);
  }
  const folder = join(unpack(t, `${tests}/luks1-images.tar.xz`), "luks1-images");
  const key = readFileSync(join(folder, "keyfile1"));
  let count = 0;
  for (const name of readdirSync(folder).filter((file) => file.endsWith(".img"))) {
    const code = await codeOf(new Uint8Array(readFileSync(join(folder, name))), keysOf(key));
    const isKnown = /^luks1_aes-(cbc-essiv-sha256|xts-plain64)-sha\d+\.img$/.test(name);
    assert.equal(
      code,
      isKnown
        ? undefined
        : /whirlpool/.test(name) && !/serpent|twofish|wp256/.test(name)
          ? "luks-hash"
          : "luks-cipher",
      name,
    );
    count += isKnown ? 1 : 0;
  }
  assert.equal(count, 3);
  const evil = readdirSync(join(corpus(t)!, tests)).filter((name) => name.startsWith("evil_hdr"));
  assert.equal(evil.length, 5);
  for (const name of evil) {
    assert.equal(await codeOf(open(name)), name.includes("small") ? "luks-cut" : "luks-damaged", name);
  }
  const codes = {
    "luks2_invalid_cipher.img.xz": "luks-cipher",
    "luks2_valid_hdr.img.xz": "luks-kdf",
    "luks2_keyslot_unassigned.img.xz": "locked",
  };
  for (const [name, code] of Object.entries(codes)) assert.equal(await codeOf(open(name)), code, name);
  const required = unpack(t, `${tests}/luks2_header_requirements.tar.xz`);
  const name = "luks2_header_requirements";
  assert.equal(await codeOf(new Uint8Array(readFileSync(join(required, name)))), "luks-requirement");
  const areas = unpack(t, `${tests}/luks2_mda_images.tar.xz`);
  for (const image of readdirSync(areas)) {
    assert.equal(await codeOf(new Uint8Array(readFileSync(join(areas, image)))), "locked", image);
  }
});

test("damage at random: a refusal, or what cryptsetup opens as well", async (t) => {
  if (!requires(t, "cryptsetup")) return;
  const samples = [newHeader(t, ["--type", "luks2", ...SMALL], 2 * MiB), newHeader(t, ["--type", "luks1"])];
  for (const seed of seeds(25)) {
    const random = new Random(seed);
    const bytes = random.pick(samples).slice();
    for (let i = random.below(3); i >= 0; i--) bytes[random.below(33_000)]! ^= 1 << random.below(8);
    const found = await outcome(async () => (await codeOf(bytes)) ?? "opened");
    if (found === "opened") assert.ok(cryptsetupOpens(t, bytes), `SEED=${seed}`);
  }
});
