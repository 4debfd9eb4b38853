/**
 * Models with the true head widths (SigLIP 72, Gemma 256) and random weights: our WASM kernels against onnxruntime-web,
 * in f32 and with the same quantised weights.
 */

import assert from "node:assert/strict";
import type { Tensor } from "../../lib/backend/backend.ts";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { dequantize } from "../../lib/backend/layout.ts";
import type { Decoder } from "../../lib/decode/decoder.ts";
import { loadDecoder } from "../../lib/decode/gemma.ts";
import { loadVision } from "../../lib/vision/siglip.ts";
import type { Weights } from "../../lib/weights/load.ts";
import type { OrtTensor } from "../../lib/weights/onnx.ts";
import type { OnnxOptions } from "../../models/export_onnx.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { loadOrt } from "../../functions/ort.ts";
import { ortModel } from "./engine.ts";
import { configOf, randomWeights, type Sizes } from "./random_weights.ts";
import { relative, run, worst } from "../decode/walk.ts";

const SIZES: Record<string, Sizes> = {
  gemma: {
    family: "gemma",
    imageSize: 56,
    vision: { layers: 1, mlp: 200 },
    decoder: { layers: 2, width: 256, mlp: 500, vocab: 400, context: 64 },
  },
  gemma2: {
    family: "gemma2",
    imageSize: 56,
    vision: { layers: 1, mlp: 200 },
    decoder: { layers: 2, width: 256, mlp: 500, vocab: 400, context: 64 },
  },
};
const QUESTION = {
  images_u8: [planes(56)],
  ids_after_images: [2, 17, 301, 45, 108],
  greedy: [5, 99, 250, 7],
};

for (const [family, sizes] of Object.entries(SIZES)) {
  Deno.test(`${family}, true head widths: wasm and onnxruntime-web agree within 2e-5 in f32`, async () => {
    const weights = randomWeights(configOf(sizes));
    const [ours, theirs] = [await wasm(weights), await ort(weights, { vision: "f32", decoder: "f32" })];
    assert.ok(worst(ours.features, theirs.features) < 2e-5, "image features");
    ours.logits.forEach((it, i) => assert.ok(worst(it, theirs.logits[i]) < 2e-5, `step ${i}`));
    assert.ok(Math.max(...theirs.logits[0]) > 1, "logits are of a size at which a difference shows");
  });

  Deno.test(`${family}, int4: onnxruntime-web's keys are those of the dequantised weights within 2e-5`, async () => {
    const weights = randomWeights(configOf(sizes));
    const exact = await keys(rounded(weights, "int4-g32-p8"));
    const { cacheKeys, logits } = await ort(weights, { vision: "int8", decoder: "int4" });
    assert.ok(worst(cacheKeys, exact.keys) < 2e-5);
    // The head is int8 with dynamic activations.
    const error = relative(logits.at(-1)!, exact.logits);
    assert.ok(error < 0.015, `logits differ by ${error} of their size`);
  });

  Deno.test(`${family}, int8: onnxruntime-web's answer is that of the dequantised weights within 3 %`, async () => {
    const weights = randomWeights(configOf(sizes));
    const exact = await keys(rounded(weights, "int8-p8-s4"));
    const { cacheKeys, logits } = await ort(weights, { vision: "int8", decoder: "int8" });
    const errors = [relative(cacheKeys, exact.keys), relative(logits.at(-1)!, exact.logits)];
    assert.ok(errors.every((it) => it < 0.03), `${errors}`);
    const unlike = relative(logits.at(-1)!, exact.logits.toReversed());
    assert.ok(unlike > 0.5, "the measure tells answers apart");
  });
}

Deno.test("a truncated cache answers as if what was cut off had never been there", async () => {
  const weights = randomWeights(configOf(SIZES.gemma2));
  const backend = createReferenceBackend();
  const options = { vision: "f32", decoder: "f32" } as const;
  const { decoder } = await ortModel(await loadOrt(), backend, weights, options);
  const pause = () => Promise.resolve();
  const ids = QUESTION.ids_after_images;
  const cache = decoder.cache(ids.length + 3);
  await decoder.prefill(cache, backend.tensor(ids.length, weights.config.decoder.width), ids, pause);
  const once = await decoder.step(cache, 5, pause);
  const twice = await decoder.step(cache, 250, pause);
  cache.truncate(ids.length);
  await decoder.step(cache, 99, pause);
  cache.truncate(ids.length);
  assert.deepEqual(await decoder.step(cache, 5, pause), once);
  assert.deepEqual(await decoder.step(cache, 250, pause), twice);
  for (const length of [ids.length - 1, ids.length + 3]) {
    assert.throws(() => cache.truncate(length), new RegExp(`expected 5 to 7 positions, found ${length}`));
  }
});

