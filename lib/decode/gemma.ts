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
import type { DecoderConfig, ModelConfig } from "../weights/config.ts";
import type { Weights } from "../weights/load.ts";
import { DECODER_LAYER, EMBEDDING } from "../weights/table.ts";
import { type Branch, type Cache, checkTruncation, type Decoder } from "./decoder.ts";
import type { Found, Issued, Prefilled, Turn } from "./decoder.ts";
import { mass, neverSampled } from "./sampler.ts";

/**
 * Whether the even layers of Gemma 2 see only a window of keys: `off` is how PaliGemma 2 was trained, `hf` is what
 * transformers does. They differ only beyond `sliding_window` positions (4096: 896-pixel pictures).
 */
export type SlidingWindow = "off" | "hf";

/** One token on its way through the layers, and where it stands. */
interface Row {
  readonly cache: KvCache;
  /** Known, or [1, 1] where a pass before this leaves it. */
  readonly id: number | Tensor;
  readonly position: number;
  /** Whether the id after it is chosen, for the next pass to go on with. */
  readonly chooses?: boolean;
}

/** Makes what tells where the keys and values of a layer go, of tensors that last as long as the pass. */
type Place = (work: (rows: number, cols: number) => Tensor) => (layer: number) => Pick<Heads, "k" | "v">;

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

/** The heads of one layer: k and v [T, K·C], q and mixed [T − from, H·C] of the rows from `from` on. */
interface Heads {
  readonly from: number;
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
  /** Where backends choose, what the last pass chose, [1, 2] as `Backend.sample` gives it. */
  readonly chosen: readonly Tensor[];
  /** Whether that is what comes next. */
  goesOn = false;
  readonly #backend: Backend;

  constructor(backend: Backend, { layers, kvHeads, headDim }: DecoderConfig, readonly capacity: number) {
    this.#backend = backend;
    const rows = () => Array.from({ length: layers }, () => backend.tensor(capacity, kvHeads * headDim));
    this.keys = rows();
    this.values = rows();
    this.chosen = backend.sample ? [backend.tensor(1, 2)] : [];
  }

  /** The id that the last pass chose, [1, 1]. */
  get next(): Tensor {
    if (this.goesOn) return this.#backend.slice(this.chosen[0], 0, 1, 0, 1);
    throw new TypeError("Cannot go on from what the last pass chose: it chose nothing");
  }

  /** Takes in rows that are computed with what was issued. */
  grow(length: number, goesOn = false): void {
    this.length = length;
    this.goesOn = goesOn;
  }

  truncate(length: number): void {
    checkTruncation(this, length);
    this.grow(length);
  }

  free(): void {
    this.#backend.free(...this.keys, ...this.values, ...this.chosen);
  }
}

/** Loads the decoder into the backend. */
export async function loadDecoder(
  backend: Backend,
  weights: Weights,
  slidingWindow: SlidingWindow = "off",
): Promise<Decoder> {
  const { config: model } = weights;
  const config = model.decoder;
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
  return new Gemma(backend, model, embedding, layers, finalNorm, slidingWindow);
}

class Gemma implements Decoder {
  private readonly config: DecoderConfig;

  constructor(
    private readonly backend: Backend,
    private readonly model: ModelConfig,
    private readonly embedding: Matrix,
    private readonly layers: readonly Layer[],
    private readonly finalNorm: Tensor,
    private readonly slidingWindow: SlidingWindow,
  ) {
    this.config = model.decoder;
  }

  cache(capacity: number): Cache {
    return new KvCache(this.backend, this.config, capacity);
  }

  async prefill(given: Cache, x: Tensor, ids: readonly number[], pause: Pause): Promise<Float32Array> {
    const cache = given as KvCache;
    if (cache.length) {
      throw new RangeError(`Cannot prefill: expected an empty cache, found ${cache.length} rows`);
    }
    this.#checkRoom(cache, x.rows);
    const { backend, config: { headDim, ropeTheta } } = this;
    this.#embed(backend.slice(x, x.rows - ids.length, ids.length), ids);
    cache.prefix = x.rows;
    const attend = (i: number, { from, q, k, mixed }: Heads) => {
      backend.rope(q, headDim, from, ropeTheta);
      backend.rope(k, headDim, 0, ropeTheta);
      this.#attend(i, cache, mixed, q, from);
    };
    const place: Place = () => (i) => ({
      k: backend.slice(cache.keys[i], 0, x.rows),
      v: backend.slice(cache.values[i], 0, x.rows),
    });
    const end = await this.#layers(x, x.rows - 1, attend, pause, place);
    const logits = await this.#ends(end, (it) => backend.read(it));
    cache.length = x.rows;
    return logits;
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
    const { found } = await this.steps([{ cache, id }], pause);
    return (await found)[0] as Float32Array;
  }

