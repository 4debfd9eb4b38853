import assert from "node:assert/strict";
import type { Linear } from "../../lib/backend/backend.ts";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { chooseKernels, instantiate, probeZero, selfTest, UNSIGNED } from "../../lib/backend/wasm_kernels.ts";
import { pack } from "../../lib/weights/load.ts";
import { boundedSteps, quantizeInt8 } from "../../lib/weights/quantize.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { alike } from "./alike.ts";
import { random, tensor, testBackend } from "./suite.ts";

testBackend("reference", createReferenceBackend);
/** Each way in which integers are multiplied. */
const WAYS = [false, true].flatMap((twins) =>
  [
    { name: "plain SIMD", module: simd, ways: { twins } },
    { name: "relaxed SIMD, dot product", module: relaxed, ways: { multiplier: "dot", twins } },
    { name: "relaxed SIMD, 16-bit sums", module: relaxed, ways: { multiplier: "words", twins } },
  ] as const
);
for (const { name, module, ways } of WAYS) {
  const make = (twins: boolean) => createWasmBackend(module, { ...ways, twins });
  if (ways.twins) testBackend(`wasm, ${name}, twins`, () => alike(make(false), make(true)));
  else testBackend(`wasm, ${name}`, () => make(false));
}

Deno.test("both builds pass the self-test, and the relaxed one is taken", () => {
  assert.equal(selfTest(simd), undefined);
  assert.equal(selfTest(relaxed), undefined);
  assert.equal(chooseKernels({ simd, relaxed }), relaxed);
  assert.equal(chooseKernels({ simd }), simd);
});

Deno.test("a build that computes wrongly on this engine is not taken", () => {
  const bytes = Deno.readFileSync(new URL("../../wasm/kernels_relaxed.wasm", import.meta.url));
  // i16x8.relaxed_dot_i8x16_i7x16_s becomes i16x8.mul: the same types, other values.
  for (let i = 0; i + 2 < bytes.length; i++) {
    if (bytes[i] === 0xfd && bytes[i + 1] === 0x92 && bytes[i + 2] === 2) bytes.set([0xfd, 0x95, 1], i);
  }
  const broken = new WebAssembly.Module(bytes);
  assert.match(selfTest(broken) ?? "", /gemm_int8 1: expected -?\d+, found -?\d+/);
  assert.equal(chooseKernels({ simd, relaxed: broken }), simd);
  assert.throws(() => chooseKernels({ simd: broken }), {
    name: "TypeError",
    message: /Broken engine: gemm_int8/,
  });
});

Deno.test("the kernels find the same bound in int8 weights as the packing does", () => {
  const memory = new WebAssembly.Memory({ initial: 3, maximum: 3 });
  const kernels = instantiate(relaxed, memory);
  const found = new Set<number>();
  for (let seed = 0; seed < 60; seed++) {
    const [n, k] = [1 + seed % 9, 16 + seed * 5];
    const w = quantizeInt8(random(n * k, seed).map((it) => it ** 5), n, k);
    const data = new Int8Array(w.data.buffer);
    if (seed % 3 === 0) data[seed * 7 % data.length] = 127;
    if (seed % 5 === 0) data.fill(-120, 0, seed);
    const start = kernels.__heap_base.value;
    new Int8Array(memory.buffer, start).set(data);
    const steps = boundedSteps(w);
    assert.equal(kernels.bound_int8(start, Math.ceil(k / 16) * 16, Math.ceil(n / 8)), steps, `seed ${seed}`);
    found.add(steps);
  }
  assert.deepEqual([...found].sort(), [1, 4, 8]);
});

