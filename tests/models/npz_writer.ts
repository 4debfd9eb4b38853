/** Writes big_vision's format from published tensors, by the transposes of its own code, for the tests. */

import { crc32 } from "node:zlib";
import type { ModelConfig } from "../../lib/weights/config.ts";

interface Tensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/** numpy's reshape. */
const reshape = ({ data }: Tensor, ...shape: number[]): Tensor => ({ shape, data });

/** numpy's transpose. */
function transpose({ shape, data }: Tensor, ...axes: number[]): Tensor {
  const strides = shape.map((_, i) => shape.slice(i + 1).reduce((a, b) => a * b, 1));
  const to = axes.map((it) => shape[it]);
  const out = new Float32Array(data.length);
  for (let i = 0; i < out.length; i++) {
    let [rest, from] = [i, 0];
    for (let axis = to.length - 1; axis >= 0; axis--) {
      from += rest % to[axis] * strides[axes[axis]];
      rest = Math.floor(rest / to[axis]);
    }
    out[i] = data[from];
  }
  return { shape: to, data: out };
}

/** numpy's stack on a new first axis. */
function stack(parts: readonly Tensor[]): Tensor {
  const data = new Float32Array(parts.reduce((sum, it) => sum + it.data.length, 0));
  parts.forEach((it, i) => data.set(it.data, i * it.data.length));
  return { shape: [parts.length, ...parts[0].shape], data };
}

/** An .npz of all weights, arrays in C or Fortran order, members stored or deflated. */
export async function npzBytes(
  weights: ReadonlyMap<string, Float32Array>,
  { vision: v, decoder: d }: ModelConfig,
  variant: "stored" | "deflated" | "fortran",
): Promise<Uint8Array> {
  const tensor = (name: string, ...shape: number[]): Tensor => ({ data: weights.get(name)!, shape });
  const arrays: Record<string, Tensor> = {};
  const tower = "vision_tower.vision_model.";
  const C = v.width / v.heads;
  const patch = tensor(`${tower}embeddings.patch_embedding.weight`, v.width, 3, v.patch, v.patch);
  arrays["img/embedding/kernel"] = transpose(patch, 2, 3, 1, 0);
  arrays["img/embedding/bias"] = tensor(`${tower}embeddings.patch_embedding.bias`, v.width);
  arrays["img/pos_embedding"] = tensor(
    `${tower}embeddings.position_embedding.weight`,
    1,
    (v.imageSize / v.patch) ** 2,
    v.width,
  );
  const layers = (count: number, of: (i: number) => Tensor) =>
    stack(Array.from({ length: count }, (_, i) => of(i)));
  const see = (name: string, ...shape: number[]) => (i: number) =>
    tensor(`${tower}encoder.layers.${i}.${name}`, ...shape);
  const block = "img/Transformer/encoderblock/";
  for (const it of [1, 2]) {
    arrays[`${block}LayerNorm_${it - 1}/scale`] = layers(v.layers, see(`layer_norm${it}.weight`, v.width));
    arrays[`${block}LayerNorm_${it - 1}/bias`] = layers(v.layers, see(`layer_norm${it}.bias`, v.width));
    const [n, k] = it === 1 ? [v.mlp, v.width] : [v.width, v.mlp];
    const dense = `${block}MlpBlock_0/Dense_${it - 1}/`;
    arrays[`${dense}kernel`] = layers(v.layers, (i) => transpose(see(`mlp.fc${it}.weight`, n, k)(i), 1, 0));
    arrays[`${dense}bias`] = layers(v.layers, see(`mlp.fc${it}.bias`, n));
  }
  const attention = `${block}MultiHeadDotProductAttention_0/`;
  for (const it of ["query", "key", "value"]) {
    const name = `self_attn.${it[0]}_proj`;
    arrays[`${attention}${it}/kernel`] = layers(
      v.layers,
      (i) => reshape(transpose(see(`${name}.weight`, v.width, v.width)(i), 1, 0), v.width, v.heads, C),
    );
    arrays[`${attention}${it}/bias`] = layers(v.layers, see(`${name}.bias`, v.heads, C));
  }
  arrays[`${attention}out/kernel`] = layers(
    v.layers,
    (i) =>
      reshape(transpose(see("self_attn.out_proj.weight", v.width, v.width)(i), 1, 0), v.heads, C, v.width),
  );
  arrays[`${attention}out/bias`] = layers(v.layers, see("self_attn.out_proj.bias", v.width));
  arrays["img/Transformer/encoder_norm/scale"] = tensor(`${tower}post_layernorm.weight`, v.width);
  arrays["img/Transformer/encoder_norm/bias"] = tensor(`${tower}post_layernorm.bias`, v.width);
  const head = tensor("multi_modal_projector.linear.weight", d.width, v.width);
  arrays["img/head/kernel"] = transpose(head, 1, 0);
  arrays["img/head/bias"] = tensor("multi_modal_projector.linear.bias", d.width);

  const say = (name: string, ...shape: number[]) => (i: number) =>
    tensor(`language_model.model.layers.${i}.${name}.weight`, ...shape);
  const { heads: N, kvHeads: K, headDim: c, width: h, mlp: F } = d;
  arrays["llm/embedder/input_embedding"] = tensor("language_model.model.embed_tokens.weight", d.vocab, h);
  arrays["llm/layers/attn/q_einsum/w"] = layers(
    d.layers,
    (i) => transpose(say("self_attn.q_proj", N, c, h)(i), 0, 2, 1),
  );
  arrays["llm/layers/attn/kv_einsum/w"] = layers(
    d.layers,
    (i) => stack(["k", "v"].map((it) => transpose(say(`self_attn.${it}_proj`, K, c, h)(i), 0, 2, 1))),
  );
  arrays["llm/layers/attn/attn_vec_einsum/w"] = layers(
    d.layers,
    (i) => transpose(say("self_attn.o_proj", h, N, c)(i), 1, 2, 0),
  );
  arrays["llm/layers/mlp/gating_einsum"] = layers(
    d.layers,
    (i) => stack(["gate", "up"].map((it) => transpose(say(`mlp.${it}_proj`, F, h)(i), 1, 0))),
  );
  arrays["llm/layers/mlp/linear"] = layers(d.layers, (i) => transpose(say("mlp.down_proj", h, F)(i), 1, 0));
  const norms = d.family === "gemma2"
    ? {
      pre_attention_norm: "input_layernorm",
      post_attention_norm: "post_attention_layernorm",
      pre_ffw_norm: "pre_feedforward_layernorm",
      post_ffw_norm: "post_feedforward_layernorm",
    }
    : { pre_attention_norm: "input_layernorm", pre_ffw_norm: "post_attention_layernorm" };
  for (const [to, from] of Object.entries(norms)) {
    arrays[`llm/layers/${to}/scale`] = layers(d.layers, say(from, h));
  }
  arrays["llm/final_norm/scale"] = tensor("language_model.model.norm.weight", h);
  return await zip(arrays, variant);
}

