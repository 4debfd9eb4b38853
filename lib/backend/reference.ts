/**
 * The operations in plain loops: the definition that every other backend is tested against.
 *
 * Activations are f32 as on every backend; sums run in f64, so this is the most exact of them and the slowest.
 * Formulas: Gemma and SigLIP as in big_vision's `models/ppp/gemma.py` and `models/vit.py`.
 */

import type { AttentionOptions, Backend, LinearOptions, Matrix, StoredMatrix, Tensor } from "./backend.ts";

class Plain implements Tensor {
  constructor(
    readonly data: Float32Array,
    readonly offset: number,
    readonly rows: number,
    readonly cols: number,
    readonly stride: number,
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
  readonly scheme = "f32";
  constructor(readonly n: number, readonly k: number, readonly data: Float32Array) {}
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
  sizeBytes = 0;

  tensor(rows: number, cols: number): Tensor {
    this.sizeBytes += rows * cols * 4;
    return new Plain(new Float32Array(rows * cols), 0, rows, cols, cols);
  }

  slice(t: Tensor, row: number, rows: number, col = 0, cols = t.cols - col): Tensor {
    const from = plain(t);
    if (row < 0 || rows < 0 || row + rows > from.rows || col < 0 || cols < 0 || col + cols > from.cols) {
      throw new RangeError(
        `Cannot slice rows ${row}+${rows}, columns ${col}+${cols} of a [${from.rows}, ${from.cols}] tensor`,
      );
    }
    return new Plain(from.data, from.offset + row * from.stride + col, rows, cols, from.stride);
  }

  matrix(stored: StoredMatrix): Matrix {
    if (stored.scheme !== "f32") throw new TypeError(`Cannot take a matrix of scheme "${stored.scheme}"`);
    const { n, k, data } = stored;
    if (!(data instanceof Float32Array) || data.length !== n * k) {
      throw new RangeError(`Cannot take a matrix: expected ${n * k} f32 values, found ${data.length}`);
    }
    this.sizeBytes += data.byteLength;
    return new PlainMatrix(n, k, data);
  }

  free(...what: (Tensor | Matrix)[]): void {
    for (const it of what) this.sizeBytes -= (it as Plain | PlainMatrix).data.byteLength;
  }

  write(t: Tensor, values: Float32Array): void {
    same("write", values.length, t.rows * t.cols);
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
    same("linear input width", x.cols, w.k);
    same("linear output width", out.cols, w.n);
    same("linear rows", out.rows, x.rows);
    const to = plain(out);
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

  gated(out: Tensor, x: Tensor, gate: Matrix, up: Matrix): void {
    same("gated input width", x.cols, gate.k);
    same("gated output width", out.cols, gate.n);
    const to = plain(out);
    for (let t = 0; t < x.rows; t++) {
      const row = plain(x).row(t);
      const g = product(row, gate as PlainMatrix);
      const u = product(row, up as PlainMatrix);
      for (let n = 0; n < gate.n; n++) to.set(t, n, gelu(g[n]) * u[n]);
    }
  }

  layerNorm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: number): void {
    same("layerNorm width", weight.cols, x.cols);
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
    same("rmsNorm width", weight.cols, x.cols);
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
    same("add rows", x.rows, out.rows);
    same("add columns", x.cols, out.cols);
    const to = plain(out);
    for (let t = 0; t < x.rows; t++) {
      for (let k = 0; k < x.cols; k++) to.set(t, k, to.at(t, k) + plain(x).at(t, k));
    }
  }

  rope(x: Tensor, headDim: number, position: number, theta: number): void {
    if (headDim % 2 || x.cols % headDim) {
      throw new RangeError(`Cannot rotate heads of ${headDim} in a row of ${x.cols}`);
    }
    const half = headDim / 2;
    const to = plain(x);
    for (let t = 0; t < x.rows; t++) {
      for (let i = 0; i < half; i++) {
        const angle = (position + t) * theta ** (-2 * i / headDim);
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
    const { heads, kvHeads, headDim, scale, softcap, start, prefix, window = Infinity } = options;
    same("attention query width", q.cols, heads * headDim);
    same("attention key width", k.cols, kvHeads * headDim);
    same("attention value rows", v.rows, k.rows);
    if (start + q.rows > k.rows) {
      throw new RangeError(`Cannot attend: queries end at ${start + q.rows}, keys at ${k.rows}`);
    }
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

  embed(out: Tensor, ids: Uint32Array, table: Matrix, scale: number): void {
    same("embed rows", out.rows, ids.length);
    same("embed width", out.cols, table.k);
    const { data, k } = table as PlainMatrix;
    ids.forEach((id, t) => {
      if (id >= table.n) throw new RangeError(`Cannot embed id ${id}: the table has ${table.n} rows`);
      for (let c = 0; c < k; c++) plain(out).set(t, c, data[id * k + c] * scale);
    });
  }

  patches(out: Tensor, pixels: Tensor, size: number, patch: number): void {
    const grid = Math.floor(size / patch);
    same("patches rows", out.rows, grid * grid);
    same("patches input", pixels.rows * pixels.cols, size * size * 3);
    if (out.cols < 3 * patch * patch) {
      throw new RangeError(`Cannot cut patches of ${3 * patch * patch} values into rows of ${out.cols}`);
    }
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

/** One row of x · Wᵀ, summed in f64. */
function product(x: Float32Array, { n, k, data }: PlainMatrix): Float64Array {
  const out = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    let sum = 0;
    for (let j = 0, at = i * k; j < k; j++, at++) sum += x[j] * data[at];
    out[i] = sum;
  }
  return out;
}

function same(what: string, found: number, expected: number): void {
  if (found !== expected) throw new RangeError(`Broken shape, ${what}: expected ${expected}, found ${found}`);
}