  async extend(given: Cache, ids: readonly number[], pause: Pause): Promise<void> {
    if (!ids.length) return;
    const cache = given as KvCache;
    const rows = ids.map((id, i) => ({ cache, id, position: cache.length + i }));
    await this.#pass(rows, rows.length - 1, pause, () => {});
  }

  get chooses(): boolean {
    return this.backend.sample !== undefined;
  }

  async steps(turns: readonly Turn[], pause: Pause): Promise<Issued> {
    const rows = turns.map(({ cache: given, id, choice }): Row => {
      const cache = given as KvCache;
      return {
        cache,
        id: id ?? cache.next,
        position: cache.length,
        chooses: this.chooses && choice !== undefined,
      };
    });
    return await this.#pass(rows, 0, pause, (x) => {
      const found = this.#ends(x, (logits) => this.#found(turns, logits));
      return { found };
    });
  }

  /** Issues one token a row into the rows' caches, and gives what `finish` makes of the ends of those from `wanted` on. */
  async #pass<T>(rows: readonly Row[], wanted: number, pause: Pause, finish: (x: Tensor) => T): Promise<T> {
    const { backend, config } = this;
    const { heads, kvHeads, headDim, ropeTheta, width, softcap, attentionScale: scale } = config;
    for (const { cache, position } of rows) this.#checkRoom(cache, position + 1);
    const [{ cache: first, position: start }] = rows;
    // Rows of one sequence lie beside one another where they are kept; others are brought there, keys and values at once.
    const alone = rows.every(({ cache }) => cache === first);
    const positions = (from: number) => alone ? start + from : rows.slice(from).map((it) => it.position);
    const x = backend.tensor(rows.length, width);
    let placed: Tensor | undefined; // [2T, K·C]
    const place: Place = (work) => {
      const of = (kept: Tensor, from: number) => backend.slice(kept, from, rows.length);
      if (alone) return (i) => ({ k: of(first.keys[i], start), v: of(first.values[i], start) });
      const both = placed = work(2 * rows.length, kvHeads * headDim);
      return () => ({ k: of(both, 0), v: of(both, rows.length) });
    };
    const attend = (i: number, { from, q, k, mixed }: Heads) => {
      backend.rope(q, headDim, positions(from), ropeTheta);
      backend.rope(k, headDim, positions(0), ropeTheta);
      if (placed) {
        const own = (kept: "keys" | "values") =>
          rows.map((it) => backend.slice(it.cache[kept][i], it.position, 1));
        backend.place([...own("keys"), ...own("values")], placed);
      }
      const asking = rows.slice(from);
      const keys = asking.map((it) => backend.slice(it.cache.keys[i], 0, it.position + 1));
      const values = asking.map((it) => backend.slice(it.cache.values[i], 0, it.position + 1));
      const window = this.#window(i);
      backend.attentionEach(mixed, q, keys, values, { heads, kvHeads, headDim, scale, softcap, window });
    };
    try {
      this.#embed(x, rows.map((it) => it.id));
      const issued = finish(await this.#layers(x, wanted, attend, pause, place));
      for (const { cache, position, chooses } of rows) cache.grow(position + 1, chooses);
      return issued;
    } finally {
      backend.free(x);
    }
  }

  /** What `finish` issues with the logits [T, V] of rows that went through all layers. */
  #ends<T>(x: Tensor, finish: (logits: Tensor) => T): T {
    const { backend, config: { width, eps, vocab } } = this;
    const [y, logits] = [backend.tensor(x.rows, width), backend.tensor(x.rows, vocab)];
    try {
      backend.rmsNorm(y, x, this.finalNorm, eps);
      backend.linear(logits, y, this.embedding);
      return finish(logits);
    } finally {
      backend.free(y, logits); // what comes after this is computed after it
    }
  }

  /**
   * What the turns want of their logits [T, V]: chosen where they say how, for the caches to go on with, and read in one
   * go. All is issued before this returns.
   */
  async #found(turns: readonly Turn[], logits: Tensor): Promise<Found[]> {
    const { backend, model } = this;
    const whole = Promise.all(
      turns.map(({ choice, room }, row) =>
        backend.sample && choice ? undefined : backend.read(backend.slice(logits, row, 1), room)
      ),
    );
    if (!backend.sample || turns.every((it) => !it.choice)) return await whole as Float32Array[];
    const chosen = backend.tensor(turns.length, 2);
    const ways = turns.map((it) => it.choice ?? { temperature: 0, topK: 0, topP: 1, random: 0 });
    backend.sample(chosen, logits, ways, Math.min(model.imageTokenId, logits.cols), neverSampled(model));
    backend.place(turns.flatMap((it) => (it.cache as KvCache).chosen), chosen);
    // What may be near is read before it is known what was chosen: to ask later is to wait for what was issued since.
    const spans = ways.flatMap((it) => "near" in it && it.near ? [it.near.within] : []);
    const first = Math.min(...spans.map(([from]) => from));
    const width = Math.max(...spans.map(([, to]) => to)) - first;
    const reading = Promise.all([
      backend.read(chosen),
      spans.length ? backend.read(backend.slice(logits, 0, turns.length, first, width)) : undefined,
    ]);
    backend.free(chosen); // it was issued to be read
    const [[told, scores], rows] = await Promise.all([reading, whole]);
    return turns.map(({ choice }, row): Found => {
      if (!choice) return rows[row]!;
      const [id, logprob] = told.subarray(2 * row);
      const near = choice.near?.of(id);
      if (!near?.length || !scores) return { id, logprob, nearLogprob: logprob };
      const own = scores.subarray(row * width, (row + 1) * width);
      return { id, logprob, nearLogprob: mass(near, own, own[id - first] - logprob, first) };
    });
  }

  #checkRoom(cache: KvCache, end: number): void {
    if (end <= cache.capacity) return;
    throw new RangeError(`Cannot decode: ${end} positions do not fit a cache of ${cache.capacity}`);
  }

  /** How many of the last keys a layer sees; undefined for all. */
  #window(layer: number): number | undefined {
    return this.slidingWindow === "hf" && layer % 2 === 0 ? this.config.window : undefined;
  }

  #embed(out: Tensor, ids: readonly (number | Tensor)[]): void {
    this.backend.embed(out, ids, this.embedding, Math.sqrt(this.config.width));
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
      await this.#layers(x, 0, attend, pause, (work) => {
        const cols = config.kvHeads * headDim;
        const [k, v] = [work(branches.length, cols), work(branches.length, cols)];
        return () => ({ k, v });
      });
      const logits = await this.#ends(x, (it) => backend.read(it));
      return rows.map((row, b) => ({
        logits: logits.subarray(b * config.vocab, (b + 1) * config.vocab),
        row,
      }));
    } finally {
      backend.free(x);
    }
  }

  /**
   * Runs rows x [T, D] through all layers and gives those from `wanted` on: of the others, nobody asks for more than the
   * last layer's keys and values, and they go no further. `place` tells where the keys and values of a layer go, `attend`
   * turns heads by their positions and mixes them.
   */
  async #layers(
    x: Tensor,
    wanted: number,
    attend: (layer: number, heads: Heads) => void | Promise<void>,
    pause: Pause,
    place: Place,
  ): Promise<Tensor> {
    const { backend, config: { width, heads, headDim, mlp, eps } } = this;
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
        const from = i === this.layers.length - 1 ? wanted : 0;
        const on = (t: Tensor) => from ? backend.slice(t, from, rows - from) : t;
        const { k, v } = placed(i);
        backend.rmsNorm(y, x, layer.inputNorm, eps);
        backend.linearEach([[on(q), on(y), layer.q], [k, y, layer.k], [v, y, layer.v]]);
        await attend(i, { from, q: on(q), k, v, mixed: on(mixed) });
        this.#residual(on(x), on(y), on(mixed), layer.o, layer.postAttentionNorm);
        backend.rmsNorm(on(y), on(x), layer.preMlpNorm, eps);
        backend.gated(on(hidden), on(y), layer.gate, layer.up);
        this.#residual(on(x), on(y), on(hidden), layer.down, layer.postMlpNorm);
      }
      return backend.slice(x, wanted, rows - wanted);
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
