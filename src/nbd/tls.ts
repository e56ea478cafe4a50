/**
 * TLS for a server: what proves it to its clients, and its clients to it.
 *
 *   certificates   a certificate with its chain, its key; with an authority (CA) clients have to show one of its own
 *   psk            `user:hexkey` in each line, as GnuTLS's psktool writes it; `#` before the user: it is hexadecimal too
 *
 * TLS 1.2 is the least. Keys that are known beforehand work with 1.3, where OpenSSL takes them with suites of SHA-256
 * alone, and with 1.2 by suites that Node leaves out unless they are named. All of them make a fresh key for each
 * connection: who steals the file later reads nothing of before.
 */
import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import type { Socket } from "node:net";
import { createSecureContext, createServer, type TlsOptions, type TLSSocket } from "node:tls";
import { DiskError } from "../error.ts";
import { ChannelClosed } from "./channel.ts";
import { ProtocolBreach } from "./protocol.ts";

export interface CertificateFiles {
  /** PEM: the server's certificate, then those that lead up to its authority's. */
  readonly certificate: string;
  /** PEM, without a passphrase. */
  readonly key: string;
  /** PEM: who signs the certificates of clients. */
  readonly authority?: string;
  /** Who shows no certificate of that authority is turned away. */
  readonly verifyClient: boolean;
}

export type TlsFiles = { readonly certificates: CertificateFiles } | { readonly psk: string };

export interface TlsSettings {
  readonly options: TlsOptions;
  /** Sentences for whoever started the server. */
  readonly warnings: readonly string[];
}

const PSK_SUITES = [
  "TLS_CHACHA20_POLY1305_SHA256",
  "TLS_AES_128_GCM_SHA256",
  "ECDHE-PSK-CHACHA20-POLY1305",
  "DHE-PSK-AES256-GCM-SHA384",
  "DHE-PSK-CHACHA20-POLY1305",
  "DHE-PSK-AES128-GCM-SHA256",
  "ECDHE-PSK-AES256-CBC-SHA384",
  "ECDHE-PSK-AES128-CBC-SHA256",
].join(":");

/** OpenSSL's own limits for a user's name and a key. */
const PSK_USER_BYTES_MAX = 256;
const PSK_KEY_BYTES_MAX = 512;
const PSK_KEY_BYTES_MIN = 16;
const FILE_BYTES_MAX = 16 * 1024 * 1024;

/** @throws DiskError `usage` where a file is not what it should be */
export function readTlsSettings(files: TlsFiles): TlsSettings {
  const warnings: string[] = [];
  const chosen =
    "psk" in files ? pskOptions(files.psk, warnings) : certificateOptions(files.certificates, warnings);
  return { options: { ...chosen, minVersion: "TLSv1.2" }, warnings };
}

/**
 * Puts a connection under TLS, as its server.
 * @throws ProtocolBreach when that does not come about in time; the connection is closed then
 */
export function secured(
  socket: Socket,
  { options }: TlsSettings,
  deadlineMs: number = 10_000,
): Promise<TLSSocket> {
  if (socket.destroyed) return Promise.reject(new ChannelClosed());
  return new Promise((resolve, reject) => {
    // A server of its own, which never listens: Node verifies a client's certificate nowhere else.
    const server = createServer({ ...options, handshakeTimeout: deadlineMs });
    server.once("secureConnection", resolve);
    server.once("tlsClientError", (error, { authorizationError }) => {
      socket.destroy();
      const why = authorizationError
        ? `the client's certificate: ${String(authorizationError)}`
        : error.message;
      reject(new ProtocolBreach(`no TLS: ${why}`));
    });
    server.emit("connection", socket);
  });
}

function certificateOptions(files: CertificateFiles, warnings: string[]): TlsOptions {
  const { verifyClient, authority } = files;
  if (verifyClient && authority === undefined) {
    throw new DiskError("usage", "clients can be verified only with the certificate of their authority (CA)");
  }
  const cert = readPem(files.certificate, warnings);
  const key = readSecret(files.key, warnings).toString("latin1");
  requireKey(files.key, key);
  const ca = authority === undefined ? undefined : readPem(authority, warnings);
  const options: TlsOptions = {
    cert,
    key,
    ...(ca === undefined ? {} : { ca }),
    requestCert: verifyClient,
    rejectUnauthorized: true,
  };
  try {
    createSecureContext(options);
  } catch (cause) {
    throw new DiskError("usage", `${files.key} and ${files.certificate} do not fit: ${messageOf(cause)}`, {
      cause,
    });
  }
  return options;
}

