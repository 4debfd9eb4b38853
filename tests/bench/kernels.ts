/** The products at the model's true shapes, each first held against plain loops. */

import type { WasmMatrix } from "../../lib/backend/wasm_product.ts";
import type { Backend, Matrix, Scheme, StoredMatrix } from "../../lib/backend/backend.ts";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { coldBytes } from "./limits.ts";
import { bytesRead, numbers, randomMatrix } from "./random.ts";
import { openBackend, type Prepared, type Settings, type Weights, type Work } from "./work.ts";

/** x [T, K] · Wᵀ with W [N, K]. */
interface Shape {
  readonly t: number;
  readonly n: number;
  readonly k: number;
}

const SCHEMES: Record<Weights, Scheme> = { f32: "f32", int8: "int8-p8-s4", int4: "int4-g32-p8" };

/** Kernels by what they stand for: SigLIP's MLP and attention, Gemma's MLP in prefill and in decoding. */
export const KERNELS: readonly Work[] = [
  kernel("gemm-int8", "int8", { t: 256, n: 4304, k: 1152 }),
  kernel("gemm-int8-fc2", "int8", { t: 256, n: 1152, k: 4304 }),
  kernel("gemm-int8-qkv", "int8", { t: 256, n: 1152, k: 1152 }),
  kernel("gemm-int4", "int4", { t: 264, n: 16384, k: 2048 }),
  kernel("gemm-f32", "f32", { t: 256, n: 4304, k: 1152 }),
  kernel("matvec-int8", "int8", { t: 1, n: 16384, k: 2048 }),
  kernel("matvec-int4", "int4", { t: 1, n: 16384, k: 2048 }),
];

/**
 * A product as a work; `shape` may be any. A token's weights come from memory, never from a cache: matrices in turn until
 * it holds none of them.
 */
export function kernel(name: string, weights: Weights, shape: Shape, cold?: number): Work {
  return {
    name,
    weights,
    prepare: (settings) => prepare(SCHEMES[weights], shape, settings, cold ?? coldBytes()),
  };
}

async function prepare(
  scheme: Scheme,
  { t, n, k }: Shape,
  settings: Settings,
  cold: number,
): Promise<Prepared> {
  const stored = randomMatrix(scheme, n, k);
  const input = numbers(t * k);
  const { backend, close } = await openBackend(settings);
  const [x, out] = [backend.tensor(t, k), backend.tensor(t, n)];
  const bytes = bytesRead(scheme, n, k);
  const copies = t === 1 ? Math.ceil(cold / bytes) : 1;
  const matrices: Matrix[] = Array.from({ length: copies }, () => backend.matrix(stored));
  backend.write(x, input);
  backend.linear(out, x, matrices[0]);
  await check(await backend.read(out), stored, input, t);
  let turn = 0;
  return {
    async run() {
      backend.linear(out, x, matrices[turn++ % copies]);
      await backend.read(backend.slice(out, 0, 1, 0, 1));
    },
    operations: 2 * t * n * k,
    bytes: bytes + (stored.scale?.byteLength ?? 0),
    bound: t === 1 ? "dramRead" : { kernel: kernelOf(backend, scheme, t), floats: scheme === "f32" },
    close,
  };
}

/** Which kernel multiplies `rows` rows: 0 is the dot product with addition, TWIN that of two vectors, else steps in 16 bits. */
export function kernelOf(backend: Backend, scheme: Scheme, rows: number): number {
  const matrix = backend.matrix(randomMatrix(scheme, 64, 1152));
  backend.free(matrix);
  return (matrix as WasmMatrix).kernelFor?.(rows) ?? (matrix as WasmMatrix).kernel;
}

/** First and last row against plain loops; a wrong kernel is not worth timing. */
async function check(
  found: Float32Array,
  stored: StoredMatrix,
  input: Float32Array,
  t: number,
): Promise<void> {
  const { n, k } = stored;
  const reference = createReferenceBackend();
  const [x, out] = [reference.tensor(1, k), reference.tensor(1, n)];
  const matrix = reference.matrix(stored);
  for (const row of new Set([0, t - 1])) {
    reference.write(x, input.subarray(row * k, (row + 1) * k));
    reference.linear(out, x, matrix);
    const wanted = await reference.read(out);
    let [worst, most] = [0, 0];
    for (let i = 0; i < n; i++) {
      const difference = Math.abs(wanted[i] - found[row * n + i]);
      if (!(difference <= worst)) worst = difference;
      most = Math.max(most, Math.abs(wanted[i]));
    }
    if (!(worst <= 1e-5 * most)) {
      throw new RangeError(
        `Broken kernel: ${stored.scheme} [${n}, ${k}], row ${row} of ${t} is off by ${worst}`,
      );
    }
  }
}
