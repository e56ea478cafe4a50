/**
 * `ullage serve IMAGE...`: exports disks over NBD until it is told to stop.
 */
import { createWriteStream } from "node:fs";
import type { Address, ServeOptions } from "../serve.ts";
import { DiskError } from "../error.ts";
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
  readonly log?: string;
}

export async function run(paths: readonly string[], flags: ServeFlags, face: Face): Promise<number> {
  const { Served } = await import("../serve.ts");
  const options = await optionsOf(paths, flags, face);
  const served = await Served.start(options);
  const stopped = Promise.withResolvers<void>();
  const stop = (): void => void served.stop().then(stopped.resolve, stopped.reject);
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, stop);
  tell(served.address, paths, face);
  await stopped.promise;
  return 0;
}

async function optionsOf(images: readonly string[], flags: ServeFlags, face: Face): Promise<ServeOptions> {
  const { parseDelays, parseFailures } = await import("../serve.ts");
  const { socket, listen, delay, error, log } = flags;
  if ((socket === undefined) === (listen === undefined)) {
    throw new DiskError("usage", "say where to listen: either --socket PATH or --listen HOST:PORT");
  }
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
    ...(error !== undefined && { failures: parseFailures(error) }),
    ...(log !== undefined && { logLine: lineWriter(log, face) }),
    log: (message) => face.note(`ullage: ${printable(message, face.screen)}`),
  };
}

function lineWriter(path: string, face: Face): (line: string) => void {
  if (path === "-") return (line) => face.note(line);
  const stream = createWriteStream(path, { flags: "a", mode: 0o600 });
  stream.on("error", (error) => face.note(`ullage: ${path}: ${error.message}`));
  return (line) => void stream.write(`${line}\n`);
}

/** Scripts wait for this line. */
function tell(address: string, paths: readonly string[], face: Face): void {
  if (face.json) face.out(JSON.stringify({ schema: 1, address, pid: process.pid }));
  else face.out(`serving ${paths.map((path) => printable(path, face.screen)).join(", ")} at ${address}`);
}
