/**
 * A server as a whole: images to exports, a listener, the control socket, and the way to a clean stop.
 *
 *   open images ─→ listen ─→ … clients … ─→ stop: answer what was taken up, flush, unlock
 */
import { once } from "node:events";
import { chmodSync, lstatSync, unlinkSync } from "node:fs";
import { createServer, type AddressInfo, type Server, connect } from "node:net";
import { basename, resolve } from "node:path";
import { DiskError } from "../error.ts";
import { hostError } from "../host/failure.ts";
import type { Export } from "../nbd/export.ts";
import { NbdServer } from "../nbd/server.ts";
import type { Secure } from "../nbd/stream-channel.ts";
import { ServedImage, type ServedOptions } from "./export.ts";

/** Where a server listens: a UNIX socket, or TCP. */
export type Address = { readonly path: string } | { readonly host: string; readonly port: number };

export interface ServeOptions extends ServedOptions {
  readonly images: readonly string[];
  readonly address: Address;
  /** UNIX socket for `ullage top`. */
  readonly control?: string;
  readonly tls?: { readonly isRequired: boolean; readonly secure: Secure };
  readonly connectionsMax?: number;
  readonly handshakeMs?: number;
  readonly allowExtended?: boolean;
  readonly straight?: boolean;
}

const CONNECTIONS_MAX = 64;
const HANDSHAKE_MS = 10_000;
const BUDGET_BYTES = 64 * 1024 * 1024;
const PATIENCE_MS = 10_000;

export class Served implements AsyncDisposable {
  readonly images: readonly ServedImage[];
  readonly #nbd: NbdServer;
  readonly #listeners: Server[] = [];
  readonly #startedAt = Date.now();
  #stopped: Promise<void> | undefined;

