/**
 * Replies on their way to a client, in two lanes. Each reply is in one piece; among each other their order is free.
 *
 *   straight   one buffer, filled by requests that were answered at once, sent in one call
 *   parts      a head and a body of its own: memory, or a range of a file that the kernel sends itself
 */
import { fixedMemory } from "../host/memory.ts";

export interface Part {
  readonly head: Uint8Array;
  readonly body?: Uint8Array;
  readonly file?: { readonly fd: number; readonly at: number; readonly bytes: number };
  /** It was sent, or never will be. */
  readonly onGone?: () => void;
}

/** Where replies go. Each takes what it can. */
export interface Sink {
  /** @param more true: something follows at once. @returns bytes taken; fewer: wait until it is writable again */
  send(from: Uint8Array, offset: number, bytes: number, more: boolean): number;
  sendFile?(fd: number, at: number, bytes: number): number;
}

/** The straight lane of a client that asks for little, of one that asks for much, and of one that asks for it at once. */
const STRAIGHT_BYTES_MIN = 16 * 1024;
const STRAIGHT_BYTES = 384 * 1024;
const STRAIGHT_BYTES_MAX = 2 * 1024 * 1024 + 4096;
const PARTS_MAX = 64;

export class Outbox {
  bytes = fixedMemory(STRAIGHT_BYTES_MIN);
  view = new DataView(this.bytes.buffer);
  #sent = 0;
  #end = 0;
  readonly #parts: Part[] = [];
  /** Bytes of the first part that were sent. */
  #partSent = 0;

  get isEmpty(): boolean {
    return this.#end === 0 && this.#parts.length === 0;
  }

  /** Nothing more should be added before something was sent. */
  get isFull(): boolean {
    return this.#end > STRAIGHT_BYTES / 2 || this.#parts.length >= PARTS_MAX;
  }

  /** Room in the straight lane. @returns its offset in `bytes`, or -1. It counts when `commit` is called. */
  reserve(bytes: number): number {
    if (this.#end + bytes <= this.bytes.length) return this.#end;
    if (this.#end + bytes <= STRAIGHT_BYTES) this.#grow(STRAIGHT_BYTES);
    else if (this.#end === 0 && bytes <= STRAIGHT_BYTES_MAX) this.#grow(STRAIGHT_BYTES_MAX);
    else return -1;
    return this.#end;
  }

  #grow(bytes: number): void {
    const before = this.bytes;
    this.bytes = fixedMemory(bytes);
    this.view = new DataView(this.bytes.buffer);
    this.bytes.set(before.subarray(0, this.#end));
  }

  commit(bytes: number): void {
    this.#end += bytes;
  }

  push(part: Part): void {
    this.#parts.push(part);
  }

  /** Forgets everything. */
  clear(): void {
    for (const { onGone } of this.#parts.splice(0)) onGone?.();
    this.#sent = this.#end = this.#partSent = 0;
  }

  /** Sends what the sink takes. @returns whether everything went */
  flush(sink: Sink): boolean {
    // What was begun has to come to its end first.
    if (this.#partSent > 0 && !this.#flushPart(sink)) return false;
    if (this.#end > 0 && !this.#flushStraight(sink)) return false;
    while (this.#parts.length > 0) if (!this.#flushPart(sink)) return false;
    return true;
  }

  #flushStraight(sink: Sink): boolean {
    while (this.#sent < this.#end) {
      const bytes = this.#end - this.#sent;
      const taken = sink.send(this.bytes, this.#sent, bytes, false);
      if (taken <= 0) return false;
      this.#sent += taken;
      if (taken < bytes) return false;
    }
    this.#sent = this.#end = 0;
    return true;
  }

  #flushPart(sink: Sink): boolean {
    const { head, body, file, onGone } = this.#parts[0]!;
    const bodyBytes = body?.length ?? file?.bytes ?? 0;
    while (this.#partSent < head.length + bodyBytes) {
      const done = this.#partSent - head.length;
      let taken: number;
      if (done < 0) taken = sink.send(head, this.#partSent, -done, bodyBytes > 0);
      else if (body !== undefined) taken = sink.send(body, done, body.length - done, false);
      else taken = sink.sendFile!(file!.fd, file!.at + done, file!.bytes - done);
      if (taken <= 0) return false;
      this.#partSent += taken;
    }
    this.#parts.shift();
    this.#partSent = 0;
    onGone?.();
    return true;
  }
}
