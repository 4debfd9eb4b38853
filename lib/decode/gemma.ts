/**
 * Gemma 1 and Gemma 2: image tokens and text ids in, logits out.
 *
 * Follows big_vision `models/ppp/gemma.py` and `models/proj/paligemma/paligemma.py`. Image rows enter as the
 * projector left them, text rows as embedding · √D. The prefix (image tokens, BOS, prompt, newline) sees itself in
 * full, what comes after is causal; positions count from 0 over both.
 *
 * Shape letters: T rows of this pass, S rows in the cache, D width, H heads, K key-value heads, C head width,
 * F MLP width, V vocabulary.
 */

import type { Backend, Matrix, Tensor } from "../backend/backend.ts";
import type { Pause } from "../types.ts";
import type { DecoderConfig } from "../weights/config.ts";
import type { Weights } from "../weights/load.ts";
import { DECODER_LAYER, EMBEDDING } from "../weights/table.ts";

/**
 * Whether the even layers of Gemma 2 see only a window of keys: `off` is how PaliGemma 2 was trained, `hf` is what
 * transformers does. They differ only beyond `sliding_window` positions (4096: 896-pixel pictures).
 */
export type SlidingWindow = "off" | "hf";

/** Keys and values of one sequence. */
export interface Cache {
  /** Positions written. */
  readonly length: number;
  readonly capacity: number;
  /** Rows that see one another in full. */
  readonly prefix: number;
  /**
   * Forgets the positions from `length` on, which is not within the prefix.
   *
   * @throws {RangeError} for a length below `prefix` or above the cache's.
   */
  truncate(length: number): void;
  free(): void;
}

/** The decoder of one model. */
export interface Decoder {
  /** Room for `capacity` positions. */
  cache(capacity: number): Cache;
  /**
   * Logits [V] after the whole prefix. The first rows of x [T, D] hold the image tokens; the last `ids.length` rows
   * are filled from the text ids. The cache must be empty; x is used up.
   */
  prefill(cache: Cache, x: Tensor, ids: readonly number[], pause: Pause): Promise<Float32Array>;
  /** Logits [V] after one more token. */
  step(cache: Cache, id: number, pause: Pause): Promise<Float32Array>;
}

interface Layer {
  readonly inputNorm: Tensor;
  readonly q: Matrix;
  readonly k: Matrix;
  readonly v: Matrix;
  readonly o: Matrix;
  /** Gemma 2 only. */
  readonly postAttentionNorm?: Tensor;
  readonly preMlpNorm: Tensor;
  readonly gate: Matrix;
  readonly up: Matrix;
  readonly down: Matrix;
  /** Gemma 2 only. */
  readonly postMlpNorm?: Tensor;
}

class KvCache implements Cache {
  length = 0;
  prefix = 0;
  /** Per layer [capacity, K·C], keys after RoPE. */
  readonly keys: readonly Tensor[];
  readonly values: readonly Tensor[];
  readonly #backend: Backend;

  constructor(backend: Backend, { layers, kvHeads, headDim }: DecoderConfig, readonly capacity: number) {
    this.#backend = backend;
    const rows = () => Array.from({ length: layers }, () => backend.tensor(capacity, kvHeads * headDim));
    this.keys = rows();
    this.values = rows();
  }

  truncate(length: number): void {
    checkTruncation(this, length);
    this.length = length;
  }

  free(): void {
    this.#backend.free(...this.keys, ...this.values);
  }
}

/** What {@link Cache.truncate} refuses. */
export function checkTruncation({ length, prefix }: Cache, to: number): void {
  if (to >= prefix && to <= length) return;
  throw new RangeError(`Cannot truncate a cache: expected ${prefix} to ${length} positions, found ${to}`);
}

/** Loads the decoder into the backend. */
export async function loadDecoder(
  backend: Backend,
  weights: Weights,
  slidingWindow: SlidingWindow = "off",
): Promise<Decoder> {
  const config = weights.config.decoder;
  const vector = async (name: string) => {
    const values = await weights.vector(name);
    const tensor = backend.tensor(1, values.length);
    backend.write(tensor, values);
    return tensor;
  };
  const matrix = async (name: string) => backend.matrix(await weights.matrix(name));
  const second = config.family === "gemma2";
  const embedding = await matrix(EMBEDDING);
  const layers: Layer[] = [];
  for (let i = 0; i < config.layers; i++) {
    const name = `${DECODER_LAYER}${i}.`;
    // Gemma 1 calls its pre-MLP norm "post_attention_layernorm"; in Gemma 2 that name is what it says.
    const preMlp = second ? "pre_feedforward_layernorm" : "post_attention_layernorm";
    layers.push({
      inputNorm: await vector(`${name}input_layernorm.weight`),
      q: await matrix(`${name}self_attn.q_proj.weight`),
      k: await matrix(`${name}self_attn.k_proj.weight`),
      v: await matrix(`${name}self_attn.v_proj.weight`),
      o: await matrix(`${name}self_attn.o_proj.weight`),
      postAttentionNorm: second ? await vector(`${name}post_attention_layernorm.weight`) : undefined,
      preMlpNorm: await vector(`${name}${preMlp}.weight`),
      gate: await matrix(`${name}mlp.gate_proj.weight`),
      up: await matrix(`${name}mlp.up_proj.weight`),
      down: await matrix(`${name}mlp.down_proj.weight`),
      postMlpNorm: second ? await vector(`${name}post_feedforward_layernorm.weight`) : undefined,
    });
  }
  const finalNorm = await vector("language_model.model.norm.weight");
  return new Gemma(backend, config, embedding, layers, finalNorm, slidingWindow);
}

