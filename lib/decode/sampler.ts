/** The next token from the logits: greedy, or temperature, top-k and top-p with a seed. */

import { checkThat, checkWhole } from "../errors.ts";
import type { Candidate, Sampling, Span } from "../types.ts";
import type { ModelConfig } from "../weights/config.ts";

/** One chosen token. */
export interface Choice {
  readonly id: number;
  /** Natural logarithm of its probability at temperature 1 among the ids that may be sampled. */
  readonly logprob: number;
  /** The same of all ids together that mean what this one means; `logprob` where there are none. */
  readonly nearLogprob: number;
  /** The best logits, best first; length as asked for. */
  readonly top: readonly Omit<Candidate, "text">[];
}

/** Greedy. */
export const GREEDY: Sampling = { temperature: 0, topK: 0, topP: 1, seed: 0 };

/** @throws {RequestError} `parameter_invalid` for a value out of its range. */
export function checkSampling({ temperature, topK, topP, seed }: Sampling): void {
  checkThat(temperature >= 0 && temperature <= 2, "temperature", "from 0 to 2", temperature);
  checkThat(topP > 0 && topP <= 1, "topP", "above 0 and up to 1", topP);
  checkWhole("topK", topK, 0, Number.MAX_SAFE_INTEGER);
  checkWhole("seed", seed, 0, 2 ** 32 - 1);
}

/**
 * Numbers in [0, 1) from a 32-bit seed: the same seed, the same numbers, everywhere.
 * SplitMix32 with the finaliser of MurmurHash3 (public domain).
 */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return ((z ^ (z >>> 16)) >>> 0) / 2 ** 32;
  };
}

/**
 * Chooses a token.
 *
 * @param logits [V]; only ids below `limit` and not in `never` take part.
 * @param random gives numbers in [0, 1); used only when the temperature is above 0.
 * @param topLogits how many candidates to report.
 * @param allowed the only ids that may be chosen. Probabilities and candidates stay those of the model's free choice.
 * @param near the ids, itself among them, that mean what the chosen one means; by default it alone.
 */
export function choose(
  logits: Float32Array,
  limit: number,
  never: readonly number[],
  sampling: Sampling,
  random: () => number,
  topLogits = 0,
  allowed?: readonly Span[],
  near: (id: number) => readonly Span[] | undefined = () => undefined,
): Choice {
  const { scores, total, best: free } = scored(logits, limit, never);
  const best = allowed ? bestOf(scores, allowed) : free;
  const id = sampling.temperature > 0
    ? draw(allowed ? only(scores, allowed) : scores, best, sampling, random)
    : best;
  const logprob = Math.min(0, scores[id] - total);
  const meant = near(id);
  return {
    id,
    logprob,
    nearLogprob: meant ? mass(meant, scores, total) : logprob,
    top: topLogits
      ? largest(scores, topLogits).map((at) => ({ id: at, logit: scores[at], logprob: scores[at] - total }))
      : [],
  };
}

/**
 * Logits of the ids that take part, the others at -Infinity, the first of the largest of them, and the logarithm of the
 * sum of their exponentials: an id's logarithm of probability is scores[id] − total.
 */
export function scored(logits: Float32Array, limit: number, never: readonly number[]) {
  const scores = logits.subarray(0, limit);
  for (const id of never) if (id < limit) scores[id] = -Infinity;
  const best = argmax(scores);
  return { scores, best, total: scores[best] + Math.log(weightOf(scores, scores[best], 1)) };
}

/** Sum of e^((score − most) / temperature). */
function weightOf(scores: Float32Array, most: number, temperature: number): number {
  const scale = 1 / temperature;
  let sum = 0;
  for (let id = 0; id < scores.length; id++) sum += decay((most - scores[id]) * scale);
  return sum;
}

/** Halvings that are looked up, what is beyond them being nothing beside 1, and parts of each. */
const [HALVINGS, PARTS] = [64, 256];
const POWERS = Float64Array.from({ length: HALVINGS * PARTS + 1 }, (_, part) => 2 ** (-part / PARTS));

/**
 * e^−x for x ≥ 0, to 10⁻¹⁴ of it, and 0 from 2⁻⁶⁴ on. All of Gemma's ids go through it for every token, in a third of the
 * time of Math.exp.
 */
export function decay(x: number): number {
  if (x >= HALVINGS * Math.LN2) return 0;
  const part = x * (PARTS / Math.LN2) | 0;
  const rest = x - part * (Math.LN2 / PARTS);
  return POWERS[part] * (1 - rest * (1 - rest * (1 / 2 - rest * (1 / 6 - rest * (1 / 24)))));
}

