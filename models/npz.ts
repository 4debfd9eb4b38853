/**
 * big_vision's checkpoints: arrays in an .npz, layers stacked on the first axis, matrices as [in, out]. Every tensor of
 * the table is a view of one array, and its rows are gathered from the byte ranges that hold them.
 *
 * Formats: numpy's `lib/format.py` (.npy 1.0 to 3.0); the names are those of big_vision's PaliGemma and SigLIP.
 */

import { type ModelFiles, RequestError } from "../lib/mod.ts";
import { type ModelConfig, parseConfig } from "../lib/weights/config.ts";
import { width } from "../lib/weights/load.ts";
import { toFloat32 } from "../lib/weights/safetensors.ts";
import { type TensorSpec, tensorTable } from "../lib/weights/table.ts";
import { type Checkpoint, rowsIn } from "./checkpoint.ts";
import { publishedConfig, SHAPES } from "./published.ts";
import { openZip, type ZipMember } from "./zip.ts";

/** Bytes of one array read at once. */
const SPAN_BYTES = 64 * 2 ** 20;
/** Bytes of f32 rows gathered at once, where rows do not lie one after another: most matrices whole. */
const GATHER_BYTES = 256 * 2 ** 20;

/** numpy type -> safetensors type; two void bytes or a uint16 are what numpy makes of bfloat16. */
const DTYPES: Readonly<Record<string, readonly [string, number]>> = {
  "<f8": ["F64", 8],
  "<f4": ["F32", 4],
  "<f2": ["F16", 2],
  "|V2": ["BF16", 2],
  "<V2": ["BF16", 2],
  "<u2": ["BF16", 2],
};

interface Stored {
  readonly key: string;
  readonly member: ZipMember;
  readonly dtype: string;
  readonly element: number;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  /** Where the data begin in the member. */
  readonly start: number;
}

/** Where a tensor of the table lies: axes fixed to an index, axes that make its rows, axes that make its columns. */
interface View {
  readonly key: string;
  readonly shape: readonly number[];
  readonly fixed: readonly (readonly [axis: number, index: number])[];
  readonly rows: readonly number[];
  readonly columns: readonly number[];
}

/**
 * Opens an .npz for a model of the configuration given.
 *
 * @throws {RequestError} `model_invalid`, naming the array, what was expected and what was found.
 */
export async function openNpz(files: ModelFiles, name: string, config: ModelConfig): Promise<Checkpoint> {
  const arrays = await openArrays(files, name);
  const views = new Map(tensorTable(config).map((spec) => [spec.name, view(spec, config)]));
  for (const { key, shape } of views.values()) {
    const array = arrays.get(key);
    const fail = (detail: string): never => invalid(files, name, `array "${key}": ${detail}`);
    if (!array) fail("expected it, found none of that name");
    // The table of a Hugging Face checkpoint has rows that never stand for a token; they become zero here.
    const equal = array!.shape.length === shape.length &&
      shape.every((it, i) => array!.shape[i] === it || key === EMBEDDER && i === 0 && array!.shape[0] <= it);
    if (!equal) fail(`expected shape [${shape}], found [${array!.shape}]`);
    if (key === EMBEDDER && array!.shape[0] < Math.min(shape[0], config.imageTokenId)) {
      fail(`expected ${config.imageTokenId} rows or more, found ${array!.shape[0]}`);
    }
  }
  let scratch = new Float32Array(0);
  return {
    config,
    place: files.place,
    reader(spec) {
      const it = views.get(spec.name)!;
      const array = arrays.get(it.key)!;
      const [n, k] = [spec.shape[0], width(spec)];
      const base = it.fixed.reduce((sum, [axis, index]) => sum + index * array.strides[axis], 0);
      const row = offsets(array, it.rows);
      const column = offsets(array, it.columns);
      const inOrder = row.every((at, i) => at === i * k) && column.every((at, i) => at === i);
      return {
        position: [name, array.member.offset + base],
        scheme: "f32",
        blockRows: rowsIn(inOrder ? SPAN_BYTES / 2 : GATHER_BYTES, k),
        packed: () => Promise.reject(new TypeError("an .npz holds no packed rows")),
        async rows(start, end) {
          const size = (end - start) * k;
          if (scratch.length < size) scratch = new Float32Array(Math.min(size, n * k));
          const out = scratch.subarray(0, size);
          const stop = Math.min(end, row.length);
          if (stop < end) out.fill(0);
          if (stop > start) await gather(array, base, row, column, start, stop, 0, k, out, start);
          return out;
        },
      };
    },
  };
}

