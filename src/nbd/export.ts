/**
 * What a server offers: devices under names, and what one connection agreed on about one of them.
 */
import type { Extent } from "../bytes/extents.ts";
import type { BlockDevice, WritableDevice } from "../device/device.ts";
import { TRANSMISSION_FLAG } from "./protocol.ts";

export interface StatusDescriptor {
  readonly bytes: number;
  readonly flags: number;
}

export interface MetaContext {
  /** With its namespace: `base:allocation`. */
  readonly name: string;
  /** Descriptors from `range.start` on, gapless, at most `max`; they may end before the range does, never with none. */
  status(range: Extent, max: number): Promise<readonly StatusDescriptor[]>;
}

/** Block sizes in bytes, as clients are told. */
export interface BlockSizes {
  /** Requests that are no multiples of this are errors. */
  readonly minimum: number;
  readonly preferred: number;
  /** The longest READ or WRITE. */
  readonly maximum: number;
}

interface Offer {
  readonly name: string;
  /** A sentence for people; may be empty. */
  readonly description: string;
  readonly blocks: BlockSizes;
  readonly isRotational?: boolean;
  /** What one connection wrote and flushed, every other one reads (H27). */
  readonly canMultiConn: boolean;
  readonly contexts: readonly MetaContext[];
}

export type Export = Offer &
  (
    | { readonly isReadOnly: true; readonly device: BlockDevice }
    | { readonly isReadOnly: false; readonly device: WritableDevice }
  );

export interface Exports {
  list(): readonly Export[];
  /** "" is the default export. */
  find(name: string): Export | undefined;
}

/** What a handshake came to. */
export interface Session {
  readonly export: Export;
  /** Replies come in structured chunks; true with `extended` as well. */
  readonly structured: boolean;
  /** Requests and replies have 64-bit headers. */
  readonly extended: boolean;
  readonly contexts: readonly { readonly id: number; readonly context: MetaContext }[];
}

/** What a client may ask of an export, as it is told at the end of the handshake. */
export function transmissionFlags(offered: Export, structured: boolean): number {
  const F = TRANSMISSION_FLAG;
  let flags = F.HAS_FLAGS | F.SEND_FLUSH | F.SEND_FUA | F.SEND_CACHE;
  flags |= offered.isReadOnly ? F.READ_ONLY : F.SEND_TRIM | F.SEND_WRITE_ZEROES | F.SEND_FAST_ZERO;
  if (offered.isRotational === true) flags |= F.ROTATIONAL;
  if (offered.canMultiConn) flags |= F.CAN_MULTI_CONN;
  if (structured) flags |= F.SEND_DF;
  return flags;
}
