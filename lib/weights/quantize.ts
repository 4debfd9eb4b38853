/**
 * Matrices in fewer bits: the schemes by name, packing and its inverse. Where each byte lies is told in
 * `lib/backend/layout.ts`, which the backends read too.
 */

import type { Scheme, StoredMatrix } from "../backend/backend.ts";
import {
  BYTE_GROUP_SCALE,
  checkStored,
  dequantize,
  GROUP,
  groupAt,
  int8At,
  MAX_GROUP_SCALE,
  NIBBLE_ZERO,
  nibbleAt,
  packedBytes,
  paddedK,
  PANEL,
  roundUp,
} from "../backend/layout.ts";

export { dequantize, packedBytes };

const SCHEMES: readonly Scheme[] = ["f32", "int8-p8-s4", "int4-g32-p8"];

/**
 * Most that the weights of one sign may sum to in a 16-bit lane: 127 · 258 = 32,766 fits, so that products with
 * activations from 0 to 127 can be summed in 16 bits on every engine without a difference.
 */
const LANE_LIMIT = 258;

/**
 * The scheme of that name.
 *
 * @throws {TypeError} naming a scheme that this program does not know.
 */
export function checkScheme(name: string): Scheme {
  const scheme = SCHEMES.find((it) => it === name);
  if (!scheme) throw new TypeError(`Unknown weight scheme "${name}": expected ${SCHEMES.join(", ")}`);
  return scheme;
}

/**
 * Packs W [N, K] f32 as `int8-p8-s4`: symmetric, one scale per column, and every lane within the bound that makes
 * sums of four steps exact in 16 bits (`boundedSteps` is 4 or 8). About one lane in six hundred of a Gaussian matrix
 * needs to give way for it.
 */
export function quantizeInt8(w: Float32Array, n: number, k: number): StoredMatrix {
  checkValues(w, n, k);
  const padded = paddedK("int8-p8-s4", k);
  const data = new Uint8Array(packedBytes("int8-p8-s4", n, k));
  const scale = new Float32Array(n);
  const q = new Int8Array(padded);
  const best = new Int8Array(padded);
  for (let row = 0; row < n; row++) {
    const values = w.subarray(row * k, (row + 1) * k);
    let most = 0;
    for (const v of values) most = Math.max(most, Math.abs(v));
    let least = Infinity;
    // A column that breaks the bound in many lanes keeps more of itself with fewer levels.
    for (const levels of [127, 112, 96, 80, 64, 48, 32]) {
      const step = Math.fround(most / levels);
      if (!(step > 0)) break;
      for (let i = 0; i < k; i++) q[i] = Math.floor(values[i] / step + 0.5);
      const touched = boundLanes(q);
      let error = 0;
      for (let i = 0; i < k; i++) error += (values[i] - q[i] * step) ** 2;
      if (error >= least) break;
      least = error;
      scale[row] = step;
      best.set(q);
      if (!touched) break;
    }
    if (least === Infinity) best.fill(0);
    for (let i = 0; i < k; i++) data[int8At(row, i, padded)] = best[i];
  }
  return { scheme: "int8-p8-s4", n, k, data, scale };
}

/** Brings every lane of four steps within the bound, at the least squared change; tells whether it had to. */
function boundLanes(q: Int8Array): boolean {
  let touched = false;
  for (let at = 0; at < q.length; at += 16) {
    for (let pair = at; pair < at + 4; pair += 2) {
      let [positive, negative] = [0, 0];
      for (let i = pair; i < pair + 16; i += 4) {
        const [a, b] = [q[i], q[i + 1]];
        if (a > 0) positive += a;
        else negative -= a;
        if (b > 0) positive += b;
        else negative -= b;
      }
      if (positive > LANE_LIMIT) lower(q, pair, 1, positive - LANE_LIMIT);
      if (negative > LANE_LIMIT) lower(q, pair, -1, negative - LANE_LIMIT);
      touched ||= positive > LANE_LIMIT || negative > LANE_LIMIT;
    }
  }
  return touched;
}

/** Takes `excess` from the values of one sign in the lane that begins at `pair`, from each about the same. */
function lower(q: Int8Array, pair: number, sign: number, excess: number): void {
  const lane = [0, 1, 4, 5, 8, 9, 12, 13].map((it) => pair + it).filter((it) => q[it] * sign > 0);
  // Smallest first: what it cannot give, the others share.
  lane.sort((a, b) => (q[a] - q[b]) * sign);
  lane.forEach((index, i) => {
    const give = Math.min(Math.ceil(excess / (lane.length - i)), q[index] * sign);
    q[index] -= give * sign;
    excess -= give;
  });
}

