/**
 * Gemma through onnxruntime: `embed_tokens*.onnx` and `decoder_model_merged*.onnx`, this project's own or ones in the
 * layout of transformers.js.
 *
 * Every pass is either a whole prefix or one token, so a graph needs no prefix-LM mask as long as it lets the rows of
 * one pass see one another; graphs that mask them causally would answer wrongly without a sign, and are refused.
 *
 * Shape letters: T rows of this pass, S rows in the cache, D width, K key-value heads, C head width, V vocabulary.
 */

import type { Backend, Tensor } from "../backend/backend.ts";
import { RequestError } from "../errors.ts";
import type { Pause } from "../types.ts";
import type { DecoderConfig, ModelConfig } from "../weights/config.ts";
import {
  embeddingScale,
  floats,
  type OnnxModel,
  type OnnxValue,
  openSession,
  type Ort,
  type OrtSession,
  type OrtTensor,
} from "../weights/onnx.ts";
import { type Cache, checkTruncation, type Decoder } from "./decoder.ts";

/** The two graphs of a decoder. */
export interface OrtDecoderModels {
  readonly embed: OnnxModel;
  readonly decoder: OnnxModel;
}

/** Settings beyond the models. */
export interface OrtDecoderOptions {
  /** For `InferenceSession.create`: execution providers, threads of onnxruntime-node. */
  readonly session?: Record<string, unknown>;
  /**
   * Whether the decoder graph multiplies what it is given by √D (`inside`) or not (`applied`); read off the graph
   * where absent.
   */
  readonly embeddings?: "inside" | "applied";
}

/** Operations whose rounding of one row depends on the others, by 1 or 2 %. */
const ROUNDS = /Quantize|MatMulInteger|MatMulNBits/;

/**
 * Opens a decoder. `backend` holds the image tokens it is given.
 *
 * @throws {RequestError} `model_invalid` for a graph with inputs or outputs that are missing or not known, naming
 * them, for shapes that are not those of the configuration, and for causal attention within the prefix.
 */
export async function createOrtDecoder(
  ort: Ort,
  backend: Backend,
  { decoder: config }: ModelConfig,
  { embed, decoder }: OrtDecoderModels,
  options: OrtDecoderOptions = {},
): Promise<Decoder> {
  checkEmbedding(embed);
  const inputs = checkDecoder(decoder, config);
  const [table, graph] = [
    await openSession(ort, embed, options.session),
    await openSession(ort, decoder, options.session),
  ];
  const inside = (options.embeddings ?? embeddingScale(decoder.graph)) === "inside";
  const gemma = new OrtGemma(ort, backend, config, table, graph, inputs, embed.graph.inputs[0].type, inside);
  if (decoder.graph.metadata.get("paligemma.prefix") !== "full") await gemma.checkPrefix(decoder);
  return gemma;
}

/** Keys and values as onnxruntime gave them. */
class OrtCache implements Cache {
  length = 0;
  prefix = 0;
  /** By input name, [1, K, S, C]; absent before the first pass. */
  past: Record<string, OrtTensor> = {};

  constructor(private readonly ort: Ort, readonly capacity: number) {}

  truncate(length: number): void {
    checkTruncation(this, length);
    if (length === this.length) return;
    for (const [name, tensor] of Object.entries(this.past)) {
      const { type, dims: [batch, heads, rows, width] } = tensor;
      const data = tensor.data as Float32Array;
      const kept = data.slice(0, heads * length * width);
      for (let h = 1; h < heads; h++) {
        kept.set(data.subarray(h * rows * width, (h * rows + length) * width), h * length * width);
      }
      this.past[name] = new this.ort.Tensor(type, kept, [batch, heads, length, width]);
      tensor.dispose?.();
    }
    this.length = length;
  }

  free(): void {
    for (const it of Object.values(this.past)) it.dispose?.();
    this.past = {};
  }
}

class OrtGemma implements Decoder {
  constructor(
    private readonly ort: Ort,
    private readonly backend: Backend,
    private readonly config: DecoderConfig,
    private readonly table: OrtSession,
    private readonly graph: OrtSession,
    private readonly inputs: readonly OnnxValue[],
    /** Of token ids, as the table wants them. */
    private readonly idType: string,
    /** The graph multiplies image rows, too, by √D: they are divided first. */
    private readonly inside: boolean,
  ) {}

  cache(capacity: number): Cache {
    return new OrtCache(this.ort, capacity);
  }

