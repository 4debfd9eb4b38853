/**
 * How durations lie around what was predicted of them: a distribution of the ratio actual / predicted.
 *
 * Two descriptions are blended by what they have seen. A lognormal of the ratio's drift is there from the first request
 * and moves within a few; a sketch knows the true shape once it holds some. The 95 % quantile is then held to its
 * promise: after every duration it is raised where it was too low and lowered a twentieth as much where it was not
 * (adaptive conformal inference, Gibbs and Candès 2021, as the quantile tracker of Angelopoulos et al. 2023), so that
 * over time it covers 95 % of what it was used for, whatever the distribution, and although the caller picks those
 * predictions that look best.
 */

import { Drift, type DriftJson } from "./drift.ts";
import { Sketch, type SketchJson } from "./sketch.ts";

/** The share of durations that a P95 is to cover. */
export const COVERED = 0.95;

/** What a tracker aims at, a little more: while it is still finding its raise, it covers less. */
const AIM = 0.956;
/** Logarithms by which a P95 that was too low grows. */
const TRACKING = 0.25;
const MAX_RAISE = 1.5;
/** Ratios in the sketch that weigh as much as the lognormal. */
const SHAPE_WEIGHT = 15;
const SKETCH_HALF_LIFE_MS = 10 * 60_000;
const DRIFT_HALF_LIFE_MS = 2 * 60_000;
/** Mean absolute deviation of the ratio's logarithm before any was seen. */
const EXPECTED_DEVIATION = 0.2;
/** Of a normal distribution: 95 % lie below so many standard deviations, and a standard deviation is so many mean ones. */
const Z95 = 1.645;
const NORMAL = 1.2533;

/** Quantiles of a ratio, as logarithms. */
export interface Shape {
  /** How many ratios it was made of, those of long ago for less. */
  readonly seen: number;
  readonly median: number;
  readonly p95: number;
  /** The probability that the ratio's logarithm is at most this. */
  chance(logRatio: number): number;
}

/** A spread as it is stored. */
export interface SpreadJson {
  readonly drift: DriftJson;
  readonly sketch: SketchJson;
  readonly at: number;
}

/** Holds 95 % quantiles to what they promise, for all routes that end at one place. */
export class Tracker {
  /** A little from the start: the predictions that are used are those that look best. */
  raise = 0.15;

  /** Takes whether the duration lay within the P95. */
  update(covered: boolean): void {
    const by = TRACKING * (covered ? AIM - 1 : AIM);
    this.raise = Math.min(MAX_RAISE, Math.max(-MAX_RAISE / 2, this.raise + by));
  }
}

/** The ratios of one route and size. */
export class Spread {
  readonly #drift = new Drift(EXPECTED_DEVIATION, DRIFT_HALF_LIFE_MS);
  #sketch = new Sketch();
  #at = 0;
  /** Logarithms of the sketch's median and P95, until it changes; growing old does not change them. */
  #quantiles: readonly [number, number] | undefined;

  /** Takes actual / predicted, above 0, seen at `now`, milliseconds. */
  add(ratio: number, now: number): void {
    this.#drift.add(Math.log(ratio), now);
    this.#sketch.age(this.#fade(now));
    this.#sketch.add(ratio);
    this.#quantiles = undefined;
    this.#at = Math.max(now, this.#at);
  }

  /** The distribution as it is believed now, its P95 raised as the tracker found it has to be. */
  at(now: number, { raise }: Tracker): Shape {
    const { mean, deviation } = this.#drift.at(now);
    const sigma = Math.max(deviation * NORMAL, 0.01);
    const seen = this.#sketch.total * this.#fade(now);
    const share = seen / (seen + SHAPE_WEIGHT);
    const normal95 = mean + Z95 * sigma;
    this.#quantiles ??= share > 0
      ? [Math.log(this.#sketch.quantile(0.5)), Math.log(this.#sketch.quantile(COVERED))]
      : undefined;
    const [seenMedian, seen95] = this.#quantiles ?? [mean, normal95];
    const median = mean + (seenMedian - mean) * share;
    const unraised = Math.max(normal95 + (seen95 - normal95) * share, median + 0.01);
    const p95 = Math.max(unraised + raise, median + 0.01);
    const stretch = (p95 - median) / (unraised - median);
    return {
      seen,
      median,
      p95,
      chance: (logRatio) => {
        // Above the median, chances are stretched as the P95 was.
        const x = logRatio > median ? median + (logRatio - median) / stretch : logRatio;
        const normal = logistic((x - mean) / sigma);
        return share > 0 ? normal + (this.#sketch.rank(Math.exp(x)) - normal) * share : normal;
      },
    };
  }

  /** Adds what another saw. */
  merge(other: Spread): void {
    const now = Math.max(this.#at, other.#at);
    this.#drift.merge(other.#drift);
    this.#sketch.age(this.#fade(now));
    this.#sketch.merge(other.#sketch, other.#fade(now));
    this.#quantiles = undefined;
    this.#at = now;
  }

  toJSON(): SpreadJson {
    return { drift: this.#drift.toJSON(), sketch: this.#sketch.toJSON(), at: this.#at };
  }

  /** @throws {RangeError} for what no spread wrote. */
  static from({ drift, sketch, at }: SpreadJson): Spread {
    const spread = new Spread();
    spread.#drift.restore(drift);
    spread.#sketch = Sketch.from(sketch);
    if (!Number.isFinite(at)) throw new RangeError(`Spread: expected a time, found ${at}`);
    spread.#at = at;
    return spread;
  }

  #fade(now: number): number {
    return 2 ** (-Math.max(0, now - this.#at) / SKETCH_HALF_LIFE_MS);
  }
}

/** The normal distribution function, to within 0.01 (the logistic curve of nearest fit, Bowling et al. 2009). */
function logistic(z: number): number {
  return 1 / (1 + Math.exp(-1.702 * z));
}
