/**
 * A server of disks as a child process: ours, or one to compare it with.
 *
 *   await using server = await serving(t, ["a.qcow2"]);   // waits until the socket accepts
 *   nbdinfo(server.uri());
 *   const { code, stderr } = await server.stop();         // SIGTERM
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type NetConnectOpts } from "node:net";
import { join, resolve } from "node:path";
import type { TestContext } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { scratch } from "./tools.ts";

const BINARY = resolve(import.meta.dirname, "../../bin/ullage.js");
const START_MS_MAX = 20_000;

export type Server = "ullage" | "qemu-nbd" | "nbdkit";

export interface ServingOptions {
  readonly server?: Server;
  /** Of the image: `qcow2` unless told otherwise; null: ours guesses. nbdkit's plugin `file` serves raw alone. */
  readonly format?: string | null;
  /** Of nbdkit. */
  readonly plugin?: string;
  /** A port of the loopback to listen on, instead of a socket; of ours. */
  readonly port?: number;
  /** More words for the command. */
  readonly words?: readonly string[];
}

interface Ended {
  /** Null when it was killed by a signal. */
  readonly code: number | null;
  readonly stderr: string;
}

export interface Serving {
  readonly socket: string;
  readonly pid: number;
  /** As libnbd and QEMU read it. */
  uri(exportName?: string): string;
  /** A clean stop. */
  stop(): Promise<Ended>;
  /** What a crash of the process leaves. */
  kill(): Promise<Ended>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** Serves images on a UNIX socket until it is stopped, or the test ends. @throws Error when it does not start */
export async function serving(
  t: TestContext,
  images: readonly string[],
  options: ServingOptions = {},
): Promise<Serving> {
  const socket = join(scratch(t), "socket");
  const [command, words] = commandOf(images, socket, options);
  const child = spawn("setpriv", ["--pdeathsig", "KILL", command, ...words], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  t.after(() => void child.kill("SIGKILL"));
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => void (stderr += text));
  const closed = once(child, "close");
  const { port } = options;
  const address = port === undefined ? { path: socket } : { host: "127.0.0.1", port };
  await accepts(address, child, () => stderr);
  const end = async (signal: NodeJS.Signals): Promise<Ended> => {
    child.kill(signal);
    await closed;
    return { code: child.exitCode, stderr };
  };
  return {
    socket,
    pid: child.pid!,
    uri: (exportName = "") => `nbd+unix:///${encodeURIComponent(exportName)}?socket=${socket}`,
    stop: () => end("SIGTERM"),
    kill: () => end("SIGKILL"),
    [Symbol.asyncDispose]: async () => void (await end("SIGTERM")),
  };
}

function commandOf(
  images: readonly string[],
  socket: string,
  { server = "ullage", format = "qcow2", plugin = "file", port, words = [] }: ServingOptions,
): [string, string[]] {
  if (server === "ullage") {
    const where = port === undefined ? ["--socket", socket] : ["--listen", `127.0.0.1:${port}`];
    const said = format === null ? [] : ["--format", format];
    return [process.execPath, [BINARY, "serve", ...images, ...said, ...where, ...words]];
  }
  if (server === "nbdkit") {
    return ["nbdkit", ["--foreground", "--unix", socket, plugin, ...images, ...words]];
  }
  const life = ["--persistent", "--shared=16", "--socket", socket];
  return ["qemu-nbd", [...life, "--discard=unmap", "--format", format ?? "raw", ...words, ...images]];
}

async function accepts(address: NetConnectOpts, child: ChildProcess, stderr: () => string): Promise<void> {
  const late = Date.now() + START_MS_MAX;
  for (;;) {
    const isOpen = await new Promise<boolean>((tell) => {
      const probe = connect(address, () => {
        probe.destroy();
        tell(true);
      });
      probe.on("error", () => tell(false));
    });
    if (isOpen) return;
    if (child.exitCode !== null || child.signalCode !== null || Date.now() > late) {
      throw new Error(`the server does not serve: ${child.exitCode}\n${stderr()}`);
    }
    await pause(20);
  }
}

/** A port of the loopback on which nobody listens. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}
