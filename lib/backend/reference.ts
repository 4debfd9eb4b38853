/**
 * The operations in plain loops: the definition that every other backend is tested against.
 *
 * Activations are f32 as on every backend; sums run in f64, so this is the most exact of them and the slowest.
 * Formulas: Gemma and SigLIP as in big_vision's `models/ppp/gemma.py` and `models/vit.py`. A product with quantised
 * weights rounds the activations too, as `layout.ts` says, and from there on is exact.
 */

import type {
  AttentionOptions,
  Backend,
  EachAttentionOptions,
  FullAttentionOptions,
  Linear,
  LinearOptions,
  Matrix,
  StoredMatrix,
  Tensor,
} from "./backend.ts";
import { checkStored, GROUP, quantizeRow7, quantizeRow8, unpack, WEIGHT_ONE } from "./layout.ts";
import * as shapes from "./shapes.ts";

class Plain implements Tensor {
  constructor(
    readonly data: Float32Array,
    readonly offset: number,
    readonly rows: number,
    readonly cols: number,
    readonly stride: number,
    /** Slices share memory that only its owner frees. */
    readonly owner: boolean,
  ) {}

  at(row: number, col: number): number {
    return this.data[this.offset + row * this.stride + col];
  }

  set(row: number, col: number, value: number): void {
    this.data[this.offset + row * this.stride + col] = value;
  }

  /** Row `row` as a view of `cols` values. */
  row(row: number): Float32Array {
    const from = this.offset + row * this.stride;
    return this.data.subarray(from, from + this.cols);
  }
}

class PlainMatrix implements Matrix {
  readonly scheme: StoredMatrix["scheme"];
  readonly n: number;
  readonly k: number;
  /** Row-major [N, K]: the values, or the integers of a quantised matrix. */
  readonly data: Float32Array | Int8Array;
  /** int4: [N, K/32]. */
  readonly groupScales: Int16Array | undefined;
  /** Quantised: one per column. */
  readonly scale: Float32Array | undefined;
  readonly sizeBytes: number;

  constructor(stored: StoredMatrix) {
    ({ scheme: this.scheme, n: this.n, k: this.k, scale: this.scale } = stored);
    if (stored.scheme === "f32") this.data = stored.data as Float32Array;
    else ({ values: this.data, groupScales: this.groupScales } = unpack(stored));
    this.sizeBytes = this.data.byteLength + (this.groupScales?.byteLength ?? 0) +
      (this.scale?.byteLength ?? 0);
  }

  /** Group scale of W[n, i]. */
  group(n: number, i: number): number {
    return this.groupScales ? this.groupScales[n * Math.ceil(this.k / GROUP) + Math.floor(i / GROUP)] : 1;
  }
}

