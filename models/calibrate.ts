/**
 * What the inputs of a model's matrices look like on pictures like those it will see, for rounding with feedback
 * (`lib/weights/quantize.ts`): the second moments of every input, in blocks along the diagonal.
 */

import { join } from "@std/path";
import type { Backend, Matrix, StoredMatrix, Tensor } from "../lib/backend/backend.ts";
import { type ModelFiles, RequestError } from "../lib/mod.ts";
import type { Weights } from "../lib/weights/load.ts";
import { FEEDBACK_BLOCK, type InputMoments } from "../lib/weights/quantize.ts";
import { type TensorSpec, tensorTable } from "../lib/weights/table.ts";
import { directoryFiles } from "../functions/model.ts";
import { type Calibration, convert, type ConvertOptions, momentsOf, targets } from "./convert.ts";
import { argmax } from "../lib/decode/sampler.ts";
import { openStages, readShown, run, type Shown } from "./stages.ts";

/** Tokens of an answer that are looked at. */
const ANSWER_TOKENS = 16;

/** Prompts that pictures get in turn where a directory of them has no `data.jsonl`. */
const PROMPTS = ["caption en", "describe en", "ocr", "answer en what is shown?", "detect person ; car"];

/**
 * Runs a model over pictures and prompts, greedily, and gathers the moments of the input of every matrix that is to be
 * int4. The model is run as plain conversion leaves it, in a temporary directory: so it fits wherever the result will.
 * Moments take 1 KiB for each input: 0.4 GB for Gemma 2B.
 *
 * @throws {RequestError} as `convert` and `openStages`, and for pictures that cannot be read.
 */
export async function calibrate(
  backend: Backend,
  files: ModelFiles,
  shown: readonly Shown[],
  options: Omit<ConvertOptions, "calibration" | "progress"> & {
    /** Called with pictures seen and pictures in all. */
    readonly progress?: (done: number, total: number) => void;
  },
): Promise<Calibration> {
  const { npz, adapter, signal, progress } = options;
  const target = targets(options);
  const plain = await Deno.makeTempDir({ prefix: "calibrate" });
  try {
    await convert(files, plain, { vision: "int8", decoder: "int4", npz, adapter, signal });
    const watch = new Watch(backend, (spec) => target(spec) === "int4-g32-p8");
    const stages = await openStages(
      watch.backend,
      directoryFiles(plain),
      "as-stored",
      (it) => watch.weights(it),
    );
    const { eosIds } = stages.config;
    const pause = () => {
      if (signal?.aborted) throw new RequestError("cancelled", "Calibration cancelled");
      return watch.settle();
    };
    for (const [i, it] of shown.entries()) {
      await run(stages, it, ANSWER_TOKENS, (logits) => {
        const id = argmax(logits);
        return eosIds.includes(id) ? undefined : id;
      }, pause);
      await watch.settle();
      progress?.(i + 1, shown.length);
    }
    return watch.moments;
  } finally {
    await Deno.remove(plain, { recursive: true });
  }
}

/**
 * The pictures of a directory with prompts for them: those of its `data.jsonl` where it has one.
 *
 * @throws {RequestError} `parameter_invalid` for a directory without pictures.
 */
export async function calibrationSet(directory: string): Promise<Shown[]> {
  const names = await directoryFiles(directory).list();
  if (names.includes("data.jsonl")) return await readShown(join(directory, "data.jsonl"));
  const pictures = names.filter((it) => /\.(png|jpe?g|webp)$/i.test(it));
  if (!pictures.length) {
    throw new RequestError(
      "parameter_invalid",
      `Cannot calibrate on ${directory}: expected PNG, JPEG or WebP pictures, found none`,
    );
  }
  return await Promise.all(pictures.map(async (name, i) => ({
    image: await Deno.readFile(join(directory, name)),
    prompt: PROMPTS[i % PROMPTS.length],
  })));
}

/** Looks at what goes into the matrices of a backend. */
class Watch {
  readonly moments = new Map<string, InputMoments>();
  readonly backend: Backend;
  readonly #stored = new WeakMap<StoredMatrix, string>();
  readonly #names = new WeakMap<Matrix, string>();
  #pending: Promise<void>[] = [];

  /** Looks at what goes into the matrices `wanted`. */
  constructor(inner: Backend, private readonly wanted: (spec: TensorSpec) => boolean) {
    const look = (x: Tensor, w: Matrix) => {
      const name = this.#names.get(w);
      if (name) this.#pending.push(inner.read(x).then((values) => this.#add(name, values, x.cols)));
    };
    this.backend = new Proxy(inner, {
      get: (target, property) => {
        switch (property as keyof Backend) {
          case "matrix":
            return (stored: StoredMatrix) => {
              const matrix = inner.matrix(stored);
              const name = this.#stored.get(stored);
              if (name) this.#names.set(matrix, name);
              return matrix;
            };
          case "linear":
            return (...args: Parameters<Backend["linear"]>) => {
              look(args[1], args[2]);
              inner.linear(...args);
            };
          case "linearEach":
            return (...[of]: Parameters<Backend["linearEach"]>) => {
              for (const [, x, w] of of) look(x, w);
              inner.linearEach(of);
            };
          case "gated":
            return (...args: Parameters<Backend["gated"]>) => {
              look(args[1], args[2]);
              inner.gated(...args);
            };
        }
        const value = Reflect.get(target, property);
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
  }

  /** The same weights, their matrices known by name from here on. */
  weights(inner: Weights): Weights {
    const named = new Set(tensorTable(inner.config).filter(this.wanted).map(({ name }) => momentsOf(name)));
    return {
      config: inner.config,
      sizeBytes: inner.sizeBytes,
      vector: (name) => inner.vector(name),
      matrix: async (name, scheme) => {
        const stored = await inner.matrix(name, scheme);
        if (named.has(name)) this.#stored.set(stored, name);
        return stored;
      },
      gather: async (names, room) => this.weights(await inner.gather(names, room)),
    };
  }

  /** Waits until all that was seen is counted. */
  async settle(): Promise<void> {
    await Promise.all(this.#pending.splice(0));
  }

  #add(name: string, x: Float32Array, k: number): void {
    const block = FEEDBACK_BLOCK;
    const blocks = Math.ceil(k / block);
    let moments = this.moments.get(name);
    if (!moments) {
      moments = { k, values: new Float32Array(blocks * block * block) };
      this.moments.set(name, moments);
    }
    for (let row = 0; row < x.length; row += k) {
      for (let from = 0; from < k; from += block) {
        const wide = Math.min(block, k - from);
        for (let i = 0; i < wide; i++) {
          const value = x[row + from + i];
          if (value === 0) continue;
          const at = from * block + i * block;
          // The matrix is symmetric: its upper half will do.
          for (let j = i; j < wide; j++) moments.values[at + j] += value * x[row + from + j];
        }
      }
    }
  }
}
