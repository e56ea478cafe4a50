/**
 * Errors: requests fail as media and networks let them fail, at a rate or after a count, so that what a client makes
 * of it can be tested. A request that fails is not carried out.
 *
 *   --error 1%                                   every kind of request, one in a hundred, EIO
 *   --error trim=0.1:EIO,write=after100:ENOSPC   a rate of 0 to 1 or 0% to 100%; or all after the first hundred
 *
 * Operations: read, write, trim, zero, flush, extents; later words win. Errors: EPERM, EIO, ENOMEM, EINVAL, ENOSPC,
 * ENOTSUP, ESHUTDOWN. The same seed draws the same errors. `isOn` is asked before each: nbdkit's `error-file`.
 */
import type { WritableDevice } from "../device/device.ts";
import { DiskError, type ErrorKind } from "../error.ts";
import { Around, byOperation, type Operation, type Request } from "./around.ts";

/** The kind that a failure has beside its name, which is the error's `code`. */
const KINDS = {
  EPERM: "refused",
  EIO: "io",
  ENOMEM: "io",
  EINVAL: "usage",
  ENOSPC: "io",
  ENOTSUP: "unsupported",
  ESHUTDOWN: "interrupted",
} as const satisfies Readonly<Record<string, ErrorKind>>;

export type ErrorName = keyof typeof KINDS;

/** Where the host's own failure has another code. */
const CODES: Readonly<Partial<Record<ErrorName, string>>> = { ENOSPC: "no-space" };

export interface FailureRule {
  /** The share of requests that fail, 0 to 1. */
  readonly rate: number;
  /** So many requests are spared first. */
  readonly after: number;
  readonly name: ErrorName;
}

export type FailureRules = ReadonlyMap<Operation, FailureRule>;

export interface FailureOptions {
  /** Default 1. */
  readonly seed?: number;
  /** Whether errors are switched on; asked before each that is due. */
  readonly isOn?: () => boolean;
}

export class Failing extends Around {
  readonly #rules: FailureRules;
  readonly #isOn: () => boolean;
  readonly #seen = new Map<Operation, number>();
  #state: number;

  constructor(
    below: WritableDevice,
    rules: FailureRules,
    { seed = 1, isOn = () => true }: FailureOptions = {},
  ) {
    super(below);
    this.#rules = rules;
    this.#isOn = isOn;
    this.#state = seed >>> 0;
  }

  protected concerns(operation: Operation): boolean {
    return (this.#rules.get(operation)?.rate ?? 0) > 0;
  }

  protected async around<T>({ operation, at, bytes }: Request, carryOut: () => Promise<T>): Promise<T> {
    const rule = this.#rules.get(operation);
    if (rule !== undefined && this.#isDue(operation, rule) && this.#isOn()) {
      const what = `${operation} of ${bytes} bytes at ${at}`;
      throw new DiskError(KINDS[rule.name], `${what}: ${rule.name} by --error`, {
        code: CODES[rule.name] ?? rule.name,
      });
    }
    return await carryOut();
  }

  #isDue(operation: Operation, { rate, after }: FailureRule): boolean {
    const seen = this.#seen.get(operation) ?? 0;
    this.#seen.set(operation, seen + 1);
    return seen >= after && this.#draw() < rate;
  }

  /** A number in `[0, 1)`: mulberry32, so that a seed brings the same errors back. */
  #draw(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let word = this.#state;
    word = Math.imul(word ^ (word >>> 15), word | 1);
    word ^= word + Math.imul(word ^ (word >>> 7), word | 61);
    return ((word ^ (word >>> 14)) >>> 0) / 2 ** 32;
  }
}

/** @throws DiskError `usage` */
export function parseFailures(words: string): FailureRules {
  return new Map(Array.from(byOperation(words), ([operation, word]) => [operation, ruleOf(word)]));
}

const isErrorName = (word: string): word is ErrorName => Object.hasOwn(KINDS, word);

function ruleOf(word: string): FailureRule {
  const [when = "", name = "EIO", ...more] = word.split(":");
  const [, count] = /^after(\d{1,15})$/.exec(when) ?? [];
  const [, figure, percent] = /^(\d+(?:\.\d+)?|\.\d+)(%?)$/.exec(when) ?? [];
  const rate = count === undefined ? Number(figure) / (percent === "%" ? 100 : 1) : 1;
  if (!(rate <= 1)) throw new DiskError("usage", `"${when}" is no rate: write 0.1, 10% or after100`);
  if (!isErrorName(name) || more.length > 0)
    throw new DiskError(
      "usage",
      `"${[name, ...more].join(":")}" is not one of ${Object.keys(KINDS).join(", ")}`,
    );
  return { rate, after: Number(count ?? 0), name };
}
