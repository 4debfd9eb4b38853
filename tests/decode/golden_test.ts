/**
 * Every logit of the small random models against transformers 5.18 in float32 (tests/golden/tiny): vision, projector,
 * prefix-LM prefill and eight steps, one and two pictures, PaliGemma 1 and 2 with its caps and windows, on every backend.
 */

import assert from "node:assert/strict";
import type { Backend } from "../../lib/backend/backend.ts";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { loadDecoder } from "../../lib/decode/gemma.ts";
import { normalise } from "../../lib/preprocess/normalise.ts";
import { loadVision } from "../../lib/vision/siglip.ts";
import { parseConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { openSoftware } from "../backend/gpus.ts";
import { memoryFiles } from "../memory_files.ts";

interface Golden {
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

const GOLDEN = new URL("../golden/tiny/", import.meta.url);
const LIMIT = 2e-4;

const backends: [string, () => Backend][] = [
  ["reference", createReferenceBackend],
  ["wasm", () => createWasmBackend({ simd, relaxed })],
];
const gpu = await openSoftware({ driver: "lavapipe" });
if (gpu) backends.push(["webgpu on lavapipe", () => gpu]);
else Deno.test({ name: "webgpu: logits (skipped: no driver)", ignore: true, fn() {} });

for (const family of ["pg1", "pg2"]) {
  const weightBytes = Deno.readFileSync(new URL(`${family}.safetensors`, GOLDEN));
  for (const images of [1, 2]) {
    const golden: Golden = JSON.parse(Deno.readTextFileSync(new URL(`${family}_${images}img.json`, GOLDEN)));
    for (const [name, create] of backends) {
      Deno.test(`${name}: logits of ${family} with ${images} picture(s) are the reference's within 2e-4`, async () => {
        const { worst, features } = await run(create(), golden, weightBytes);
        assert.ok(features < LIMIT, `image features differ by ${features}`);
        assert.ok(worst < LIMIT, `logits differ by ${worst}`);
      });
    }
  }
}

/** [3, H, W] as [H, W, 3]. */
function interleaved([red, green, blue]: number[][][]): Uint8Array {
  return Uint8Array.from(
    red.flatMap((row, y) => row.flatMap((_, x) => [red[y][x], green[y][x], blue[y][x]])),
  );
}

async function run(backend: Backend, golden: Golden, weightBytes: Uint8Array) {
  const { config: c } = golden;
  const config = parseConfig({
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
  });
  const weights = await openWeights(memoryFiles({ "model.safetensors": weightBytes }), config);
  const vision = await loadVision(backend, weights);
  const decoder = await loadDecoder(backend, weights, "hf");
  const pause = () => Promise.resolve();
  const difference = (a: ArrayLike<number>, b: ArrayLike<number>) => {
    assert.equal(a.length, b.length);
    return Array.from(a, (it, i) => Math.abs(it - b[i])).reduce(
      (max, it) => it > max || Number.isNaN(it) ? it : max,
      0,
    );
  };

  const ids = golden.ids_after_images;
  const imageRows = golden.images_u8.length * vision.imageTokens;
  const prefix = backend.tensor(imageRows + ids.length, golden.hidden);
  for (const [i, picture] of golden.images_u8.entries()) {
    const data = normalise(interleaved(picture), config.imageMean, config.imageStd);
    await vision.encode(
      backend.slice(prefix, i * vision.imageTokens, vision.imageTokens),
      { size: 28, data },
      pause,
    );
  }
  const features = difference(
    await backend.read(backend.slice(prefix, 0, 1)),
    golden.image_features_first_row,
  );
  const cache = decoder.cache(prefix.rows + golden.greedy.length);
  let logits = await decoder.prefill(cache, prefix, ids, pause);
  let worst = difference(logits, golden.step_logits[0]);
  for (let step = 1; step < golden.greedy.length; step++) {
    logits = await decoder.step(cache, golden.greedy[step - 1], pause);
    worst = Math.max(worst, difference(logits, golden.step_logits[step]));
  }
  cache.free();
  return { worst, features };
}
