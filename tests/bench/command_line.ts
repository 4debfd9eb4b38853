/** The command lines of the benchmarks: `--help` prints what a file says of itself, a mistake is one line and status 2. */

import { parseArgs, type ParseArgsConfig } from "node:util";

/** A command line that cannot be understood. */
export class UsageError extends Error {}

type Options = NonNullable<ParseArgsConfig["options"]>;

/** The flags of this process; `positionals` tells whether there may be words that are none. */
export function parseFlags<const T extends Options>(options: T, allowPositionals = false) {
  try {
    return parseArgs({ options, allowPositionals });
  } catch (cause) {
    // What comes after the first sentence is advice for positionals that look like options.
    throw new UsageError((cause as Error).message.split(/\.\s/)[0], { cause });
  }
}

/** One of a few words. */
export function oneOf<T extends string>(flag: string, value: string, allowed: readonly T[]): T {
  if (allowed.includes(value as T)) return value as T;
  throw new UsageError(`--${flag}: expected ${allowed.join(", ")}, found "${value}"`);
}

/** A whole number of `least` or more, and at most `most`. */
export function whole(flag: string, value: string, least: number, most = Number.MAX_SAFE_INTEGER): number {
  const found = Number(value);
  if (/^\d+$/.test(value) && found >= least && found <= most) return found;
  const range = most === Number.MAX_SAFE_INTEGER ? `of ${least} or more` : `from ${least} to ${most}`;
  throw new UsageError(`--${flag}: expected a whole number ${range}, found "${value}"`);
}

/** Threads that a benchmark may be asked to compute with. */
export function threadsIn(value: string): number {
  return whole("threads", value, 1, 64);
}

/** The first doc comment of a source text, which tells how to call it. */
export function usageIn(source: string): string {
  const comment = source.match(/\/\*\*\n([\s\S]*?)\n \*\//)?.[1] ?? "";
  return comment.split("\n").map((line) => line.replace(/^ \* ?/, "")).join("\n");
}

/**
 * Runs the main function of a benchmark, unless it is only asked for its usage.
 *
 * @param file path of its source. @param more stands below the usage. @param main resolves to the exit status.
 */
export async function runCommand(file: string, main: () => Promise<number>, more = ""): Promise<void> {
  const say = (to: typeof Deno.stdout | typeof Deno.stderr, text: string) =>
    to.writeSync(new TextEncoder().encode(`${text}\n`));
  if (Deno.args.some((it) => it === "--help" || it === "-h")) {
    return void say(Deno.stdout, usageIn(await Deno.readTextFile(file)) + more);
  }
  try {
    Deno.exitCode = await main();
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    say(Deno.stderr, error.message);
    Deno.exitCode = 2;
  }
}
