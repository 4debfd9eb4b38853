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

import type { Backend, Matrix, RowSampling, Sampled, Tensor } from "../backend/backend.ts";
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

/** Keys and values of one token of one branch: f32 [K·C] per layer, keys after RoPE. */
export interface BranchRow {
  readonly keys: readonly Float32Array[];
  readonly values: readonly Float32Array[];
}

/** A continuation of what is in a cache. */
export interface Branch {
  /** Tokens between the cache's and this one, as `branch` gave them. */
  readonly path: readonly BranchRow[];
  readonly id: number;
}

/** What a prefill came to. */
export interface Prefilled {
  /** [V], after the last row. */
  readonly logits: Float32Array;
  /** Per layer keys, then per layer values: f32 [T, K·C], keys after RoPE. */
  readonly rows: readonly Float32Array[];
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
  /** A copy of what a prefill has just brought into a cache, with the logits that it gave. */
  save?(cache: Cache, logits: Float32Array): Promise<Prefilled>;
  /** Brings a copy into an empty cache, as if it had been computed there; gives a copy of the logits. */
  restore?(cache: Cache, prefilled: Prefilled): Float32Array;
  /** Logits [V] after one more token. */
  step(cache: Cache, id: number, pause: Pause): Promise<Float32Array>;
  /**
   * Logits [V] of every one of several sequences, after one more token for each, in one pass that reads the weights once
   * for up to 16. Absent where only one sequence at a time can be computed.
   */
  steps?(caches: readonly Cache[], ids: readonly number[], pause: Pause): Promise<Float32Array[]>;
  /**
   * As {@link steps}, but gives the next id of every sequence, so that no logits are read; ids from `limit` on and the
   * `never` ones take no part. Absent where the backend does not choose.
   */
  choices?(
    caches: readonly Cache[],
    ids: readonly number[],
    rows: readonly RowSampling[],
    limit: number,
    never: readonly number[],
    pause: Pause,
  ): Promise<Sampled[]>;
  /**
   * One more token for every one of several branches, with paths of one length, in one pass: logits [V] and the row
   * that goes to the paths of what follows. Branches do not see one another; the cache stays as long as it is, and
   * needs room for the longest branch. Absent where only one sequence at a time can be computed.
   */
  branch?(
    cache: Cache,
    branches: readonly Branch[],
    pause: Pause,
  ): Promise<{ readonly logits: Float32Array; readonly row: BranchRow }[]>;
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

/** The heads of one layer: q and mixed [T, H·C], k and v [T, K·C]. */
interface Heads {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly mixed: Tensor;
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

  async save(cache: Cache, logits: Float32Array): Promise<Prefilled> {
    const { keys, values, length } = cache as KvCache;
    const rows = [...keys, ...values].map((it) => this.backend.read(this.backend.slice(it, 0, length)));
    return { logits: logits.slice(), rows: await Promise.all(rows) };
  }