/** Copies rows [r0, r1), columns [c0, c1) to `out`; what spans too many bytes is halved along its longer side. */
async function gather(
  array: Stored,
  base: number,
  row: Float64Array,
  column: Float64Array,
  r0: number,
  r1: number,
  c0: number,
  c1: number,
  out: Float32Array,
  first: number,
): Promise<void> {
  const [rowLow, rowHigh] = [row[r0], row[r1 - 1]];
  const [columnLow, columnHigh] = [column[c0], column[c1 - 1]];
  const low = base + rowLow + columnLow;
  const count = rowHigh - rowLow + columnHigh - columnLow + 1;
  if (count * array.element > SPAN_BYTES && (r1 - r0) * (c1 - c0) > 1) {
    const byRow = r1 - r0 > 1 && (c1 - c0 === 1 || rowHigh - rowLow > columnHigh - columnLow);
    const middle = byRow ? (r0 + r1) >> 1 : (c0 + c1) >> 1;
    if (byRow) {
      await gather(array, base, row, column, r0, middle, c0, c1, out, first);
      return await gather(array, base, row, column, middle, r1, c0, c1, out, first);
    }
    await gather(array, base, row, column, r0, r1, c0, middle, out, first);
    return await gather(array, base, row, column, r0, r1, middle, c1, out, first);
  }
  const from = array.start + low * array.element;
  const values = toFloat32(array.dtype, await array.member.read(from, from + count * array.element));
  const k = column.length;
  // 16 rows at a time: with transposed matrices these are one cache line of the source.
  for (let tile = r0; tile < r1; tile += 16) {
    const tileEnd = Math.min(r1, tile + 16);
    for (let c = c0; c < c1; c++) {
      const at = column[c] - columnLow - rowLow;
      for (let r = tile; r < tileEnd; r++) out[(r - first) * k + c] = values[at + row[r]];
    }
  }
}

/** Element offsets of every index over the axes given, the last one fastest: ascending, as strides are positive. */
function offsets({ shape, strides }: Stored, axes: readonly number[]): Float64Array {
  let out = Float64Array.of(0);
  for (const axis of axes) {
    const next = new Float64Array(out.length * shape[axis]);
    for (let i = 0; i < out.length; i++) {
      for (let j = 0; j < shape[axis]; j++) next[i * shape[axis] + j] = out[i] + j * strides[axis];
    }
    out = next;
  }
  return out;
}

const EMBEDDER = "llm/embedder/input_embedding";
const BLOCK = "img/Transformer/encoderblock/";

