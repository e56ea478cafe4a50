/**
 * Certificates and keys for tests of TLS, made by OpenSSL and GnuTLS under the names that QEMU and libnbd look for.
 *
 *   ca-cert.pem            the authority of
 *     server-cert.pem        localhost, 127.0.0.1
 *     client-cert.pem        a client
 *   stranger/…             the same of another authority
 *   keys.psk               alice's key and bob's
 */
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { run } from "./tools.ts";

const EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];

/** Fills `folder`. Needs openssl. */
export function makeCertificates(folder: string): void {
  for (const each of [folder, join(folder, "stranger")]) {
    mkdirSync(each, { recursive: true });
    const at = (name: string): string => join(each, name);
    const make = (name: string, words: readonly string[]): void => {
      const files = ["-keyout", at(`${name}-key.pem`), "-out", at(`${name}-cert.pem`)];
      run("openssl", ["req", "-x509", ...EC, "-subj", `/CN=${name} of a test`, ...files, ...words]);
    };
    make("ca", ["-addext", "keyUsage=critical,keyCertSign"]);
    const leaf = [
      "-CA",
      at("ca-cert.pem"),
      "-CAkey",
      at("ca-key.pem"),
      "-addext",
      "basicConstraints=critical,CA:FALSE",
    ];
    make("server", [...leaf, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
    make("client", leaf);
  }
}

/** Makes `keys.psk` in `folder`. Needs psktool. @returns alice's key, in hexadecimal */
export function makeKeys(folder: string): string {
  const path = join(folder, "keys.psk");
  for (const user of ["alice", "bob"]) run("psktool", ["-u", user, "-p", path]);
  const line = readFileSync(path, "utf8")
    .split("\n")
    .find((each) => each.startsWith("alice:"));
  return line!.slice("alice:".length).trim();
}
