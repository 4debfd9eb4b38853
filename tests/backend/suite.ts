/**
 * One suite for every backend: each operation against the reference in plain loops, on many shapes, with operands
 * that are slices of wider tensors, and with what must be refused.
 */

import assert from "node:assert/strict";
import type {
  AttentionOptions,
  Backend,
  EachAttentionOptions,
  LinearOptions,
  Scheme,
  StoredMatrix,
  Tensor,
} from "../../lib/backend/backend.ts";
import { groupAt, nibbleAt, packedBytes, paddedK } from "../../lib/backend/layout.ts";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { pack } from "../../lib/weights/load.ts";

/** Numbers from -size to size, the same for the same seed. */
export function random(length: number, seed: number, size = 1): Float32Array {
  let state = seed * 2654435761 >>> 0;
  return Float32Array.from({ length }, () => {
    state = state + 0x6d2b79f5 >>> 0;
    let t = Math.imul(state ^ state >>> 15, state | 1);
    t ^= t + Math.imul(t ^ t >>> 7, t | 61);
    return ((t ^ t >>> 14) >>> 0) / 2 ** 31 * size - size;
  });
}

/** Values as a tensor of their own. */
export function tensor(b: Backend, rows: number, cols: number, values: Float32Array): Tensor {
  const t = b.tensor(rows, cols);
  b.write(t, values);
  return t;
}

/** Largest difference, as a share of `unit` and of the expected value's own size. */
export function difference(found: Float32Array, expected: Float32Array, unit = 1): number {
  assert.equal(found.length, expected.length);
  let worst = 0;
  for (let i = 0; i < found.length; i++) {
    const error = Math.abs(found[i] - expected[i]) / (unit + Math.abs(expected[i]));
    if (!(error <= worst)) worst = Number.isNaN(error) ? Infinity : error;
  }
  return worst;
}

const EDGE = 7;

/** A slice inside a wider tensor, the values in it and a frame of sevens around it. */
function framed(b: Backend, rows: number, cols: number, values?: Float32Array) {
  const whole = b.tensor(rows + 2, cols + 5);
  b.write(whole, new Float32Array((rows + 2) * (cols + 5)).fill(EDGE));
  const inner = b.slice(whole, 1, rows, 3, cols);
  if (values) b.write(inner, values);
  return {
    inner,
    /** The values; fails when the frame is not as it was. */
    async read(): Promise<Float32Array> {
      const all = await b.read(whole);
      for (let r = 0; r < rows + 2; r++) {
        for (let c = 0; c < cols + 5; c++) {
          const inside = r >= 1 && r <= rows && c >= 3 && c < cols + 3;
          if (!inside) assert.equal(all[r * (cols + 5) + c], EDGE, `wrote outside at [${r - 1}, ${c - 3}]`);
        }
      }
      return b.read(inner);
    },
  };
}

