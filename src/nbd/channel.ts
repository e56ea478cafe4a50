/**
 * What a handshake speaks through: bytes in order, both ways, whatever carries them.
 */

export interface Channel {
  /**
   * Exactly `bytes` bytes, which the caller keeps.
   * @throws ChannelClosed when the other side ended before them
   */
  read(bytes: number): Promise<Uint8Array>;
  /** Returns when the bytes may be forgotten by the caller and the other side is not too far behind. */
  write(bytes: Uint8Array): Promise<void>;
  /**
   * From here on all bytes go through TLS. What arrived in the clear and was not read yet is an attempt to inject
   * (H31): it is never taken for what came through TLS.
   * @throws ProtocolBreach when there is such a thing, or when TLS does not come about
   */
  startTls?(): Promise<void>;
}

/** The other side is gone: no failure of ours, and nothing can be told to it. */
export class ChannelClosed extends Error {
  override readonly name = "ChannelClosed";

  constructor(message = "the other side closed the connection") {
    super(message);
  }
}
