/**
 * `ullage serve IMAGE...`: exports disks over NBD until it is told to stop.
 */
import { createWriteStream, existsSync, openSync } from "node:fs";
import type { Address, ServeOptions } from "../serve.ts";
import { DiskError } from "../error.ts";
import { EXIT } from "./failure.ts";
import { openOptions, type ReadFlags } from "./options.ts";
import type { Face } from "./terminal.ts";
import { printable } from "./text.ts";

export interface ServeFlags extends ReadFlags {
  readonly socket?: string;
  readonly listen?: Address;
  readonly control?: string;
  readonly readOnly?: boolean;
  readonly snapshots?: boolean;
  readonly maxConnections?: number;
  readonly delay?: string;
  readonly error?: string;
  readonly errorFile?: string;
  readonly errorSeed?: number;
  readonly log?: string;
  readonly erase?: "random" | "zeros";
  readonly guardFor?: number;
  readonly guardMax?: number;
  readonly guardWrites?: boolean;
  readonly alarmShare?: NonNullable<ServeOptions["guard"]>["share"];
  readonly tls?: "allow" | "require";
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly tlsCa?: string;
  readonly tlsVerify?: boolean;
  readonly tlsPsk?: string;
}

export async function run(paths: readonly string[], flags: ServeFlags, face: Face): Promise<number> {
  const { Served } = await import("../serve.ts");
  const options = await optionsOf(paths, flags, face);
  const served = await Served.start(options);
  const stopped = Promise.withResolvers<void>();
  let isStopping = false;
  // The second time it leaves at once, whatever the host keeps it waiting for: as in a power cut nothing is lost that was flushed.
  const stop = (): void => {
    if (isStopping) process.exit(EXIT.interrupted);
    isStopping = true;
    void served.stop().then(stopped.resolve, stopped.reject);
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, stop);
  tell(served.address, paths, face);
  await stopped.promise;
  return 0;
}

async function optionsOf(images: readonly string[], flags: ServeFlags, face: Face): Promise<ServeOptions> {
  const { parseDelays, parseFailures } = await import("../serve.ts");
  const { socket, listen, delay, erase, error, log } = flags;
  if ((socket === undefined) === (listen === undefined)) {
    throw new DiskError("usage", "it is not said where to listen", {
      hint: "give either --socket PATH or --listen HOST:PORT",
    });
  }
  const warn = (message: string): void => face.note(`ullage: ${printable(message, face.screen)}`);
  const tls = await tlsOf(flags, warn);
  const control = flags.control ?? (socket === undefined ? undefined : `${socket}.control`);
  return {
    images,
    open: openOptions(flags),
    readOnly: flags.readOnly === true,
    snapshots: flags.snapshots === true,
    address: socket === undefined ? listen! : { path: socket },
    ...(control !== undefined && { control }),
    ...(flags.maxConnections !== undefined && { connectionsMax: flags.maxConnections }),
    ...(delay !== undefined && { delays: parseDelays(delay) }),
    ...(error !== undefined && { failures: { rules: parseFailures(error), options: failureOptions(flags) } }),
    ...(log !== undefined && { logLine: lineWriter(log, face) }),
    ...(erase !== undefined && { erase }),
    ...guardOf(flags),
    ...(tls && { tls }),
    log: warn,
  };
}

function failureOptions({ errorFile, errorSeed }: ServeFlags) {
  return {
    ...(errorFile !== undefined && { isOn: () => existsSync(errorFile) }),
    ...(errorSeed !== undefined && { seed: errorSeed }),
  };
}

function guardOf(flags: ServeFlags): Pick<ServeOptions, "guard"> {
  const { guardFor, guardMax, guardWrites, alarmShare } = flags;
  if (guardFor === undefined || guardMax === undefined) {
    if ([guardFor, guardMax, guardWrites, alarmShare].every((flag) => flag === undefined)) return {};
    throw new DiskError("usage", "a guard has a time and a budget", {
      hint: "give both: --guard-for 24h --guard-max 10GiB",
    });
  }
  const share = alarmShare && { share: alarmShare };
  return { guard: { forMs: guardFor, maxBytes: guardMax, writes: guardWrites === true, ...share } };
}

/** Files mean that TLS is required; `--tls allow` lets clients choose. */
async function tlsOf(flags: ServeFlags, warn: (message: string) => void): Promise<ServeOptions["tls"]> {
  const { tls, tlsCert, tlsKey, tlsCa, tlsPsk, tlsVerify } = flags;
  const isAsked = [tls, tlsCert, tlsKey, tlsCa, tlsPsk, tlsVerify].some((flag) => flag !== undefined);
  if (!isAsked) return undefined;
  const hasPair = tlsCert !== undefined && tlsKey !== undefined;
  if (hasPair === (tlsPsk !== undefined)) {
    throw new DiskError("usage", "TLS needs a certificate with its key, or keys known beforehand", {
      hint: "give either --tls-cert and --tls-key, or --tls-psk",
    });
  }
  const { secured, readTlsSettings } = await import("../serve.ts");
  const authority = tlsCa === undefined ? {} : { authority: tlsCa };
  const settings = readTlsSettings(
    hasPair
      ? {
          certificates: { certificate: tlsCert, key: tlsKey, ...authority, verifyClient: tlsVerify === true },
        }
      : { psk: tlsPsk! },
  );
  settings.warnings.forEach(warn);
  return { isRequired: tls !== "allow", secure: (socket) => secured(socket, settings) };
}

function lineWriter(path: string, face: Face): (line: string) => void {
  if (path === "-") return (line) => face.note(line);
  const stream = createWriteStream(path, { fd: openSync(path, "a", 0o600) });
  stream.on("error", (error) => face.note(`ullage: ${path}: ${error.message}`));
  return (line) => void stream.write(`${line}\n`);
}

/** Scripts wait for this line. */
function tell(address: string, paths: readonly string[], face: Face): void {
  if (face.json) face.out(JSON.stringify({ schema: 1, address, pid: process.pid }));
  else face.out(`serving ${paths.map((path) => printable(path, face.screen)).join(", ")} at ${address}`);
}
