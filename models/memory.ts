/**
 * What a model takes at run: the code of an answer itself, run on a backend that computes nothing and counts what the
 * WASM backend would hold.
 */

import type {
  AttentionOptions,
  Backend,
  EachAttentionOptions,
  FullAttentionOptions,
  Linear,
  Matrix,
  Scheme,
  StoredMatrix,
  Tensor,
} from "../lib/backend/backend.ts";
import { roundUp } from "../lib/backend/layout.ts";
import { attentionInt8Scratch, attentionScratch } from "../lib/backend/wasm_parts.ts";
import { copiesBytes, matrixBytes, productScratch } from "../lib/backend/wasm_product.ts";
import { loadDecoder } from "../lib/decode/gemma.ts";
import { loadVision } from "../lib/vision/siglip.ts";
import type { ModelConfig } from "../lib/weights/config.ts";
import { type Weights, width } from "../lib/weights/load.ts";
import { packedBytes } from "../lib/weights/quantize.ts";
import { type TensorSpec, tensorTable } from "../lib/weights/table.ts";

/** Tokens of the question and of its answer that memory is counted for, beside one picture. */
export const [PROMPT_TOKENS, ANSWER_TOKENS] = [64, 256];

/** Bytes, of WASM memory unless said otherwise. */
export interface Memory {
  /** Weights as the kernels read them. */
  readonly weightsBytes: number;
  /** The most that is held while an answer is made: weights, activations, keys and values, scratch. */
  readonly peakBytes: number;
  /** Operands copied for products of many rows, among the engine's objects. */
  readonly copiesBytes: number;
}

/** Memory of a whole model whose matrices are in the schemes given, on one thread. */
export async function memoryOf(config: ModelConfig, schemeOf: (spec: TensorSpec) => Scheme): Promise<Memory> {
  const backend = new Counting();
  await rehearse(backend, new Blank(config, schemeOf));
  return { weightsBytes: backend.sizeBytes, peakBytes: backend.peakBytes, copiesBytes: backend.copiesBytes };
}

/** Bytes that SigLIP and the projector take when their layers are streamed: in WASM memory, copied, and where they arrive. */
export async function streamedVisionBytes(
  config: ModelConfig,
  schemeOf: (spec: TensorSpec) => Scheme,
): Promise<number> {
  const [backend, weights] = [new Counting(), new Blank(config, schemeOf)];
  const vision = await loadVision(backend, weights, "streamed");
  await vision.encode(
    backend.tensor(vision.imageTokens, config.decoder.width),
    blankPixels(config),
    async () => {},
  );
  return backend.peakBytes + backend.copiesBytes + weights.roomBytes;
}

/** Loads a model and makes the first two tokens of an answer about a grey picture, with room for all. */
export async function rehearse(backend: Backend, weights: Weights): Promise<void> {
  const { config } = weights;
  const pause = async () => {};
  const vision = await loadVision(backend, weights);
  const decoder = await loadDecoder(backend, weights);
  const ids = Array<number>(PROMPT_TOKENS).fill(config.bosId);
  const prefix = backend.tensor(vision.imageTokens + ids.length, config.decoder.width);
  await vision.encode(backend.slice(prefix, 0, vision.imageTokens), blankPixels(config), pause);
  const cache = decoder.cache(prefix.rows + ANSWER_TOKENS - 1);
  await decoder.prefill(cache, prefix, ids, pause);
  await decoder.step(cache, config.bosId, pause);
  cache.free();
  backend.free(prefix);
}

function blankPixels({ vision: { imageSize: size } }: ModelConfig) {
  return { size, data: new Float32Array(size * size * 3) };
}

/** Weights of which only the shapes matter. */
class Blank implements Weights {
  readonly #specs: ReadonlyMap<string, TensorSpec>;
  /** The most that was gathered at once. */
  roomBytes = 0;
  readonly sizeBytes = 0;

  constructor(readonly config: ModelConfig, private readonly schemeOf: (spec: TensorSpec) => Scheme) {
    this.#specs = new Map(tensorTable(config).map((it) => [it.name, it]));
  }

  vector(name: string): Promise<Float32Array> {
    const { shape } = this.#specs.get(name)!;
    return Promise.resolve(new Float32Array(shape.reduce((product, it) => product * it, 1)));
  }

