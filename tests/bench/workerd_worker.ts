/**
 * The kernels in a Worker: `/?work=gemm-int8&runs=20` multiplies so often and answers with one number of the result.
 * Clocks stand still while a Worker computes, so whoever asks measures.
 */

import { createWasmBackend } from "../../lib/backend/wasm.ts";
import type { Matrix, Scheme, Tensor } from "../../lib/backend/backend.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { numbers, randomMatrix } from "./random.ts";

/** Works by name: scheme, T, N, K. */
export const WORKERD_WORKS: Readonly<Record<string, readonly [Scheme, number, number, number]>> = {
  "gemm-int8": ["int8-p8-s4", 256, 4304, 1152],
  "gemm-int4": ["int4-g32-p8", 264, 4096, 2048],
  "gemm-f32": ["f32", 256, 1152, 1152],
  // Small enough for the 128 MB of an isolate, and for the last-level cache.
  "matvec-int4": ["int4-g32-p8", 1, 16384, 2048],
};

/** A product, ready to be repeated. */
export function openWork(name: string): (runs: number) => Promise<number> {
  const [scheme, t, n, k] = WORKERD_WORKS[name];
  const backend = createWasmBackend({ simd, relaxed });
  const [x, out]: Tensor[] = [backend.tensor(t, k), backend.tensor(t, n)];
  const matrix: Matrix = backend.matrix(randomMatrix(scheme, n, k));
  backend.write(x, numbers(t * k));
  return async (runs) => {
    for (let i = 0; i < runs; i++) backend.linear(out, x, matrix);
    return (await backend.read(backend.slice(out, t - 1, 1, n - 1, 1)))[0];
  };
}

let open: { name: string; run: (runs: number) => Promise<number> } | undefined;

export default {
  async fetch(request: Request): Promise<Response> {
    const { searchParams } = new URL(request.url);
    const name = searchParams.get("work") ?? "";
    if (!(name in WORKERD_WORKS)) return new Response(`No work "${name}"`, { status: 404 });
    if (open?.name !== name) open = { name, run: openWork(name) };
    return new Response(String(await open.run(Number(searchParams.get("runs")))));
  },
};
