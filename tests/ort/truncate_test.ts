import assert from "node:assert/strict";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { likelihoods } from "../../lib/decode/classify.ts";
import { loadDecoder } from "../../lib/decode/gemma.ts";
import { parseConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { memoryFiles } from "../memory_files.ts";
import { loadOrt } from "../../functions/ort.ts";
import { ortModel } from "./engine.ts";
import { type Golden, goldenConfig } from "../decode/walk.ts";

const GOLDEN = new URL("../golden/tiny/", import.meta.url);

Deno.test("onnxruntime-web: a truncated cache scores labels as the reference's branches do, within 2e-4", async () => {
  const golden: Golden = JSON.parse(Deno.readTextFileSync(new URL("pg2_1img.json", GOLDEN)));
  const config = parseConfig(goldenConfig(golden));
  const files = memoryFiles({ "model.safetensors": Deno.readFileSync(new URL("pg2.safetensors", GOLDEN)) });
  const weights = await openWeights(files, config);
  const backend = createReferenceBackend();
  const { decoder } = await ortModel(await loadOrt(), backend, weights, { vision: "f32", decoder: "f32" });
  const ids = [config.bosId, 30, 31];
  const answers = [[40, 41, 42], [40], [50, 41], [40, 43], []];
  const score = async (of: typeof decoder) => {
    const prefix = backend.tensor(4 + ids.length, config.decoder.width);
    backend.write(prefix, Float32Array.from({ length: prefix.rows * prefix.cols }, (_, i) => Math.sin(i)));
    return await likelihoods(of, config, { prefix, ids, answers }, () => Promise.resolve());
  };
  const found = await score(decoder);
  const expected = await score(await loadDecoder(backend, weights));
  found.forEach((it, i) =>
    assert.ok(Math.abs(it - expected[i]) < 2e-4, `${answers[i]}: ${it} ${expected[i]}`)
  );
});