/**
 * Steps of four k whose products with activations from 0 to 127 certainly fit 16-bit lanes: 8, 4, or 1 where the
 * bound of the scheme is broken. Kernels may sum that many steps before they widen.
 */
export function boundedSteps(stored: StoredMatrix): 8 | 4 | 1 {
  checkStored(stored);
  if (stored.scheme !== "int8-p8-s4") throw new TypeError(`No bound in scheme "${stored.scheme}"`);
  const data = new Int8Array(stored.data.buffer, stored.data.byteOffset, stored.data.byteLength);
  const padded = paddedK(stored.scheme, stored.k);
  let eight = true;
  // Per column and pair: sums of this half and of the half before it.
  for (let panel = 0; panel < data.length; panel += PANEL * padded) {
    for (let lane = 0; lane < PANEL * 2; lane++) {
      let [positiveBefore, negativeBefore] = [0, 0];
      for (let step = 0; step < padded / 4; step += 4) {
        let [positive, negative] = [0, 0];
        for (let i = 0; i < 8; i++) {
          const value = data[panel + (step + (i >> 1)) * 32 + lane * 2 + (i & 1)];
          if (value > 0) positive += value;
          else negative -= value;
        }
        if (positive > LANE_LIMIT || negative > LANE_LIMIT) return 1;
        if (step % 8 && (positive + positiveBefore > LANE_LIMIT || negative + negativeBefore > LANE_LIMIT)) {
          eight = false;
        }
        [positiveBefore, negativeBefore] = [positive, negative];
      }
    }
  }
  return eight ? 8 : 4;
}

/** Channels whose errors are weighed against one another when a matrix is rounded with feedback. */
export const FEEDBACK_BLOCK = 256;

/**
 * Second moments Σ x·xᵀ of the rows x [K] that a matrix is multiplied with, in blocks along the diagonal: f32
 * [⌈K/B⌉, B, B] with B = `FEEDBACK_BLOCK`, of each block the upper half.
 */
export interface InputMoments {
  readonly k: number;
  readonly values: Float32Array;
}

/** How the error of one weight is made up for by those after it; made once for all rows of a matrix. */
export interface Feedback {
  readonly k: number;
  /** f32 [⌈K/B⌉, B, B]: an error e at i is met by adding e · factors[i, j] to the weight at j > i of its block. */
  readonly factors: Float32Array;
}

/** Added to the diagonal of the moments, as a share of its mean, so that no channel is without weight. */
const DAMPING = 0.01;

/**
 * The feedback of GPTQ (Frantar and others, arXiv:2210.17323) within each block: with U the upper Cholesky factor of
 * the inverse moments, factors[i, j] = −U[i, j] / U[i, i].
 */
export function feedbackFrom({ k, values }: InputMoments): Feedback {
  const b = FEEDBACK_BLOCK;
  let mean = 0;
  for (let i = 0; i < k; i++) mean += values[i * b + i % b] / k;
  const damping = DAMPING * mean || 1;
  const factors = new Float32Array(values.length);
  const v = new Float64Array(b * b);
  const column = new Float64Array(b);
  for (let from = 0; from < k; from += b) {
    const wide = Math.min(b, k - from);
    for (let i = 0; i < wide; i++) {
      for (let j = i; j < wide; j++) v[i * b + j] = values[(from + i) * b + j];
      v[i * b + i] += damping;
    }
    // Moments = V·Vᵀ with V upper triangular, from the last column on; so their inverse is UᵀU with U = V⁻¹.
    for (let j = wide - 1; j >= 0; j--) {
      for (let c = j + 1; c < wide; c++) v[j * b + j] -= v[j * b + c] ** 2;
      v[j * b + j] = Math.sqrt(v[j * b + j]);
      for (let i = 0; i < j; i++) {
        let sum = v[i * b + j];
        for (let c = j + 1; c < wide; c++) sum -= v[i * b + c] * v[j * b + c];
        v[i * b + j] = sum / v[j * b + j];
      }
    }
    // Column j of U from V·U = 1, upwards; U[i, i] = 1 / V[i, i].
    for (let j = 0; j < wide; j++) {
      column[j] = 1 / v[j * b + j];
      for (let i = j - 1; i >= 0; i--) {
        let sum = 0;
        for (let c = i + 1; c <= j; c++) sum += v[i * b + c] * column[c];
        column[i] = -sum / v[i * b + i];
        factors[(from + i) * b + j] = -column[i] * v[i * b + i];
      }
    }
  }
  return { k, factors };
}