/** Registers the tests of a backend. `tolerance` is relative, for f32 operations. */
export function testBackend(name: string, make: () => Backend, tolerance = 2e-6): void {
  const test = (what: string, fn: () => void | Promise<void>) => Deno.test(`${name}: ${what}`, fn);
  /** Runs the same operations on both backends and compares. */
  async function agree(
    run: (b: Backend) => Promise<Float32Array>,
    { unit = 1, limit = tolerance, about = "" } = {},
  ): Promise<void> {
    const expected = await run(createReferenceBackend());
    const worst = difference(await run(make()), expected, unit);
    assert.ok(worst <= limit, `${about}: relative error ${worst}, at most ${limit} allowed`);
  }

  const SHAPES = [
    [1, 1, 1],
    [1, 48, 13],
    [1, 515, 8],
    [2, 3, 5],
    [3, 588, 32],
    [4, 16, 8],
    [5, 37, 9],
    [7, 44, 33],
    [13, 1152, 24],
    [322, 20, 17],
    [645, 5, 3],
  ];

  for (const scheme of ["f32", "int8-p8-s4", "int4-g32-p8"] as Scheme[]) {
    test(`linear, ${scheme}, on slices, with bias, GELU and residual`, async () => {
      for (const [t, k, n] of SHAPES) {
        const w = pack(scheme, random(n * k, 1), n, k);
        for (const flags of [0, 1, 2, 4, 7]) {
          await agree((b) => {
            const x = framed(b, t, k, random(t * k, 2, 2));
            const out = framed(b, t, n);
            const options: LinearOptions = {
              ...flags & 1 && { bias: framed(b, 1, n, random(n, 3)).inner },
              ...flags & 2 && { activation: "gelu" },
              ...flags & 4 && { residual: framed(b, t, n, random(t * n, 4)).inner },
            };
            b.linear(out.inner, x.inner, b.matrix(w), options);
            return out.read();
          }, { unit: Math.sqrt(k), about: `[${t}, ${k}] to ${n}, flags ${flags}` });
        }
      }
    });

    test(`linear, ${scheme}, adds to its residual in place`, async () => {
      for (const [t, k, n] of [[1, 40, 11], [6, 40, 16]]) {
        const w = pack(scheme, random(n * k, 5), n, k);
        await agree((b) => {
          const out = framed(b, t, n, random(t * n, 6));
          b.linear(out.inner, tensor(b, t, k, random(t * k, 7)), b.matrix(w), { residual: out.inner });
          return out.read();
        });
      }
    });

    test(`gated, ${scheme}`, async () => {
      for (const [t, k, n] of SHAPES) {
        const gate = pack(scheme, random(n * k, 8), n, k);
        const up = pack(scheme, random(n * k, 9), n, k);
        await agree((b) => {
          const out = framed(b, t, n);
          b.gated(out.inner, framed(b, t, k, random(t * k, 10)).inner, b.matrix(gate), b.matrix(up));
          return out.read();
        }, { unit: k, about: `[${t}, ${k}] to ${n}` });
      }
    });

    test(`embed, ${scheme}`, async () => {
      for (const [n, k] of [[1, 1], [9, 7], [40, 48], [23, 70]]) {
        const table = pack(scheme, random(n * k, 11), n, k);
        const ids = [n - 1, 0, n >> 1, n - 1];
        await agree((b) => {
          const out = framed(b, ids.length, k);
          b.embed(out.inner, ids, b.matrix(table), 6.9282);
          return out.read();
        });
        const b = make();
        const w = b.matrix(table);
        const [known, mixed] = [framed(b, ids.length, k), framed(b, ids.length, k)];
        const left = tensor(b, 2, 2, Float32Array.of(ids[1], -1, ids[3], -2));
        b.embed(known.inner, ids, w, 6.9282);
        b.embed(
          mixed.inner,
          [ids[0], b.slice(left, 0, 1, 0, 1), ids[2], b.slice(left, 1, 1, 0, 1)],
          w,
          6.9282,
        );
        assert.deepEqual(await mixed.read(), await known.read(), "ids that stand in tensors are as good");
        b.free(w, left);
      }
    });

    test(`linear, ${scheme}, on rows of zeros and on very large and very small rows`, async () => {
      const [t, k, n] = [5, 96, 10];
      const w = pack(scheme, random(n * k, 12), n, k);
      const x = random(t * k, 13);
      [0, 1e-20, 1, 1e20, 1].forEach((size, r) => {
        for (let i = 0; i < k; i++) x[r * k + i] *= size;
      });
      x.fill(3, 4 * k, 5 * k); // a row without spread
      const rows = (b: Backend, first: number, count: number) => {
        const out = b.tensor(count, n);
        b.linear(out, tensor(b, count, k, x.subarray(first * k, (first + count) * k)), b.matrix(w));
        return b.read(out);
      };
      for (const [r, unit] of [0, 1e-20, 1, 1e20, 1].entries()) {
        await agree((b) => rows(b, r, 1), { unit: unit || 1, about: `row ${r} alone` });
      }
      const all = await rows(make(), 0, t);
      const reference = await rows(createReferenceBackend(), 0, t);
      for (const [r, unit] of [0, 1e-20, 1, 1e20, 1].entries()) {
        const part = (from: Float32Array) => from.subarray(r * n, (r + 1) * n);
        assert.ok(difference(part(all), part(reference), unit || 1) <= 2 * tolerance, `row ${r} of ${t}`);
      }
    });
  }

  test("long sums stay near one rounding, K = 16,384", async () => {
    for (const t of [1, 4]) {
      const [k, n] = [16_384, 8];
      const w = pack("f32", random(n * k, 14), n, k);
      await agree((b) => {
        const out = b.tensor(t, n);
        b.linear(out, tensor(b, t, k, random(t * k, 15)), b.matrix(w));
        return b.read(out);
      }, { unit: Math.sqrt(k) / 3, limit: 3e-7 });
    }
  });

  test("quantised weights at the ends of their range: same integers as the reference", async () => {
    for (const k of [16, 31, 64, 2048, 2100, 4304, 8192]) {
      for (const fill of [() => 127, () => -127, (i: number) => i * 7 % 13 % 2 ? 127 : -127]) {
        // Every bound broken: the sums of two steps would no longer fit 16 bits.
        const data = new Uint8Array(8 * Math.ceil(k / 16) * 16).map((_, i) => fill(i));
        await extremes({ scheme: "int8-p8-s4", n: 8, k, data, scale: new Float32Array(8).fill(1) }, k);
      }
      const ends = [[1023, 255], [-1023, 0], [1023, 240], [-1023, 15], [1, 240], [128, 240], [-127, 240]];
      for (const [scale, nibbles] of ends) {
        const data = new Uint8Array(Math.ceil(k / 32) * 144).fill(nibbles);
        for (let at = 0; at < data.length; at += 144) new Int16Array(data.buffer, at, 8).fill(scale);
        await extremes({ scheme: "int4-g32-p8", n: 8, k, data, scale: new Float32Array(8).fill(1) }, k);
      }
    }
  });

  test("products of many rows with int4 weights at the ends of their range are the reference's, bit for bit", async () => {
    // Scales within ±15 leave bytes, which some kernels multiply in another way.
    const [n, cases] = [12, [[21, 1023], [12, 15], [21, 15], [38, 15], [21, 16]]];
    for (const [t, bound, k] of cases.flatMap((it) => [31, 2048, 2080, 16_384].map((k) => [...it, k]))) {
      // Of every four columns, one is all greatest, one all least, two are mixtures; scales likewise.
      const most = (column: number, v: number) => column % 4 === 0 || column % 4 > 1 && v > 0;
      const mixture = random(n * k, 36);
      const data = new Uint8Array(packedBytes("int4-g32-p8", n, k));
      for (let column = 0, j = 0; column < n; column++) {
        for (let i = 0; i < k; i++, j++) {
          const at = groupAt(column, i, paddedK("int4-g32-p8", k));
          const scale = most(column, mixture[n * k - 1 - j]) ? bound : -bound;
          if (i % 32 === 0) new DataView(data.buffer).setInt16(at + column % 8 * 2, scale, true);
          if (most(column, mixture[j])) data[at + nibbleAt(column, i)] |= column & 4 ? 0xf0 : 0x0f;
        }
      }
      const w: StoredMatrix = { scheme: "int4-g32-p8", n, k, data, scale: new Float32Array(n).fill(1) };
      const x = random(t * k, 37).map((it, i) => it > 0 || i < k ? 127 : -127);
      const [found, expected] = await Promise.all([make(), createReferenceBackend()].map((b) => {
        const out = b.tensor(t, n);
        b.linear(out, tensor(b, t, k, x), b.matrix(w));
        return b.read(out);
      }));
      assert.deepEqual(found, expected, `${t} rows, K = ${k}, scales up to ${bound}`);
    }
  });

  async function extremes(w: StoredMatrix, k: number): Promise<void> {
    for (const t of [1, 4]) {
      const x = Float32Array.from({ length: t * k }, (_, i) => t > 1 ? (i * 31 % 5 < 2 ? 1 : -1) : 1);
      await agree((b) => {
        const out = b.tensor(t, 8);
        b.linear(out, tensor(b, t, k, x), b.matrix(w));
        return b.read(out);
      }, { unit: 1, limit: 1e-6, about: `${w.scheme}, [${t}, ${k}], bytes ${w.data.slice(0, 20)}` });
    }
  }

  test("layerNorm and rmsNorm, in place too, with large means and zero rows", async () => {
    for (const [t, k] of [[1, 1], [1, 4], [3, 13], [5, 48], [2, 1152], [1, 2304]]) {
      for (const [mean, size] of [[0, 1], [1000, 1], [0, 0], [0, 1e-4], [-3, 200]]) {
        for (const inPlace of [false, true]) {
          const values = random(t * k, 16, size).map((it) => it + mean);
          const about = `[${t}, ${k}], mean ${mean}, size ${size}`;
          await agree((b) => {
            const x = framed(b, t, k, values);
            const out = inPlace ? x : framed(b, t, k);
            const weight = framed(b, 1, k, random(k, 17)).inner;
            b.layerNorm(out.inner, x.inner, weight, framed(b, 1, k, random(k, 18)).inner, 1e-6);
            return out.read();
          }, { about });
          await agree((b) => {
            const x = framed(b, t, k, values);
            const out = inPlace ? x : framed(b, t, k);
            b.rmsNorm(out.inner, x.inner, framed(b, 1, k, random(k, 19)).inner, 1e-6);
            return out.read();
          }, { about });
        }
      }
    }
  });

  test("add", async () => {
    for (const [t, k] of [[1, 1], [3, 7], [5, 64]]) {
      await agree((b) => {
        const out = framed(b, t, k, random(t * k, 20));
        b.add(out.inner, framed(b, t, k, random(t * k, 21)).inner);
        return out.read();
      });
    }
  });

  test("rope, at positions up to 8191", async () => {
    for (const [t, heads, dim] of [[1, 1, 2], [3, 2, 6], [5, 4, 16], [2, 1, 256]]) {
      for (const position of [0, 1, 6000, 8191 - t]) {
        await agree((b) => {
          const x = framed(b, t, heads * dim, random(t * heads * dim, 22));
          b.rope(x.inner, dim, position, 10_000);
          b.rope(x.inner, dim, position + 1, 10_000);
          return x.read();
        });
      }
    }
  });

  test("rope, with a position for each row", async () => {
    for (const positions of [[7], [3, 900, 3, 0]]) {
      await agree((b) => {
        const x = framed(b, positions.length, 32, random(positions.length * 32, 31));
        b.rope(x.inner, 16, positions, 10_000);
        return x.read();
      });
    }
  });

  test("place", async () => {
    await agree((b) => {
      const out = framed(b, 5, 19, random(5 * 19, 32));
      const outs = [3, 0, 4].map((row) => b.slice(out.inner, row, 1, 2, 13));
      b.place(outs, framed(b, 3, 13, random(3 * 13, 33)).inner);
      return out.read();
    });
  });

  test("attention of rows that are each the last of their own keys", async () => {
    const cases: [number[], Partial<EachAttentionOptions>][] = [
      [[1], {}],
      [[133], { heads: 5, headDim: 13 }],
      [[5, 1, 130, 64], { heads: 4 }],
      [[3, 3, 70], { heads: 4, kvHeads: 2, softcap: 9, window: 20 }],
      [Array.from({ length: 16 }, (_, i) => 20 + i * 7), { heads: 8, headDim: 72 }],
      [[2200, 90], {}],
      [[7, 133, 4, 2], { heads: 5, headDim: 13 }],
    ];
    for (const [lengths, given] of cases) {
      const options = { heads: 1, kvHeads: 1, headDim: 16, scale: 0.25, ...given };
      const { heads, kvHeads, headDim } = options;
      const [width, shared] = [heads * headDim, kvHeads * headDim];
      await agree((b) => {
        const out = framed(b, lengths.length, width);
        const q = framed(b, lengths.length, width, random(lengths.length * width, 34, 2)).inner;
        const [keys, values] = [35, 60].map((seed) =>
          lengths.map((it, t) => framed(b, it, shared, random(it * shared, seed + t)).inner)
        );
        b.attentionEach(out.inner, q, keys, values, options);
        return out.read();
      }, { about: `${lengths} keys, ${JSON.stringify(options)}` });
    }
  });

  test("attention: full, causal, prefix, window, cap, shared heads", async () => {
    const base = { heads: 1, kvHeads: 1, headDim: 16, scale: 0.25, start: 0, prefix: 0 };
    const cases: [number, number, Partial<AttentionOptions>][] = [
      [1, 1, {}],
      [5, 5, {}],
      [6, 6, { prefix: 6, heads: 2, kvHeads: 2 }],
      [7, 7, { prefix: 3, heads: 4 }],
      [1, 30, { start: 29, prefix: 12, heads: 8 }],
      [3, 40, { start: 37, heads: 4, kvHeads: 2, softcap: 50 }],
      [9, 9, { prefix: 4, window: 3, heads: 2, softcap: 5 }],
      [20, 20, { window: 1 }],
      [2, 50, { start: 10, prefix: 33 }],
      [1, 50, { start: 20, prefix: 8, window: 6 }],
      [5, 9, { start: 2, prefix: 100 }],
      [17, 17, { prefix: 17, headDim: 72, heads: 3, kvHeads: 3, scale: 72 ** -0.5 }],
      [3, 300, { start: 297, headDim: 256, scale: 1 / 16, heads: 2 }],
      [70, 330, { start: 250, prefix: 20, window: 150, heads: 3, headDim: 20 }],
      [61, 140, { start: 70, prefix: 90, window: 40, heads: 2, softcap: 9 }],
      [4, 4, { headDim: 1, scale: 1 }],
      [4, 4, { headDim: 7, scale: 1, heads: 3, prefix: 2 }],
      [4, 4, { headDim: 10, scale: 1, heads: 3, kvHeads: 3 }],
    ];
    for (const [rows, keys, given] of cases) {
      const options = { ...base, ...given };
      const { heads, kvHeads, headDim } = options;
      for (const size of [0, 1, 30]) {
        await agree((b) => {
          const out = framed(b, rows, heads * headDim);
          const q = framed(b, rows, heads * headDim, random(rows * heads * headDim, 23, size));
          const k = framed(b, keys, kvHeads * headDim, random(keys * kvHeads * headDim, 24, size));
          const v = framed(b, keys, kvHeads * headDim, random(keys * kvHeads * headDim, 25));
          b.attention(out.inner, q.inner, k.inner, v.inner, options);
          return out.read();
          // Scores of thousands carry the rounding of their own size into the exponent.
        }, { limit: size > 1 ? 1e-3 : tolerance, about: `${JSON.stringify(options)}, size ${size}` });
      }
    }
  });

  test("attention in integers", async () => {
    for (
      const [rows, heads, headDim] of [[1, 1, 4], [5, 2, 8], [17, 3, 72], [64, 2, 64], [33, 1, 20], [
        256,
        1,
        72,
      ]]
    ) {
      for (const size of [0, 1, 30]) {
        for (const shift of [0, 100]) {
          const options = { heads, headDim, scale: headDim ** -0.5 };
          const count = rows * heads * headDim;
          await agree((b) => {
            const out = framed(b, rows, heads * headDim);
            const q = framed(b, rows, heads * headDim, random(count, 23, size));
            const k = framed(b, rows, heads * headDim, random(count, 24, size).map((it) => it + shift));
            const v = framed(b, rows, heads * headDim, random(count, 25));
            b.attentionInt8(out.inner, q.inner, k.inner, v.inner, options);
            return out.read();
            // A weight may be rounded the other way, where the exponential differs in its last bit.
          }, {
            limit: 4e-4,
            about: `${JSON.stringify(options)}, ${rows} rows, size ${size}, shift ${shift}`,
          });
        }
      }
    }
  });

  test("patches", async () => {
    for (const [size, patch, k] of [[28, 14, 588], [8, 3, 27], [6, 2, 16], [5, 5, 75]]) {
      const grid = Math.floor(size / patch);
      await agree((b) => {
        const out = framed(b, grid * grid, k);
        b.patches(out.inner, tensor(b, 1, size * size * 3, random(size * size * 3, 26)), size, patch);
        return out.read();
      });
    }
  });

  test("broken shapes are RangeErrors with both numbers", () => {
    const b = make();
    const w = b.matrix(pack("f32", random(12, 27), 3, 4));
    const [x, out, row] = [b.tensor(2, 4), b.tensor(2, 3), b.tensor(1, 4)];
    const broken: [() => unknown, RegExp][] = [
      [() => b.linear(out, b.tensor(2, 5), w), /expected 4, found 5/],
      [() => b.linear(b.tensor(2, 7), x, w), /expected 3, found 7/],
      [() => b.linear(b.tensor(9, 3), x, w), /found 9|expected 9/],
      [() => b.linear(out, x, w, { bias: b.tensor(1, 4) }), /expected 3, found 4/],
      [() => b.linear(out, x, w, { bias: b.tensor(2, 3) }), /expected 1, found 2/],
      [() => b.linear(out, x, w, { residual: b.tensor(1, 3) }), /expected 2, found 1/],
      [() => b.gated(out, x, w, b.matrix(pack("f32", random(20, 28), 5, 4))), /expected 3, found 5/],
      [() => b.layerNorm(x, x, b.tensor(1, 5), row, 1e-6), /expected 4, found 5/],
      [() => b.rmsNorm(b.tensor(3, 4), x, row, 1e-6), /expected 2, found 3/],
      [() => b.rmsNorm(x, x, b.tensor(2, 4), 1e-6), /expected 1, found 2/],
      [() => b.add(x, out), /expected 4, found 3/],
      [() => b.rope(x, 3, 0, 1e4), /heads of 3 in a row of 4/],
      [() => b.rope(x, 4, [1], 1e4), /expected 2, found 1/],
      [() => b.place([row], x), /expected 2, found 1/],
      [() => b.place([row, b.tensor(1, 3)], x), /expected 4, found 3/],
      [() => b.embed(b.tensor(1, 4), [3], w, 1), /id 3: the table has 3 rows/],
      [() => b.embed(b.tensor(2, 4), [1], w, 1), /expected 1, found 2/],
      [() => b.embed(b.tensor(1, 4), [b.tensor(1, 2)], w, 1), /expected 1, found 2/],
      [() => b.patches(b.tensor(4, 11), b.tensor(1, 48), 4, 2), /12 values into rows of 11/],
      [() => b.patches(b.tensor(4, 12), b.tensor(1, 47), 4, 2), /expected 48, found 47/],
      [() => b.slice(x, 1, 2), /rows 1\+2.*\[2, 4\]/],
      [() => b.slice(x, 0, 1, 2, 3), /columns 2\+3/],
      [() => b.slice(x, -1, 1), /rows -1\+1/],
      [() => b.write(x, new Float32Array(7)), /expected 8, found 7/],
      [() => b.tensor(-1, 2), /\[-1, 2\]/],
      [() => b.tensor(1.5, 2), /\[1.5, 2\]/],
      [() => b.matrix({ scheme: "f32", n: 2, k: 2, data: new Float32Array(3) }), /16 bytes, found 12/],
      [() => b.matrix({ scheme: "int8-p8-s4", n: 2, k: 2, data: new Uint8Array(9) }), /128 bytes, found 9/],
      [() => b.matrix({ scheme: "int8-p8-s4", n: 2, k: 2, data: new Uint8Array(128) }), /2 scales/],
    ];
    const attend = (options: Partial<AttentionOptions>, keys = 2) => {
      const full = { heads: 2, kvHeads: 1, headDim: 2, scale: 1, start: 0, prefix: 0, ...options };
      const kv = b.tensor(keys, 2);
      return () => b.attention(b.tensor(2, 4), x, kv, kv, full);
    };
    broken.push(
      [attend({ start: 1 }), /1 to 3, keys end at 2/],
      [attend({ kvHeads: 3 }), /3 key-value heads do not divide 2 heads/],
      [attend({ headDim: 3 }), /expected 6, found 4/],
      [attend({ window: 0 }), /at least 1, found 0/],
    );
    for (const [run, message] of broken) assert.throws(run, { name: "RangeError", message });
  });

  test("out may not be x, an unknown scheme is refused by name, a slice is not freed", () => {
    const b = make();
    const w = b.matrix(pack("f32", random(16, 29), 4, 4));
    const x = b.tensor(2, 4);
    assert.throws(() => b.linear(x, x, w), { name: "RangeError", message: /same memory/ });
    assert.throws(() => b.gated(x, x, w, w), { name: "RangeError", message: /same memory/ });
    const odd = { scheme: "int3-x" as Scheme, n: 1, k: 1, data: new Uint8Array(1) };
    assert.throws(() => b.matrix(odd), { name: "TypeError", message: /"int3-x"/ });
    assert.throws(() => b.free(b.slice(x, 0, 1)), TypeError);
  });

  test("sizeBytes returns to where it was when everything is freed", () => {
    const b = make();
    const before = b.sizeBytes;
    const held = [b.tensor(3, 5), b.tensor(100, 20), b.matrix(pack("int4-g32-p8", random(640, 30), 8, 80))];
    assert.ok(b.sizeBytes >= before + 4 * (15 + 2000) + 8 * 80 / 2);
    b.free(...held);
    assert.equal(b.sizeBytes, before);
  });
}
