/**
 * The stem of filters that add to a few operations of a device and pass on the rest, whatever kind of device it is:
 * what goes in as a `HostFile` comes out as one.
 */
import type { BlockDevice } from "./device.ts";

type Method = (...args: never[]) => unknown;

/**
 * `device`, with some of its operations replaced.
 * @param replacement given the name of an operation and the operation itself; undefined leaves it as it is
 */
export function replace<D extends BlockDevice>(
  device: D,
  replacement: (name: PropertyKey, operation: Method) => Method | undefined,
): D {
  const replaced = new Map<PropertyKey, unknown>();
  return new Proxy(device, {
    get(target, key) {
      const known = replaced.get(key);
      if (known !== undefined) return known;
      const value: unknown = Reflect.get(target, key, target);
      if (typeof value !== "function") return value;
      const bound = value.bind(target) as Method;
      const result = replacement(key, bound) ?? bound;
      replaced.set(key, result);
      return result;
    },
  });
}