/** tanh-approximated GELU, as both SigLIP and Gemma were trained with. */
export function gelu(x: number): number {
  return 0.5 * x * (1 + Math.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

/** Makes the reference backend. It has no resources beyond JavaScript memory. */
export function createReferenceBackend(): Backend {
  return new ReferenceBackend();
}

class ReferenceBackend implements Backend {
  readonly name = "reference";
  readonly availableBytes = Infinity;
  sizeBytes = 0;

  tensor(rows: number, cols: number): Tensor {
    shapes.checkTensor(rows, cols);
    this.sizeBytes += rows * cols * 4;
    return new Plain(new Float32Array(rows * cols), 0, rows, cols, cols, true);
  }

  slice(t: Tensor, row: number, rows: number, col = 0, cols = t.cols - col): Tensor {
    shapes.checkSlice(t, row, rows, col, cols);
    const from = plain(t);
    return new Plain(from.data, from.offset + row * from.stride + col, rows, cols, from.stride, false);
  }

  matrix(stored: StoredMatrix): Matrix {
    checkStored(stored);
    const matrix = new PlainMatrix(stored);
    this.sizeBytes += matrix.sizeBytes;
    return matrix;
  }

  free(...what: (Tensor | Matrix)[]): void {
    for (const it of what) {
      if (it instanceof Plain && !it.owner) {
        throw new TypeError("Cannot free a slice: free what it was cut from");
      }
      this.sizeBytes -= it instanceof Plain ? it.data.byteLength : (it as PlainMatrix).sizeBytes;
    }
  }

  write(t: Tensor, values: Float32Array): void {
    shapes.same("write", values.length, t.rows * t.cols);
    const to = plain(t);
    for (let r = 0; r < to.rows; r++) to.row(r).set(values.subarray(r * to.cols, (r + 1) * to.cols));
  }

  read(t: Tensor): Promise<Float32Array> {
    const from = plain(t);
    const values = new Float32Array(from.rows * from.cols);
    for (let r = 0; r < from.rows; r++) values.set(from.row(r), r * from.cols);
    return Promise.resolve(values);
  }

  linear(out: Tensor, x: Tensor, w: Matrix, { bias, activation, residual }: LinearOptions = {}): void {
    shapes.checkLinear(out, x, w, { bias, residual });
    const to = plain(out);
    notAliased("linear", to, plain(x));
    for (let t = 0; t < x.rows; t++) {
      const products = product(plain(x).row(t), w as PlainMatrix);
      for (let n = 0; n < w.n; n++) {
        let y = products[n];
        if (bias) y += plain(bias).at(0, n);
        if (activation === "gelu") y = gelu(y);
        if (residual) y += plain(residual).at(t, n);
        to.set(t, n, y);
      }
    }
  }

  linearEach(of: readonly Linear[]): void {
    for (const it of of) this.linear(...it);
  }

  gated(out: Tensor, x: Tensor, gate: Matrix, up: Matrix): void {
    shapes.checkGated(out, x, gate, up);
    const to = plain(out);
    notAliased("gated", to, plain(x));
    for (let t = 0; t < x.rows; t++) {
      const row = plain(x).row(t);
      const g = product(row, gate as PlainMatrix);
      const u = product(row, up as PlainMatrix);
      for (let n = 0; n < gate.n; n++) to.set(t, n, gelu(g[n]) * u[n]);
    }
  }

  layerNorm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: number): void {
    shapes.checkNorm("layerNorm", out, x, weight, bias);
    const [to, w, b] = [plain(out), plain(weight), plain(bias)];
    for (let t = 0; t < x.rows; t++) {
      const row = plain(x).row(t);
      let mean = 0;
      for (const v of row) mean += v;
      mean /= row.length;
      let variance = 0;
      for (const v of row) variance += (v - mean) ** 2;
      const scale = 1 / Math.sqrt(variance / row.length + eps);
      for (let k = 0; k < row.length; k++) to.set(t, k, (row[k] - mean) * scale * w.at(0, k) + b.at(0, k));
    }
  }

  rmsNorm(out: Tensor, x: Tensor, weight: Tensor, eps: number): void {
    shapes.checkNorm("rmsNorm", out, x, weight);
    const [to, w] = [plain(out), plain(weight)];
    for (let t = 0; t < x.rows; t++) {
      const row = plain(x).row(t);
      let squares = 0;
      for (const v of row) squares += v * v;
      const scale = 1 / Math.sqrt(squares / row.length + eps);
      for (let k = 0; k < row.length; k++) to.set(t, k, row[k] * scale * (1 + w.at(0, k)));
    }
  }

  add(out: Tensor, x: Tensor): void {
    shapes.checkAdd(out, x);
    const to = plain(out);
    for (let t = 0; t < x.rows; t++) {
      for (let k = 0; k < x.cols; k++) to.set(t, k, to.at(t, k) + plain(x).at(t, k));
    }
  }

  place(outs: readonly Tensor[], x: Tensor): void {
    shapes.checkPlace(outs, x);
    outs.forEach((it, t) => plain(it).row(0).set(plain(x).row(t)));
  }

  rope(x: Tensor, headDim: number, position: number | readonly number[], theta: number): void {
    const positions = shapes.checkRope(x, headDim, position);
    const half = headDim / 2;
    const to = plain(x);
    for (let t = 0; t < x.rows; t++) {
      for (let i = 0; i < half; i++) {
        const angle = positions[t] * theta ** (-2 * i / headDim);
        const [c, s] = [Math.cos(angle), Math.sin(angle)];
        for (let head = 0; head < x.cols; head += headDim) {
          const [a, b] = [to.at(t, head + i), to.at(t, head + half + i)];
          to.set(t, head + i, a * c - b * s);
          to.set(t, head + half + i, b * c + a * s);
        }
      }
    }
  }

  attention(out: Tensor, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): void {
    shapes.checkAttention(out, q, k, v, options);
    const { heads, kvHeads, headDim, scale, softcap, start, prefix, window = Infinity } = options;
    const [to, qs, ks, vs] = [plain(out), plain(q), plain(k), plain(v)];
    const scores = new Float64Array(k.rows);
    for (let t = 0; t < q.rows; t++) {
      const index = start + t;
      for (let h = 0; h < heads; h++) {
        const shared = Math.floor(h / (heads / kvHeads)) * headDim;
        let max = -Infinity;
        for (let s = 0; s < k.rows; s++) {
          const inPrefix = index < prefix && s < prefix;
          if (!(inPrefix || (s <= index && s > index - window))) {
            scores[s] = -Infinity;
            continue;
          }
          let dot = 0;
          for (let c = 0; c < headDim; c++) dot += qs.at(t, h * headDim + c) * ks.at(s, shared + c);
          dot *= scale;
          scores[s] = softcap ? softcap * Math.tanh(dot / softcap) : dot;
          max = Math.max(max, scores[s]);
        }
        let sum = 0;
        for (let s = 0; s < k.rows; s++) sum += scores[s] = Math.exp(scores[s] - max);
        for (let c = 0; c < headDim; c++) {
          let y = 0;
          for (let s = 0; s < k.rows; s++) if (scores[s]) y += scores[s] * vs.at(s, shared + c);
          to.set(t, h * headDim + c, y / sum);
        }
      }
    }
  }

  attentionEach(
    out: Tensor,
    q: Tensor,
    keys: readonly Tensor[],
    values: readonly Tensor[],
    options: EachAttentionOptions,
  ): void {
    shapes.checkEachAttention(out, q, keys, values, options).forEach((it, t) => {
      this.attention(this.slice(out, t, 1), this.slice(q, t, 1), keys[t], values[t], it);
    });
  }

  attentionInt8(out: Tensor, q: Tensor, k: Tensor, v: Tensor, options: FullAttentionOptions): void {
    shapes.checkFullAttention(out, q, k, v, options);
    const { heads, headDim, scale } = options;
    const keys = k.rows;
    for (let h = 0; h < heads; h++) {
      const [from, to] = [h * headDim, (h + 1) * headDim];
      const head = (t: Tensor, row: number) => plain(t).row(row).subarray(from, to);
      const mean = Float32Array.from({ length: headDim }, (_, c) => {
        let sum = 0;
        for (let s = 0; s < keys; s++) sum += head(k, s)[c];
        return sum / keys;
      });
      const smooth = Array.from({ length: keys }, (_, s) => {
        return quantizeRow8(head(k, s).map((it, c) => it - mean[c]));
      });
      const values = Array.from({ length: headDim }, (_, c) => {
        return quantizeRow8(Float32Array.from({ length: keys }, (_, s) => head(v, s)[c]));
      });
      for (let t = 0; t < q.rows; t++) {
        const query = quantizeRow7(head(q, t));
        const centred = Int16Array.from(query.q, (it) => it - query.zero);
        const step = Math.fround(query.scale * Math.fround(scale));
        const scores = smooth.map((key) =>
          Math.fround(Math.fround(whole(centred, key.q) * step) * key.scale)
        );
        const most = scores.reduce((a, b) => Math.max(a, b));
        const weights = Int16Array.from(scores, (it) => Math.round(Math.exp(it - most) * WEIGHT_ONE));
        const sum = weights.reduce((a, b) => a + b, 0);
        values.forEach((it, c) => plain(out).set(t, from + c, whole(weights, it.q) / sum * it.scale));
      }
    }
  }

  embed(out: Tensor, ids: readonly (number | Tensor)[], table: Matrix, scale: number): void {
    shapes.checkEmbed(out, ids, table);
    const matrix = table as PlainMatrix;
    const { data, k } = matrix;
    ids.forEach((it, t) => {
      const id = typeof it === "number" ? it : plain(it).at(0, 0);
      const step = scale * (matrix.scale?.[id] ?? 1);
      for (let c = 0; c < k; c++) plain(out).set(t, c, data[id * k + c] * matrix.group(id, c) * step);
    });
  }

  patches(out: Tensor, pixels: Tensor, size: number, patch: number): void {
    const grid = shapes.checkPatches(out, pixels, size, patch);
    const [to, from] = [plain(out), plain(pixels)];
    for (let row = 0; row < grid * grid; row++) {
      const [y, x] = [Math.floor(row / grid) * patch, row % grid * patch];
      to.row(row).fill(0);
      for (let c = 0; c < 3; c++) {
        for (let dy = 0; dy < patch; dy++) {
          for (let dx = 0; dx < patch; dx++) {
            to.set(row, (c * patch + dy) * patch + dx, from.at(0, ((y + dy) * size + x + dx) * 3 + c));
          }
        }
      }
    }
  }
}

function plain(t: Tensor): Plain {
  return t as Plain;
}

function notAliased(what: string, out: Plain, x: Plain): void {
  if (out.data === x.data && out.offset === x.offset) {
    throw new RangeError(`Broken call, ${what}: out and x are the same memory`);
  }
}

/** One row of x · Wᵀ: exact in integers where the weights are quantised, otherwise summed in f64. */
function product(x: Float32Array, w: PlainMatrix): Float64Array {
  switch (w.scheme) {
    case "f32":
      return dots(x, w);
    case "int8-p8-s4": {
      const { q, zero, scale } = quantizeRow7(x);
      return dots(Float64Array.from(q, (it) => it - zero), w).map((it, n) => it * scale * w.scale![n]);
    }
    case "int4-g32-p8": {
      const { q, scale } = quantizeRow8(x);
      return dots(q, w).map((it, n) => it * scale * w.scale![n]);
    }
  }
}

function whole(a: Int16Array, b: Int8Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

function dots(x: Float32Array | Float64Array | Int8Array, w: PlainMatrix): Float64Array {
  const { n, k, data, groupScales } = w;
  const out = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    let sum = 0;
    if (groupScales) { for (let j = 0, at = i * k; j < k; j++, at++) sum += x[j] * data[at] * w.group(i, j); }
    else for (let j = 0, at = i * k; j < k; j++, at++) sum += x[j] * data[at];
    out[i] = sum;
  }
  return out;
}
