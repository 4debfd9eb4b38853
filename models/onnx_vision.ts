/**
 * SigLIP and the projector as one ONNX graph: `pixel_values` [N, 3, R, R] to `image_features` [N, P, D], unscaled.
 * The same walk as `lib/vision/siglip.ts`.
 */

import { VISION_LAYER } from "../lib/weights/table.ts";
import { OnnxOps } from "./onnx_ops.ts";
import { DataType } from "./onnx_writer.ts";

/** Adds the graph to the ops' file; `image_features` is [N, P, D]. */
export async function writeVision(ops: OnnxOps, format: "f32" | "int8"): Promise<void> {
  const { file, weights } = ops;
  const { imageSize, patch, width, heads, mlp: _, layers, eps } = weights.config.vision;
  const positions = (imageSize / patch) ** 2;
  const headDim = width / heads;
  const tower = "vision_tower.vision_model.";
  const linear = (x: string, name: string) => ops.linear(x, `${name}.weight`, format, `${name}.bias`);

  const pixels = file.input("pixel_values", DataType.f32, ["batch_size", 3, imageSize, imageSize]);
  const embedding = `${tower}embeddings.patch_embedding`;
  const { data } = await weights.matrix(`${embedding}.weight`, "f32");
  const kernel = await file.tensor(`${embedding}.weight`, [width, 3, patch, patch], data as Float32Array);
  const grid = ops.node("Conv", [pixels, kernel, await ops.vector(`${embedding}.bias`)], {
    kernel_shape: [patch, patch],
    strides: [patch, patch],
  });
  const table = `${tower}embeddings.position_embedding.weight`;
  let x = ops.add(
    ops.node("Transpose", [ops.reshape(grid, 0, width, positions)], { perm: [0, 2, 1] }),
    await file.tensor(table, [positions, width], await weights.vector(table)),
  );
  for (let i = 0; i < layers; i++) {
    const name = `${VISION_LAYER}${i}.`;
    const y = await ops.layerNorm(x, `${name}layer_norm1`, eps);
    const q = ops.mul(await linear(y, `${name}self_attn.q_proj`), file.scalar(headDim ** -0.5));
    const k = ops.reshape(await linear(y, `${name}self_attn.k_proj`), 0, 0, heads, headDim);
    const v = ops.heads(await linear(y, `${name}self_attn.v_proj`), heads, headDim);
    const turned = ops.node("Transpose", [k], { perm: [0, 2, 3, 1] }); // [N, H, C, P]
    const scores = ops.node("MatMul", [ops.heads(q, heads, headDim), turned]);
    const mixed = ops.node("MatMul", [ops.node("Softmax", [scores], { axis: -1 }), v]);
    x = ops.add(x, await linear(ops.joined(mixed, width), `${name}self_attn.out_proj`));
    const z = await ops.layerNorm(x, `${name}layer_norm2`, eps);
    const hidden = ops.gelu(await linear(z, `${name}mlp.fc1`));
    x = ops.add(x, await linear(hidden, `${name}mlp.fc2`));
  }
  const last = await ops.layerNorm(x, `${tower}post_layernorm`, eps);
  const features = await linear(last, "multi_modal_projector.linear");
  ops.node("Identity", [features], {}, "image_features");
  file.output("image_features", DataType.f32, ["batch_size", positions, weights.config.decoder.width]);
}
