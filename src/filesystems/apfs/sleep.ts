/**
 * A Mac that hibernates: it goes on with the container as it remembers it, whatever the newest checkpoint says (H3).
 *
 *   volume for virtual memory   /sleepimage   | sizes and sums of the memory, among them a signature | memory …
 *
 * The header grew with the systems, so that the signature is looked for in all of it; it is another one once the memory
 * was read back. Source: XNU, iokit/IOKit/IOHibernatePrivate.h.
 */
import { viewOf } from "../../bytes/struct.ts";
import { readBytes } from "../../device/device.ts";
import { Refused } from "../refused.ts";
import type { Contents } from "./contents.ts";
import type { Owners } from "./owners.ts";
import { nameOf } from "./volume.ts";

const ROLE_VIRTUAL_MEMORY = 8;
const PATH = "/sleepimage";
const HEADER_BYTES = 512;
const SIGNATURE = 0x73696d65;

/** @throws Refused */
export async function checkAwake({ container, volumes }: Contents, owners: Owners): Promise<void> {
  for (const volume of volumes.filter(({ sb }) => sb.role === ROLE_VIRTUAL_MEMORY)) {
    const file = await owners.findIn(volume, PATH);
    const first = file?.extents.find(({ fileOffset }) => fileOffset === 0);
    if (first === undefined || first.at + HEADER_BYTES > container.blocks * container.blockBytes) continue;
    const header = viewOf(await readBytes(container.device, first.at, HEADER_BYTES));
    for (let at = 0; at < HEADER_BYTES; at += 4) {
      if (header.getUint32(at, true) !== SIGNATURE) continue;
      throw new Refused(
        "hibernated",
        `the guest sleeps, and its memory is in ${PATH} of volume ${nameOf(volume.sb)}`,
        "wake the guest and shut it down",
      );
    }
  }
}
