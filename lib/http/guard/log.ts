/** Structured logs: a JSON object a line, of what happened and never of pictures, prompts or answers. */

/** From the worst on. */
export const LEVELS = ["error", "warn", "info", "debug"] as const;

/** How much a line matters. */
export type Level = (typeof LEVELS)[number];

/** Writes one line. An `error` among the facts is written with its stack. */
export type Log = (level: Level, event: string, facts?: Readonly<Record<string, unknown>>) => void;

/** A log of everything up to `most`; `write` gets whole lines without their end. */
export function createLog(most: Level, write: (line: string) => void): Log {
  return (level, event, { error, ...facts } = {}) => {
    if (LEVELS.indexOf(level) > LEVELS.indexOf(most)) return;
    const stack = error instanceof Error ? error.stack ?? error.message : error;
    write(JSON.stringify({ time: new Date().toISOString(), level, event, ...facts, error: stack }));
  };
}
