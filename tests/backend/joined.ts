// deno-lint-ignore-file no-console -- a program of twins_test.ts; what it prints is read there
/**
 * Products and attention of twins beside those of single vectors, again and again until the engine has optimised both. Prints
 * whether the probe found that they are joined, how many values differed, and how many times as fast a product of 256 rows was.
 */

import type { Tensor } from "../../lib/backend/backend.ts";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { instantiate, waysOf } from "../../lib/backend/wasm_kernels.ts";
import { pack } from "../../lib/weights/load.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { random, tensor } from "./suite.ts";

const [build, multiplier] = Deno.args[0] === "plain" ? [simd] : [relaxed, Deno.args[0] as "dot" | "words"];
const backends = [false, true].map((twins) => createWasmBackend(build, { multiplier, twins }));
let [compared, differing] = [0, 0];

async function compare(outs: Tensor[]): Promise<void> {
  const [single, twins] = await Promise.all(outs.map((it, i) => backends[i].read(it)));
  compared += single.length;
  for (let i = 0; i < single.length; i++) if (!Object.is(single[i], twins[i])) differing++;
}

const shapes = [[6, 8, 32], [31, 9, 48], [36, 33, 128], [44, 72, 1184], [95, 31, 640], [256, 320, 1152]];
const least = [Infinity, Infinity];
for (let round = 0; round < 40; round++) {
  for (const [t, n, k] of round ? shapes.slice(-2) : shapes) {
    for (const scheme of ["int8-p8-s4", "int4-g32-p8"] as const) {
      const stored = pack(scheme, random(n * k, round + 1), n, k);
      const values = random(t * k, round + 2).map((it, i) => i % 5 ? it : Math.sign(it));
      const used = backends.map((b) => {
        const [w, x, out] = [b.matrix(stored), tensor(b, t, k, values), b.tensor(t, n)];
        const before = performance.now();
        for (let i = 0; i < 5; i++) b.linear(out, x, w);
        return { w, x, out, ms: performance.now() - before };
      });
      await compare(used.map((it) => it.out));
      if (round >= 30 && t === 256 && scheme === "int8-p8-s4") {
        used.forEach(({ ms }, i) => least[i] = Math.min(least[i], ms));
      }
      used.forEach(({ w, x, out }, i) => backends[i].free(w, x, out));
    }
  }
  const [t, heads, headDim] = [[31, 2, 72], [256, 2, 72], [77, 1, 64], [40, 2, 20]][round % 4];
  const q = random(t * heads * headDim, round + 3);
  const outs = backends.map((b) => {
    const [x, out] = [tensor(b, t, heads * headDim, q), b.tensor(t, heads * headDim)];
    for (let i = 0; i < 5; i++) b.attentionInt8(out, x, x, x, { heads, headDim, scale: 0.3 });
    return out;
  });
  await compare(outs);
  // Of rows behind others, some of which they all see.
  const mixed = backends.map((b) => {
    const [x, out] = [tensor(b, t, heads * headDim, q), b.tensor(5, heads * headDim)];
    const options = { heads, kvHeads: 1, headDim, scale: 0.3, start: t - 5, prefix: round % 3 * 7 };
    const [keys, values] = [b.slice(x, 0, t, 0, headDim), b.slice(x, 0, t, headDim * (heads - 1), headDim)];
    for (let i = 0; i < 5; i++) b.attention(out, b.slice(x, t - 5, 5), keys, values, options);
    return out;
  });
  await compare(mixed);
}
const memory = new WebAssembly.Memory({ initial: 4, maximum: 65_535 });
const probed = waysOf(instantiate(build, memory)).twins;
const ratio = least[0] / least[1];
console.log(JSON.stringify({ probed, compared, differing, ratio }));