  private constructor(images: readonly ServedImage[], options: ServeOptions) {
    this.images = images;
    const byExport = new Map<Export, ServedImage>();
    for (const image of images) for (const each of image.exports) byExport.set(each, image);
    const exports = [...byExport.keys()];
    this.#nbd = new NbdServer({
      tls: options.tls === undefined ? "off" : options.tls.isRequired ? "require" : "allow",
      allowExtended: options.allowExtended ?? false,
      exports: {
        list: () => exports,
        find: (name) => (name === "" ? exports[0] : exports.find((each) => each.name === name)),
      },
      ...(options.tls && { secure: options.tls.secure }),
      connectionsMax: options.connectionsMax ?? CONNECTIONS_MAX,
      handshakeMs: options.handshakeMs ?? HANDSHAKE_MS,
      budgetBytes: BUDGET_BYTES,
      watcherOf: (served) => byExport.get(served)!.watcher,
      onConnections: (served, change) => void (byExport.get(served)!.meter.connections += change),
      log: options.log,
      ...(options.straight !== undefined && { straight: options.straight }),
    });
  }

  /** @throws DiskError as opening the images, `busy` where the address is taken, `io` */
  static async start(options: ServeOptions): Promise<Served> {
    refuseOpenNetwork(options);
    const images: ServedImage[] = [];
    try {
      for (const path of options.images) images.push(await ServedImage.open(path, named(path, options)));
      refuseTwins(images);
      const served = new Served(images, options);
      await served.#listen(options);
      return served;
    } catch (error) {
      for (const image of images) await image[Symbol.asyncDispose]();
      throw error;
    }
  }

  async #listen({ address, control }: ServeOptions): Promise<void> {
    try {
      // A half-open socket is how nbdinfo and others say that they will ask no more.
      const nbd = createServer({ allowHalfOpen: false, noDelay: true }, (socket) => this.#nbd.accept(socket));
      await listen(nbd, address);
      this.#listeners.push(nbd);
      if (control === undefined) return;
      const counters = createServer((socket) => {
        socket.on("error", () => socket.destroy());
        socket.on("data", () => {
          void this.counters().then((all) => void socket.write(`${JSON.stringify(all)}\n`));
        });
      });
      await listen(counters, { path: control });
      this.#listeners.push(counters);
    } catch (error) {
      for (const listener of this.#listeners) listener.close();
      throw error;
    }
  }

  /** Where clients find it. */
  get address(): string {
    const address = this.#listeners[0]!.address() as AddressInfo | string;
    if (typeof address === "string") return `nbd+unix:///?socket=${encodeURI(resolve(address))}`;
    const host = address.family === "IPv6" ? `[${address.address}]` : address.address;
    return `nbd://${host}:${address.port}`;
  }

  /** What `top` shows. */
  async counters(): Promise<object> {
    return {
      pid: process.pid,
      startedAt: this.#startedAt,
      connections: this.#nbd.connections,
      memoryBytes: process.memoryUsage.rss(),
      exports: await Promise.all(this.images.map((image) => image.counters())),
    };
  }

  /** Answers what was taken up, makes everything durable, and releases the locks. May be called again. */
  stop(): Promise<void> {
    this.#stopped ??= this.#stop();
    return this.#stopped;
  }

  async #stop(): Promise<void> {
    for (const listener of this.#listeners) listener.close();
    await this.#nbd.stop(PATIENCE_MS);
    const failures: unknown[] = [];
    for (const image of this.images) {
      await image[Symbol.asyncDispose]().catch((error: unknown) => failures.push(error));
    }
    if (failures.length > 0) throw failures[0];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

/** Where several images share a log, each line says whose it is. */
function named(path: string, options: ServeOptions): ServedOptions {
  const { images, logLine } = options;
  if (logLine === undefined || images.length === 1) return options;
  return { ...options, logLine: (line) => logLine(`${basename(path)} ${line}`) };
}

/** Whoever reaches a port without TLS has the disk (H31). */
function refuseOpenNetwork({ address, tls }: ServeOptions): void {
  if ("path" in address || tls?.isRequired === true) return;
  if (["localhost", "::1"].includes(address.host) || /^127\.\d+\.\d+\.\d+$/.test(address.host)) return;
  throw new DiskError("refused", `${address.host} is no loopback address, and TLS is not required`, {
    code: "no-tls",
    hint: "give --tls-cert and --tls-key, or --tls-psk; or listen on 127.0.0.1 or a UNIX socket",
  });
}

function refuseTwins(images: readonly ServedImage[]): void {
  const names = images.flatMap((image) => image.exports.map(({ name }) => name));
  const twin = names.find((name, i) => names.indexOf(name) !== i);
  if (twin === undefined) return;
  throw new DiskError("usage", `two exports would be called "${twin}"`, {
    hint: "serve them by two servers, or link one under another name",
  });
}

async function listen(server: Server, address: Address): Promise<void> {
  if ("path" in address) await removeStale(address.path);
  try {
    // A UNIX socket is bound within the call: nobody else may connect, not even before its mode is set.
    const mask = process.umask(0o177);
    server.listen(address);
    process.umask(mask);
    await once(server, "listening");
    if ("path" in address) chmodSync(address.path, 0o600);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== "EADDRINUSE") throw hostError(error, "listen");
    const where = "path" in address ? address.path : `${address.host}:${address.port}`;
    throw new DiskError("busy", `${where}: somebody listens there already`, { code: "in-use", cause: error });
  }
}

/** A socket that a killed server left behind is in the way; one that somebody listens on is not touched. */
async function removeStale(path: string): Promise<void> {
  const stats = lstatSync(path, { throwIfNoEntry: false });
  if (stats === undefined || !stats.isSocket()) return;
  const isAlive = await new Promise<boolean>((resolve) => {
    const probe = connect(path, () => resolve(true));
    probe.on("error", () => resolve(false));
    probe.on("connect", () => probe.destroy());
  });
  if (!isAlive) unlinkSync(path);
}
