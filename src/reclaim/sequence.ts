/**
 * Plans for the parts of one disk, each with files of its own, as one plan.
 */
import { ExtentSet } from "../bytes/extents.ts";
import { EMPTY_PLAN, type Plan } from "./plan.ts";

/** The batches of one plan after those of the other. */
export function inSequence(plans: readonly Plan[]): Plan {
  const [only] = plans;
  if (plans.length === 1) return only!;
  const sum = (value: (plan: Plan) => number) => plans.reduce((total, plan) => total + value(plan), 0);
  const punched = new Map<string, ExtentSet>();
  for (const plan of plans) {
    for (const [name, set] of plan.punched)
      punched.set(name, (punched.get(name) ?? ExtentSet.EMPTY).union(set));
  }
  return {
    ...EMPTY_PLAN,
    unmapBytes: sum(({ unmapBytes }) => unmapBytes),
    punchBytes: sum(({ punchBytes }) => punchBytes),
    packBytes: sum(({ packBytes }) => packBytes),
    leakedBytes: sum(({ leakedBytes }) => leakedBytes ?? 0),
    punched,
    async packableBytes() {
      let bytes = 0;
      for (const plan of plans) bytes += await plan.packableBytes();
      return bytes;
    },
    async *batches() {
      for (const plan of plans) yield* plan.batches();
    },
  };
}
