/**
 * LIST_META_CONTEXT and SET_META_CONTEXT: queries, and the contexts of an export that they name.
 *
 * A query is `namespace:leaf`. With an empty leaf it lists the whole namespace, and selects nothing. What is not known,
 * namespace or leaf, is passed over.
 */
import type { MetaContext } from "../export.ts";
import { REP, STRING_BYTES_MAX } from "../protocol.ts";
import { OptionRefused } from "./payload.ts";
import type { Payload } from "./payload.ts";

export interface ContextRequest {
  readonly name: string;
  readonly queries: readonly string[];
}

/** As many as no client needs; each is short, but they are many in the data of one option. */
const QUERIES_MAX = 1024;

export function readContextRequest(payload: Payload): ContextRequest {
  const name = payload.text("the export's name");
  const count = payload.u32("the number of queries");
  if (count * 4 > payload.left) {
    throw new OptionRefused(REP.ERR_INVALID, `${payload.left} bytes for ${count} queries`);
  }
  if (count > QUERIES_MAX) {
    throw new OptionRefused(REP.ERR_TOO_BIG, `${count} queries, more than ${QUERIES_MAX}`);
  }
  const queries: string[] = [];
  for (let i = 0; i < count; i++) queries.push(payload.text("a query"));
  payload.end();
  const strange = queries.find((query) => query.indexOf(":") < 1);
  if (strange !== undefined) {
    throw new OptionRefused(
      REP.ERR_INVALID,
      `a query has no namespace: ${strange.slice(0, STRING_BYTES_MAX / 8)}`,
    );
  }
  return { name, queries };
}

/** What LIST_META_CONTEXT names: all where nothing in particular was asked for. */
export function listed(contexts: readonly MetaContext[], queries: readonly string[]): readonly MetaContext[] {
  if (queries.length === 0) return contexts;
  const wanted = new Set(queries);
  return contexts.filter(({ name }) => wanted.has(name) || wanted.has(name.slice(0, name.indexOf(":") + 1)));
}

/** What SET_META_CONTEXT selects: each context that is named, once. */
export function selected(
  contexts: readonly MetaContext[],
  queries: readonly string[],
): readonly MetaContext[] {
  const wanted = new Set(queries);
  return contexts.filter(({ name }) => wanted.has(name));
}
