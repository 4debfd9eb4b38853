/**
 * How far something has moved from what was expected of it: the running mean of a number and its mean deviation, as TCP
 * smooths round-trip times (RFC 6298: of a new value an eighth, of its deviation a quarter), but with weights that also
 * fade with time. After a silence the next value counts for more, and what is told leans back to the expectation.
 */

/** A drift as it is stored. */
export interface DriftJson {
  readonly mean: number;
  readonly deviation: number;
  readonly weight: number;
  readonly at: number;
}

/** Values that a steady stream remembers: a new one then counts for an eighth. */
const MEMORY = 8;
/** The expectation weighs as much as half a value. */
const PRIOR = 0.5;

/** What is told of a drift. */
export interface Moved {
  readonly mean: number;
  /** Mean absolute deviation; that of a normal distribution is 0.8 of its standard deviation. */
  readonly deviation: number;
}

/** Expects a mean of 0. */
export class Drift {
  #mean = 0;
  #deviation: number;
  #weight = 0;
  #at = 0;

  /** @param deviation what is expected before anything was seen. @param halfLifeMs in which what was seen loses half its weight. */
  constructor(private readonly deviation: number, private readonly halfLifeMs: number) {
    this.#deviation = deviation;
  }

  /** Takes a value seen at `now`, milliseconds; times that go backwards count as the same time. */
  add(value: number, now: number): void {
    if (!Number.isFinite(value)) throw new RangeError(`Drift: expected a finite number, found ${value}`);
    const kept = Math.min(this.#weight * this.#fade(now), MEMORY - 1);
    const error = Math.abs(value - this.#mean * kept / (kept + PRIOR));
    this.#mean += (value - this.#mean) / (kept + 1);
    // The deviation moves twice as fast as the mean, and starts from what is expected.
    this.#deviation += (error - this.#deviation) / (kept / 2 + 2);
    this.#weight = kept + 1;
    this.#at = Math.max(now, this.#at);
  }

  /** The mean as far as it is still believed, and the deviation, which grows back to the expected one. */
  at(now: number): Moved {
    const weight = this.#weight * this.#fade(now);
    const trust = weight / (weight + PRIOR);
    return {
      mean: this.#mean * trust,
      deviation: this.#deviation * trust + this.deviation * (1 - trust),
    };
  }

  /** Takes in what another saw, each by its weight. */
  merge(other: Drift): void {
    const now = Math.max(this.#at, other.#at);
    const [mine, theirs] = [this.#weight * this.#fade(now), other.#weight * other.#fade(now)];
    if (!theirs) return;
    const share = theirs / (mine + theirs);
    this.#mean += (other.#mean - this.#mean) * share;
    this.#deviation += (other.#deviation - this.#deviation) * share;
    this.#weight = Math.min(mine + theirs, MEMORY);
    this.#at = now;
  }

  toJSON(): DriftJson {
    return { mean: this.#mean, deviation: this.#deviation, weight: this.#weight, at: this.#at };
  }

  /** Takes the place of what was stored. @throws {RangeError} for what no drift wrote. */
  restore({ mean, deviation, weight, at }: DriftJson): void {
    if (![mean, deviation, weight, at].every(Number.isFinite) || deviation < 0 || weight < 0) {
      throw new RangeError(`Drift: expected finite numbers, found ${[mean, deviation, weight, at]}`);
    }
    [this.#mean, this.#deviation, this.#weight, this.#at] = [mean, deviation, weight, at];
  }

  #fade(now: number): number {
    return 2 ** (-Math.max(0, now - this.#at) / this.halfLifeMs);
  }
}