/**
 * Packs W [N, K] f32 as `int4-g32-p8`. The scale of a group may be negative, so that its largest value, of whatever
 * sign, can take the extra level at -8; among a few candidates the one with the least squared error wins. As integers
 * scales are within ±`BYTE_GROUP_SCALE`, so that kernels may multiply bytes; in a matrix whose groups lose too much by that,
 * within ±`MAX_GROUP_SCALE`.
 *
 * With `feedback` the scales stay the same, but the error of each weight is met by the weights after it in its block.
 */
export function quantizeInt4(w: Float32Array, n: number, k: number, feedback?: Feedback): StoredMatrix {
  checkValues(w, n, k);
  if (feedback && feedback.k !== k) {
    throw new RangeError(`Cannot pack [${n}, ${k}]: expected feedback for ${k} inputs, found ${feedback.k}`);
  }
  const padded = paddedK("int4-g32-p8", k);
  const groups = padded / GROUP;
  const data = new Uint8Array(packedBytes("int4-g32-p8", n, k));
  for (let at = 0; at < data.length; at++) data[at] = NIBBLE_ZERO << 4 | NIBBLE_ZERO;
  for (let row = 0; row < roundUp(n, PANEL); row++) {
    for (let g = 0; g < groups; g++) {
      const at = groupAt(row, g * GROUP, padded) + (row & 7) * 2;
      data[at] = data[at + 1] = 0;
    }
  }
  const { steps, scale, most } = chooseScales(w, n, k);
  const errors = new Float64Array(GROUP);
  for (let row = 0; row < n; row++) {
    if (!(scale[row] > 0)) continue;
    const values = feedback ? w.slice(row * k, (row + 1) * k) : w.subarray(row * k, (row + 1) * k);
    for (let g = 0; g < groups; g++) {
      const group = groupScale(steps[row * groups + g], scale[row], most);
      const at = groupAt(row, g * GROUP, padded);
      data[at + (row & 7) * 2] = group & 255;
      data[at + (row & 7) * 2 + 1] = group >> 8 & 255;
      const step = group * scale[row];
      for (let i = g * GROUP; i < Math.min(k, (g + 1) * GROUP); i++) {
        const q = group ? level(values[i] / step) : 0;
        if (feedback) passWithin(feedback, values, i, errors[i % GROUP] = values[i] - q * step);
        const nibble = q + NIBBLE_ZERO;
        const byte = at + nibbleAt(row, i);
        data[byte] = row & 4 ? data[byte] & 15 | nibble << 4 : data[byte] & 240 | nibble;
      }
      if (feedback) passOn(feedback, values, g * GROUP, errors);
    }
  }
  return { scheme: "int4-g32-p8", n, k, data, scale };
}

/** Scales of columns [N], steps of their groups [N, ⌈K/32⌉], and the largest integer that these are rounded to. */
interface GroupScales {
  readonly steps: Float64Array;
  readonly scale: Float32Array;
  readonly most: number;
}

/**
 * How many times the error, relative to what a group holds, mean over groups, scales of bytes may have. A Gaussian matrix
 * has 1.07 times, Student's t with three degrees of freedom 1.4, and one whose groups differ by a factor of e, of which some
 * would vanish, 7.5; matrices of a trained small model have 1.04 to 1.06.
 */
const MOST_LOST = 1.5;

/** The scales that the groups of W [N, K] are given. */
function chooseScales(w: Float32Array, n: number, k: number): GroupScales {
  const groups = Math.ceil(k / GROUP);
  const steps = new Float64Array(n * groups);
  const [bytes, fine] = [new Float32Array(n), new Float32Array(n)];
  let [lostBytes, lostFine] = [0, 0];
  for (let row = 0; row < n; row++) {
    const values = w.subarray(row * k, (row + 1) * k);
    const own = steps.subarray(row * groups, (row + 1) * groups);
    for (let g = 0; g < groups; g++) own[g] = groupStep(values.subarray(g * GROUP, (g + 1) * GROUP));
    const greatest = own.reduce((most, it) => Math.max(most, Math.abs(it)), 0);
    fine[row] = greatest / MAX_GROUP_SCALE;
    lostFine += errorOf(values, own, fine[row], MAX_GROUP_SCALE).relative;
    let best = { squared: Infinity, relative: 0 };
    for (const share of SHARES) {
      const scale = share * greatest / BYTE_GROUP_SCALE;
      const error = errorOf(values, own, scale, BYTE_GROUP_SCALE);
      if (error.squared < best.squared) [best, bytes[row]] = [error, scale];
    }
    lostBytes += best.relative;
  }
  return lostBytes > MOST_LOST * lostFine
    ? { steps, scale: fine, most: MAX_GROUP_SCALE }
    : { steps, scale: bytes, most: BYTE_GROUP_SCALE };
}

