/**
 * `ullage serve` under TLS: libnbd's and QEMU's clients with keys known beforehand and with certificates; a raw client that
 * says things before TLS, behind STARTTLS, or not at all (H31).
 */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import type { ConnectionOptions } from "node:tls";
import { CMD, CMD_FLAG, OPT, REP } from "../src/nbd/protocol.ts";
import { readTlsSettings, secured, Served } from "../src/serve.ts";
import { granted, NbdClient } from "../src/testing/nbd-client.ts";
import { contextData, infoData, option, u32 } from "../src/testing/nbd-script.ts";
import { type Serving, serving } from "../src/testing/serving.ts";
import { makeCertificates, makeKeys } from "../src/testing/tls-keys.ts";
import { attempt, requires, run, scratch } from "../src/testing/tools.ts";

const MiB = 1024 * 1024;

interface Place {
  readonly folder: string;
  readonly image: string;
  /** Alice's, in hexadecimal. */
  readonly key: string;
}

function place(t: TestContext): Place {
  const folder = scratch(t);
  const image = join(folder, "disk.raw");
  writeFileSync(image, Buffer.alloc(8 * MiB, 7));
  makeCertificates(folder);
  return { folder, image, key: makeKeys(folder) };
}

/** The words of `ullage serve` for keys, and for certificates. */
const withKeys = ({ folder }: Place): string[] => ["--tls-psk", join(folder, "keys.psk")];
const withCertificates = ({ folder }: Place): string[] => [
  ...["cert", "key"].flatMap((each) => [`--tls-${each}`, join(folder, `server-${each}.pem`)]),
  "--tls-ca",
  join(folder, "ca-cert.pem"),
];

const start = (t: TestContext, { image }: Place, words: readonly string[]): Promise<Serving> =>
  serving(t, [image], { format: "raw", words });

/** Our own client with alice's key, or another. */
const keyed = (key: string, identity = "alice"): ConnectionOptions => ({
  pskCallback: () => ({ psk: Buffer.from(key, "hex"), identity }),
  ciphers: "PSK+HIGH:TLS_AES_128_GCM_SHA256",
  checkServerIdentity: () => undefined,
});

/** QEMU's client; its exit code and what it said. */
function qemu(
  socket: string,
  credentials: string,
  ...commands: readonly string[]
): ReturnType<typeof attempt> {
  const image = `driver=nbd,server.type=unix,server.path=${socket},tls-creds=tls,tls-hostname=localhost`;
  const words = ["--object", `${credentials},id=tls,endpoint=client`, "--image-opts", image];
  return attempt("qemu-io", [...words, ...commands.flatMap((command) => ["-c", command])]);
}

test("keys known beforehand: libnbd and QEMU", async (t) => {
  if (!requires(t, "nbdinfo", "nbdcopy", "qemu-io", "psktool", "openssl")) return;
  const here = place(t);
  await using server = await start(t, here, withKeys(here));
  const uri = (user: string, file = "keys.psk"): string =>
    `nbds+unix://${user}@/?socket=${server.socket}&tls-psk-file=${join(here.folder, file)}`;
  assert.equal(run("nbdinfo", ["--size", uri("alice")]).trim(), String(8 * MiB));
  assert.match(run("nbdinfo", [uri("bob")]), /protocol: newstyle-fixed with TLS/);
  writeFileSync(join(here.folder, "other.psk"), `alice:${"00".repeat(32)}\n`);
  for (const [user, file] of [
    ["alice", "other.psk"],
    ["carol", "keys.psk"],
  ] as const) {
    assert.notEqual(attempt("nbdinfo", [uri(user, file)]).status, 0, `${user} of ${file}`);
  }
  const copy = join(here.folder, "copy.raw");
  run("nbdcopy", [uri("alice"), copy]);
  assert.ok(readFileSync(copy).equals(readFileSync(here.image)));

  const credentials = `tls-creds-psk,dir=${here.folder},username=alice`;
  const good = qemu(
    server.socket,
    credentials,
    "read -P 7 1M 1M",
    "write -P 9 3M 1M",
    "discard 5M 1M",
    "flush",
    "read -P 9 3M 1M",
  );
  assert.equal(good.status, 0, good.stdout + good.stderr);
  assert.doesNotMatch(good.stdout, /failed/);
  assert.equal(readFileSync(here.image)[3 * MiB + 17], 9);
  const { stdout, stderr, status } = qemu(server.socket, credentials.replace("alice", "carol"), "read 0 512");
  assert.notEqual(status, 0, stdout + stderr);
});

