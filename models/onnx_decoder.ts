/**
 * Gemma 1 and Gemma 2 as ONNX graphs: the embedding, and all layers with the head. The same walk as
 * `lib/decode/gemma.ts`.
 *
 * The decoder takes no mask. An empty cache means that the rows are the prefix, which sees itself in full; rows that
 * meet a cache are causal. So a whole prefix in one pass, then suffix tokens one or several at a time, is exactly
 * prefix-LM attention.
 */

import { DECODER_LAYER, EMBEDDING } from "../lib/weights/table.ts";
import { type OnnxFormat, OnnxOps } from "./onnx_ops.ts";
import { DataType } from "./onnx_writer.ts";

/** Score of what a query may not see; the lowest f32. */
const HIDDEN = -3.4028234663852886e38;

/** `input_ids` [1, T] to `inputs_embeds` [1, T, D], already times √D. */
export async function writeEmbedding(ops: OnnxOps, format: "f32" | "int8"): Promise<void> {
  const { width } = ops.weights.config.decoder;
  const ids = ops.file.input("input_ids", DataType.i64, ["batch_size", "sequence_length"]);
  await ops.embed(ids, EMBEDDING, format, Math.sqrt(width), "inputs_embeds");
  ops.file.output("inputs_embeds", DataType.f32, ["batch_size", "sequence_length", width]);
}

/**
 * `inputs_embeds` [1, T, D], `position_ids` [1, T] and `past_key_values.I.key|value` [1, K, S, C] to `logits`
 * [1, 1, V] of the last row and `present.I.key|value` [1, K, S + T, C].
 */
export async function writeDecoder(
  ops: OnnxOps,
  format: OnnxFormat,
  head: "f32" | "int8",
  slidingWindow: "off" | "hf",
): Promise<void> {
  const { file, weights } = ops;
  const { decoder: config } = weights.config;
  const { width, heads, kvHeads, headDim, layers, eps, softcap } = config;
  const second = config.family === "gemma2";
  let x = file.input("inputs_embeds", DataType.f32, [1, "sequence_length", width]);
  const ids = file.input("position_ids", DataType.i64, [1, "sequence_length"]);
  file.output("logits", DataType.f32, [1, 1, config.vocab]);
  const [cos, sin] = await rotations(ops, ids);
  const rotate = (y: string, scale?: number) => {
    const [a, b] = file.nodes("Split", [y], { axis: -1, num_outputs: 2 }, [
      file.fresh("low"),
      file.fresh("high"),
    ]);
    const low = ops.node("Sub", [ops.mul(a, cos), ops.mul(b, sin)]);
    const high = ops.add(ops.mul(b, cos), ops.mul(a, sin));
    const turned = ops.node("Concat", [low, high], { axis: -1 });
    return scale === undefined ? turned : ops.mul(turned, file.scalar(scale));
  };
  const { full, near } = masks(ops, slidingWindow === "hf" ? config.window : undefined);

  for (let i = 0; i < layers; i++) {
    const name = `${DECODER_LAYER}${i}.`;
    const linear = (y: string, part: string) => ops.linear(y, `${name}${part}.weight`, format);
    const norm = (y: string, part: string) => ops.rmsNorm(y, `${name}${part}.weight`, eps);

    const y = await norm(x, "input_layernorm");
    const q = rotate(ops.heads(await linear(y, "self_attn.q_proj"), heads, headDim), config.attentionScale);
    const k = rotate(ops.heads(await linear(y, "self_attn.k_proj"), kvHeads, headDim));
    const v = ops.heads(await linear(y, "self_attn.v_proj"), kvHeads, headDim);
    const grown = (part: string, rows: string) => {
      const dims = (length: string) => [1, kvHeads, length, headDim];
      const past = file.input(`past_key_values.${i}.${part}`, DataType.f32, dims("past_sequence_length"));
      file.output(`present.${i}.${part}`, DataType.f32, dims("total_sequence_length"));
      return ops.node("Concat", [past, rows], { axis: 2 }, `present.${i}.${part}`);
    };
    const keys = ops.node("Transpose", [grown("key", k)], { perm: [0, 1, 3, 2] }); // [1, K, C, S]
    const values = grown("value", v);
    // Query heads that share a key-value head stand below one another: [1, K, H/K·T, C].
    let scores = ops.node("MatMul", [ops.reshape(q, 0, kvHeads, -1, headDim), keys]);
    if (softcap) {
      const bent = ops.node("Tanh", [ops.node("Div", [scores, file.scalar(softcap)])]);
      scores = ops.mul(bent, file.scalar(softcap));
    }
    scores = ops.add(ops.reshape(scores, 0, heads, -1, 0), i % 2 === 0 ? near : full); // [1, H, T, S]
    const shares = ops.reshape(ops.node("Softmax", [scores], { axis: -1 }), 0, kvHeads, -1, 0);
    const mixed = ops.reshape(ops.node("MatMul", [shares, values]), 0, heads, -1, headDim);
    let added = await linear(ops.joined(mixed, heads * headDim), "self_attn.o_proj");
    if (second) added = await norm(added, "post_attention_layernorm");
    x = ops.add(x, added);

    const z = await norm(x, second ? "pre_feedforward_layernorm" : "post_attention_layernorm");
    const hidden = ops.mul(ops.gelu(await linear(z, "mlp.gate_proj")), await linear(z, "mlp.up_proj"));
    added = await linear(hidden, "mlp.down_proj");
    if (second) added = await norm(added, "post_feedforward_layernorm");
    x = ops.add(x, added);
  }
  const past = Number.MAX_SAFE_INTEGER;
  const last = ops.node("Slice", [x, file.integers(-1), file.integers(past), file.integers(1)]);
  const normed = await ops.rmsNorm(last, "language_model.model.norm.weight", eps);
  ops.node("Identity", [await ops.linear(normed, EMBEDDING, head)], {}, "logits");
}

