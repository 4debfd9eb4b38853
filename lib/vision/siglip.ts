/**
 * SigLIP and the projector: pixels in, image tokens out.
 *
 * Follows big_vision `models/vit.py` (pre-norm encoder, learned positions, final LayerNorm, no pooling) and the
 * projector `img/head` of `models/proj/paligemma/paligemma.py`. The image tokens leave here unscaled.
 *
 * Shape letters: P image tokens, W SigLIP width, F its MLP width, D decoder width.
 */

import type { Backend, Matrix, Tensor } from "../backend/backend.ts";
import type { Pause, Pixels } from "../types.ts";
import type { Weights } from "../weights/load.ts";
import { VISION_LAYER } from "../weights/table.ts";

/** The image encoder of one model. */
export interface Vision {
  /** Image tokens of one picture. */
  readonly imageTokens: number;
  /** Writes the image tokens of one picture to out [P, D]. */
  encode(out: Tensor, pixels: Pixels, pause: Pause): Promise<void>;
}

interface Linear {
  readonly weight: Matrix;
  readonly bias: Tensor;
}

interface Norm {
  readonly weight: Tensor;
  readonly bias: Tensor;
}

interface Layer {
  readonly norm1: Norm;
  readonly q: Linear;
  readonly k: Linear;
  readonly v: Linear;
  readonly out: Linear;
  readonly norm2: Norm;
  readonly fc1: Linear;
  readonly fc2: Linear;
}

/** Loads the encoder and the projector into the backend. */
export async function loadVision(backend: Backend, weights: Weights): Promise<Vision> {
  const config = weights.config.vision;
  const { imageSize, patch, width, heads, mlp, eps } = config;
  const imageTokens = (imageSize / patch) ** 2;
  const tower = "vision_tower.vision_model.";

  const vector = async (name: string) => {
    const values = await weights.vector(name);
    const tensor = backend.tensor(1, values.length);
    backend.write(tensor, values);
    return tensor;
  };
  const norm = async (name: string): Promise<Norm> => ({
    weight: await vector(`${name}.weight`),
    bias: await vector(`${name}.bias`),
  });
  const linear = async (name: string): Promise<Linear> => ({
    weight: backend.matrix(await weights.matrix(`${name}.weight`)),
    bias: await vector(`${name}.bias`),
  });

  const embedding = await linear(`${tower}embeddings.patch_embedding`);
  const positions = backend.tensor(imageTokens, width);
  backend.write(positions, await weights.vector(`${tower}embeddings.position_embedding.weight`));
  const layers: Layer[] = [];
  for (let i = 0; i < config.layers; i++) {
    const name = `${VISION_LAYER}${i}.`;
    layers.push({
      norm1: await norm(`${name}layer_norm1`),
      q: await linear(`${name}self_attn.q_proj`),
      k: await linear(`${name}self_attn.k_proj`),
      v: await linear(`${name}self_attn.v_proj`),
      out: await linear(`${name}self_attn.out_proj`),
      norm2: await norm(`${name}layer_norm2`),
      fc1: await linear(`${name}mlp.fc1`),
      fc2: await linear(`${name}mlp.fc2`),
    });
  }
  const last = await norm(`${tower}post_layernorm`);
  const projector = await linear("multi_modal_projector.linear");

  const headDim = width / heads;
  const attention = { heads, kvHeads: heads, headDim, scale: headDim ** -0.5, start: 0, prefix: imageTokens };
  const apply = (out: Tensor, x: Tensor, { weight, bias }: Linear, more = {}) =>
    backend.linear(out, x, weight, { bias, ...more });

  async function encode(
    out: Tensor,
    pixels: Pixels,
    work: (rows: number, cols: number) => Tensor,
    pause: Pause,
  ): Promise<void> {
    if (pixels.size !== imageSize) {
      throw new RangeError(
        `Cannot encode pixels: expected ${imageSize} × ${imageSize}, found ${pixels.size}`,
      );
    }
    const picture = work(1, imageSize * imageSize * 3);
    const patches = work(imageTokens, 3 * patch * patch);
    const x = work(imageTokens, width); // [P, W], the residual stream
    const y = work(imageTokens, width); // [P, W]
    const [q, k, v] = [work(imageTokens, width), work(imageTokens, width), work(imageTokens, width)];
    const hidden = work(imageTokens, mlp); // [P, F]

    backend.write(picture, pixels.data);
    backend.patches(patches, picture, imageSize, patch);
    apply(x, patches, embedding, { residual: positions });
    for (const layer of layers) {
      await pause();
      backend.layerNorm(y, x, layer.norm1.weight, layer.norm1.bias, eps);
      apply(q, y, layer.q);
      apply(k, y, layer.k);
      apply(v, y, layer.v);
      backend.attention(y, q, k, v, attention);
      apply(x, y, layer.out, { residual: x });
      backend.layerNorm(y, x, layer.norm2.weight, layer.norm2.bias, eps);
      apply(hidden, y, layer.fc1, { activation: "gelu" });
      apply(x, hidden, layer.fc2, { residual: x });
    }
    backend.layerNorm(x, x, last.weight, last.bias, eps);
    apply(out, x, projector);
  }

  return {
    imageTokens,
    async encode(out, pixels, pause) {
      const held: Tensor[] = [];
      const work = (rows: number, cols: number) => {
        const tensor = backend.tensor(rows, cols);
        held.push(tensor);
        return tensor;
      };
      try {
        await encode(out, pixels, work, pause);
      } finally {
        backend.free(...held);
      }
    },
  };
}
