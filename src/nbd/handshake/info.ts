/**
 * What a client is told of an export: INFO, GO, EXPORT_NAME, and LIST.
 */
import type { Export } from "../export.ts";
import { transmissionFlags } from "../export.ts";
import { INFO, REP, TRAILING_ZEROES } from "../protocol.ts";
import { OptionRefused } from "./payload.ts";
import type { Payload } from "./payload.ts";
import { encodeText, number16, number32, number64 } from "./replies.ts";
import type { Replies } from "./replies.ts";

export interface InfoRequest {
  readonly name: string;
  /** The kinds of information asked for; unknown ones among them. */
  readonly kinds: ReadonlySet<number>;
}

export function readInfoRequest(payload: Payload): InfoRequest {
  const name = payload.text("the export's name");
  const count = payload.u16("the number of requests");
  if (payload.left !== count * 2) {
    throw new OptionRefused(REP.ERR_INVALID, `${payload.left} bytes for ${count} information requests`);
  }
  const kinds = new Set<number>();
  for (let i = 0; i < count; i++) kinds.add(payload.u16("a request"));
  return { name, kinds };
}

/**
 * Adds what was asked for; the final reply is the caller's.
 * @throws OptionRefused where the client has to know about block sizes and did not ask
 */
export function addInformation(
  replies: Replies,
  offered: Export,
  { name, kinds }: InfoRequest,
  isStructured: boolean,
): void {
  const flags = transmissionFlags(offered, isStructured);
  replies.add(REP.INFO, number16(INFO.EXPORT), number64(offered.device.bytes), number16(flags));
  if (kinds.has(INFO.NAME)) {
    replies.add(REP.INFO, number16(INFO.NAME), encodeText(name === "" ? offered.name : name));
  }
  if (kinds.has(INFO.DESCRIPTION) && offered.description !== "") {
    replies.add(REP.INFO, number16(INFO.DESCRIPTION), encodeText(offered.description));
  }
  const isUnaware = !kinds.has(INFO.BLOCK_SIZE) && needsBlockSizes(offered);
  if (kinds.has(INFO.BLOCK_SIZE) || isUnaware) {
    const { minimum, preferred, maximum } = offered.blocks;
    replies.add(
      REP.INFO,
      number16(INFO.BLOCK_SIZE),
      number32(minimum),
      number32(preferred),
      number32(maximum),
    );
  }
  if (isUnaware) {
    const message = `requests have to be multiples of ${offered.blocks.minimum} bytes: ask for block sizes`;
    throw new OptionRefused(REP.ERR_BLOCK_SIZE_REQD, message);
  }
}

/** Who does not know the block sizes of such an export cannot use it. */
export function needsBlockSizes(offered: Export): boolean {
  return offered.blocks.minimum > 1;
}

/** The answer to EXPORT_NAME, which has no header. */
export function exportNameAnswer(offered: Export, isStructured: boolean, isPadded: boolean): Uint8Array {
  return Buffer.concat([
    number64(offered.device.bytes),
    number16(transmissionFlags(offered, isStructured)),
    new Uint8Array(isPadded ? TRAILING_ZEROES : 0),
  ]);
}

export function addServers(replies: Replies, exports: readonly Export[]): void {
  for (const { name, description } of exports) {
    const encoded = encodeText(name);
    replies.add(REP.SERVER, number32(encoded.length), encoded, encodeText(description));
  }
}