test("certificates: libnbd and QEMU; clients without one of the authority are turned away", async (t) => {
  if (!requires(t, "nbdinfo", "qemu-io", "psktool", "openssl")) return;
  const here = place(t);
  const stranger = join(here.folder, "stranger");
  for (const [verify, folder, isMet] of [
    [[], here.folder, true],
    [["--tls-verify"], here.folder, true],
    [["--tls-verify"], stranger, false],
  ] as const) {
    await using server = await start(t, here, [...withCertificates(here), ...verify]);
    // The stranger trusts our authority: it is us who turn it away.
    const trusting = join(scratch(t), "pki");
    run("cp", ["-r", folder, trusting]);
    run("cp", [join(here.folder, "ca-cert.pem"), trusting]);
    const uri = `nbds+unix://localhost/?socket=${server.socket}&tls-certificates=${trusting}`;
    const info = attempt("nbdinfo", ["--size", uri]);
    assert.equal(info.status === 0, isMet, info.stderr);
    const creds = `tls-creds-x509,dir=${trusting}`;
    const { stdout, stderr, status } = qemu(server.socket, creds, "read -P 7 1M 1M");
    assert.equal(status === 0 && !/failed/.test(stdout), isMet, stdout + stderr);
  }
  await using server = await start(t, here, withCertificates(here));
  const { stdout, stderr, status } = qemu(server.socket, `tls-creds-x509,dir=${stranger}`, "read 0 512");
  assert.ok(
    status !== 0 && /certificate/i.test(stderr),
    `who trusts others does not trust us: ${stdout}${stderr}`,
  );
});

test("TLS is required, unless clients may choose", async (t) => {
  if (!requires(t, "nbdinfo", "nbdsh", "psktool", "openssl")) return;
  const here = place(t);
  for (const [words, isMet] of [
    [[], false],
    [["--tls", "require"], false],
    [["--tls", "allow"], true],
  ] as const) {
    await using server = await start(t, here, [...withKeys(here), ...words]);
    const plain = attempt("nbdinfo", ["--size", server.uri()]);
    assert.equal(plain.status === 0, isMet, plain.stderr);
    if (!isMet) assert.match(plain.stderr, /TLS/);
    const secret = `nbds+unix://alice@/?socket=${server.socket}&tls-psk-file=${join(here.folder, "keys.psk")}`;
    assert.equal(attempt("nbdinfo", ["--size", secret]).status, 0);
  }
});

test("H31: before TLS each option is refused, EXPORT_NAME ends the connection, nothing is told", async (t) => {
  if (!requires(t, "psktool", "openssl")) return;
  const here = place(t);
  await using server = await start(t, here, withKeys(here));
  const client = await NbdClient.connect({ path: server.socket });
  await client.greet();
  for (const code of [3, 6, 7, 8, 9, 10, 11, 99]) {
    const replies = await client.option(code, infoData("disk.raw"));
    assert.deepEqual(
      replies.map(({ type }) => type),
      [REP.ERR_TLS_REQD],
    );
  }
  assert.equal((await client.option(OPT.ABORT))[0]!.type, REP.ACK);
  await client.ended();
  const old = await NbdClient.connect({ path: server.socket });
  await old.greet();
  await assert.rejects(old.exportName("disk.raw"), /closed after 0/);
});

test("H31: what was said before STARTTLS is forgotten; what comes behind it in the clear is no part of TLS", async (t) => {
  if (!requires(t, "psktool", "openssl")) return;
  const here = place(t);
  await using server = await start(t, here, [...withKeys(here), "--tls", "allow"]);
  const client = await NbdClient.connect({ path: server.socket });
  await client.greet();
  granted(await client.option(OPT.STRUCTURED_REPLY));
  granted(await client.option(OPT.SET_META_CONTEXT, contextData("", ["base:allocation"])));
  await client.startTls(keyed(here.key));
  const again = await client.option(OPT.STARTTLS);
  assert.equal(again[0]!.type, REP.ERR_INVALID);
  granted(await client.go(""));
  // Our client takes no chunk here: it knows that replies are simple again.
  const { data } = await client.send({ command: CMD.READ, offset: MiB, bytes: 4096 });
  assert.ok(data!.every((byte) => byte === 7));
  assert.notEqual((await client.send({ command: CMD.BLOCK_STATUS, bytes: 4096 })).error, 0);
  await client.close();

  const injected = await NbdClient.connect({ path: server.socket });
  await injected.greet();
  await assert.rejects(injected.startTls(keyed(here.key), option(OPT.STRUCTURED_REPLY)));
  const late = await NbdClient.connect({ path: server.socket });
  await late.take(18);
  late.raw(u32(3), option(OPT.STARTTLS));
  await late.take(20);
  late.raw(option(OPT.GO, infoData("")));
  await late.ended();
  // An alert of TLS is the most that is answered.
  const rest = await late.take(1).catch(() => undefined);
  if (rest) assert.equal(rest[0], 21);
});