Deno.test("a row meets nibbles of any value to the same bits in every way that this processor has", () => {
  const [n, k] = [152, 2144];
  const memory = new WebAssembly.Memory({ initial: 8, maximum: 8 });
  const kernels = instantiate(relaxed, memory);
  const base = Math.ceil(kernels.__heap_base.value / 64) * 64;
  const [x, ones, out] = [base, base + 4096, base + 8192];
  const [values, presets, w] = [base + 16_384, base + 32_768, base + 65_536];
  const groups = k / 32;
  const activations = new Float32Array(memory.buffer, values, k);
  activations.set(random(k, 3).map((it, i) => i % 7 === 0 ? Math.sign(it) : it));
  new Float32Array(memory.buffer, ones, n).fill(1);
  const bytes = new Uint8Array(memory.buffer, w, n / 8 * groups * 144);
  const factor = new Float32Array(memory.buffer, ones + 4 * n, 1);
  kernels.quantize8(x, presets, factor.byteOffset, values, k, 1, k, k, 1);
  factor[0] = 1;
  const row = new Int8Array(memory.buffer, x, k);
  assert.deepEqual([Math.min(...row), Math.max(...row)], [-127, 127]);
  // Scales of two bytes, and such as are made bytes.
  for (const [most, head] of [[1023, 16], [127, 8]]) {
    const gemv = head === 8 ? kernels.gemv_int4 : kernels.gemv_int4_wide;
    bytes.set(Uint8Array.from(random(bytes.length, 4), (it, i) => i % 5 === 0 ? 255 : 128 + 127 * it));
    const scaleOf = (column: number, group: number) => (column * 31 + group * 7) % (2 * most + 1) - most;
    for (let at = 0; at < n / 8 * groups; at++) {
      const scales = new Int16Array(memory.buffer, w + at * 144, 8);
      scales.forEach((_, c) => scales[c] = scaleOf(Math.floor(at / groups) * 8 + c, at % groups));
    }
    const expected = Array.from({ length: n }, (_, column) => {
      let sum = 0;
      for (let i = 0; i < k; i++) {
        const group = (column >> 3) * groups + (i >> 5);
        const byte = bytes[group * 144 + 16 + (i % 32 >> 2) * 16 + column % 4 * 4 + i % 4];
        sum += row[i] * ((column & 4 ? byte >> 4 : byte & 15) - 8) * scaleOf(column, i >> 5);
      }
      return Math.fround(sum);
    });
    assert.equal(kernels.narrow_int4(w, n / 8 * groups), head);
    // By dot-add, by 16-bit sums, and by whole bytes where the operand of nibbles has eight bits without a sign.
    for (const kernel of probeZero(kernels) === 128 ? [0, 8, UNSIGNED] : [0, 8]) {
      gemv(x, presets, factor.byteOffset, w, ones, k, n, out, 0, 0, 0, kernel);
      assert.deepEqual(
        [...new Float32Array(memory.buffer, out, n)],
        expected,
        `kernel ${kernel}, up to ${most}`,
      );
    }
  }
});

function everyWay() {
  return WAYS.map(({ module, ways }) => createWasmBackend(module, ways));
}

Deno.test("a row of a product with integer weights is what it is alone, however many there are", async () => {
  const builds = everyWay();
  // So wide that few rows go through the columns in several parts, the last of them no whole panel.
  const [n, k, most] = [460, 2050, 6];
  for (const scheme of ["int8-p8-s4", "int4-g32-p8"] as const) {
    const [stored, second] = [1, 2].map((seed) => pack(scheme, random(n * k, seed), n, k));
    for (const b of builds) {
      const [w, up, bias] = [b.matrix(stored), b.matrix(second), tensor(b, 1, n, random(n, 3))];
      const [x, more] = [tensor(b, most, k, random(most * k, 4)), tensor(b, most, n, random(most * n, 5))];
      const products = async (row: number, rows: number) => {
        const [from, residual] = [b.slice(x, row, rows), b.slice(more, row, rows)];
        const [out, mixed] = [b.tensor(rows, n), b.tensor(rows, n)];
        b.linear(out, from, w, { bias, residual, activation: "gelu" });
        b.gated(mixed, from, w, up);
        return [await b.read(out), await b.read(mixed)];
      };
      const alone: Float32Array[][] = [];
      for (let row = 0; row < most; row++) alone.push(await products(row, 1));
      for (let rows = 2; rows <= most; rows++) {
        for (const [i, found] of (await products(0, rows)).entries()) {
          for (let row = 0; row < rows; row++) {
            assert.deepEqual(
              found.subarray(row * n, (row + 1) * n),
              alone[row][i],
              `${rows} rows, ${scheme}`,
            );
          }
        }
      }
    }
  }
});

Deno.test("several products at once are what each is alone", async () => {
  const [k, most] = [64, 400];
  // Of all schemes and widths, some after one another of one kind, and not all of the same rows.
  const shapes = [
    ["int4-g32-p8", 200],
    ["int4-g32-p8", 33],
    ["int4-g32-p8", 33],
    ["int8-p8-s4", 9],
    ["int8-p8-s4", 300],
    ["f32", 8],
    ["f32", 70],
    ["int4-g32-p8", 40],
  ] as const;
  const stored = shapes.map(([scheme, n], i) => pack(scheme, random(n * k, 10 + i), n, k));
  for (const b of everyWay()) {
    const matrices = stored.map((it) => b.matrix(it));
    const x = tensor(b, most, k, random(most * k, 1));
    for (const rows of [1, 2, 4, 6, 41, most]) {
      const of = matrices.map((w, i): Linear => {
        const bias = i % 3 ? undefined : tensor(b, 1, w.n, random(w.n, 30 + i));
        const residual = i % 2 ? tensor(b, rows, w.n, random(rows * w.n, 40 + i)) : undefined;
        const out = b.slice(b.tensor(rows, w.n + 5), 0, rows, 2, w.n);
        const own = b.slice(x, i === 6 && rows < most ? 1 : 0, rows);
        return [out, own, w, { bias, residual, activation: i % 4 ? undefined : "gelu" }];
      });
      const outs = () => Promise.all(of.map(([out]) => b.read(out)));
      for (const it of of) b.linear(...it);
      const alone = await outs();
      for (const [out] of of) b.write(out, new Float32Array(out.rows * out.cols).fill(NaN));
      b.linearEach(of);
      assert.deepEqual(await outs(), alone, `${rows} rows`);
    }
  }
});

