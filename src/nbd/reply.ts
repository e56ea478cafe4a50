/**
 * Replies as they go over the wire: simple, structured, or with 64-bit headers.
 *
 *   simple       magic | error | cookie | data of READ
 *   structured   magic | flags | type | cookie | bytes | payload             READ, BLOCK_STATUS and their errors
 *   extended     magic | flags | type | cookie | offset | bytes | payload    everything, where it was negotiated (H30)
 */
import type { Session } from "./export.ts";
import type { Request } from "./request.ts";
import {
  CHUNK,
  CMD,
  EXTENDED_REPLY_MAGIC,
  REPLY_FLAG_DONE,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from "./protocol.ts";

const SIMPLE_BYTES = 16;
const CHUNK_BYTES = 20;
const EXTENDED_BYTES = 32;
const MESSAGE_BYTES_MAX = 1024;
/** The offset in front of data. */
const OFFSET_BYTES = 8;

type Wire = Pick<Session, "structured" | "extended">;

function chunkHeadBytes({ extended }: Wire): number {
  return extended ? EXTENDED_BYTES : CHUNK_BYTES;
}

/** Writes the head of a chunk; returns where its payload begins. */
function putChunk(
  view: DataView,
  at: number,
  wire: Wire,
  request: Request,
  type: number,
  flags: number,
  payloadBytes: number,
): number {
  view.setUint32(at, wire.extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC);
  view.setUint16(at + 4, flags);
  view.setUint16(at + 6, type);
  view.setUint32(at + 8, request.cookieHigh);
  view.setUint32(at + 12, request.cookieLow);
  if (!wire.extended) {
    view.setUint32(at + 16, payloadBytes);
    return at + CHUNK_BYTES;
  }
  view.setUint32(at + 16, request.offsetHigh);
  view.setUint32(at + 20, request.offsetLow);
  putOffset(view, at + 24, payloadBytes);
  return at + EXTENDED_BYTES;
}

function putOffset(view: DataView, at: number, value: number): void {
  view.setUint32(at, Math.floor(value / 2 ** 32));
  view.setUint32(at + 4, value % 2 ** 32);
}

function putSimple(view: DataView, at: number, request: Request, error: number): void {
  view.setUint32(at, SIMPLE_REPLY_MAGIC);
  view.setUint32(at + 4, error);
  view.setUint32(at + 8, request.cookieHigh);
  view.setUint32(at + 12, request.cookieLow);
}

/** Bytes in front of the data of a READ. */
export function readHeadBytes(wire: Wire): number {
  return wire.structured || wire.extended ? chunkHeadBytes(wire) + OFFSET_BYTES : SIMPLE_BYTES;
}

/** Writes what stands in front of the data of a READ that is answered in one piece. */
export function putReadHead(view: DataView, at: number, wire: Wire, request: Request): void {
  if (!wire.structured && !wire.extended) return putSimple(view, at, request, 0);
  const { offset, bytes } = request;
  const body = putChunk(view, at, wire, request, CHUNK.OFFSET_DATA, REPLY_FLAG_DONE, OFFSET_BYTES + bytes);
  putOffset(view, body, offset);
}

/** Bytes of an answer without content. */
export function doneBytes(wire: Wire): number {
  return wire.extended ? EXTENDED_BYTES : SIMPLE_BYTES;
}

/** Writes "done". */
export function putDone(view: DataView, at: number, wire: Wire, request: Request): void {
  if (wire.extended) putChunk(view, at, wire, request, CHUNK.NONE, REPLY_FLAG_DONE, 0);
  else putSimple(view, at, request, 0);
}

/** An answer without content to a READ of nothing, which a structured client wants as a chunk. */
export function emptyReply(wire: Wire, request: Request): Uint8Array {
  const view = new DataView(new ArrayBuffer(wire.structured || wire.extended ? chunkHeadBytes(wire) : 16));
  if (view.byteLength === SIMPLE_BYTES) putSimple(view, 0, request, 0);
  else putChunk(view, 0, wire, request, CHUNK.NONE, REPLY_FLAG_DONE, 0);
  return new Uint8Array(view.buffer);
}

/** @param message for people; only where there is room for it */
export function errorReply(wire: Wire, request: Request, error: number, message: string): Uint8Array {
  const isChunk = wire.extended || (wire.structured && hasChunks(request.command));
  if (!isChunk) {
    const view = new DataView(new ArrayBuffer(SIMPLE_BYTES));
    putSimple(view, 0, request, error);
    return new Uint8Array(view.buffer);
  }
  const room = new Uint8Array(MESSAGE_BYTES_MAX);
  // Cuts no character.
  const text = room.subarray(0, new TextEncoder().encodeInto(message, room).written);
  const bytes = new Uint8Array(chunkHeadBytes(wire) + 6 + text.length);
  const view = new DataView(bytes.buffer);
  const body = putChunk(view, 0, wire, request, CHUNK.ERROR, REPLY_FLAG_DONE, 6 + text.length);
  view.setUint32(body, error);
  view.setUint16(body + 4, text.length);
  bytes.set(text, body + 6);
  return bytes;
}

function hasChunks(command: number): boolean {
  return command === CMD.READ || command === CMD.BLOCK_STATUS;
}

/** One chunk of a BLOCK_STATUS reply: what one context says. */
export function statusChunk(
  wire: Wire,
  request: Request,
  id: number,
  descriptors: readonly { readonly bytes: number; readonly flags: number }[],
  isLast: boolean,
): Uint8Array {
  const perDescriptor = wire.extended ? 16 : 8;
  const fixed = wire.extended ? 8 : 4;
  const payloadBytes = fixed + descriptors.length * perDescriptor;
  const bytes = new Uint8Array(chunkHeadBytes(wire) + payloadBytes);
  const view = new DataView(bytes.buffer);
  const type = wire.extended ? CHUNK.BLOCK_STATUS_EXT : CHUNK.BLOCK_STATUS;
  let at = putChunk(view, 0, wire, request, type, isLast ? REPLY_FLAG_DONE : 0, payloadBytes);
  view.setUint32(at, id);
  if (wire.extended) view.setUint32(at + 4, descriptors.length);
  at += fixed;
  for (const { bytes: length, flags } of descriptors) {
    if (wire.extended) {
      putOffset(view, at, length);
      putOffset(view, at + 8, flags);
    } else {
      view.setUint32(at, length);
      view.setUint32(at + 4, flags);
    }
    at += perDescriptor;
  }
  return bytes;
}