  restore(given: Cache, { logits, rows }: Prefilled): Float32Array {
    const cache = given as KvCache;
    const length = rows[0].length / cache.keys[0].cols;
    if (cache.length || length > cache.capacity) {
      throw new RangeError(
        `Cannot restore ${length} rows: expected an empty cache, found ${cache.length} of ${cache.capacity} rows in use`,
      );
    }
    for (const [i, tensor] of [...cache.keys, ...cache.values].entries()) {
      this.backend.write(this.backend.slice(tensor, 0, length), rows[i]);
    }
    cache.length = cache.prefix = length;
    return logits.slice(); // the sampler strikes ids out of it
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

  async steps(given: readonly Cache[], ids: readonly number[], pause: Pause): Promise<Float32Array[]> {
    const { vocab } = this.config;
    const logits = await this.#together(given, ids, pause, (it) => this.backend.read(it));
    return ids.map((_, b) => logits.subarray(b * vocab, (b + 1) * vocab));
  }

  get choices(): Decoder["choices"] {
    const { backend } = this;
    if (!backend.sample) return undefined;
    return (given, ids, rows, limit, never, pause) =>
      this.#together(given, ids, pause, (logits) => backend.sample!(logits, rows, limit, never));
  }

  /** One more token for each of several sequences; `finish` gets their logits [B, V] in the backend. */
  async #together<T>(
    given: readonly Cache[],
    ids: readonly number[],
    pause: Pause,
    finish: (logits: Tensor) => Promise<T>,
  ): Promise<T> {
    const { backend, config } = this;
    const { heads, kvHeads, headDim, ropeTheta, width } = config;
    const sequences = given as readonly KvCache[];
    for (const it of sequences) this.#checkRoom(it, it.length + 1);
    const positions = sequences.map((it) => it.length);
    const attend = (i: number, { q, k, v, mixed }: Heads) => {
      backend.rope(q, headDim, positions, ropeTheta);
      backend.rope(k, headDim, positions, ropeTheta);
      backend.place(sequences.map((it) => backend.slice(it.keys[i], it.length, 1)), k);
      backend.place(sequences.map((it) => backend.slice(it.values[i], it.length, 1)), v);
      const keys = sequences.map((it) => backend.slice(it.keys[i], 0, it.length + 1));
      const values = sequences.map((it) => backend.slice(it.values[i], 0, it.length + 1));
      const window = this.#window(i);
      const { attentionScale: scale, softcap } = config;
      backend.attentionEach(mixed, q, keys, values, { heads, kvHeads, headDim, scale, softcap, window });
    };
    const x = backend.tensor(sequences.length, width);
    try {
      this.#embed(x, ids);
      const place = (work: (rows: number, cols: number) => Tensor) => {
        const cols = kvHeads * headDim;
        const [k, v] = [work(sequences.length, cols), work(sequences.length, cols)];
        return () => ({ k, v });
      };
      const found = await this.#layers(x, sequences.length, attend, pause, place, finish);
      for (const it of sequences) it.length++;
      return found;
    } finally {
      backend.free(x);
    }
  }

  #checkRoom(cache: KvCache, end: number): void {
    if (end <= cache.capacity) return;
    throw new RangeError(`Cannot decode: ${end} positions do not fit a cache of ${cache.capacity}`);
  }

