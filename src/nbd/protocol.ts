/**
 * The numbers of the NBD protocol, under the names that its specification gives them without the `NBD_` in front, and
 * the headers that both sides exchange. All integers are big-endian.
 *
 * Handshake (fixed newstyle):
 *
 *   server  | NBDMAGIC | IHAVEOPT | flags 2 |
 *   client  | flags 4 |
 *   client  | IHAVEOPT | option 4 | bytes 4 | data |                      again and again, until GO or EXPORT_NAME
 *   server  | reply magic 8 | option 4 | type 4 | bytes 4 | data |        one or more for each option
 *
 * Transmission:
 *
 *   client  | magic 4 | flags 2 | command 2 | cookie 8 | offset 8 | bytes 4 | data of WRITE |
 *   client  | magic 4 | flags 2 | command 2 | cookie 8 | offset 8 | bytes 8 | payload |             extended
 *   server  | magic 4 | error 4 | cookie 8 | data of READ |                                         simple
 *   server  | magic 4 | flags 2 | type 2 | cookie 8 | bytes 4 | payload |                           structured chunk
 *   server  | magic 4 | flags 2 | type 2 | cookie 8 | offset 8 | bytes 8 | payload |                extended chunk
 *
 * Specification: doc/proto.md of NetworkBlockDevice/nbd; 64-bit headers: its branch extension-ext-header.
 */
import { bits64be, struct, u16be, u32be } from "../bytes/struct.ts";

/** `NBDMAGIC`, the first eight bytes that a server says. */
export const SERVER_MAGIC = 0x4e42444d41474943n;
/** `IHAVEOPT`: the server's second word, and the first of every option. */
export const OPTION_MAGIC = 0x49484156454f5054n;
export const OPTION_REPLY_MAGIC = 0x0003e889045565a9n;
export const REQUEST_MAGIC = 0x25609513;
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;

/** Flags of a handshake: the server's, and the client's in answer, have the same bits. */
export const HANDSHAKE_FLAG = { FIXED_NEWSTYLE: 1 << 0, NO_ZEROES: 1 << 1 } as const;

export const OPT = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;

const REP_ERROR = 0x8000_0000;

export const REP = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: REP_ERROR + 1,
  ERR_POLICY: REP_ERROR + 2,
  ERR_INVALID: REP_ERROR + 3,
  ERR_PLATFORM: REP_ERROR + 4,
  ERR_TLS_REQD: REP_ERROR + 5,
  ERR_UNKNOWN: REP_ERROR + 6,
  ERR_SHUTDOWN: REP_ERROR + 7,
  ERR_BLOCK_SIZE_REQD: REP_ERROR + 8,
  ERR_TOO_BIG: REP_ERROR + 9,
  ERR_EXT_HEADER_REQD: REP_ERROR + 10,
} as const;

/** Kinds of information about an export, asked for and given with INFO and GO. */
export const INFO = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

export const TRANSMISSION_FLAG = {
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  ROTATIONAL: 1 << 4,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
  CAN_MULTI_CONN: 1 << 8,
  SEND_RESIZE: 1 << 9,
  SEND_CACHE: 1 << 10,
  SEND_FAST_ZERO: 1 << 11,
  BLOCK_STATUS_PAYLOAD: 1 << 12,
} as const;

export const CMD = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
  RESIZE: 8,
} as const;

export const CMD_FLAG = {
  FUA: 1 << 0,
  NO_HOLE: 1 << 1,
  DF: 1 << 2,
  REQ_ONE: 1 << 3,
  FAST_ZERO: 1 << 4,
  PAYLOAD_LEN: 1 << 5,
} as const;

/** Of a structured or extended chunk: the last one of its reply. */
export const REPLY_FLAG_DONE = 1;

/** Bit 15 of a chunk's type says that it tells of an error. */
export const CHUNK_ERROR = 1 << 15;

export const CHUNK = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  BLOCK_STATUS_EXT: 6,
  ERROR: CHUNK_ERROR + 1,
  ERROR_OFFSET: CHUNK_ERROR + 2,
} as const;

export const ERRNO = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

/** Status flags of `base:allocation`. */
export const STATE = { HOLE: 1 << 0, ZERO: 1 << 1 } as const;

/** The longest string of the protocol in bytes: names, descriptions, messages. */
export const STRING_BYTES_MAX = 4096;
/** What follows the answer to EXPORT_NAME where the client did not say NO_ZEROES. */
export const TRAILING_ZEROES = 124;
/** What a client may ask for at a time when it never asked about block sizes. */
export const REQUEST_BYTES_MAX = 32 * 1024 * 1024;
/** READ with DF has to be answered up to this length. */
export const DF_BYTES_MIN = 65536;
/** The most descriptors that a BLOCK_STATUS chunk may hold. */
export const DESCRIPTORS_MAX = 1 << 20;

export const ServerGreeting = struct({ magic: bits64be, optionMagic: bits64be, flags: u16be });
export const ClientFlags = struct({ flags: u32be });
export const OptionHeader = struct({ magic: bits64be, option: u32be, bytes: u32be });
export const OptionReply = struct({ magic: bits64be, option: u32be, type: u32be, bytes: u32be });

export const Request = struct({
  magic: u32be,
  flags: u16be,
  command: u16be,
  cookie: bits64be,
  offset: bits64be,
  bytes: u32be,
});
export const ExtendedRequest = struct({
  magic: u32be,
  flags: u16be,
  command: u16be,
  cookie: bits64be,
  offset: bits64be,
  bytes: bits64be,
});
export const SimpleReply = struct({ magic: u32be, error: u32be, cookie: bits64be });
export const Chunk = struct({ magic: u32be, flags: u16be, type: u16be, cookie: bits64be, bytes: u32be });
export const ExtendedChunk = struct({
  magic: u32be,
  flags: u16be,
  type: u16be,
  cookie: bits64be,
  offset: bits64be,
  bytes: bits64be,
});

/** The other side broke the protocol, or went past a limit: nothing more is said to it, the connection is closed. */
export class ProtocolBreach extends Error {
  override readonly name = "ProtocolBreach";
}
