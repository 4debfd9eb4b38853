/** Times, taken in turns and boiled down to medians. */

/** Something that can be run again and again. */
export interface Contestant {
  /** Called before each run, off the clock. */
  ready?(): Promise<void>;
  /** One run; resolves when its result is there, to its milliseconds where it has a clock of its own. */
  run(): Promise<number | void>;
  /** Runs at the most; then it sits out. */
  readonly most?: number;
}

/** How long to go on. */
export interface Patience {
  /** No new round begins after this long, when there were enough. */
  readonly leastMs: number;
  readonly minRounds: number;
}

/** The middle value; the mean of the two in the middle where their number is even. */
export function median(values: readonly number[]): number {
  if (!values.length) throw new RangeError("No median of nothing");
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/**
 * Runs all contestants once a round, each second round in reverse order, so that a machine that slows down or speeds
 * up meanwhile favours none. Returns the times of each, milliseconds.
 */
export async function race(contestants: readonly Contestant[], patience: Patience): Promise<number[][]> {
  const times: number[][] = contestants.map(() => []);
  const since = performance.now();
  for (let round = 0; round < patience.minRounds || performance.now() - since < patience.leastMs; round++) {
    const order = [...contestants.keys()];
    if (round % 2) order.reverse();
    for (const i of order) {
      if (round >= (contestants[i].most ?? Infinity)) continue;
      await contestants[i].ready?.();
      const before = performance.now();
      const own = await contestants[i].run();
      times[i].push(own ?? performance.now() - before);
    }
  }
  return times;
}

/** Slower than this by a comparison of medians is red. */
export const TOLERANCE = 0.05;

/** What a comparison of one work says. */
export interface Verdict {
  readonly work: string;
  readonly beforeMs: number;
  readonly afterMs: number;
  /** after / before. */
  readonly ratio: number;
  readonly red: boolean;
}

/** Holds the medians of the processes of two revisions against each other, work by work. */
export function judge(
  before: ReadonlyMap<string, readonly number[]>,
  after: ReadonlyMap<string, readonly number[]>,
): Verdict[] {
  return [...after].filter(([work]) => before.has(work)).map(([work, times]) => {
    const [beforeMs, afterMs] = [median(before.get(work)!), median(times)];
    const ratio = afterMs / beforeMs;
    return { work, beforeMs, afterMs, ratio, red: ratio > 1 + TOLERANCE };
  });
}
