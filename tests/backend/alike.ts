/** Two backends as one: everything happens on both, and what is read must be the same, bit for bit. */

import assert from "node:assert/strict";
import type { Backend, Linear, LinearOptions, Matrix, Tensor } from "../../lib/backend/backend.ts";

class Pair implements Tensor {
  readonly rows: number;
  readonly cols: number;
  constructor(readonly both: readonly [Tensor, Tensor]) {
    ({ rows: this.rows, cols: this.cols } = both[0]);
  }
}

class MatrixPair implements Matrix {
  readonly n: number;
  readonly k: number;
  readonly scheme: Matrix["scheme"];
  constructor(readonly both: readonly [Matrix, Matrix]) {
    ({ n: this.n, k: this.k, scheme: this.scheme } = both[0]);
  }
}

/** Errors are those of the first. */
export function alike(first: Backend, second: Backend): Backend {
  const each = <T>(run: (b: Backend, i: 0 | 1) => T): [T, T] => [run(first, 0), run(second, 1)];
  const of = (t: Tensor, i: 0 | 1) => (t as Pair).both[i];
  const matrix = (w: Matrix, i: 0 | 1) => (w as MatrixPair).both[i];
  const options = ({ bias, activation, residual }: LinearOptions, i: 0 | 1): LinearOptions => ({
    activation,
    bias: bias && of(bias, i),
    residual: residual && of(residual, i),
  });
  const product = ([out, x, w, more = {}]: Linear, i: 0 | 1): Linear => [
    of(out, i),
    of(x, i),
    matrix(w, i),
    options(more, i),
  ];
  return {
    name: "alike",
    get sizeBytes() {
      return first.sizeBytes + second.sizeBytes;
    },
    get availableBytes() {
      return first.availableBytes;
    },
    tensor: (rows, cols) => new Pair(each((b) => b.tensor(rows, cols))),
    slice: (t, ...range) => new Pair(each((b, i) => b.slice(of(t, i), ...range))),
    matrix: (stored) => new MatrixPair(each((b) => b.matrix(stored))),
    free: (...what) => void each((b, i) => b.free(...what.map((it) => (it as Pair | MatrixPair).both[i]))),
    write: (t, values) => void each((b, i) => b.write(of(t, i), values)),
    async read(t) {
      const [a, b] = await Promise.all(each((b, i) => b.read(of(t, i))));
      const [left, right] = [new Uint32Array(a.buffer), new Uint32Array(b.buffer)];
      const at = left.findIndex((it, i) => it !== right[i]);
      assert.ok(
        at < 0,
        `value ${at} of [${t.rows}, ${t.cols}]: ${a[at]} on the first, ${b[at]} on the second`,
      );
      return b;
    },
    linear: (...it) => void each((b, i) => b.linear(...product(it, i))),
    linearEach: (all) => void each((b, i) => b.linearEach(all.map((it) => product(it, i)))),
    gated: (out, x, gate, up) =>
      void each((b, i) => b.gated(of(out, i), of(x, i), matrix(gate, i), matrix(up, i))),
    layerNorm: (out, x, weight, bias, eps) =>
      void each((b, i) => b.layerNorm(of(out, i), of(x, i), of(weight, i), of(bias, i), eps)),
    rmsNorm: (out, x, weight, eps) =>
      void each((b, i) => b.rmsNorm(of(out, i), of(x, i), of(weight, i), eps)),
    add: (out, x) => void each((b, i) => b.add(of(out, i), of(x, i))),
    rope: (x, ...how) => void each((b, i) => b.rope(of(x, i), ...how)),
    attention: (out, q, k, v, how) =>
      void each((b, i) => b.attention(of(out, i), of(q, i), of(k, i), of(v, i), how)),
    place: (outs, x) => void each((b, i) => b.place(outs.map((it) => of(it, i)), of(x, i))),
    attentionEach: (out, q, keys, values, how) =>
      void each((b, i) => {
        const all = (them: readonly Tensor[]) => them.map((it) => of(it, i));
        b.attentionEach(of(out, i), of(q, i), all(keys), all(values), how);
      }),
    attentionInt8: (out, q, k, v, how) =>
      void each((b, i) => b.attentionInt8(of(out, i), of(q, i), of(k, i), of(v, i), how)),
    embed: (out, ids, table, scale) =>
      void each((b, i) => {
        const own = ids.map((it) => typeof it === "number" ? it : of(it, i));
        b.embed(of(out, i), own, matrix(table, i), scale);
      }),
    patches: (out, pixels, size, patch) =>
      void each((b, i) => b.patches(of(out, i), of(pixels, i), size, patch)),
  };
}