/** Cosine and sine of every position and pair, [1, 1, T, C/2]; computed in f64 and looked up. */
async function rotations(ops: OnnxOps, ids: string): Promise<[string, string]> {
  const { headDim, ropeTheta, context } = ops.weights.config.decoder;
  const half = headDim / 2;
  const lookUp = async (name: string, f: (angle: number) => number) => {
    const values = new Float32Array(context * half);
    for (let i = 0; i < half; i++) {
      const frequency = ropeTheta ** (-2 * i / headDim);
      for (let position = 0; position < context; position++) {
        values[position * half + i] = f(position * frequency);
      }
    }
    const table = await ops.file.tensor(name, [context, half], values);
    return ops.node("Unsqueeze", [ops.node("Gather", [table, ids]), ops.file.integers(1)]);
  };
  return [await lookUp("rope.cos", Math.cos), await lookUp("rope.sin", Math.sin)];
}

/** What is added to the scores, [T, S]: of the odd layers (`full`) and of the even ones, which may have a window. */
function masks(ops: OnnxOps, window?: number): { full: string; near: string } {
  const { file } = ops;
  const size = (x: string, axis: number) =>
    ops.node("Gather", [ops.node("Shape", [x]), file.scalar(axis, "i64")]);
  const [zero, one] = [file.scalar(0, "i64"), file.scalar(1, "i64")];
  const past = size("past_key_values.0.key", 2);
  const total = ops.add(past, size("inputs_embeds", 1));
  const keys = ops.node("Range", [zero, total, one]); // [S]
  const queries = ops.node("Unsqueeze", [ops.node("Range", [past, total, one]), file.integers(1)]); // [T, 1]
  const isPrefix = ops.node("Equal", [past, zero]);
  const bias = (seen: string) =>
    ops.node("Where", [ops.node("Or", [seen, isPrefix]), file.scalar(0), file.scalar(HIDDEN)]);
  const causal = ops.node("LessOrEqual", [keys, queries]);
  const full = bias(causal);
  if (window === undefined) return { full, near: full };
  const since = ops.node("Sub", [queries, file.scalar(window, "i64")]);
  return { full, near: bias(ops.node("And", [causal, ops.node("Greater", [keys, since])])) };
}