  async prefill(cache: Cache, x: Tensor, ids: readonly number[], pause: Pause): Promise<Float32Array> {
    if (cache.length) {
      throw new RangeError(`Cannot prefill: expected an empty cache, found ${cache.length} rows`);
    }
    const { width } = this.config;
    const imageRows = x.rows - ids.length;
    const rows = new Float32Array(x.rows * width);
    if (imageRows) {
      const image = await this.backend.read(this.backend.slice(x, 0, imageRows));
      rows.set(this.inside ? image.map((it) => it / Math.sqrt(width)) : image);
    }
    rows.set(await this.#embed(ids), imageRows * width);
    return await this.#forward(cache as OrtCache, rows, pause);
  }

  async step(cache: Cache, id: number, pause: Pause): Promise<Float32Array> {
    return await this.#forward(cache as OrtCache, await this.#embed([id]), pause);
  }

  /** One by one: the rows of one pass would see one another. */
  async extend(cache: Cache, ids: readonly number[], pause: Pause): Promise<void> {
    for (const id of ids) await this.step(cache, id, pause);
  }

  /** Fails when the first row of a pass does not see the second. */
  async checkPrefix({ name: file, graph }: OnnxModel): Promise<void> {
    const { width, layers, headDim, vocab } = this.config;
    // Small rows: what attention adds to them, which norms keep at its size, then outweighs them.
    const size = this.inside ? 0.02 / Math.sqrt(width) : 0.02;
    const rows = Float32Array.from({ length: 2 * width }, (_, i) => size * Math.sin(1 + i * 1.7));
    const [one, two] = [
      await this.#run(new OrtCache(this.ort, 1), rows.subarray(0, width)),
      await this.#run(new OrtCache(this.ort, 2), rows),
    ];
    // Logits of the first row, or else the keys it leaves in the last layer: either knows what lay before.
    const all = two.logits.dims.at(-2) === 2;
    if (!all && layers < 2) return;
    const name = all ? "logits" : `present.${layers - 1}.key`;
    const count = all ? vocab : headDim;
    const [alone, together] = [floats(one[name]).subarray(0, count), floats(two[name]).subarray(0, count)];
    let [change, power] = [0, 0];
    for (let i = 0; i < count; i++) {
      change += (alone[i] - together[i]) ** 2;
      power += alone[i] ** 2;
    }
    const rounds = graph.nodes.some(({ op }) => ROUNDS.test(op)) || one[name].type !== "float32";
    if (!(Math.sqrt(change / power) > (rounds ? 0.05 : 1e-3))) {
      throw new RequestError(
        "model_invalid",
        `Cannot load ${file}: expected the rows of the prefix to see one another in full, found that ` +
          "its attention is causal",
      );
    }
  }

  async #embed(ids: readonly number[]): Promise<Float32Array> {
    const list = this.#integers(this.idType, ids);
    const { inputs_embeds: rows } = await this.table.run({
      input_ids: new this.ort.Tensor(this.idType, list, [1, ids.length]),
    });
    return floats(rows);
  }

  /** Runs new rows [T, D], appends them to the cache, and gives the logits [V] of the last. */
  async #forward(cache: OrtCache, rows: Float32Array, pause: Pause): Promise<Float32Array> {
    const { layers, width, vocab } = this.config;
    const count = rows.length / width;
    const end = cache.length + count;
    if (end > cache.capacity) {
      throw new RangeError(`Cannot decode: ${end} positions do not fit a cache of ${cache.capacity}`);
    }
    await pause();
    const outputs = await this.#run(cache, rows);
    if (cache.length === 0) cache.prefix = count;
    cache.free();
    for (let i = 0; i < layers; i++) {
      for (const part of ["key", "value"]) {
        cache.past[`past_key_values.${i}.${part}`] = outputs[`present.${i}.${part}`];
      }
    }
    cache.length = end;
    return floats(outputs.logits).slice(-vocab);
  }

  #run(cache: OrtCache, rows: Float32Array): Promise<Record<string, OrtTensor>> {
    const { width, kvHeads, headDim } = this.config;
    const count = rows.length / width;
    const [start, end] = [cache.length, cache.length + count];
    const feeds: Record<string, OrtTensor> = {};
    for (const { name, type, dims } of this.inputs) {
      const make = (data: unknown, shape: readonly number[]) => new this.ort.Tensor(type, data, shape);
      const positions = () => Array.from({ length: count }, (_, i) => start + i);
      const whole = (values: readonly number[], shape: number[]) => make(this.#integers(type, values), shape);
      feeds[name] = (() => {
        switch (name) {
          case "inputs_embeds":
            return make(this.#floats(type, rows), [1, count, width]);
          case "position_ids":
            return whole(positions(), [1, count]);
          case "cache_position":
            return whole(positions(), [count]);
          case "attention_mask":
            if (dims.length === 2) return whole(new Array(end).fill(1), [1, end]);
            return type === "bool" // true: may be seen
              ? make(new Uint8Array(count * end).fill(1), [1, 1, count, end])
              : make(this.#floats(type, new Float32Array(count * end)), [1, 1, count, end]);
          case "use_cache_branch":
            return make(Uint8Array.of(start ? 1 : 0), [1]);
          case "num_logits_to_keep":
          case "logits_to_keep":
            return whole([1], dims.map(() => 1));
          default:
            return cache.past[name] ??
              make(this.#floats(type, new Float32Array(0)), [1, kvHeads, 0, headDim]);
        }
      })();
    }
    return this.graph.run(feeds);
  }

  #floats(type: string, values: Float32Array): Float32Array | Float16Array {
    return type === "float16" ? Float16Array.from(values) : values;
  }

  #integers(type: string, values: readonly number[]): BigInt64Array | Int32Array {
    return type === "int64" ? BigInt64Array.from(values, BigInt) : Int32Array.from(values);
  }
}