async function zip(
  arrays: Readonly<Record<string, Tensor>>,
  variant: "stored" | "deflated" | "fortran",
): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  const directory: Uint8Array[] = [];
  let at = 0;
  const add = (list: Uint8Array[], bytes: Uint8Array) => list.push(bytes);
  for (const [key, array] of Object.entries(arrays)) {
    const plain = npy(array, variant === "fortran");
    const packed = variant !== "deflated" ? plain : new Uint8Array(
      await new Response(new Blob([plain]).stream().pipeThrough(new CompressionStream("deflate-raw")))
        .arrayBuffer(),
    );
    const name = new TextEncoder().encode(`params/${key}.npy`);
    // What local and central header share, from "version needed" to "extra length".
    const fields = new DataView(new ArrayBuffer(26));
    fields.setUint16(0, 20, true);
    fields.setUint16(4, variant === "deflated" ? 8 : 0, true);
    fields.setUint32(10, crc32(plain), true);
    fields.setUint32(14, packed.length, true);
    fields.setUint32(18, plain.length, true);
    fields.setUint16(22, name.length, true);
    const shared = new Uint8Array(fields.buffer);
    const central = new Uint8Array(46);
    central.set([0x50, 0x4b, 1, 2, 20, 0]);
    central.set(shared, 6);
    new DataView(central.buffer).setUint32(42, at, true);
    for (const it of [central, name]) add(directory, it);
    for (const it of [Uint8Array.of(0x50, 0x4b, 3, 4), shared, name, packed]) {
      add(pieces, it);
      at += it.length;
    }
  }
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(8, directory.length / 2, true);
  end.setUint16(10, directory.length / 2, true);
  end.setUint32(12, directory.reduce((sum, it) => sum + it.length, 0), true);
  end.setUint32(16, at, true);
  const all = [...pieces, ...directory, new Uint8Array(end.buffer)];
  return new Uint8Array(await new Blob(all as Uint8Array<ArrayBuffer>[]).arrayBuffer());
}

/** An array as .npy 1.0. */
function npy(array: Tensor, fortran: boolean): Uint8Array<ArrayBuffer> {
  const { shape } = array;
  const { data } = fortran ? transpose(array, ...shape.map((_, i) => shape.length - 1 - i)) : array;
  const order = fortran ? "True" : "False";
  const dims = shape.map((it) => `${it},`).join(" ");
  const text = `{'descr': '<f4', 'fortran_order': ${order}, 'shape': (${dims}), }`;
  const header = text.padEnd(Math.ceil((text.length + 11) / 64) * 64 - 11) + "\n";
  const out = new Uint8Array(10 + header.length + 4 * data.length);
  out.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length & 255, header.length >> 8]);
  out.set(new TextEncoder().encode(header), 10);
  out.set(new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength), 10 + header.length);
  return out;
}
