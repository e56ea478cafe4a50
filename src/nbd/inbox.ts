/**
 * What was received from a client and not taken up yet: one buffer, in one piece.
 *
 *   | taken | requests, the last one perhaps cut | room |
 *           ^ start                              ^ end
 */
import { fixedMemory } from "../host/memory.ts";

/** So much is received at once of requests that are short. */
const BYTES_DEFAULT = 64 * 1024;
/** Where a first request begins, so that its data lie at a multiple of 64: the host copies those faster. */
const FRONT = 36;
/** A client that sent large writes once goes on to do so; the rare giant's memory is given back. */
const BYTES_KEPT = 4 * 1024 * 1024;
/** A request from this length on is a long one. */
const LONG_BYTES = 16 * 1024;

export class Inbox {
  bytes = fixedMemory(FRONT + BYTES_DEFAULT);
  view = new DataView(this.bytes.buffer);
  start = FRONT;
  end = FRONT;
  /** So many bytes from `start` on make the next request whole, as far as is known. */
  #needed = 0;
  /** The length of the last long request: the next one is likely to be as long. */
  #typical = BYTES_DEFAULT;

  /** Makes room for the rest of a request of so many bytes from `start` on. */
  need(bytes: number): void {
    this.#needed = bytes;
    if (bytes > LONG_BYTES) this.#typical = bytes;
    const isGiant = this.bytes.length > BYTES_KEPT && bytes <= BYTES_KEPT;
    if (FRONT + bytes <= this.bytes.length && !isGiant) return;
    const kept = this.bytes.subarray(this.start, this.end);
    this.bytes = fixedMemory(FRONT + Math.max(bytes, BYTES_DEFAULT));
    this.view = new DataView(this.bytes.buffer);
    this.bytes.set(kept, FRONT);
    this.start = FRONT;
    this.end = FRONT + kept.length;
  }

  /**
   * How many bytes may be received at `end` now. Long requests are received one by one, each at the front of the buffer, which
   * then stays in the processor's cache, and hardly anything is ever moved.
   */
  room(): number {
    if (this.start === this.end) {
      this.start = this.end = FRONT;
      return Math.min(this.bytes.length - FRONT, Math.max(this.#typical, BYTES_DEFAULT));
    }
    const missing = this.#needed - (this.end - this.start);
    if (this.start > FRONT && this.bytes.length - this.end < Math.max(missing, LONG_BYTES)) {
      this.bytes.copyWithin(FRONT, this.start, this.end);
      this.end -= this.start - FRONT;
      this.start = FRONT;
    }
    return missing > LONG_BYTES ? missing : this.bytes.length - this.end;
  }

  /** Adds what was received elsewhere; as much as there is room for. @returns how much that is */
  add(from: Uint8Array): number {
    const part = from.subarray(0, this.room());
    this.bytes.set(part, this.end);
    this.end += part.length;
    return part.length;
  }
}
