/**
 * The two ways a picture is brought to the model's square. Both squash: no crop, no border.
 *
 * - `resizeBicubic`: Pillow's `Image.resize((size, size), BICUBIC)`, byte for byte (Pillow 12.3, `Resample.c`).
 * - `resizeBilinear`: `tf.image.resize(method="bilinear", antialias=True)` and the cast that big_vision puts after it
 *   (`pp/ops_image.py`), which is how the model was trained.
 */

import type { Picture } from "../types.ts";

/** For each output coordinate the input coordinates it is made of: `counts[i]` from `starts[i]` on. */
interface Taps<Weights> {
  readonly starts: Int32Array;
  readonly counts: Int32Array;
  /** The weights of output i begin at i · stride. */
  readonly weights: Weights;
  readonly stride: number;
}

/** Fractional bits of Pillow's 8-bit coefficients: 32 less the 8 of a sample and 2 for overshoot and sign. */
const PRECISION_BITS = 22;
const HALF = 1 << (PRECISION_BITS - 1);

/**
 * Pillow's antialiased bicubic. [H, W, 3] u8 to [size, size, 3] u8. First along rows, then along columns; in
 * between, values are rounded and clamped to 0..255, which takes away the overshoot of the first pass. A direction
 * whose length does not change is left alone. Pictures more than 100 times as high as wide go the other way round,
 * as in `Image.resize` itself.
 */
export function resizeBicubic(picture: Picture, size: number): Uint8Array {
  check(picture, size);
  let { width, height, data } = picture;
  if (height > 100 * width && size < height) {
    data = alongColumns(data, 3 * width, bicubicTaps(height, size), size);
    height = size;
  }
  if (width !== size) data = alongRows(data, height, width, bicubicTaps(width, size), size);
  if (height !== size) data = alongColumns(data, 3 * size, bicubicTaps(height, size), size);
  return data === picture.data ? data.slice() : data;
}

/**
 * Antialiased bilinear, then the clip to 0..255 and the cast to u8 by truncation that the training had. [H, W, 3] u8
 * to [size, size, 3] u8.
 */
export function resizeBilinear(picture: Picture, size: number): Uint8Array {
  const exact = bilinearValues(picture, size);
  const out = new Uint8Array(exact.length);
  // f32 sums fall short of or pass an integer by their rounding; truncating without the allowance would turn half
  // of an even area of value v into v − 1.
  for (let i = 0; i < out.length; i++) out[i] = Math.max(0, Math.min(255, exact[i] + 1 / 1024));
  return out;
}

/**
 * Antialiased bilinear before the cast: f32 [size, size, 3], 0 to 255. Output x looks at f = (x + ½)·in/out with a
 * triangle of radius max(in/out, 1), weights normalised.
 */
export function bilinearValues(picture: Picture, size: number): Float32Array {
  check(picture, size);
  const { width, data } = picture;
  const rows = triangleTaps(picture.height, size), columns = triangleTaps(width, size);
  const out = new Float32Array(size * size * 3);
  const row = new Float64Array(width * 3);
  for (let y = 0, to = 0; y < size; y++) {
    row.fill(0);
    for (let i = 0; i < rows.counts[y]; i++) {
      const weight = rows.weights[y * rows.stride + i], from = (rows.starts[y] + i) * row.length;
      for (let j = 0; j < row.length; j++) row[j] += weight * data[from + j];
    }
    for (let x = 0; x < size; x++, to += 3) {
      let r = 0, g = 0, b = 0, from = 3 * columns.starts[x], k = x * columns.stride;
      for (const end = k + columns.counts[x]; k < end; k++, from += 3) {
        const weight = columns.weights[k];
        r += weight * row[from];
        g += weight * row[from + 1];
        b += weight * row[from + 2];
      }
      out[to] = r;
      out[to + 1] = g;
      out[to + 2] = b;
    }
  }
  return out;
}

