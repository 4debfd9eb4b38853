/** The golden question of a small model, through any encoder and decoder. */

import assert from "node:assert/strict";
import type { Backend } from "../../lib/backend/backend.ts";
import type { Decoder } from "../../lib/decode/decoder.ts";
import { normalise } from "../../lib/preprocess/normalise.ts";
import type { Vision } from "../../lib/vision/siglip.ts";
import type { ModelConfig } from "../../lib/weights/config.ts";

/** One file of tests/golden/tiny. */
export interface Golden {
  config: Record<string, number>;
  hidden: number;
  vocab: number;
  image_token_id: number;
  images_u8: number[][][][];
  ids_after_images: number[];
  greedy: number[];
  step_logits: number[][];
  image_features_first_row: number[];
}

/** `config.json` of a small model. */
export function goldenConfig({ config: c, ...golden }: Golden) {
  return {
    image_token_index: golden.image_token_id,
    hidden_size: 2048,
    text_config: {
      model_type: c.gemma2 ? "gemma2" : "gemma",
      hidden_size: golden.hidden,
      intermediate_size: 80,
      num_hidden_layers: c.layers,
      num_attention_heads: c.heads,
      num_key_value_heads: c.kv,
      head_dim: c.head_dim,
      vocab_size: golden.vocab,
      query_pre_attn_scalar: c.q_scalar,
      sliding_window: c.window,
    },
    vision_config: {
      hidden_size: c.v_hidden,
      intermediate_size: 44,
      num_hidden_layers: c.v_layers,
      num_attention_heads: c.v_heads,
      image_size: 28,
      patch_size: c.patch,
    },
  };
}

/** First row of the image tokens, and the logits of every step with the golden's tokens. */
export async function run(
  backend: Backend,
  { vision, decoder }: { vision: Vision; decoder: Decoder },
  config: ModelConfig,
  golden: Pick<Golden, "images_u8" | "ids_after_images" | "greedy">,
): Promise<{ features: Float32Array; logits: Float32Array[] }> {
  const pause = () => Promise.resolve();
  const { images_u8: images, ids_after_images: ids, greedy } = golden;
  const prefix = backend.tensor(images.length * vision.imageTokens + ids.length, config.decoder.width);
  for (const [i, picture] of images.entries()) {
    const data = normalise(interleaved(picture), config.imageMean, config.imageStd);
    const rows = backend.slice(prefix, i * vision.imageTokens, vision.imageTokens);
    await vision.encode(rows, { size: config.vision.imageSize, data }, pause);
  }
  const features = await backend.read(backend.slice(prefix, 0, 1));
  const cache = decoder.cache(prefix.rows + greedy.length);
  const logits = [await decoder.prefill(cache, prefix, ids, pause)];
  for (const id of greedy.slice(0, -1)) logits.push(await decoder.step(cache, id, pause));
  cache.free();
  return { features, logits };
}

/** Largest difference; NaN when there is one. */
export function worst(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length);
  let max = 0;
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs(a[i] - b[i]);
    if (!(difference <= max)) max = difference;
    if (Number.isNaN(max)) break;
  }
  return max;
}

/** Root of the mean squared difference, as a share of the size of b. */
export function relative(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length);
  let [difference, power] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    difference += (a[i] - b[i]) ** 2;
    power += b[i] ** 2;
  }
  return Math.sqrt(difference / power);
}

/** [3, H, W] as [H, W, 3]. */
function interleaved([red, green, blue]: number[][][]): Uint8Array {
  return Uint8Array.from(
    red.flatMap((row, y) => row.flatMap((_, x) => [red[y][x], green[y][x], blue[y][x]])),
  );
}