function view({ name }: TensorSpec, { vision: v, decoder: d }: ModelConfig): View {
  const at = (
    key: string,
    shape: number[],
    rows: number[],
    columns: number[] = [],
    fixed: [number, number][] = [],
  ): View => ({ key, shape, rows, columns, fixed });
  const headDim = v.width / v.heads;
  const tower = name.replace("vision_tower.vision_model.", "");
  switch (tower) {
    case "embeddings.patch_embedding.weight":
      return at("img/embedding/kernel", [v.patch, v.patch, 3, v.width], [3], [2, 0, 1]);
    case "embeddings.patch_embedding.bias":
      return at("img/embedding/bias", [v.width], [0]);
    case "embeddings.position_embedding.weight":
      return at("img/pos_embedding", [1, (v.imageSize / v.patch) ** 2, v.width], [1], [2]);
    case "post_layernorm.weight":
      return at("img/Transformer/encoder_norm/scale", [v.width], [0]);
    case "post_layernorm.bias":
      return at("img/Transformer/encoder_norm/bias", [v.width], [0]);
    case "multi_modal_projector.linear.weight":
      return at("img/head/kernel", [v.width, d.width], [1], [0]);
    case "multi_modal_projector.linear.bias":
      return at("img/head/bias", [d.width], [0]);
    case "language_model.model.embed_tokens.weight":
      return at(EMBEDDER, [d.vocab, d.width], [0], [1]);
    case "language_model.model.norm.weight":
      return at("llm/final_norm/scale", [d.width], [0]);
  }
  const [, layerText, part, leaf] = tower.match(/layers\.(\d+)\.(.+)\.(weight|bias)$/)!;
  const layer = Number(layerText);
  const fixed: [number, number][] = [[0, layer]];
  if (tower.startsWith("encoder.")) {
    const weight = leaf === "weight";
    const heads = `${BLOCK}MultiHeadDotProductAttention_0/`;
    const norm = part.match(/^layer_norm([12])$/);
    if (norm) {
      return at(
        `${BLOCK}LayerNorm_${+norm[1] - 1}/${weight ? "scale" : "bias"}`,
        [v.layers, v.width],
        [1],
        [],
        fixed,
      );
    }
    const dense = part.match(/^mlp\.fc([12])$/);
    if (dense) {
      const key = `${BLOCK}MlpBlock_0/Dense_${+dense[1] - 1}/${weight ? "kernel" : "bias"}`;
      const [k, n] = dense[1] === "1" ? [v.width, v.mlp] : [v.mlp, v.width];
      return weight ? at(key, [v.layers, k, n], [2], [1], fixed) : at(key, [v.layers, n], [1], [], fixed);
    }
    if (part === "self_attn.out_proj") {
      return weight
        ? at(`${heads}out/kernel`, [v.layers, v.heads, headDim, v.width], [3], [1, 2], fixed)
        : at(`${heads}out/bias`, [v.layers, v.width], [1], [], fixed);
    }
    const which = { q: "query", k: "key", v: "value" }[part.replace("self_attn.", "")[0]];
    return weight
      ? at(`${heads}${which}/kernel`, [v.layers, v.width, v.heads, headDim], [2, 3], [1], fixed)
      : at(`${heads}${which}/bias`, [v.layers, v.heads, headDim], [1, 2], [], fixed);
  }
  const second = d.family === "gemma2";
  const norm = (it: string) => at(`llm/layers/${it}/scale`, [d.layers, d.width], [1], [], fixed);
  const keyValue = (index: number) =>
    at("llm/layers/attn/kv_einsum/w", [d.layers, 2, d.kvHeads, d.width, d.headDim], [2, 4], [3], [...fixed, [
      1,
      index,
    ]]);
  const gating = (index: number) =>
    at("llm/layers/mlp/gating_einsum", [d.layers, 2, d.width, d.mlp], [3], [2], [...fixed, [1, index]]);
  const parts: Record<string, () => View> = {
    "self_attn.q_proj": () =>
      at("llm/layers/attn/q_einsum/w", [d.layers, d.heads, d.width, d.headDim], [1, 3], [2], fixed),
    "self_attn.k_proj": () => keyValue(0),
    "self_attn.v_proj": () => keyValue(1),
    "self_attn.o_proj": () =>
      at("llm/layers/attn/attn_vec_einsum/w", [d.layers, d.heads, d.headDim, d.width], [3], [1, 2], fixed),
    "mlp.gate_proj": () => gating(0),
    "mlp.up_proj": () => gating(1),
    "mlp.down_proj": () => at("llm/layers/mlp/linear", [d.layers, d.mlp, d.width], [2], [1], fixed),
    "input_layernorm": () => norm("pre_attention_norm"),
    // In Gemma 1 this name means the norm before the MLP.
    "post_attention_layernorm": () => norm(second ? "post_attention_norm" : "pre_ffw_norm"),
    "pre_feedforward_layernorm": () => norm("pre_ffw_norm"),
    "post_feedforward_layernorm": () => norm("post_ffw_norm"),
  };
  return parts[part]();
}

/**
 * `config.json` and `preprocessor_config.json` from the shapes of an .npz; what shapes do not tell is as published.
 *
 * @throws {RequestError} `model_invalid` where an array is missing or has another number of axes.
 */
