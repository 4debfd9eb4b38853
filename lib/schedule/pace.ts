/** How fast the tokens of an answer come, and so when the rest of them will be there. */

/** Of a new gap, in the mean. */
const NEWEST = 1 / 4;
/** Gaps until a pace is believed. */
const LEAST_GAPS = 3;
/** A token that has not come after so many gaps is held up, and is thought to be so for as long again. */
const HELD_UP = 3;

/** The pace of one answer at one place. Times are milliseconds of any one clock. */
export class Pace {
  #gaps = 0;
  #lastAt: number | undefined;
  /** Mean time from a token to the next, the latest most. */
  gapMs = 0;

  /** A token came. */
  token(now: number): void {
    if (this.#lastAt !== undefined) {
      const gapMs = now - this.#lastAt;
      this.gapMs += (gapMs - this.gapMs) * (this.#gaps++ ? NEWEST : 1);
    }
    this.#lastAt = now;
  }

  /** How long so many more tokens will take; undefined while nobody can tell. */
  restMs(tokens: number, now: number): number | undefined {
    if (this.#gaps < LEAST_GAPS || this.#lastAt === undefined) return undefined;
    const waitedMs = now - this.#lastAt;
    const nextMs = waitedMs > HELD_UP * this.gapMs ? waitedMs : Math.max(0, this.gapMs - waitedMs);
    return nextMs + (tokens - 1) * this.gapMs;
  }
}