test("many requests in flight through TLS", async (t) => {
  if (!requires(t, "psktool", "openssl")) return;
  const here = place(t);
  await using server = await start(t, here, withKeys(here));
  const tls = keyed(here.key);
  const client = await NbdClient.open({ path: server.socket }, { tls, contexts: ["base:allocation"] });
  const shadow = Buffer.alloc(8 * MiB, 7);
  for (let round = 0; round < 4; round++) {
    const answers = Array.from({ length: 64 }, async (_, i) => {
      const offset = i * 128 * 1024 + round * 777;
      if (i % 3 === round % 3) {
        const data = Buffer.alloc(50_000 + i, i + round);
        shadow.set(data, offset);
        assert.equal((await client.send({ command: CMD.WRITE, flags: CMD_FLAG.FUA, offset, data })).error, 0);
      } else {
        const { data } = await client.send({ command: CMD.READ, offset, bytes: 100_000 });
        assert.ok(shadow.subarray(offset, offset + 100_000).equals(data!));
      }
    });
    await Promise.all(answers);
  }
  const { data } = await client.send({ command: CMD.READ, bytes: 8 * MiB });
  assert.ok(shadow.equals(data!));
  const closing = client.send({ command: CMD.READ, bytes: 8 * MiB });
  await Promise.all([client.close(), closing]);
  const { code } = await server.stop();
  assert.equal(code, 0);
  assert.ok(readFileSync(here.image).equals(shadow));
});

test("another key, and none: no session, and the server lives on", async (t) => {
  if (!requires(t, "psktool", "openssl")) return;
  const here = place(t);
  await using server = await start(t, here, withKeys(here));
  const open = (tls: ConnectionOptions): Promise<NbdClient> =>
    NbdClient.open({ path: server.socket }, { tls });
  await assert.rejects(open(keyed("00".repeat(32))));
  await assert.rejects(open(keyed(here.key, "bob")));
  await assert.rejects(open({ rejectUnauthorized: false }));
  await assert.rejects(open({ ...keyed(here.key), maxVersion: "TLSv1.1", minVersion: "TLSv1" }));
  await (await open(keyed(here.key))).close();
});

test("H31: TLS is part of the handshake's time, and a session has no such limit", async (t) => {
  if (!requires(t, "psktool", "openssl")) return;
  const here = place(t);
  const settings = readTlsSettings({ psk: join(here.folder, "keys.psk") });
  const path = join(here.folder, "socket");
  await using served = await Served.start({
    images: [here.image],
    open: { format: "raw" },
    readOnly: true,
    snapshots: false,
    address: { path },
    log: () => {},
    handshakeMs: 500,
    tls: { isRequired: true, secure: (socket) => secured(socket, settings) },
  });
  const session = await NbdClient.open({ path }, { tls: keyed(here.key) });
  const silent = await NbdClient.connect({ path });
  await silent.greet();
  await silent.startTls(keyed(here.key));
  const unready = await NbdClient.connect({ path });
  await unready.greet();
  unready.raw(option(OPT.STARTTLS));
  const began = Date.now();
  await Promise.all([silent.ended(), unready.ended()]);
  assert.ok(Date.now() - began < 3000);
  assert.equal((await session.send({ command: CMD.READ, bytes: 512 })).error, 0);
  await session.close();
  await served.stop();
});

test("what `ullage serve` says of files that do not fit, and of a network without TLS", (t) => {
  if (!requires(t, "psktool", "openssl")) return;
  const here = place(t);
  const at = (name: string): string => join(here.folder, name);
  const serve = (...words: string[]): ReturnType<typeof attempt> => {
    const where = words.includes("--listen") ? [] : ["--socket", at("socket")];
    return attempt(process.execPath, [
      "bin/ullage.js",
      "serve",
      here.image,
      "--format",
      "raw",
      ...where,
      ...words,
    ]);
  };
  for (const [words, status, message] of [
    [["--tls-psk", at("none")], 2, /none cannot be read/],
    [["--tls-psk", at("server-cert.pem")], 2, /line 1: it is not user:hexkey/],
    [["--tls-cert", at("server-cert.pem"), "--tls-key", at("client-key.pem")], 2, /do not fit/],
    [["--tls-cert", at("server-cert.pem")], 2, /--tls-key/],
    [["--listen", "0.0.0.0:0"], 5, /TLS is not required/],
    [["--listen", "0.0.0.0:0", "--tls", "allow", "--tls-psk", at("keys.psk")], 5, /TLS is not required/],
  ] as const) {
    const ended = serve(...words);
    assert.equal(ended.status, status, ended.stderr);
    assert.match(ended.stderr.replace(/\s+/g, " "), message);
  }
});