/** Rows of `width` pixels to rows of `size` pixels. */
function alongRows(data: Uint8Array, height: number, width: number, taps: Taps<Int32Array>, size: number) {
  const { starts, counts, weights, stride } = taps;
  const out = new Uint8ClampedArray(height * size * 3);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < size; x++, to += 3) {
      let r = HALF, g = HALF, b = HALF, k = x * stride;
      let from = 3 * (y * width + starts[x]);
      for (const end = k + counts[x]; k < end; k++, from += 3) {
        const weight = weights[k];
        // The sums stay below 2³¹: the weights sum to 2²² and overshoot by less than a half.
        r = (r + Math.imul(weight, data[from])) | 0;
        g = (g + Math.imul(weight, data[from + 1])) | 0;
        b = (b + Math.imul(weight, data[from + 2])) | 0;
      }
      out[to] = r >> PRECISION_BITS;
      out[to + 1] = g >> PRECISION_BITS;
      out[to + 2] = b >> PRECISION_BITS;
    }
  }
  return new Uint8Array(out.buffer);
}

/** Columns, for rows of `length` samples: whole rows are summed, so that memory is walked in order. */
function alongColumns(data: Uint8Array, length: number, taps: Taps<Int32Array>, size: number) {
  const { starts, counts, weights, stride } = taps;
  const out = new Uint8ClampedArray(size * length);
  const sums = new Int32Array(length);
  for (let y = 0; y < size; y++) {
    sums.fill(HALF);
    for (let i = 0; i < counts[y]; i++) {
      const weight = weights[y * stride + i], from = (starts[y] + i) * length;
      for (let j = 0; j < length; j++) sums[j] += Math.imul(weight, data[from + j]);
    }
    for (let j = 0; j < length; j++) out[y * length + j] = sums[j] >> PRECISION_BITS;
  }
  return new Uint8Array(out.buffer);
}

/** Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`, in its order of operations. */
function bicubicTaps(from: number, to: number): Taps<Int32Array> {
  const scale = from / to, filterScale = Math.max(scale, 1), support = 2 * filterScale;
  const stride = 2 * Math.ceil(support) + 1;
  const taps = {
    starts: new Int32Array(to),
    counts: new Int32Array(to),
    weights: new Int32Array(to * stride),
    stride,
  };
  const exact = new Float64Array(stride);
  const inverse = 1 / filterScale;
  for (let i = 0; i < to; i++) {
    const center = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const count = Math.min(from, Math.trunc(center + support + 0.5)) - start;
    let sum = 0;
    for (let j = 0; j < count; j++) sum += exact[j] = cubic((j + start - center + 0.5) * inverse);
    for (let j = 0; j < count; j++) {
      const weight = (sum !== 0 ? exact[j] / sum : exact[j]) * (1 << PRECISION_BITS);
      taps.weights[i * stride + j] = Math.trunc(weight + (weight < 0 ? -0.5 : 0.5));
    }
    taps.starts[i] = start;
    taps.counts[i] = count;
  }
  return taps;
}

/** The Keys kernel with a = −½. */
function cubic(x: number): number {
  const a = -0.5, t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  if (t < 2) return (((t - 5) * t + 8) * t - 4) * a;
  return 0;
}

/** The spans and weights of TensorFlow's `ScaleAndTranslate` with its triangle kernel. */
function triangleTaps(from: number, to: number): Taps<Float64Array> {
  const scale = from / to, radius = Math.max(scale, 1), stride = 2 * Math.ceil(radius) + 1;
  const taps = {
    starts: new Int32Array(to),
    counts: new Int32Array(to),
    weights: new Float64Array(to * stride),
    stride,
  };
  for (let i = 0; i < to; i++) {
    const center = (i + 0.5) * scale;
    const start = Math.max(0, Math.ceil(center - radius - 0.5));
    const count = Math.min(from - 1, Math.floor(center + radius - 0.5)) - start + 1;
    const weights = taps.weights.subarray(i * stride, i * stride + count);
    let sum = 0;
    for (let j = 0; j < count; j++) {
      sum += weights[j] = Math.max(0, 1 - Math.abs(start + j + 0.5 - center) / radius);
    }
    for (let j = 0; j < count; j++) weights[j] /= sum;
    taps.starts[i] = start;
    taps.counts[i] = count;
  }
  return taps;
}

function check({ width, height, data }: Picture, size: number): void {
  if (!(width > 0 && height > 0) || data.length !== width * height * 3) {
    throw new RangeError(`Cannot resize: ${width} x ${height} x 3 does not fit ${data.length} bytes`);
  }
  if (!Number.isInteger(size) || size < 1) throw new RangeError(`Cannot resize to a side of ${size}`);
}
