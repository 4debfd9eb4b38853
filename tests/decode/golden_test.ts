/**
 * Every logit of the small random models against transformers 5.18 in float32 (tests/golden/tiny): vision, projector,
 * prefix-LM prefill and eight steps, one and two pictures, PaliGemma 1 and 2 with its caps and windows, on every backend.
 */

import assert from "node:assert/strict";
import type { Backend } from "../../lib/backend/backend.ts";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { loadDecoder } from "../../lib/decode/gemma.ts";
import { loadVision } from "../../lib/vision/siglip.ts";
import { parseConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { openSoftware } from "../backend/gpus.ts";
import { memoryFiles } from "../memory_files.ts";
import { type Golden, goldenConfig, run, worst } from "./walk.ts";

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
        const backend = create();
        const config = parseConfig(goldenConfig(golden));
        const weights = await openWeights(memoryFiles({ "model.safetensors": weightBytes }), config);
        const [vision, decoder] = [
          await loadVision(backend, weights),
          await loadDecoder(backend, weights, "hf"),
        ];
        const { features, logits } = await run(backend, { vision, decoder }, config, golden);
        assert.ok(worst(features, golden.image_features_first_row) < LIMIT);
        logits.forEach((it, i) => assert.ok(worst(it, golden.step_logits[i]) < LIMIT, `step ${i}`));
      });
    }
  }
}
