import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { chmodSync, copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { inspect } from "node:util";
import { DiskError } from "../error.ts";
import { makeCertificates, makeKeys } from "../testing/tls-keys.ts";
import { requires, run, scratch } from "../testing/tools.ts";
import { ProtocolBreach } from "./protocol.ts";
import { type CertificateFiles, readTlsSettings, secured, type TlsFiles } from "./tls.ts";

/** Takes one connection under TLS and says "welcome" to it; what became of it. */
async function served(
  t: TestContext,
  files: TlsFiles,
  deadlineMs?: number,
): Promise<{
  port: number;
  met: Promise<{ protocol: string | null; cipher: string } | Error>;
  socket: Promise<Socket>;
}> {
  const settings = readTlsSettings(files);
  const server = createServer().listen(0, "127.0.0.1");
  t.after(() => server.close());
  await once(server, "listening");
  const socket = once(server, "connection").then(([each]) => each as Socket);
  const met = socket.then((each) => {
    each.on("error", () => each.destroy());
    return secured(each, settings, deadlineMs).then(
      (secret) => {
        secret.on("error", () => secret.destroy());
        secret.end("welcome\n");
        return { protocol: secret.getProtocol(), cipher: secret.getCipher().name };
      },
      (error: unknown) => error as Error,
    );
  });
  return { port: (server.address() as AddressInfo).port, met, socket };
}

/** GnuTLS's client; what it printed. */
function gnutls(port: number, ...words: readonly string[]): Promise<string> {
  return printed("gnutls-cli", [...words, "--port", String(port), "127.0.0.1"]);
}

/** Of a client that ends when the server says so. */
function printed(command: string, words: readonly string[]): Promise<string> {
  return new Promise((resolve) => {
    const child = execFile("timeout", ["10", command, ...words], (_error, stdout, stderr) => {
      resolve(`${stdout}\n${stderr}`);
    });
    // Its end would be the client's.
    child.stdin!.on("error", () => {});
  });
}

const PSK_ALONE = "-KX-ALL:+ECDHE-PSK:+DHE-PSK:+PSK";
type Client = (port: number) => Promise<string>;

const gnutlsPsk =
  (user: string, key: string, priority = "NORMAL"): Client =>
  (port) =>
    gnutls(port, ...`--pskusername ${user} --pskkey ${key} --priority ${priority}:${PSK_ALONE}`.split(" "));

/** For TLS 1.2 alone: GnuTLS's client crashes when it has to speak that with such a key. */
const opensslPsk =
  (user: string, key: string, ...words: readonly string[]): Client =>
  (port) =>
    printed("openssl", [
      ...`s_client -connect 127.0.0.1:${port} -psk_identity ${user} -psk ${key}`.split(" "),
      ...words,
    ]);

const certificatesOf = (folder: string, verifyClient = false): { certificates: CertificateFiles } => ({
  certificates: {
    certificate: join(folder, "server-cert.pem"),
    key: join(folder, "server-key.pem"),
    authority: join(folder, "ca-cert.pem"),
    verifyClient,
  },
});

const clientOf = (folder: string): string[] =>
  `--x509certfile ${folder}/client-cert.pem --x509keyfile ${folder}/client-key.pem`.split(" ");

test("keys known beforehand: GnuTLS and OpenSSL speak with us, each time with a key of its own", async (t) => {
  if (!requires(t, "gnutls-cli", "openssl", "psktool")) return;
  const folder = scratch(t);
  const key = makeKeys(folder);
  for (const [client, protocol, cipher] of [
    [gnutlsPsk("alice", key), "TLSv1.3", /^TLS_/],
    [opensslPsk("alice", key, "-tls1_3"), "TLSv1.3", /^TLS_.*_SHA256$/],
    [opensslPsk("alice", key, "-tls1_2", "-cipher", "PSK"), "TLSv1.2", /^ECDHE-PSK-/],
    [opensslPsk("alice", key, "-tls1_2", "-cipher", "DHE-PSK-AES128-GCM-SHA256"), "TLSv1.2", /^DHE-PSK-/],
  ] as const) {
    const { port, met } = await served(t, { psk: join(folder, "keys.psk") });
    const said = await client(port);
    const outcome = await met;
    assert.ok(!(outcome instanceof Error), `${inspect(outcome)}\n${said}`);
    assert.equal(outcome.protocol, protocol);
    assert.match(outcome.cipher, cipher);
    assert.match(said, /^welcome$/m);
  }
});

test("keys known beforehand: another key, another user, no key, an old TLS, no forward secrecy", async (t) => {
  if (!requires(t, "gnutls-cli", "openssl", "psktool")) return;
  const folder = scratch(t);
  const key = makeKeys(folder);
  const other = "00".repeat(32);
  const tls12 = ["-tls1_2", "-cipher", "PSK"];
  const old: Client = (port) => gnutls(port, "--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.1:+VERS-TLS1.0");
  for (const [client, why] of [
    [gnutlsPsk("alice", other), /binder does not verify/],
    [opensslPsk("alice", other, ...tls12), /bad record mac/],
    [gnutlsPsk("bob", key), /binder does not verify/],
    [opensslPsk("bob", key, ...tls12), /bad record mac/],
    [gnutlsPsk("carol", key), /no suitable signature/],
    [opensslPsk("carol", key, ...tls12), /psk identity not found/],
    [opensslPsk("alice", key, "-tls1_2", "-cipher", "PSK-AES128-GCM-SHA256"), /no shared cipher/],
    [(port: number) => gnutls(port, "--insecure"), /no suitable signature/],
    [old, /unsupported protocol/],
  ] as const) {
    const { port, met } = await served(t, { psk: join(folder, "keys.psk") });
    const said = await client(port);
    const outcome = await met;
    assert.ok(outcome instanceof ProtocolBreach);
    assert.match(outcome.message, why);
    assert.doesNotMatch(said, /^welcome$/m);
  }
});

test("certificates: the client verifies us, and we the client where that is asked for", async (t) => {
  if (!requires(t, "gnutls-cli", "openssl")) return;
  const folder = scratch(t);
  makeCertificates(folder);
  const stranger = join(folder, "stranger");
  const trusting = ["--x509cafile", join(folder, "ca-cert.pem")];
  const tls12 = ["--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.2"];
  for (const [verifyClient, words, isMet] of [
    [false, trusting, true],
    [false, [...trusting, ...tls12], true],
    [false, ["--x509cafile", join(stranger, "ca-cert.pem")], false],
    [true, [...trusting, ...clientOf(folder)], true],
    [true, [...trusting, ...clientOf(folder), ...tls12], true],
    [true, trusting, false],
    [true, [...trusting, ...tls12], false],
    [true, [...trusting, ...clientOf(stranger)], false],
    [true, [...trusting, ...clientOf(stranger), ...tls12], false],
    [false, [...trusting, "--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.1"], false],
  ] as const) {
    const { port, met } = await served(t, certificatesOf(folder, verifyClient));
    const said = await gnutls(port, ...words);
    const outcome = await met;
    const message = `${verifyClient} ${words.join(" ")}: ${inspect(outcome)}\n${said}`;
    assert.equal(/^welcome$/m.test(said), isMet, message);
    if (verifyClient) assert.equal(outcome instanceof ProtocolBreach, !isMet, message);
  }
});

test("who does not speak TLS, or not in time, is cut off; who is gone is no failure", async (t) => {
  if (!requires(t, "psktool")) return;
  const folder = scratch(t);
  makeKeys(folder);
  const files = { psk: join(folder, "keys.psk") };
  for (const [words, deadlineMs] of [
    ["IHAVEOPT, in the clear", 5000],
    ["", 200],
    ["\x16\x03\x01", 200],
  ] as const) {
    const { port, met } = await served(t, files, deadlineMs);
    const client = connect(port, "127.0.0.1");
    client.on("error", () => {});
    client.write(words, "latin1");
    const started = Date.now();
    assert.ok((await met) instanceof ProtocolBreach);
    assert.ok(Date.now() - started < 4000);
    if (!client.closed) await once(client, "close");
  }
  const { port, met } = await served(t, files, 5000);
  const client = connect(port, "127.0.0.1", () => client.destroy());
  assert.ok((await met) instanceof Error);
});

/** The message of the usage error that reading `files` ends with. */
function refusal(files: TlsFiles): string {
  try {
    readTlsSettings(files);
  } catch (error) {
    assert.ok(error instanceof DiskError && error.kind === "usage", String(error));
    return error.message;
  }
  return "";
}

test("files that are not what they should be are told by name", (t) => {
  if (!requires(t, "openssl")) return;
  const folder = scratch(t);
  makeCertificates(folder);
  const good = certificatesOf(folder).certificates;
  const at = (name: string): string => join(folder, name);
  const refused = (change: Partial<CertificateFiles>): string =>
    refusal({ certificates: { ...good, ...change } });
  assert.equal(refused({}), "");
  assert.match(refused({ certificate: at("none.pem") }), /none\.pem cannot be read: ENOENT/);
  assert.match(refused({ key: folder }), /cannot be read: EISDIR/);
  assert.match(refused({ certificate: good.key }), /server-key\.pem: there is no certificate in it/);
  assert.match(refused({ key: good.certificate }), /server-cert\.pem: no private key/);
  assert.match(refused({ key: at("client-key.pem") }), /client-key\.pem and .*server-cert\.pem do not fit/);
  assert.match(refused({ authority: good.key }), /there is no certificate in it/);
  const pem = readFileSync(good.certificate, "latin1");
  writeFileSync(at("broken.pem"), pem.replace(/\n..../, "\nAAAA"));
  assert.match(refused({ certificate: at("broken.pem") }), /broken\.pem: a certificate cannot be read/);
  run("openssl", ["pkey", "-in", good.key, "-aes128", "-passout", "pass:x", "-out", at("locked.pem")]);
  assert.match(refused({ key: at("locked.pem") }), /the key has a passphrase/);
  const { certificate, key } = good;
  assert.match(refusal({ certificates: { certificate, key, verifyClient: true } }), /authority/);
});

test("a key file's lines", (t) => {
  const path = join(scratch(t), "keys.psk");
  const key = "0123456789abcdef0123456789ABCDEF";
  const refused = (text: string): string => {
    writeFileSync(path, text, { mode: 0o600 });
    return refusal({ psk: path });
  };
  for (const good of [
    `a:${key}`,
    `a:${key}\n\nb:${key}\r\n`,
    `with:colon:${key}\n`,
    `#00ff:${key}`.replace("00ff", "616c"),
  ]) {
    assert.equal(refused(good), "");
  }
  for (const [text, message] of [
    ["", /there is no user in it/],
    ["alice\n", /line 1: it is not user:hexkey/],
    [`:${key}`, /line 1: it is not user:hexkey/],
    [`a:${key}\nb:${key}0`, /line 2: the key is not hexadecimal/],
    ["a:", /line 1: the key is not hexadecimal/],
    ["a:0123", /line 1: a key of 2 bytes, not 16 to 512/],
    [`a:${"00".repeat(513)}`, /line 1: a key of 513 bytes/],
    [`a:${key}\na:${key}`, /line 2: this user has a key already/],
    [`#6:${key}`, /line 1: this user's name cannot be sent/],
    [`#ff:${key}`, /line 1: this user's name cannot be sent/],
    [`#00:${key}`, /line 1: this user's name cannot be sent/],
    [`${"x".repeat(257)}:${key}`, /line 1: this user's name cannot be sent/],
  ] as const) {
    assert.match(refused(text), message);
  }
  assert.match(refusal({ psk: `${path}.none` }), /cannot be read/);
});

test("secrets that others can read, and certificates out of their time, are warned about", (t) => {
  if (!requires(t, "openssl", "psktool", "certtool")) return;
  const folder = scratch(t);
  makeKeys(folder);
  makeCertificates(folder);
  const path = join(folder, "keys.psk");
  for (const [mode, count] of [
    [0o600, 0],
    [0o400, 0],
    [0o640, 1],
    [0o604, 1],
  ] as const) {
    chmodSync(path, mode);
    const { warnings } = readTlsSettings({ psk: path });
    assert.equal(warnings.length, count);
    for (const warning of warnings)
      assert.match(warning, /keys\.psk is a secret.*mode 06[04][04]\): chmod 600/);
  }
  const files = certificatesOf(folder).certificates;
  assert.deepEqual(readTlsSettings({ certificates: files }).warnings, []);
  const open = join(folder, "open-key.pem");
  copyFileSync(files.key, open);
  chmodSync(open, 0o644);
  assert.match(
    readTlsSettings({ certificates: { ...files, key: open } }).warnings.join(),
    /open-key\.pem is a secret/,
  );
  const late = join(folder, "late.pem");
  const template = join(folder, "template");
  const dates = ["activation", "expiration"].map((each, i) => `${each}_date = "2020-01-0${i + 1} 00:00:00"`);
  writeFileSync(template, ["cn = late", ...dates].join("\n"));
  const words = ["--load-privkey", files.key, "--template", template, "--outfile", late];
  run("certtool", ["--generate-self-signed", ...words]);
  const { warnings } = readTlsSettings({ certificates: { ...files, certificate: late } });
  assert.match(warnings.join(), /late\.pem: CN=late is valid from .* only/);
});
