/**
 * Every logit of the small random models against transformers 5.18 in float32, computed by onnxruntime-web from the
 * ONNX files this project writes: an oracle that shares no arithmetic with our backends.
 */

import assert from "node:assert/strict";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { parseConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { memoryFiles } from "../memory_files.ts";
import { loadOrt } from "../../functions/ort.ts";
import { ortModel } from "./engine.ts";
import { type Golden, goldenConfig, run, worst } from "../decode/walk.ts";

const GOLDEN = new URL("../golden/tiny/", import.meta.url);
const LIMIT = 2e-4;

for (const family of ["pg1", "pg2"]) {
  const weightBytes = Deno.readFileSync(new URL(`${family}.safetensors`, GOLDEN));
  for (const images of [1, 2]) {
    Deno.test(`onnxruntime-web: logits of ${family} with ${images} picture(s) are the reference's within 2e-4`, async () => {
      const golden: Golden = JSON.parse(
        Deno.readTextFileSync(new URL(`${family}_${images}img.json`, GOLDEN)),
      );
      const config = parseConfig(goldenConfig(golden));
      const weights = await openWeights(memoryFiles({ "model.safetensors": weightBytes }), config);
      const backend = createReferenceBackend();
      const model = await ortModel(await loadOrt(), backend, weights, {
        vision: "f32",
        decoder: "f32",
        slidingWindow: "hf",
      });
      const { features, logits } = await run(backend, model, config, golden);
      assert.ok(worst(features, golden.image_features_first_row) < LIMIT);
      logits.forEach((step, i) => assert.ok(worst(step, golden.step_logits[i]) < LIMIT, `step ${i}`));
    });
  }
}
