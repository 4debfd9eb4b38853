/**
 * What rounding the activations costs, apart from rounding the weights: the bundled model, its stored weights as they
 * are, with the inputs of its int8 products rounded in one way or another.
 *
 *     deno run -A tests/bench/activations.ts --data FILE [--questions N]
 *
 * The kernels only know seven bits and a zero point per row (`layout.ts`, quantizeRow7). Here the rounding is done
 * beside them: weights are held as f32, rows are rounded before they are multiplied, and the sum is that of f32.
 */

import { parseArgs } from "node:util";
import type { Linear, Matrix, StoredMatrix, Tensor } from "../../lib/backend/backend.ts";
import { quantizeRow7 } from "../../lib/backend/layout.ts";
import { alone } from "../../lib/backend/crew.ts";
import { Wasm } from "../../lib/backend/wasm.ts";
import { WasmTensor } from "../../lib/backend/wasm_arena.ts";
import { dequantize, quantizeInt8 } from "../../lib/weights/quantize.ts";
import { createPipeline, createWasmBackend } from "../../lib/mod.ts";
import { directoryFiles, TINY } from "../../functions/model.ts";
import { logitError, type Trace, trace } from "../../models/eval_quant.ts";
import { evaluate } from "../../models/evaluation/evaluate.ts";
import { readShown } from "../../models/stages.ts";
import { simd } from "../../wasm/kernels.js";
import { numbers } from "./random.ts";

/** A way to round a row: into `levels` steps from 0, or as many on either side of 0. */
interface Rounding {
  readonly name: string;
  readonly levels: number;
  readonly zeroPoint: boolean;
}

const KERNELS: Rounding = { name: "7 bits, zero point (the kernels)", levels: 127, zeroPoint: true };
const ROUNDINGS: readonly Rounding[] = [
  { name: "f32", levels: Infinity, zeroPoint: true },
  { name: "u8, zero point", levels: 255, zeroPoint: true },
  KERNELS,
  { name: "s8, symmetric", levels: 127, zeroPoint: false },
  { name: "7 bits, symmetric", levels: 63, zeroPoint: false },
];

/** Bytes of a memory that holds the bundled model in f32. */
const MEMORY_PAGES = 4096;

/** The WASM backend with f32 in place of int8 weights, and rows rounded on their way into those. */
class RoundingBackend extends Wasm {
  readonly #memory: WebAssembly.Memory;
  readonly #rounded = new WeakSet<Matrix>();

  constructor(private readonly rounding: Rounding) {
    const memory = new WebAssembly.Memory({ initial: MEMORY_PAGES, maximum: MEMORY_PAGES });
    super(simd, { maxBytes: MEMORY_PAGES * 65536 }, { threads: 1, memory, hire: alone });
    this.#memory = memory;
  }

  override matrix(stored: StoredMatrix): Matrix {
    if (stored.scheme !== "int8-p8-s4") return super.matrix(stored);
    const { n, k } = stored;
    const matrix = super.matrix({ scheme: "f32", n, k, data: dequantize(stored) });
    this.#rounded.add(matrix);
    return matrix;
  }

  override linearEach(of: readonly Linear[]): void {
    for (const [out, x, w, options] of of) {
      this.#with(x, w, (it) => super.linearEach([[out, it, w, options]]));
    }
  }

  override gated(out: Tensor, x: Tensor, gate: Matrix, up: Matrix): void {
    this.#with(x, gate, (it) => super.gated(out, it, gate, up));
  }

  #with(x: Tensor, w: Matrix, run: (x: Tensor) => void): void {
    if (!this.#rounded.has(w) || this.rounding.levels === Infinity) return run(x);
    const copy = this.tensor(x.rows, x.cols);
    for (let row = 0; row < x.rows; row++) {
      this.#row(copy as WasmTensor, row).set(rounded(this.#row(x as WasmTensor, row), this.rounding));
    }
    run(copy);
    this.free(copy);
  }

  #row({ start, stride, cols }: WasmTensor, row: number): Float32Array {
    return new Float32Array(this.#memory.buffer, start + row * stride * 4, cols);
  }
}

/** Fails unless rounding beside the kernels as they do it inside gives their products. */
async function holdAgainstKernels(): Promise<void> {
  const [t, n, k] = [5, 64, 256];
  const stored = quantizeInt8(numbers(n * k, 2), n, k);
  const [inside, beside] = await Promise.all(
    [createWasmBackend({ simd }), new RoundingBackend(KERNELS)].map(async (backend) => {
      const [x, out] = [backend.tensor(t, k), backend.tensor(t, n)];
      backend.write(x, numbers(t * k, 3));
      backend.linear(out, x, backend.matrix(stored));
      return await backend.read(out);
    }),
  );
  const wrong = inside.findIndex((it, i) => !(Math.abs(it - beside[i]) < 1e-4));
  if (wrong >= 0) throw new RangeError(`Not the kernels' rounding: ${beside[wrong]} is not ${inside[wrong]}`);
}

/** The row as its integers say. */
function rounded(x: Float32Array, { levels, zeroPoint }: Rounding): Float32Array {
  let [low, high] = [0, 0];
  for (const v of x) [low, high] = [Math.min(low, v), Math.max(high, v)];
  const step = (zeroPoint ? high - low : Math.max(high, -low)) / levels;
  if (!step) return x;
  if (!zeroPoint) return x.map((v) => Math.round(v / step) * step);
  if (levels === 127) {
    const { q, zero, scale } = quantizeRow7(x);
    return Float32Array.from(q, (it) => (it - zero) * scale);
  }
  const zero = Math.round(-low / step);
  return x.map((v) => (Math.min(levels, Math.max(0, Math.round(v / step) + zero)) - zero) * step);
}

if (import.meta.main) await main();

async function main(): Promise<void> {
  const { values: flags } = parseArgs({
    options: {
      data: { type: "string" },
      questions: { type: "string", default: "200" },
      model: { type: "string", default: TINY },
    },
  });
  if (!flags.data) throw new RangeError("expected --data FILE, as models/tiny/scenes.py writes it");
  const questions = await readShown(flags.data, Number(flags.questions));
  const files = directoryFiles(flags.model!);
  await holdAgainstKernels();
  for (const format of ["as-stored", "int8"] as const) {
    let truth: Trace[] | undefined;
    for (const rounding of ROUNDINGS) {
      const subject = () => ({ backend: new RoundingBackend(rounding), files, format });
      truth ??= await trace(subject(), questions, 24);
      const error = await logitError(subject(), questions, truth);
      const { accuracy, n } = await evaluate(
        await createPipeline({
          backend: new RoundingBackend(rounding),
          files,
          name: "tiny",
          weights: format,
        }),
        flags.data,
      );
      const figures = [
        `KL ${error.kl.toExponential(2)}`,
        `top-1 ${(100 * error.top1).toFixed(2)} %`,
        `mean error ${error.meanError.toFixed(4)}`,
        `max error ${error.maxError.toFixed(3)}`,
        `${(100 * accuracy).toFixed(2)} % of ${n} questions`,
      ];
      Deno.stdout.writeSync(
        new TextEncoder().encode(`${format.padEnd(10)} ${rounding.name.padEnd(34)} ${figures.join("  ")}\n`),
      );
    }
  }
}
