/**
 * One table of all tensors of a model, in the order they are used: name, shape, and how far each may be quantised.
 * The loader, the converter and the checks read this table and nothing else.
 *
 * Names are those of the first published checkpoints (`language_model.model.…`, `vision_tower.vision_model.…`);
 * `canonicalName` maps the layout that transformers writes since 4.52 to them.
 */

import type { ModelConfig } from "./config.ts";

/** How a tensor is used, and thereby how it may be stored. */
export interface TensorSpec {
  readonly name: string;
  readonly shape: readonly number[];
  readonly part: "vision" | "decoder";
  /**
   * The coarsest format that keeps the answer: norms, biases, positions and the patch embedding stay f32 (0.2 % of
   * the weights), the tied embedding and head int8, as does all of SigLIP; Gemma's matrices go down to int4.
   */
  readonly lowest: "f32" | "int8" | "int4";
}

/** The published name of a tensor under either layout; undefined for what the model does not use. */
export function canonicalName(name: string): string | undefined {
  const short = name.replace(/^model\.(?=language_model\.|vision_tower\.|multi_modal_projector\.)/, "");
  if (short === "lm_head.weight" || short === "language_model.lm_head.weight") return undefined; // tied
  return short
    .replace(/^language_model\.(?!model\.)/, "language_model.model.")
    .replace(/^vision_tower\.(?!vision_model\.)/, "vision_tower.vision_model.");
}

/** Names of the parts of one SigLIP layer, under `visionLayer(i)`. */
export const VISION_LAYER = "vision_tower.vision_model.encoder.layers.";
/** Names of the parts of one Gemma layer. */
export const DECODER_LAYER = "language_model.model.layers.";

/** The token embedding, which is the output head too. */
export const EMBEDDING = "language_model.model.embed_tokens.weight";

/** All tensors of a model in the order they are used. */
export function tensorTable({ vision: v, decoder: d }: ModelConfig): TensorSpec[] {
  const table: TensorSpec[] = [];
  const vision = (name: string, shape: number[], lowest: TensorSpec["lowest"] = "f32") =>
    table.push({ name, shape, part: "vision", lowest });
  const decoder = (name: string, shape: number[], lowest: TensorSpec["lowest"] = "f32") =>
    table.push({ name, shape, part: "decoder", lowest });

  const tower = "vision_tower.vision_model.";
  vision(`${tower}embeddings.patch_embedding.weight`, [v.width, 3, v.patch, v.patch]);
  vision(`${tower}embeddings.patch_embedding.bias`, [v.width]);
  vision(`${tower}embeddings.position_embedding.weight`, [(v.imageSize / v.patch) ** 2, v.width]);
  for (let i = 0; i < v.layers; i++) {
    const layer = `${VISION_LAYER}${i}.`;
    const norm = (name: string) => {
      vision(`${layer}${name}.weight`, [v.width]);
      vision(`${layer}${name}.bias`, [v.width]);
    };
    const linear = (name: string, n: number, k: number) => {
      vision(`${layer}${name}.weight`, [n, k], "int8");
      vision(`${layer}${name}.bias`, [n]);
    };
    norm("layer_norm1");
    for (const name of ["q_proj", "k_proj", "v_proj", "out_proj"]) {
      linear(`self_attn.${name}`, v.width, v.width);
    }
    norm("layer_norm2");
    linear("mlp.fc1", v.mlp, v.width);
    linear("mlp.fc2", v.width, v.mlp);
  }
  vision(`${tower}post_layernorm.weight`, [v.width]);
  vision(`${tower}post_layernorm.bias`, [v.width]);
  vision("multi_modal_projector.linear.weight", [d.width, v.width], "int8");
  vision("multi_modal_projector.linear.bias", [d.width]);

  decoder(EMBEDDING, [d.vocab, d.width], "int8");
  for (let i = 0; i < d.layers; i++) {
    const layer = `${DECODER_LAYER}${i}.`;
    decoder(`${layer}input_layernorm.weight`, [d.width]);
    decoder(`${layer}self_attn.q_proj.weight`, [d.heads * d.headDim, d.width], "int4");
    decoder(`${layer}self_attn.k_proj.weight`, [d.kvHeads * d.headDim, d.width], "int4");
    decoder(`${layer}self_attn.v_proj.weight`, [d.kvHeads * d.headDim, d.width], "int4");
    decoder(`${layer}self_attn.o_proj.weight`, [d.width, d.heads * d.headDim], "int4");
    decoder(`${layer}post_attention_layernorm.weight`, [d.width]);
    if (d.family === "gemma2") {
      decoder(`${layer}pre_feedforward_layernorm.weight`, [d.width]);
      decoder(`${layer}post_feedforward_layernorm.weight`, [d.width]);
    }
    decoder(`${layer}mlp.gate_proj.weight`, [d.mlp, d.width], "int4");
    decoder(`${layer}mlp.up_proj.weight`, [d.mlp, d.width], "int4");
    decoder(`${layer}mlp.down_proj.weight`, [d.width, d.mlp], "int4");
  }
  decoder("language_model.model.norm.weight", [d.width]);
  return table;
}