/** Logarithm of the probability of all ids in the spans together; scores are those of the ids from `start` on. */
export function mass(spans: readonly Span[], scores: Float32Array, total: number, start = 0): number {
  let sum = 0;
  for (const [first, end] of spans) {
    for (let id = first; id < end; id++) sum += Math.exp(scores[id - start] - total);
  }
  return Math.min(0, Math.log(sum));
}

/** Ids that no answer has, beside those from the image token's on. */
export function neverSampled({ padId, bosId }: ModelConfig): readonly number[] {
  return [padId, bosId];
}

/** The first of the largest scores. */
export function argmax(scores: Float32Array): number {
  let [best, most] = [0, scores[0]];
  for (let id = 1; id < scores.length; id++) if (scores[id] > most) [best, most] = [id, scores[id]];
  return best;
}

/** The first of the largest scores inside the spans. @throws {RangeError} where there is none. */
function bestOf(scores: Float32Array, spans: readonly Span[]): number {
  let [best, most] = [-1, -Infinity];
  for (const [first, end] of spans) {
    const own = scores.subarray(first, end);
    const id = first + argmax(own);
    if (own.length && (scores[id] > most || scores[id] === most && id < best)) {
      [best, most] = [id, scores[id]];
    }
  }
  if (best >= 0) return best;
  throw new RangeError(
    `Cannot choose: expected an allowed id among ${scores.length}, found ${spans.length} spans`,
  );
}

/** A copy with -Infinity outside the spans. */
function only(scores: Float32Array, spans: readonly Span[]): Float32Array {
  const open = new Float32Array(scores.length).fill(-Infinity);
  for (const [first, end] of spans) open.set(scores.subarray(first, end), first);
  return open;
}

/** Draws from softmax(scores / temperature), cut to the top K and then to the smallest set of mass topP. */
function draw(scores: Float32Array, best: number, sampling: Sampling, random: () => number): number {
  const { temperature, topK, topP } = sampling;
  const weight = (id: number) => decay((scores[best] - scores[id]) / temperature);
  const pick = (count: number, idAt: (at: number) => number, mass: number) => {
    let left = random() * mass;
    for (let at = 0; at < count; at++) {
      left -= weight(idAt(at));
      if (left < 0) return idAt(at);
    }
    return best; // only by rounding in the last subtraction
  };
  const few = topK > 0 ? largest(scores, topK) : undefined;
  const total = few
    ? few.reduce((sum, id) => sum + weight(id), 0)
    : weightOf(scores, scores[best], temperature);
  if (topP < 1) {
    const { ids, mass } = nucleus(scores, few?.length ?? scores.length, weight, topP * total);
    return pick(ids.length, (at) => ids[at], mass);
  }
  return few ? pick(few.length, (at) => few[at], total) : pick(scores.length, (at) => at, total);
}

/** The fewest of the `most` likeliest ids whose weights sum to at least `wanted`. Sorts everything only if it must. */
function nucleus(scores: Float32Array, most: number, weight: (id: number) => number, wanted: number) {
  for (const count of [256, scores.length]) {
    const ids = largest(scores, Math.min(count, most));
    let mass = 0;
    for (let i = 0; i < ids.length; i++) {
      mass += weight(ids[i]);
      if (mass >= wanted || ids.length === most && i === ids.length - 1) {
        return { ids: ids.slice(0, i + 1), mass };
      }
    }
  }
  throw new RangeError(`Broken nucleus: ${most} weights do not reach ${wanted}`);
}

/** Ids of the `count` largest scores, largest first, lower id first among equals. */
function largest(scores: Float32Array, count: number): number[] {
  if (count >= scores.length / 8) return sorted(scores, count);
  const kept: number[] = []; // sorted, at most `count`
  for (let id = 0; id < scores.length; id++) {
    if (kept.length === count && !(scores[id] > scores[kept[count - 1]])) continue;
    let [low, high] = [0, kept.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (scores[kept[middle]] >= scores[id]) low = middle + 1;
      else high = middle;
    }
    kept.splice(low, 0, id);
    if (kept.length > count) kept.pop();
  }
  return kept;
}

/** Bits of an id, beside the 32 of a score in a whole number of f64. */
const ID = 2 ** 21;

/** The same by sorting all, as numbers: the order of a score, and the id from the end. */
function sorted(scores: Float32Array, count: number): number[] {
  const bits = new Int32Array(scores.map((it) => it + 0).buffer); // one 0
  const keys = new Float64Array(bits.length);
  for (let id = 0; id < keys.length; id++) {
    const ordered = (bits[id] < 0 ? ~bits[id] : bits[id] ^ 1 << 31) >>> 0;
    keys[id] = ordered * ID + (ID - 1 - id);
  }
  const ids = keys.sort().subarray(-count).reverse().map((key) => ID - 1 - key % ID);
  return Array.from(ids);
}
