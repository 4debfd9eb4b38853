import assert from "node:assert/strict";
import { unpack } from "../../lib/backend/layout.ts";
import {
  boundedSteps,
  checkScheme,
  dequantize,
  FEEDBACK_BLOCK,
  feedbackFrom,
  packedBytes,
  quantizeInt4,
  quantizeInt8,
} from "../../lib/weights/quantize.ts";

/** Numbers of a normal distribution, the same for the same seed. */
function normal(length: number, seed: number): Float32Array {
  let state = seed;
  const uniform = () => {
    state = Math.imul(state ^ state >>> 15, 0x2c1b3c6d) + 0x6d2b79f5 >>> 0;
    return ((state ^ state >>> 13) >>> 0) / 2 ** 32;
  };
  return Float32Array.from({ length }, () => {
    return Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  });
}

function relativeError(found: Float32Array, expected: Float32Array): number {
  let [error, power] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    error += (found[i] - expected[i]) ** 2;
    power += expected[i] ** 2;
  }
  return Math.sqrt(error / power);
}

Deno.test("the layouts, byte by byte", () => {
  // W[n, k] = n·10 + k, n below 9, k below 6; column 8 begins the second panel.
  const w = Float32Array.from({ length: 54 }, (_, i) => Math.floor(i / 6) * 10 + i % 6);
  const int8 = quantizeInt8(w, 9, 6);
  assert.equal(int8.data.length, 16 * 16);
  const level = (n: number, k: number) => Math.round(w[n * 6 + k] / int8.scale![n]);
  assert.equal(int8.data[3 * 4 + 2], level(3, 2));
  assert.equal(int8.data[32 + 7 * 4 + 1], level(7, 5));
  assert.equal(int8.data[128 + 3], level(8, 3));
  assert.deepEqual([...int8.data.slice(128 + 4, 128 + 32)], Array(28).fill(0));

  // One group: column 1 holds -8, column 6 (high nibbles) 7, in units of their scales.
  const q = new Float32Array(8 * 32);
  q.fill(-8, 32, 64);
  q.fill(7, 6 * 32, 7 * 32);
  const int4 = quantizeInt4(q, 8, 32);
  assert.equal(int4.data.length, 144);
  const scales = new Int16Array(int4.data.slice(0, 16).buffer);
  assert.deepEqual([...scales].map(Math.abs), [0, 15, 0, 0, 0, 0, 15, 0]);
  const [byte1, byte6] = [int4.data[16 + 4], int4.data[16 + 2 * 4]];
  assert.ok(Math.abs(((byte1 & 15) - 8) * scales[1] * int4.scale![1] + 8) < 1e-5);
  assert.ok(Math.abs(((byte6 >> 4) - 8) * scales[6] * int4.scale![6] - 7) < 1e-5);
  assert.equal(int4.data[16], 0x88);
});

Deno.test("packing and its inverse: no more is lost than the bits must lose", () => {
  const [n, k] = [61, 1000];
  const gauss = normal(n * k, 1);
  const errors = {
    int8: relativeError(dequantize(quantizeInt8(gauss, n, k)), gauss),
    int4: relativeError(dequantize(quantizeInt4(gauss, n, k)), gauss),
  };
  assert.ok(errors.int8 < 0.0115, `int8: ${errors.int8}`);
  assert.ok(errors.int4 < 0.083, `int4: ${errors.int4}`);
  const exact = Float32Array.from({ length: 320 }, (_, i) => (i * 5 % 15 - 7) * 0.25);
  assert.ok(relativeError(dequantize(quantizeInt4(exact, 10, 32)), exact) < 2e-2);
});

Deno.test("int4 weights times their groups' scales are bytes, but where groups would be lost by it", () => {
  const [n, k] = [5, 96];
  const even = normal(n * k, 6);
  // Groups of one column that are ten times and a hundred times as large as others.
  for (const [w, bytes] of [[even, true], [even.map((it, i) => it * 10 ** (i % k >> 5)), false]] as const) {
    const packed = quantizeInt4(w, n, k);
    const { values, groupScales } = unpack(packed);
    const products = values.map((it, i) => Math.abs(it * groupScales![Math.floor(i / 32)]) < 128 ? 1 : 0);
    assert.deepEqual([products.every(Boolean), groupScales!.every(Boolean)], [bytes, true]);
    const found = dequantize(packed);
    for (let at = 0; at < n * k; at += 32) {
      const error = relativeError(found.subarray(at, at + 32), w.subarray(at, at + 32));
      assert.ok(error < 0.12, `group ${at / 32}: ${error}`);
    }
  }
});