Deno.test("int8 vision: onnxruntime-web's image tokens are those of the dequantised weights within 3 %", async () => {
  const weights = randomWeights(configOf(SIZES.gemma));
  const { features } = await ort(weights, { vision: "int8", decoder: "f32" });
  const exact = await wasm(rounded(weights, "int8-p8-s4"));
  const error = relative(features, exact.features);
  assert.ok(error > 0 && error < 0.03, `${error}`);
});

/** Our own walk in f32. */
async function wasm(weights: Weights) {
  const backend = createWasmBackend({ simd, relaxed });
  const f32 = changed(weights, (name) => weights.matrix(name, "f32"));
  const model = { vision: await loadVision(backend, f32), decoder: await loadDecoder(backend, f32) };
  return await run(backend, model, weights.config, QUESTION);
}

/** The text alone through plain loops: last keys [S, K·C] and logits. */
async function keys(weights: Weights) {
  const backend = createReferenceBackend();
  const decoder = await loadDecoder(backend, weights);
  const { cache, logits } = await text(decoder, (rows) => backend.tensor(rows, weights.config.decoder.width));
  const last = (cache as unknown as { keys: never[] }).keys.at(-1)!;
  return { keys: await backend.read(backend.slice(last, 0, cache.length)), logits };
}

async function ort(weights: Weights, options: OnnxOptions) {
  const backend = createReferenceBackend();
  const model = await ortModel(await loadOrt(), backend, weights, options);
  const { width, layers, kvHeads, headDim } = weights.config.decoder;
  const { cache, logits } = await text(model.decoder, (rows) => backend.tensor(rows, width));
  const { past } = cache as unknown as { past: Record<string, OrtTensor> };
  const key = past[`past_key_values.${layers - 1}.key`].data as Float32Array; // [K, S, C]
  const cacheKeys = Float32Array.from(key, (_, i) => {
    const [s, h, c] = [Math.floor(i / (kvHeads * headDim)), Math.floor(i / headDim) % kvHeads, i % headDim];
    return key[(h * cache.length + s) * headDim + c];
  });
  const whole = await run(backend, model, weights.config, QUESTION);
  return { ...whole, logits: options.decoder === "f32" ? whole.logits : [logits], cacheKeys };
}

/** A prefix without pictures and two steps. */
async function text(decoder: Decoder, tensor: (rows: number) => Tensor) {
  const ids = QUESTION.ids_after_images;
  const pause = () => Promise.resolve();
  const cache = decoder.cache(ids.length + 2);
  await decoder.prefill(cache, tensor(ids.length), ids, pause);
  await decoder.step(cache, 5, pause);
  return { cache, logits: await decoder.step(cache, 250, pause) };
}

/** Weights as they are after rounding, in f32: vision and embedding to int8, the decoder to `scheme`. */
function rounded(weights: Weights, scheme: "int8-p8-s4" | "int4-g32-p8"): Weights {
  return changed(weights, async (name) => {
    const layer = name.startsWith("language_model.model.layers.");
    const matrix = await weights.matrix(
      name,
      /patch_embedding/.test(name) ? "f32" : layer ? scheme : "int8-p8-s4",
    );
    return { scheme: "f32", n: matrix.n, k: matrix.k, data: dequantize(matrix) };
  });
}

function changed(weights: Weights, matrix: Weights["matrix"]): Weights {
  const out: Weights = { ...weights, matrix, gather: () => Promise.resolve(out) };
  return out;
}

/** A picture [3, size, size] with something in it. */
function planes(size: number): number[][][] {
  const axis = Array.from({ length: size }, (_, i) => i);
  return [3, 5, 7].map((it) => axis.map((y) => axis.map((x) => (x * it + y * y) % 256)));
}