class Gemma implements Decoder {
  constructor(
    private readonly backend: Backend,
    private readonly config: DecoderConfig,
    private readonly embedding: Matrix,
    private readonly layers: readonly Layer[],
    private readonly finalNorm: Tensor,
    private readonly slidingWindow: SlidingWindow,
  ) {}

  cache(capacity: number): Cache {
    return new KvCache(this.backend, this.config, capacity);
  }

  async prefill(cache: Cache, x: Tensor, ids: readonly number[], pause: Pause): Promise<Float32Array> {
    if (cache.length) {
      throw new RangeError(`Cannot prefill: expected an empty cache, found ${cache.length} rows`);
    }
    this.#embed(this.backend.slice(x, x.rows - ids.length, ids.length), ids);
    return await this.#forward(cache as KvCache, x, pause);
  }

  async step(cache: Cache, id: number, pause: Pause): Promise<Float32Array> {
    const x = this.backend.tensor(1, this.config.width);
    try {
      this.#embed(x, [id]);
      return await this.#forward(cache as KvCache, x, pause);
    } finally {
      this.backend.free(x);
    }
  }

  #embed(out: Tensor, ids: readonly number[]): void {
    this.backend.embed(out, Uint32Array.from(ids), this.embedding, Math.sqrt(this.config.width));
  }

  /** Runs new rows x [T, D] through all layers, appends them to the cache, and gives the logits [V] of the last. */
  async #forward(cache: KvCache, x: Tensor, pause: Pause): Promise<Float32Array> {
    const { backend, config } = this;
    const { width, heads, kvHeads, headDim, mlp, eps, ropeTheta, vocab } = config;
    const rows = x.rows;
    const start = cache.length;
    const end = start + rows;
    if (end > cache.capacity) {
      throw new RangeError(`Cannot decode: ${end} positions do not fit a cache of ${cache.capacity}`);
    }
    if (start === 0) cache.prefix = rows;
    const held: Tensor[] = [];
    const work = (r: number, c: number) => {
      const tensor = backend.tensor(r, c);
      held.push(tensor);
      return tensor;
    };
    try {
      const y = work(rows, width); // [T, D]
      const q = work(rows, heads * headDim); // [T, H·C]
      const mixed = work(rows, heads * headDim); // [T, H·C]
      const hidden = work(rows, mlp); // [T, F]
      for (const [i, layer] of this.layers.entries()) {
        await pause();
        const k = backend.slice(cache.keys[i], start, rows);
        const v = backend.slice(cache.values[i], start, rows);
        backend.rmsNorm(y, x, layer.inputNorm, eps);
        backend.linear(q, y, layer.q);
        backend.linear(k, y, layer.k);
        backend.linear(v, y, layer.v);
        backend.rope(q, headDim, start, ropeTheta);
        backend.rope(k, headDim, start, ropeTheta);
        backend.attention(
          mixed,
          q,
          backend.slice(cache.keys[i], 0, end),
          backend.slice(cache.values[i], 0, end),
          {
            heads,
            kvHeads,
            headDim,
            scale: config.attentionScale,
            softcap: config.softcap,
            start,
            prefix: cache.prefix,
            window: this.slidingWindow === "hf" && i % 2 === 0 ? config.window : undefined,
          },
        );
        this.#residual(x, y, mixed, layer.o, layer.postAttentionNorm);
        backend.rmsNorm(y, x, layer.preMlpNorm, eps);
        backend.gated(hidden, y, layer.gate, layer.up);
        this.#residual(x, y, hidden, layer.down, layer.postMlpNorm);
      }
      const last = backend.slice(y, 0, 1);
      backend.rmsNorm(last, backend.slice(x, rows - 1, 1), this.finalNorm, eps);
      const logits = work(1, vocab);
      backend.linear(logits, last, this.embedding);
      const values = await backend.read(logits);
      cache.length = end;
      return values;
    } finally {
      backend.free(...held);
    }
  }

  /** x += input · Wᵀ, which Gemma 2 norms before it adds; y is scratch [T, D]. */
  #residual(x: Tensor, y: Tensor, input: Tensor, w: Matrix, norm?: Tensor): void {
    if (!norm) return this.backend.linear(x, input, w, { residual: x });
    this.backend.linear(y, input, w);
    this.backend.rmsNorm(y, y, norm, this.config.eps);
    this.backend.add(x, y);
  }
}