/** Certificates in PEM, each of which can be read. */
function readPem(path: string, warnings: string[]): string {
  const text = readText(path).toString("latin1");
  const certificates = text.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [];
  if (certificates.length === 0) throw new DiskError("usage", `${path}: there is no certificate in it (PEM)`);
  for (const pem of certificates) {
    const { validFrom, validTo, subject } = parseCertificate(path, pem);
    const now = Date.now();
    const isValid = Date.parse(validFrom) <= now && now <= Date.parse(validTo);
    if (!isValid) warnings.push(`${path}: ${subject} is valid from ${validFrom} to ${validTo} only`);
  }
  return text;
}

function parseCertificate(path: string, pem: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch (cause) {
    throw new DiskError("usage", `${path}: a certificate cannot be read: ${messageOf(cause)}`, { cause });
  }
}

function requireKey(path: string, pem: string): void {
  try {
    createPrivateKey(pem);
  } catch (cause) {
    const isLocked = /ENCRYPTED/.test(pem);
    const message = isLocked ? "the key has a passphrase" : `no private key (PEM): ${messageOf(cause)}`;
    const hint = isLocked ? "take it off with `openssl pkey`, and keep the file to yourself" : undefined;
    throw new DiskError("usage", `${path}: ${message}`, { cause, ...(hint && { hint }) });
  }
}

function pskOptions(path: string, warnings: string[]): TlsOptions {
  const keys = parsePskFile(path, readSecret(path, warnings).toString("utf8"));
  return {
    ciphers: PSK_SUITES,
    dhparam: "auto",
    pskCallback: (_socket, user) => keys.get(user) ?? null,
  };
}

function parsePskFile(path: string, text: string): ReadonlyMap<string, Uint8Array> {
  const keys = new Map<string, Uint8Array>();
  for (const [i, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === "") continue;
    const refuse = (message: string): DiskError => {
      const hint = `psktool -u USER -p ${path} makes such a file`;
      return new DiskError("usage", `${path}: line ${i + 1}: ${message}`, { hint });
    };
    const colon = line.lastIndexOf(":");
    if (colon < 1) throw refuse("it is not user:hexkey");
    const user = userOf(line.slice(0, colon));
    if (user === undefined) throw refuse("this user's name cannot be sent");
    const hex = line.slice(colon + 1).trim();
    if (!/^([0-9a-f]{2})+$/i.test(hex)) throw refuse("the key is not hexadecimal");
    const key = Buffer.from(hex, "hex");
    if (key.length < PSK_KEY_BYTES_MIN || key.length > PSK_KEY_BYTES_MAX) {
      throw refuse(`a key of ${key.length} bytes, not ${PSK_KEY_BYTES_MIN} to ${PSK_KEY_BYTES_MAX}`);
    }
    if (keys.has(user)) throw refuse("this user has a key already");
    keys.set(user, key);
  }
  if (keys.size === 0) throw new DiskError("usage", `${path}: there is no user in it`);
  return keys;
}

function userOf(written: string): string | undefined {
  let user = written;
  if (written.startsWith("#")) {
    if (!/^#([0-9a-f]{2})+$/i.test(written)) return undefined;
    const bytes = Buffer.from(written.slice(1), "hex");
    user = bytes.toString("utf8");
    if (!Buffer.from(user).equals(bytes)) return undefined;
  }
  const bytes = Buffer.from(user);
  return bytes.length > PSK_USER_BYTES_MAX || bytes.includes(0) ? undefined : user;
}

/** A file that nobody else should be able to read. */
function readSecret(path: string, warnings: string[]): Buffer {
  const content = readText(path);
  const { mode } = statSync(path);
  if (process.platform !== "win32" && (mode & 0o077) !== 0) {
    const shown = (mode & 0o777).toString(8).padStart(4, "0");
    warnings.push(`${path} is a secret, but open to other users (mode ${shown}): chmod 600`);
  }
  return content;
}

function readText(path: string): Buffer {
  try {
    const { size } = statSync(path);
    if (size > FILE_BYTES_MAX) throw new Error(`it has ${size} bytes`);
    return readFileSync(path);
  } catch (cause) {
    throw new DiskError("usage", `${path} cannot be read: ${messageOf(cause)}`, { cause });
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
