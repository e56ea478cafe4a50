/**
 * When a stamp is due: while the image is written to, whoever writes to it; first of all after a pause; and at the end.
 */
import { isDeepStrictEqual } from "node:util";
import { type FileStamp, STAMP_EVERY_MS } from "./stamp.ts";
import type { Vault } from "./vault.ts";

type Look = () => Promise<readonly FileStamp[] | undefined>;

export class Stamping {
  readonly #vault: Vault;
  readonly #look: Look | undefined;
  readonly #now: () => number;
  #putAt = 0;
  /** Nothing was written since the last stamp, which may be old: who writes next puts one first. */
  isIdle = false;

  /** @param look undefined where stamps are not wanted */
  constructor(vault: Vault, look: Look | undefined, now: () => number) {
    this.#vault = vault;
    this.#look = look;
    this.#now = now;
  }

  async put(isClosed = false): Promise<void> {
    const files = await this.#look?.();
    this.#putAt = this.#now();
    this.isIdle = false;
    if (files !== undefined) await this.#vault.putStamp({ time: this.#putAt, isClosed, files });
  }

  /** A new one where it is time: for who writes for long. */
  readonly renew = async (): Promise<void> => {
    if (this.#isDue) await this.put();
  };

  /** The same, where an image that nobody has written to needs none. */
  async rest(): Promise<void> {
    if (this.isIdle || !this.#isDue) return;
    const files = await this.#look?.();
    if (isDeepStrictEqual(files, this.#vault.stamp?.files)) this.isIdle = true;
    else await this.put();
  }

  get #isDue(): boolean {
    return this.#now() - this.#putAt >= STAMP_EVERY_MS;
  }
}