Deno.test("what was packed once packs to the same values again", () => {
  const [n, k] = [17, 70];
  for (const quantize of [quantizeInt8, quantizeInt4]) {
    const once = dequantize(quantize(normal(n * k, 2), n, k));
    const again = dequantize(quantize(once, n, k));
    assert.ok(relativeError(again, once) < (quantize === quantizeInt8 ? 1e-2 : 4e-2));
  }
});

Deno.test("zeros, single columns and odd shapes", () => {
  for (const [n, k] of [[1, 1], [8, 16], [9, 33], [3, 588], [16, 32]]) {
    for (const quantize of [quantizeInt8, quantizeInt4]) {
      const zero = quantize(new Float32Array(n * k), n, k);
      assert.equal(zero.data.length, packedBytes(zero.scheme, n, k));
      assert.ok(dequantize(zero).every((it) => it === 0));
      const one = new Float32Array(n * k);
      one[n * k - 1] = -0.375;
      const back = dequantize(quantize(one, n, k));
      assert.ok(Math.abs(back[n * k - 1] + 0.375) < 1e-6);
      assert.equal(back.filter((it) => it !== 0).length, 1);
    }
  }
});

Deno.test("int8 keeps the bound of its scheme, whatever the weights", () => {
  const [n, k] = [13, 200];
  const shapes: Record<string, (i: number) => number> = {
    "all equal": () => 1,
    "all negative": () => -3,
    "two values": (i) => i % 2 ? 1 : -1,
    "ramp": (i) => i % k,
    "outlier": (i) => i % 50 ? 0.01 : 1,
  };
  for (const [name, of] of Object.entries(shapes)) {
    const w = Float32Array.from({ length: n * k }, (_, i) => of(i));
    const packed = quantizeInt8(w, n, k);
    assert.ok(boundedSteps(packed) >= 4, name);
    const error = relativeError(dequantize(packed), w);
    assert.ok(error < 0.02, `${name}: ${error}`);
  }
});

Deno.test("a broken bound is seen: one lane of four steps, of eight steps, of either sign", () => {
  const make = (values: [number, number][]) => {
    const data = new Uint8Array(packedBytes("int8-p8-s4", 8, 32));
    // Column 2, first pair: k = 0, 1, 4, 5, 8 … are bytes 8, 9, 40, 41, 72 …
    for (const [i, value] of values) data[8 + (i >> 1) * 32 + i % 2] = value;
    return boundedSteps({ scheme: "int8-p8-s4", n: 8, k: 32, data, scale: new Float32Array(8) });
  };
  assert.equal(make([[0, 127], [1, 127], [2, 4]]), 8);
  assert.equal(make([[0, 127], [1, 127], [2, 5]]), 1);
  assert.equal(make([[0, -127], [1, -127], [2, -5]]), 1);
  assert.equal(make([[0, 127], [1, 127], [8, 5]]), 4);
  assert.equal(make([[0, 127], [1, -127], [2, 127], [8, -127]]), 8);
});

Deno.test("bytes per matrix, padding counted", () => {
  assert.equal(packedBytes("f32", 3, 5), 60);
  assert.equal(packedBytes("int8-p8-s4", 9, 17), 16 * 32);
  assert.equal(packedBytes("int4-g32-p8", 9, 33), 2 * 2 * 144);
});

/** Moments of rows x [T, K], as a calibration gathers them. */
function momentsOf(x: Float32Array, k: number) {
  const b = FEEDBACK_BLOCK;
  const values = new Float32Array(Math.ceil(k / b) * b * b);
  for (let i = 0; i < k; i++) {
    for (let j = i; j < Math.min(k, i - i % b + b); j++) {
      for (let row = 0; row < x.length; row += k) values[i * b + j % b] += x[row + i] * x[row + j];
    }
  }
  return { k, values };
}