/** Greatest scales of a column, as shares of its greatest step: below 1 that of one group is cut, and others are finer. */
const SHARES = [1, 0.9, 0.8];

/** What a column [K] loses whose groups want these steps: squared, and as the sum of the groups' shares of what they hold. */
function errorOf(values: Float32Array, steps: Float64Array, scale: number, most: number) {
  let [squared, relative] = [0, 0];
  for (let g = 0; g < steps.length; g++) {
    const step = groupScale(steps[g], scale, most) * scale;
    if (!step) continue;
    let [error, power] = [0, 0];
    for (let i = g * GROUP; i < Math.min(values.length, (g + 1) * GROUP); i++) {
      error += (values[i] - level(values[i] / step) * step) ** 2;
      power += values[i] ** 2;
    }
    squared += error;
    relative += error / power;
  }
  return { squared, relative };
}

/** A group's step in the column's scale, whole, and 0 only where it is. */
function groupScale(step: number, scale: number, most: number): number {
  if (!step || !scale) return 0;
  return Math.sign(step) * Math.min(most, Math.max(1, Math.round(Math.abs(step) / scale)));
}

/** Meets the error of the value at i with those after it in its group. */
function passWithin({ factors }: Feedback, values: Float32Array, i: number, error: number): void {
  const end = Math.min(values.length, i - i % GROUP + GROUP);
  const row = i * FEEDBACK_BLOCK - i + i % FEEDBACK_BLOCK;
  for (let j = i + 1; j < end; j++) values[j] += error * factors[row + j];
}

/** Meets the errors of a group that begins at `from` with the values after it in its block, eight at a time. */
function passOn({ factors }: Feedback, values: Float32Array, from: number, errors: Float64Array): void {
  const b = FEEDBACK_BLOCK;
  const block = from - from % b;
  const end = Math.min(values.length, block + b);
  for (let i = 0; i < GROUP; i += 8) {
    const [e0, e1, e2, e3] = [errors[i], errors[i + 1], errors[i + 2], errors[i + 3]];
    const [e4, e5, e6, e7] = [errors[i + 4], errors[i + 5], errors[i + 6], errors[i + 7]];
    let at = (from + i) * b + from + GROUP - block;
    for (let j = from + GROUP; j < end; j++, at++) {
      values[j] += e0 * factors[at] + e1 * factors[at + b] + e2 * factors[at + 2 * b] +
        e3 * factors[at + 3 * b] +
        e4 * factors[at + 4 * b] + e5 * factors[at + 5 * b] + e6 * factors[at + 6 * b] +
        e7 * factors[at + 7 * b];
    }
  }
}

/** Where the largest value of a group is put, in levels: on the long side down to -8, on the short one up to 7. */
const ENDS = [-9, -8.6, -8.2, -7.9, -7.6, -7.2, -6.8, 6.6, 7, 7.4];

/** The step between levels that fits a group best, in the sense of least squares; may be negative. */
function groupStep(values: Float32Array): number {
  let [end, power] = [0, 0];
  for (const v of values) {
    if (Math.abs(v) > Math.abs(end)) end = v;
    power += v * v;
  }
  if (!power) return 0;
  let [best, step] = [-1, 0];
  for (const levels of ENDS) {
    const inverse = levels / end;
    let [product, squares] = [0, 0];
    for (let i = 0; i < values.length; i++) {
      const q = level(values[i] * inverse);
      product += q * values[i];
      squares += q * q;
    }
    // The error is power - product² / squares at the step product / squares.
    if (squares && product * product > best * squares) {
      best = product * product / squares;
      step = product / squares;
    }
  }
  return step;
}

function level(x: number): number {
  return x <= -8 ? -8 : x >= 7 ? 7 : Math.floor(x + 0.5);
}

function checkValues(w: Float32Array, n: number, k: number): void {
  if (w.length !== n * k) {
    throw new RangeError(`Cannot pack [${n}, ${k}]: expected ${n * k} values, found ${w.length}`);
  }
  for (let i = 0; i < w.length; i++) {
    if (!Number.isFinite(w[i])) {
      throw new RangeError(`Cannot pack [${n}, ${k}]: value ${i} is ${w[i]}`);
    }
  }
}