Deno.test("many rows, which are multiplied from copies of the operands, are what few are, at every end of a copy and of tiles", async () => {
  const builds = everyWay();
  const [few, n] = [5, 51];
  const bounds = new Set<number>();
  for (const [i, k] of [3, 16, 20, 52, 64, 84, 130, 300].entries()) {
    const rows = 46 + i % 5;
    // With the power most weights are small, and eight products fit 16 bits.
    for (
      const [scheme, power] of [["f32", 1], ["int8-p8-s4", 1], ["int8-p8-s4", 5], ["int4-g32-p8", 1]] as const
    ) {
      const stored = pack(scheme, random(n * k, k).map((it) => it ** power), n, k);
      if (scheme === "int8-p8-s4") bounds.add(boundedSteps(stored));
      const values = random(rows * k, 7);
      for (const b of builds) {
        const [w, x, bias] = [b.matrix(stored), tensor(b, rows, k, values), tensor(b, 1, n, random(n, 3))];
        const out = b.tensor(rows, n);
        b.linear(out, x, w, { bias });
        const found = await b.read(out);
        for (let row = 0; row < rows; row += few) {
          const now = Math.min(few, rows - row);
          const part = b.tensor(now, n);
          b.linear(part, b.slice(x, row, now), w, { bias });
          const expected = await b.read(part);
          for (const [i, value] of expected.entries()) {
            const near = scheme === "f32" ? 1e-5 : 0;
            const off = Math.abs(found[row * n + i] - value);
            assert.ok(off <= near, `${scheme}, k ${k}, row ${row}: ${found[row * n + i]} for ${value}`);
          }
        }
      }
    }
  }
  assert.deepEqual([...bounds].sort(), [4, 8]);
});

Deno.test("memory: pieces are reused, and growing keeps what was written", async () => {
  const b = createWasmBackend(simd);
  const kept = tensor(b, 3, 4, random(12, 1));
  for (let i = 0; i < 50; i++) b.free(b.tensor(500, 500), b.tensor(7, 7));
  assert.ok(b.memoryBytes < 3e6, `${b.memoryBytes} bytes held`);
  b.tensor(3000, 3000);
  assert.ok(b.memoryBytes > 36e6);
  assert.deepEqual(await b.read(kept), random(12, 1));
});

Deno.test("memory: what does not fit is refused with needed and available bytes, and the rest goes on", async () => {
  const b = createWasmBackend(simd, { maxBytes: 4 << 20 });
  const x = tensor(b, 2, 3, random(6, 2));
  assert.throws(() => b.tensor(1024, 1024), {
    name: "RangeError",
    message: /Cannot hold activations \[1024, 1024\]: 4194304 bytes needed, [34]\d{6} available/,
  });
  b.free(b.tensor(512, 1024));
  const big = b.tensor(800, 1024);
  assert.throws(() => b.tensor(512, 1024), /2097152 bytes needed, \d{6} available/);
  b.free(big);
  b.add(x, x);
  assert.deepEqual(await b.read(x), random(6, 2).map((it) => it + it));
});

Deno.test("a freed tensor is neither used nor freed again", () => {
  const b = createWasmBackend(simd);
  const x = b.tensor(2, 2);
  const part = b.slice(x, 0, 1);
  b.free(x);
  assert.throws(() => b.add(part, part), { name: "TypeError", message: /freed/ });
  assert.throws(() => b.free(x), { name: "TypeError", message: /freed before/ });
});

Deno.test("wasm: values are read to where there is room for them, and not where there is not", async () => {
  const b = createWasmBackend({ simd, relaxed });
  const x = tensor(b, 3, 8, random(24, 1));
  const room = new Float32Array(6);
  assert.equal(await b.read(b.slice(x, 1, 2, 4, 3), room), room);
  const values = random(24, 1);
  assert.deepEqual([...room], [...values.subarray(12, 15), ...values.subarray(20, 23)]);
  assert.throws(() => b.read(x, room), { name: "RangeError", message: /read: expected 24, found 6/ });
});
