/**
 * The server's connections in this process, on a UNIX socket: what `ullage serve` does, without images and commands.
 */
import { once } from "node:events";
import { createServer } from "node:net";
import { join } from "node:path";
import type { TestContext } from "node:test";
import type { Export } from "../nbd/export.ts";
import { NbdServer, type NbdServerOptions } from "../nbd/server.ts";
import { scratch } from "./tools.ts";

export interface ServedExport {
  readonly path: string;
  readonly server: NbdServer;
  readonly log: readonly string[];
  /** A clean stop; the test's end brings it, too. */
  stop(): Promise<void>;
}

export async function servedOn(
  t: TestContext,
  served: Export,
  options: Partial<NbdServerOptions> = {},
): Promise<ServedExport> {
  const log: string[] = [];
  const server = new NbdServer({
    tls: "off",
    allowExtended: true,
    exports: { list: () => [served], find: () => served },
    connectionsMax: 16,
    handshakeMs: 10_000,
    budgetBytes: 16 * 1024 * 1024,
    watcherOf: () => ({ answered() {} }),
    log: (message) => log.push(message),
    ...options,
  });
  const path = join(scratch(t), "socket");
  const listener = createServer({ noDelay: true }, (socket) => server.accept(socket)).listen(path);
  await once(listener, "listening");
  let stopped: Promise<void> | undefined;
  const stop = (): Promise<void> => {
    listener.close();
    return (stopped ??= server.stop(2000));
  };
  t.after(stop);
  return { path, server, log, stop };
}
