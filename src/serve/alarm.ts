/**
 * What the guard noticed, in words for people and scripts.
 */
import { duration, size } from "../bytes/sizes.ts";
import type { GuardEvent } from "../live/guard/alarms.ts";
import type { Alarm } from "../live/meter.ts";

export function alarmOf(event: GuardEvent, at: number): Alarm {
  switch (event.kind) {
    case "critical":
      return { at, code: "critical", message: `the guest freed ${event.name}` };
    case "share": {
      const within = duration(event.withinMs / 1000);
      return { at, code: "share", message: `the guest freed ${size(event.bytes)} within ${within}` };
    }
    case "used": {
      const bytes = size(event.ranges.bytes);
      return { at, code: "in-use", message: `the guest freed ${bytes} that its own filesystem calls used` };
    }
    case "full":
      return { at, code: "budget", message: FULL[event.what] };
  }
}

const FULL = {
  trim: "the guard is full: what the guest frees is not given back",
  zero: "the guard is full: what the guest zeroes cannot be taken back",
  write: "the guard is full: writes fail, for what they write over could not be saved",
} as const;
