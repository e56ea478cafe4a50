/**
 * Fast commits: small, logical records that ext4 writes behind the ring between two full commits. They are not
 * replayed here; they are only looked for, and where one counts, the journal is refused.
 *
 *   fast-commit block:  | tag u16 | length u16 | value … | tag | …     little-endian
 *   a commit begins:    | HEAD    | 8          | features u32 | tid u32 |
 *
 * A record counts when its `tid` is that of the transaction after the last full commit. Later ones are refused as well,
 * and every block of the area is looked at, not only the first: silence must be certain.
 *
 * Linux fs/ext4/fast_commit.h.
 */
import { struct, u16le, u32le } from "../../bytes/struct.ts";
import type { Journal } from "./journal.ts";

const FastCommitHead = struct({ tag: u16le, bytes: u16le, features: u32le, tid: u32le });

const TAG_HEAD = 9;
const HEAD_BYTES = 8;

/** Block of the journal with a fast commit that would be replayed after transaction `end - 1`; undefined: there is none. */
export async function findFastCommit(journal: Journal, end: number): Promise<number | undefined> {
  if (!journal.hasFastCommit) return undefined;
  for (let block = journal.last; block < journal.end; block++) {
    const { tag, bytes, tid } = FastCommitHead.decode(await journal.read(block));
    const counts = ((tid - end) | 0) >= 0;
    if (tag === TAG_HEAD && bytes === HEAD_BYTES && counts) return block;
  }
  return undefined;
}