function refuse(model: OnnxModel, expected: string, found: string): never {
  throw new RequestError("model_invalid", `Cannot load ${model.name}: expected ${expected}, found ${found}`);
}

function names(values: readonly OnnxValue[]): string {
  return values.map((it) => it.name).join(", ") || "none";
}

function checkEmbedding(model: OnnxModel): void {
  const { inputs, outputs } = model.graph;
  if (inputs.length !== 1 || inputs[0].name !== "input_ids") {
    refuse(model, "one input input_ids", names(inputs));
  }
  if (!outputs.some((it) => it.name === "inputs_embeds")) {
    refuse(model, "an output inputs_embeds", names(outputs));
  }
}

const FLOATS = ["float32", "float16"];
const INTEGERS = ["int64", "int32"];

/** Types an input may have, by name; undefined for a name that is not known. */
function typesOf({ name, dims }: OnnxValue): readonly string[] | undefined {
  switch (name) {
    case "inputs_embeds":
      return FLOATS;
    case "position_ids":
    case "cache_position":
    case "num_logits_to_keep":
    case "logits_to_keep":
      return INTEGERS;
    case "attention_mask":
      return dims.length === 4 ? [...FLOATS, "bool"] : dims.length === 2 ? INTEGERS : [];
    case "use_cache_branch":
      return ["bool"];
  }
  return /^past_key_values\.\d+\.(key|value)$/.test(name) ? FLOATS : undefined;
}

/** The inputs to feed, when there is nothing wrong with them. */
function checkDecoder(model: OnnxModel, config: DecoderConfig): readonly OnnxValue[] {
  const { inputs, outputs } = model.graph;
  for (const it of inputs) {
    const types = typesOf(it);
    if (!types) refuse(model, "inputs of a decoder with a cache", `an input ${it.name} that is not known`);
    if (!types.includes(it.type)) {
      refuse(
        model,
        `${it.name} in ${types.join(" or ") || "two or four dimensions"}`,
        `${it.type} [${it.dims}]`,
      );
    }
  }
  const parts = Array.from({ length: config.layers }, (_, i) => [`${i}.key`, `${i}.value`]).flat();
  const missing = (values: readonly OnnxValue[], wanted: string[]) =>
    wanted.find((name) => !values.some((it) => it.name === name));
  const noInput = missing(inputs, ["inputs_embeds", ...parts.map((it) => `past_key_values.${it}`)]);
  if (noInput) refuse(model, `an input ${noInput}`, names(inputs));
  const noOutput = missing(outputs, ["logits", ...parts.map((it) => `present.${it}`)]);
  if (noOutput) refuse(model, `an output ${noOutput}`, names(outputs));
  for (const { name, dims } of inputs) {
    const wanted = name === "inputs_embeds"
      ? [1, -1, config.width]
      : name.startsWith("past_key_values.")
      ? [1, config.kvHeads, -1, config.headDim]
      : undefined;
    if (!wanted) continue;
    const fits = dims.length === wanted.length &&
      dims.every((it, i) => typeof it === "string" || wanted[i] < 0 || it === wanted[i]);
    if (!fits) refuse(model, `${name} [${wanted.map((it) => it < 0 ? "any" : it)}]`, `[${dims}]`);
  }
  const extra = inputs.find(({ name }) =>
    name.startsWith("past_key_values.") && !parts.includes(name.slice("past_key_values.".length))
  );
  if (extra) refuse(model, `a cache of ${config.layers} layers`, `an input ${extra.name}`);
  return inputs;
}
