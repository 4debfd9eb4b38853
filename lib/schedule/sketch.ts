/**
 * Quantiles of many positive numbers in little memory: DDSketch (Masson, Rim and Lee, PVLDB 2019), whose quantiles are
 * within a relative error of the true ones, and which adds up across isolates. Counts may be fractions, so that what
 * was seen long ago can weigh less.
 */

/** Numbers beyond these are taken for them: ratios of durations never get there. */
const LEAST = 1e-6;
const MOST = 1e6;

/** A sketch as it is stored. */
export interface SketchJson {
  readonly accuracy: number;
  /** Index of the first bin. */
  readonly first: number;
  readonly counts: readonly number[];
}

/** Counts in bins whose bounds grow by a constant factor γ = (1 + accuracy) / (1 - accuracy): bin i holds (γ^(i-1), γ^i]. */
export class Sketch {
  readonly #logGamma: number;
  #first = 0;
  #counts = new Float64Array(0);
  #total = 0;

  /** @param accuracy relative error of quantiles, in (0, 1). */
  constructor(readonly accuracy = 0.01) {
    if (!(accuracy > 0 && accuracy < 1)) {
      throw new RangeError(`Sketch: expected an accuracy between 0 and 1, found ${accuracy}`);
    }
    this.#logGamma = Math.log((1 + accuracy) / (1 - accuracy));
  }

  /** The sum of all weights. */
  get total(): number {
    return this.#total;
  }

  /** @throws {RangeError} for a value that is not above 0, or a weight below 0. */
  add(value: number, weight = 1): void {
    if (!(value > 0 && weight >= 0)) {
      throw new RangeError(`Sketch: expected a value above 0 and a weight, found ${value} and ${weight}`);
    }
    const bin = this.#bin(value);
    this.#reach(bin, bin);
    this.#counts[bin - this.#first] += weight;
    this.#total += weight;
  }

  /** The value that a share `q` in [0, 1] of the weights does not exceed; NaN where there are none. */
  quantile(q: number): number {
    if (!(this.#total > 0)) return NaN;
    const wanted = q * this.#total;
    let sum = 0;
    let last = 0;
    for (let i = 0; i < this.#counts.length; i++) {
      if (this.#counts[i] === 0) continue;
      sum += this.#counts[i];
      last = i;
      if (sum >= wanted) break;
    }
    return this.#middle(last);
  }

  /** The share of the weights on values up to `value`, of whose own bin a part counts; NaN where there are none. */
  rank(value: number): number {
    if (!(this.#total > 0)) return NaN;
    if (!(value > 0)) return 0;
    const at = Math.log(Math.min(Math.max(value, LEAST), MOST)) / this.#logGamma - this.#first + 1;
    const whole = Math.min(Math.floor(at), this.#counts.length);
    let sum = 0;
    for (let i = 0; i < whole; i++) sum += this.#counts[i];
    if (whole >= 0 && whole < this.#counts.length) sum += (at - whole) * this.#counts[whole];
    return Math.min(1, sum / this.#total);
  }

  /** Multiplies all weights by a factor in [0, 1]. */
  age(factor: number): void {
    for (let i = 0; i < this.#counts.length; i++) this.#counts[i] *= factor;
    this.#total *= factor;
  }

  /** Adds what another sketch of the same accuracy saw, its weights times `factor`. */
  merge(other: Sketch, factor = 1): void {
    if (other.accuracy !== this.accuracy) {
      throw new RangeError(`Sketch: expected an accuracy of ${this.accuracy}, found ${other.accuracy}`);
    }
    if (!other.#counts.length) return;
    this.#reach(other.#first, other.#first + other.#counts.length - 1);
    const shift = other.#first - this.#first;
    other.#counts.forEach((it, i) => this.#counts[i + shift] += it * factor);
    this.#total += other.#total * factor;
  }

  /** As it is stored: counts to a thousandth, without the empty bins at its ends. */
  toJSON(): SketchJson {
    const counts = [...this.#counts].map((it) => Math.round(it * 1000) / 1000);
    const from = counts.findIndex((it) => it > 0);
    if (from < 0) return { accuracy: this.accuracy, first: 0, counts: [] };
    const to = counts.findLastIndex((it) => it > 0);
    return { accuracy: this.accuracy, first: this.#first + from, counts: counts.slice(from, to + 1) };
  }

  /** @throws {RangeError} for what no sketch wrote. */
  static from({ accuracy, first, counts }: SketchJson): Sketch {
    const sketch = new Sketch(accuracy);
    const [low, high] = [sketch.#bin(LEAST), sketch.#bin(MOST)];
    const holds = Number.isInteger(first) && Array.isArray(counts) && counts.every((it) => it >= 0) &&
      (!counts.length || first >= low && first + counts.length - 1 <= high);
    if (!holds) throw new RangeError(`Sketch: expected counts from bin ${low} to ${high}, found others`);
    sketch.#first = first;
    sketch.#counts = Float64Array.from(counts);
    sketch.#total = counts.reduce((sum, it) => sum + it, 0);
    return sketch;
  }

  #bin(value: number): number {
    return Math.ceil(Math.log(Math.min(Math.max(value, LEAST), MOST)) / this.#logGamma);
  }

  /** What a bin stands for: 2 γ^i / (γ + 1), as far from its lower as from its upper bound, relatively. */
  #middle(at: number): number {
    const gamma = Math.exp(this.#logGamma);
    return 2 * gamma ** (this.#first + at) / (gamma + 1);
  }

  /** Makes room for bins `low` to `high`. */
  #reach(low: number, high: number): void {
    const [first, length] = [this.#first, this.#counts.length];
    if (length && low >= first && high < first + length) return;
    const [from, to] = length
      ? [Math.min(first, low), Math.max(first + length, high + 1)]
      : [low - 8, high + 9];
    const counts = new Float64Array(to - from);
    if (length) counts.set(this.#counts, first - from);
    this.#counts = counts;
    this.#first = from;
  }
}