  matrix(name: string): Promise<StoredMatrix> {
    const spec = this.#specs.get(name)!;
    const data = new Uint8Array(0);
    return Promise.resolve({ scheme: this.schemeOf(spec), n: spec.shape[0], k: width(spec), data });
  }

  gather(names: readonly string[]): Promise<Weights> {
    const bytes = names.map((it) => this.#specs.get(it)!).reduce((sum, spec) => {
      const scheme = this.schemeOf(spec);
      return sum + packedBytes(scheme, spec.shape[0], width(spec)) +
        (scheme === "f32" ? 0 : 4 * spec.shape[0]);
    }, 0);
    this.roomBytes = Math.max(this.roomBytes, bytes);
    return Promise.resolve(this);
  }
}

interface Counted extends Tensor {
  /** 0 for a slice. */
  readonly bytes: number;
}

/** The WASM backend's memory without the backend: it adds up what `wasm.ts` would allocate. */
class Counting implements Backend {
  readonly name = "counting";
  readonly availableBytes = Infinity;
  sizeBytes = 0;
  peakBytes = 0;
  /** Those of floats lie beside those of bytes. */
  readonly #copies = { float: 0, byte: 0 };
  #scratchBytes = 0;
  #anglesBytes = 0;

  get copiesBytes(): number {
    return this.#copies.float + this.#copies.byte;
  }

  tensor(rows: number, cols: number): Tensor {
    return this.#take({ rows, cols, bytes: rows * cols * 4 });
  }

  slice(_: Tensor, __: number, rows: number, ___ = 0, cols = _.cols - ___): Tensor {
    return { rows, cols, bytes: 0 } as Tensor;
  }

  matrix({ scheme, n, k }: StoredMatrix): Matrix {
    return this.#take({ scheme, n, k, bytes: matrixBytes(scheme, n, k) });
  }

  free(...what: (Tensor | Matrix)[]): void {
    for (const it of what) this.sizeBytes -= (it as Counted).bytes;
  }

  linear(_: Tensor, x: Tensor, { scheme, k }: Matrix): void {
    this.#reserve(productScratch(scheme, x.rows, k, 1));
    const kind = scheme === "f32" ? "float" : "byte";
    this.#copies[kind] = Math.max(this.#copies[kind], copiesBytes(scheme, x.rows, k));
  }

  linearEach(of: readonly Linear[]): void {
    for (const [out, x, w] of of) this.linear(out, x, w);
  }

  gated(_: Tensor, x: Tensor, ...weights: Matrix[]): void {
    for (const w of weights) this.linear(_, x, w);
  }

  attention(_: Tensor, q: Tensor, k: Tensor, __: Tensor, { headDim }: AttentionOptions): void {
    this.#reserve(attentionScratch(q.rows, k.rows, headDim));
  }

  attentionInt8(_: Tensor, q: Tensor, __: Tensor, ___: Tensor, { headDim }: FullAttentionOptions): void {
    this.#reserve(attentionInt8Scratch(q.rows, headDim));
  }

  attentionEach(
    _: Tensor,
    __: Tensor,
    keys: readonly Tensor[],
    ___: unknown,
    options: EachAttentionOptions,
  ): void {
    for (const k of keys) this.#reserve(attentionScratch(1, k.rows, options.headDim));
  }

  rope(x: Tensor, headDim: number): void {
    this.#anglesBytes = x.rows * headDim * 4;
    this.#note();
  }

  read(t: Tensor): Promise<Float32Array> {
    return Promise.resolve(new Float32Array(t.rows * t.cols));
  }

  write(): void {}
  place(): void {}
  layerNorm(): void {}
  rmsNorm(): void {}
  add(): void {}
  embed(): void {}
  patches(): void {}

  #take<T extends { readonly bytes: number }>(it: T): T {
    const aligned = { ...it, bytes: roundUp(it.bytes, 64) };
    this.sizeBytes += aligned.bytes;
    this.#note();
    return aligned;
  }

  #reserve(bytes: number): void {
    this.#scratchBytes = Math.max(this.#scratchBytes, bytes);
    this.#note();
  }

  #note(): void {
    this.peakBytes = Math.max(this.peakBytes, this.sizeBytes + this.#scratchBytes + this.#anglesBytes);
  }
}
