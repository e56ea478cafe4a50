/**
 * Log: one line for each request, when it is done.
 *
 *   2026-11-26T10:42:00.123Z trim  offset=0x10000 bytes=0x1000 ok 0.412ms
 *   2026-11-26T10:42:00.125Z write offset=0x0 bytes=0x200 no-space 1.003ms
 *
 * The time is when the request came, in UTC; the last figure is how long it took. A failure shows its code, or its
 * kind where it has none. `--log FILE` appends to that file; `--log -` is stderr.
 */
import type { WritableDevice } from "../device/device.ts";
import { DiskError } from "../error.ts";
import { Around, OPERATIONS, type Request } from "./around.ts";

const WORD_COLUMNS = Math.max(...OPERATIONS.map((operation) => operation.length));

export class Logged extends Around {
  readonly #line: (line: string) => void;

  /** @param line takes one line, without its end */
  constructor(below: WritableDevice, line: (line: string) => void) {
    super(below);
    this.#line = line;
  }

  protected concerns(): boolean {
    return true;
  }

  protected async around<T>(request: Request, carryOut: () => Promise<T>): Promise<T> {
    const time = new Date().toISOString();
    const startMs = performance.now();
    let result = "ok";
    try {
      return await carryOut();
    } catch (error) {
      result = error instanceof DiskError ? (error.code ?? error.kind) : "internal";
      throw error;
    } finally {
      const { operation, at, bytes } = request;
      const where = operation === "flush" ? "" : `offset=0x${at.toString(16)} bytes=0x${bytes.toString(16)} `;
      const took = `${(performance.now() - startMs).toFixed(3)}ms`;
      this.#line(`${time} ${operation.padEnd(WORD_COLUMNS)} ${where}${result} ${took}`);
    }
  }
}
