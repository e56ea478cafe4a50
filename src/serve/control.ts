/**
 * The control socket: each line `counters` is answered with one line of JSON. Whatever is said here, and whatever becomes of
 * the answer, the disks go on.
 */
import { createServer, type Server, type Socket } from "node:net";

const CLIENTS_MAX = 16;
const LINE_BYTES_MAX = 1024;

export class Control {
  readonly listener: Server;
  readonly #counters: () => Promise<object>;
  readonly #log: (message: string) => void;
  readonly #sockets = new Set<Socket>();

  constructor(counters: () => Promise<object>, log: (message: string) => void) {
    this.#counters = counters;
    this.#log = log;
    // Who has asked all may close its end, and still hears the answer.
    this.listener = createServer({ allowHalfOpen: true }, (socket) => void this.#serve(socket));
    this.listener.maxConnections = CLIENTS_MAX;
  }

  /** Nobody asks any more. */
  close(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async #serve(socket: Socket): Promise<void> {
    this.#sockets.add(socket);
    socket.on("error", () => socket.destroy());
    try {
      await this.#answer(socket);
    } catch {
      // Who goes in the middle of an answer is no news.
    } finally {
      this.#sockets.delete(socket);
      socket.destroy();
    }
  }

  /** One answer after the other: the next is made when the last was taken. */
  async #answer(socket: Socket): Promise<void> {
    let said = "";
    for await (const chunk of socket.setEncoding("latin1")) {
      const lines = (said + String(chunk)).split("\n");
      said = lines.pop()!;
      if (said.length > LINE_BYTES_MAX || lines.some((line) => line.trimEnd() !== "counters")) return;
      for (const _ of lines) {
        const answer = await this.#asked();
        if (answer === undefined || socket.destroyed) return;
        await new Promise((resolve) => socket.write(answer, resolve));
      }
    }
  }

  async #asked(): Promise<string | undefined> {
    try {
      return `${JSON.stringify(await this.#counters())}\n`;
    } catch (error) {
      this.#log(`counters: ${error instanceof Error ? error.message : String(error)}`);
      return undefined;
    }
  }
}
