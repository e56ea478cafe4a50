/**
 * The door to serving: a disk over NBD, with what is put between it and its guest.
 */
export { type Address, Served, type ServeOptions } from "./serve/server.ts";
export { parseDelays } from "./live/delay.ts";
export { parseFailures } from "./live/error.ts";
export { readTlsSettings, secured } from "./nbd/tls.ts";