export async function npzConfig(
  files: ModelFiles,
  name: string,
): Promise<Record<"config.json" | "preprocessor_config.json", Record<string, unknown>>> {
  const arrays = await openArrays(files, name);
  const shape = (key: string, axes: number): readonly number[] => {
    const found = arrays.get(key)?.shape;
    if (found?.length === axes) return found;
    return invalid(
      files,
      name,
      `array "${key}": expected ${axes} axes, found ${found ? `[${found}]` : "no such array"}`,
    );
  };
  const [patch, , , visionWidth] = shape("img/embedding/kernel", 4);
  const [, tokens] = shape("img/pos_embedding", 3);
  const [visionLayers, , visionMlp] = shape(`${BLOCK}MlpBlock_0/Dense_0/kernel`, 3);
  const [, , visionHeads] = shape(`${BLOCK}MultiHeadDotProductAttention_0/query/kernel`, 4);
  const [vocab, hidden] = shape(EMBEDDER, 2);
  const [layers, heads, , headDim] = shape("llm/layers/attn/q_einsum/w", 4);
  const [, , kvHeads] = shape("llm/layers/attn/kv_einsum/w", 5);
  const [, mlp] = shape("llm/layers/mlp/linear", 3);
  const second = arrays.has("llm/layers/post_ffw_norm/scale");
  const size = Math.round(Math.sqrt(tokens)) * patch;
  const text = {
    model_type: second ? "gemma2" : "gemma",
    hidden_size: hidden,
    num_hidden_layers: layers,
    intermediate_size: mlp,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    // All published sizes divide by the head's width, but for 27B, which divides by hidden / heads.
    ...second ? { query_pre_attn_scalar: headDim === 128 ? hidden / heads : headDim } : {},
    vocab_size: vocab,
    num_image_tokens: tokens,
  };
  const { config, preprocessor } = publishedConfig(SHAPES[0]);
  const built = {
    ...config,
    projection_dim: hidden,
    image_token_index: Math.min(vocab, 257152),
    text_config: text,
    vision_config: {
      ...config.vision_config as object,
      hidden_size: visionWidth,
      intermediate_size: visionMlp,
      num_hidden_layers: visionLayers,
      num_attention_heads: visionHeads,
      patch_size: patch,
      image_size: size,
      projection_dim: hidden,
    },
  };
  const sized = { ...preprocessor, size: { height: size, width: size }, image_seq_length: tokens };
  parseConfig(built, sized, {}, name);
  return { "config.json": built, "preprocessor_config.json": sized };
}

async function openArrays(files: ModelFiles, name: string): Promise<Map<string, Stored>> {
  const arrays = new Map<string, Stored>();
  for (const [path, member] of await openZip(files, name)) {
    const key = path.replace(/\.npy$/, "").replace(/^params\//, "");
    if (!/^(img|llm)\//.test(key)) continue;
    arrays.set(key, await header(key, member, (detail) => invalid(files, name, `array "${key}": ${detail}`)));
  }
  return arrays;
}

async function header(key: string, member: ZipMember, fail: (detail: string) => never): Promise<Stored> {
  if (member.sizeBytes < 12) return fail(`expected an .npy header, found ${member.sizeBytes} bytes`);
  const start = new DataView((await member.read(0, 12)).slice().buffer);
  if (start.getUint32(0) !== 0x934e554d || start.getUint16(4) !== 0x5059) {
    return fail("expected .npy, found other bytes");
  }
  const version = start.getUint8(6);
  if (version < 1 || version > 3) return fail(`expected .npy version 1, 2 or 3, found ${version}`);
  const from = version === 1 ? 10 : 12;
  const length = version === 1 ? start.getUint16(8, true) : start.getUint32(8, true);
  if (length > 65536 || from + length > member.sizeBytes) {
    return fail(`its header says it takes ${length} bytes`);
  }
  const text = new TextDecoder().decode(await member.read(from, from + length));
  const descr = text.match(/'descr':\s*'([^']*)'/)?.[1];
  const order = text.match(/'fortran_order':\s*(True|False)/)?.[1];
  const dims = text.match(/'shape':\s*\(([\d\s,L]*)\)/)?.[1];
  if (descr?.includes("O")) return fail("it holds Python objects (pickled), which are never unpickled");
  if (descr === undefined || !order || dims === undefined) {
    return fail(`its header cannot be read: ${text.trim()}`);
  }
  const [dtype, element] = DTYPES[descr] ?? [];
  if (!dtype || !element) return fail(`expected type ${Object.keys(DTYPES).join(", ")}, found ${descr}`);
  const shape = (dims.match(/\d+/g) ?? []).map(Number);
  const bytes = shape.reduce((product, it) => product * it, element);
  if (from + length + bytes !== member.sizeBytes) {
    return fail(`${descr} [${shape}] takes ${bytes} bytes, found ${member.sizeBytes - from - length}`);
  }
  const strides = shape.map((_, axis) =>
    (order === "True" ? shape.slice(0, axis) : shape.slice(axis + 1)).reduce((product, it) => product * it, 1)
  );
  return { key, member, dtype, element, shape, strides, start: from + length };
}

function invalid(files: ModelFiles, name: string, detail: string): never {
  throw new RequestError("model_invalid", `Cannot read ${name} of ${files.place}: ${detail}`);
}
