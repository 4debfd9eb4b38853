/** What the commands of cli.ts are given: flags, and words that are none. */

import { parseArgs, type ParseArgsConfig } from "node:util";

/** A command line that cannot be understood. */
export class UsageError extends Error {}

/** Flags and other words. @throws {UsageError} for flags that there are not, or without their value. */
export function parsed<const T extends NonNullable<ParseArgsConfig["options"]>>(
  args: readonly string[],
  options: T,
) {
  try {
    return parseArgs({ args: [...args], allowPositionals: true, options });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

/** One of a few words. @throws {UsageError} for another. */
export function oneOf<T extends string>(flag: string, value: string, allowed: readonly T[]): T {
  if (allowed.includes(value as T)) return value as T;
  throw new UsageError(`--${flag}: expected ${allowed.join(" or ")}, found "${value}"`);
}