/** Rows of K inputs that few sources drive, as inputs of real matrices are. */
function correlated(rows: number, k: number): Float32Array {
  const sources = 12;
  const [mix, drive, noise] = [normal(sources * k, 3), normal(rows * sources, 4), normal(rows * k, 5)];
  const x = noise.map((it) => it * 0.3);
  for (let t = 0; t < rows; t++) {
    for (let s = 0; s < sources; s++) {
      for (let i = 0; i < k; i++) x[t * k + i] += drive[t * sources + s] * mix[s * k + i];
    }
  }
  return x;
}

Deno.test("feedback: what is added to later weights is what least squares says, across blocks nothing", () => {
  const k = FEEDBACK_BLOCK + 5;
  const moments = momentsOf(correlated(300, k), k);
  const { factors } = feedbackFrom(moments);
  // The last block has five inputs; with weight 1 wrong by e, least squares gives weights 2…4 the change H₂₂⁻¹ h₂₁ e.
  const b = FEEDBACK_BLOCK;
  const at = (i: number, j: number) => moments.values[(b + Math.min(i, j)) * b + Math.max(i, j)];
  let mean = 0;
  for (let i = 0; i < k; i++) mean += moments.values[i * b + i % b] / k;
  for (const j of [2, 3, 4]) {
    let sum = 0;
    for (const i of [2, 3, 4]) sum += (at(i, j) + (i === j ? 0.01 * mean : 0)) * factors[(b + 1) * b + i];
    assert.ok(Math.abs(sum - at(1, j)) < 1e-3 * Math.abs(at(1, 1)), `${j}: ${sum} is not ${at(1, j)}`);
  }
  assert.ok(factors.subarray((b + 5) * b).every((it) => it === 0));
});

Deno.test("feedback: the products lose less than half of what plain rounding loses", () => {
  const [n, k, t] = [24, 320, 400];
  const [w, x] = [normal(n * k, 6), correlated(t, k)];
  const products = (of: Float32Array) => {
    const out = new Float32Array(t * n);
    for (let row = 0; row < t; row++) {
      for (let i = 0; i < n; i++) {
        for (let j = 0; j < k; j++) out[row * n + i] += x[row * k + j] * of[i * k + j];
      }
    }
    return out;
  };
  const truth = products(w);
  const plain = relativeError(products(dequantize(quantizeInt4(w, n, k))), truth);
  const fed = quantizeInt4(w, n, k, feedbackFrom(momentsOf(x, k)));
  const error = relativeError(products(dequantize(fed)), truth);
  assert.ok(error < 0.5 * plain, `${error} of ${plain}`);
});

Deno.test("feedback: inputs that have nothing to do with one another, or never come, change nothing", () => {
  const [n, k] = [9, 70];
  const w = normal(n * k, 7);
  const values = new Float32Array(FEEDBACK_BLOCK ** 2);
  assert.deepEqual(quantizeInt4(w, n, k, feedbackFrom({ k, values })), quantizeInt4(w, n, k));
  for (let i = 0; i < k; i++) values[i * FEEDBACK_BLOCK + i] = i;
  assert.deepEqual(quantizeInt4(w, n, k, feedbackFrom({ k, values })), quantizeInt4(w, n, k));
  assert.throws(() => quantizeInt4(w, n, k, feedbackFrom({ k: 64, values })), /expected feedback for 70/);
});

Deno.test("unknown schemes and values that are no numbers are refused", () => {
  assert.equal(checkScheme("int8-p8-s4"), "int8-p8-s4");
  assert.throws(() => checkScheme("int4-g64"), { name: "TypeError", message: /"int4-g64"/ });
  assert.throws(() => quantizeInt8(Float32Array.of(1, NaN), 1, 2), {
    name: "RangeError",
    message: /value 1 is NaN/,
  });
  assert.throws(() => quantizeInt4(new Float32Array(5), 2, 3), /expected 6 values, found 5/);
});