  /** How many of the last keys a layer sees; undefined for all. */
  #window(layer: number): number | undefined {
    return this.slidingWindow === "hf" && layer % 2 === 0 ? this.config.window : undefined;
  }

  #embed(out: Tensor, ids: readonly number[]): void {
    this.backend.embed(out, Uint32Array.from(ids), this.embedding, Math.sqrt(this.config.width));
  }

  async branch(given: Cache, branches: readonly Branch[], pause: Pause) {
    const { backend, config } = this;
    const { headDim, ropeTheta, width } = config;
    const cache = given as KvCache;
    const position = cache.length + branches[0].path.length;
    if (position >= cache.capacity || branches.some((it) => cache.length + it.path.length !== position)) {
      throw new RangeError(
        `Cannot branch: expected paths of one length in a cache of ${cache.capacity}, found lengths ` +
          `${branches.map((it) => it.path.length)} after ${cache.length}`,
      );
    }
    const rows = branches.map((): { keys: Float32Array[]; values: Float32Array[] } => ({
      keys: [],
      values: [],
    }));
    const attend = async (i: number, { q, k, v, mixed }: Heads) => {
      // Every row is the next of its branch: all have the same position.
      const positions = branches.map(() => position);
      backend.rope(q, headDim, positions, ropeTheta);
      backend.rope(k, headDim, positions, ropeTheta);
      const [keys, values] = [await backend.read(k), await backend.read(v)];
      for (const [b, { path }] of branches.entries()) {
        const own = (all: Float32Array) => all.slice(b * k.cols, (b + 1) * k.cols);
        rows[b].keys.push(own(keys));
        rows[b].values.push(own(values));
        for (const [j, row] of [...path, rows[b]].entries()) {
          backend.write(backend.slice(cache.keys[i], cache.length + j, 1), row.keys[i]);
          backend.write(backend.slice(cache.values[i], cache.length + j, 1), row.values[i]);
        }
        this.#attend(i, cache, backend.slice(mixed, b, 1), backend.slice(q, b, 1), position);
      }
    };
    const x = backend.tensor(branches.length, width);
    try {
      this.#embed(x, branches.map((it) => it.id));
      const logits = await this.#layers(x, branches.length, attend, pause, (work) => {
        const cols = config.kvHeads * headDim;
        const [k, v] = [work(branches.length, cols), work(branches.length, cols)];
        return () => ({ k, v });
      }, (it) => backend.read(it));
      return rows.map((row, b) => ({
        logits: logits.subarray(b * config.vocab, (b + 1) * config.vocab),
        row,
      }));
    } finally {
      backend.free(x);
    }
  }

  /** Runs new rows x [T, D] through all layers, appends them to the cache, and gives the logits [V] of the last. */
  async #forward(cache: KvCache, x: Tensor, pause: Pause): Promise<Float32Array> {
    const { backend } = this;
    const { headDim, ropeTheta } = this.config;
    const start = cache.length;
    const end = start + x.rows;
    this.#checkRoom(cache, end);
    if (start === 0) cache.prefix = x.rows;
    const attend = (i: number, { q, k, mixed }: Heads) => {
      backend.rope(q, headDim, start, ropeTheta);
      backend.rope(k, headDim, start, ropeTheta);
      this.#attend(i, cache, mixed, q, start);
    };
    const logits = await this.#layers(x, 1, attend, pause, () => (i) => ({
      k: backend.slice(cache.keys[i], start, x.rows),
      v: backend.slice(cache.values[i], start, x.rows),
    }), (it) => backend.read(it));
    cache.length = end;
    return logits;
  }

  /**
   * Runs rows x [T, D] through all layers and gives what `finish` makes of the logits [last, V] of the last rows. `place`
   * tells where the keys and values of a layer go, `attend` turns heads by their positions and mixes them.
   */
  async #layers<T>(
    x: Tensor,
    last: number,
    attend: (layer: number, heads: Heads) => void | Promise<void>,
    pause: Pause,
    place: (work: (rows: number, cols: number) => Tensor) => (layer: number) => Pick<Heads, "k" | "v">,
    finish: (logits: Tensor) => Promise<T>,
  ): Promise<T> {
    const { backend } = this;
    const { width, heads, headDim, mlp, eps, vocab } = this.config;
    const rows = x.rows;
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
      const placed = place(work);
      for (const [i, layer] of this.layers.entries()) {
        await pause();
        const { k, v } = placed(i);
        backend.rmsNorm(y, x, layer.inputNorm, eps);
        backend.linear(q, y, layer.q);
        backend.linear(k, y, layer.k);
        backend.linear(v, y, layer.v);
        await attend(i, { q, k, v, mixed });
        this.#residual(x, y, mixed, layer.o, layer.postAttentionNorm);
        backend.rmsNorm(y, x, layer.preMlpNorm, eps);
        backend.gated(hidden, y, layer.gate, layer.up);
        this.#residual(x, y, hidden, layer.down, layer.postMlpNorm);
      }
      const ends = backend.slice(y, 0, last);
      backend.rmsNorm(ends, backend.slice(x, rows - last, last), this.finalNorm, eps);
      const logits = work(last, vocab);
      backend.linear(logits, ends, this.embedding);
      return await finish(logits);
    } finally {
      backend.free(...held);
    }
  }

  /** Mixes the rows of q, which stand from `start` on, over a layer's cache up to the last of them. */
  #attend(i: number, cache: KvCache, mixed: Tensor, q: Tensor, start: number): void {
    const { backend, config } = this;
    const { heads, kvHeads, headDim } = config;
    const end = start + q.rows;
    const [keys, values] = [backend.slice(cache.keys[i], 0, end), backend.slice(cache.values[i], 0, end)];
    backend.attention(mixed, q, keys, values, {
      heads,
      kvHeads,
      headDim,
      scale: config.attentionScale,
      softcap: config.softcap,
      start,
      prefix: cache.prefix,
      window: this.#window(i),
    });
  }

  /** x += input · Wᵀ, which Gemma 2 norms before it adds; y is scratch [T, D]. */
  #residual(x: Tensor, y: Tensor, input: Tensor, w: Matrix, norm?: Tensor): void {
    if (!norm) return this.backend.linear(x, input, w, { residual: x });
    this.backend.linear(y, input, w);
    this.backend.rmsNorm(y, y, norm, this.config.eps);
    this.backend.add(x, y);
  }
}
